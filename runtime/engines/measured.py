"""Which of a processor's engines is fastest on this machine: measured when networks are first used, and remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from runtime.cache import user_cache_folder, write_whole
from runtime.engines.base import Session
from runtime.engines.checks import usable_cores
from runtime.errors import EngineError, OutOfMemoryError

logger = logging.getLogger(__name__)

MARGIN = 0.67
"""The time, as a share of the first engine's, another must stay under to be taken in its place, by the clock and of
processors: less may be noise, and machines of one kind should choose alike, since engines round differently. Beside
other work the clock alone once preferred an engine that is a third slower."""

_RUNS = 3
Seconds = tuple[float, float]
"""By the clock, and of processors."""
Networks = Mapping[Path, Sequence[int]]
"""ONNX files, and the shape (z, y, x) of what each is run on."""
_FORMAT = 4
"""To be raised when an engine makes something else of a network: times that were taken before are not used then."""


def fastest(
    openers: Mapping[str, Callable[[Path], Session]],
    networks: Networks,
    *,
    machine: Mapping[str, Any],
    folder: Path | None = None,
) -> str:
    """The name of the engine to run networks with, timed on one input for each.

    Args:
        openers: what opens a network with each engine, by a name that says its version and precision; the first is
            taken unless another is faster by the margin.
        networks: that a run spends its time in; times are remembered for their content.
        machine: whatever else a time depends on.
        folder: where times are remembered; None for the user's cache. Where it can't be written, every start measures.

    Raises:
        EngineError: the first engine fails. Others that fail are left out.
    """
    if len(openers) == 1:
        return next(iter(openers))
    inputs = [(hashlib.sha256(model.read_bytes()).hexdigest(), list(shape)) for model, shape in networks.items()]
    key = [_FORMAT, inputs, list(openers), dict(machine)]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    place = (folder or user_cache_folder("engine-times")) / f"{name}.json"
    seconds = _remembered(place, openers)
    if seconds is None:
        seconds = _measured(openers, networks)
        _remember(place, seconds)
    first = next(iter(openers))
    quicker = [name for name in seconds if _clearly_less(seconds[name], seconds[first])]
    return min(quicker, key=lambda name: seconds[name]) if quicker else first


def _clearly_less(one: Seconds, other: Seconds) -> bool:
    return all(mine < MARGIN * theirs for mine, theirs in zip(one, other, strict=True))


def this_machine(threads: int | None) -> dict[str, Any]:
    """What the pace of an engine depends on besides its version: the kind of processor and how much of it is used."""
    import llvmlite.binding

    return {"processor": llvmlite.binding.get_host_cpu_name(), "cores": usable_cores(), "threads": threads}


def _measured(openers: Mapping[str, Callable[[Path], Session]], networks: Networks) -> dict[str, Seconds]:
    """What each engine takes for an input of each network, at best; they run in turns, so that what else a machine does
    meets all."""
    images = [np.zeros((1, 1, *shape), np.float32) for shape in networks.values()]
    with ExitStack() as stack:
        opened: dict[str, list[Session]] = {}
        for name, open_session in openers.items():
            try:
                sessions = [stack.enter_context(open_session(model)) for model in networks]
                _run(sessions, images)
                opened[name] = sessions
            except (EngineError, OutOfMemoryError) as error:
                if not opened:
                    raise
                logger.info("%s is left out of the choice of an engine: %s", name, error)
        turns = [{name: _seconds(sessions, images) for name, sessions in opened.items()} for _ in range(_RUNS)]
    seconds = {name: (min(t[name][0] for t in turns), min(t[name][1] for t in turns)) for name in opened}
    said = ", ".join(f"{name} {wall:.3f} s ({cpu:.3f} s of processors)" for name, (wall, cpu) in seconds.items())
    logger.info("measured once on this machine, an input of each network: %s", said)
    return seconds


def _run(sessions: Sequence[Session], images: Sequence[np.ndarray]) -> None:
    for session, image in zip(sessions, images, strict=True):
        session(image)


def _seconds(sessions: Sequence[Session], images: Sequence[np.ndarray]) -> Seconds:
    start, cpu_start = time.perf_counter(), time.process_time()
    _run(sessions, images)
    return time.perf_counter() - start, time.process_time() - cpu_start


def _remembered(place: Path, openers: Mapping[str, Any]) -> dict[str, Seconds] | None:
    """Times that were measured before; None where there are none, or something else lies there."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        seconds = {str(name): (float(wall), float(cpu)) for name, (wall, cpu) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    known = next(iter(openers)) in seconds and set(seconds) <= set(openers)
    return seconds if known and all(min(pair) > 0 for pair in seconds.values()) else None


def _remember(place: Path, seconds: Mapping[str, Seconds]) -> None:
    try:
        write_whole(place, json.dumps(seconds, indent=2).encode())
    except OSError as error:
        logger.info("engines are timed at every start: %s can't be written (%s)", place.parent, error.strerror)
