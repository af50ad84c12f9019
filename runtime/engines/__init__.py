"""Inference engines: one module per library behind one table, chosen once and never silently changed."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from runtime.engines import measured
from runtime.engines.base import EngineModule, Preflight, Session
from runtime.engines.checks import resolve_precision
from runtime.errors import EngineError

logger = logging.getLogger(__name__)

ENGINES: dict[str, str] = {
    "openvino": "runtime.engines.openvino_cpu",
    "tensorrt": "runtime.engines.tensorrt_gpu",
    "tensorrt-rtx": "runtime.engines.tensorrt_rtx_gpu",
    "onnxruntime-tensorrt": "runtime.engines.ort_tensorrt",
    "onnxruntime": "runtime.engines.ort",
    "triton": "runtime.engines.triton",
}
"""Every engine by name, fastest first among those that share a kind of device; a module is imported when asked for."""

ONLY_BY_NAME = frozenset({"triton"})
"""Engines that ``auto`` never takes nor speaks of: with them a scan leaves the machine."""

PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class EngineChoice:
    """The engine for a run.

    Args:
        module: what opens its sessions.
        name: key of the engine table.
        precision: what it will compute in; never ``"auto"``.
        device: GPU number; 0 on a processor.
        reason: one sentence: why it was chosen.
    """

    module: EngineModule
    name: str
    precision: str
    device: int
    reason: str


def open_session(choice: EngineChoice, model: Path, *, threads: int | None = None) -> Session:
    """Load an ONNX file with the chosen engine; ``threads`` is None for as many as the library finds best.

    Raises:
        EngineError: the engine can't load it.
    """
    return choice.module.open_session(
        model, precision=choice.precision, device=choice.device, threads=threads, reason=choice.reason
    )


def engine_module(name: str) -> EngineModule:
    """The module behind an engine's name.

    Raises:
        EngineError: there is no such engine; the message lists those there are.
    """
    if name not in ENGINES:
        raise EngineError(f"There is no engine {name!r}; there are auto, {', '.join(ENGINES)}.")
    return cast(EngineModule, importlib.import_module(ENGINES[name]))


def preflights(*, device: int = 0) -> dict[str, Preflight]:
    """What every engine's preflight says on this machine."""
    return {name: engine_module(name).preflight(device=device) for name in ENGINES}


def select_engine(
    name: str = "auto",
    *,
    precision: str = "auto",
    device: int = 0,
    verification: bool = False,
    verified: Collection[str] = (),
) -> EngineChoice:
    """Choose the engine for a run, and say so in one log line.

    Args:
        name: key of the engine table, which is then used or refused, or ``"auto"``: of the engines that can run here
            in that precision one on a GPU before one on the processor, then the first in the table.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"``, or ``"auto"`` for the first of the engine's on this
            processor that is ``verified``, else for the engine's own first choice.
        device: GPU number.
        verification: whether an engine that is named may compute in what serves comparisons alone.
        verified: the precisions in which the bundle's networks were seen to say on whole scans what torch says
            (``BundleSpec.verified``).

    Raises:
        EngineError: no such engine or precision, the named engine can't run, or none can.
    """
    if precision not in ("auto", *PRECISIONS):
        raise EngineError(f"There is no precision {precision!r}; there are auto, {', '.join(PRECISIONS)}.")
    if name == "auto":
        name, found, why = _fastest(precision, device)
    else:
        found = engine_module(name).preflight(device=device)
        if not found.available:
            raise EngineError(f"The engine {name} cannot be used: {found.reason}.")
        why = "asked for by name"
    resolved = resolve_precision(precision, found, engine=name, verification=verification, verified=verified)
    if precision == "auto" and resolved != found.precisions[0]:
        why += f"; in {resolved}, in which the bundle was verified"
    logger.info("engine %s %s on %s in %s: %s", name, found.version, found.device, resolved, why)
    return EngineChoice(engine_module(name), name, resolved, device, why)


def measured_choice(choice: EngineChoice, networks: measured.Networks, *, threads: int | None = None) -> EngineChoice:
    """What ``auto`` chose, or the other engine on the processor that was measured to be faster for these networks.

    Args:
        choice: of ``select_engine`` left to choose; one on a GPU stays as it is.
        networks: that a run spends its time in, with the shape of their windows and crops.
        threads: as for ``open_session``.

    Raises:
        EngineError: the chosen engine can't load or run them.
    """
    can = _able(_found(choice.device), choice.precision)
    if can[choice.name].device != "CPU":
        return choice
    names = [choice.name, *(name for name in can if name != choice.name and can[name].device == "CPU")]
    choices = {f"{name} {can[name].version}": replace(choice, name=name, module=engine_module(name)) for name in names}
    openers = {said: partial(open_session, one, threads=threads) for said, one in choices.items()}
    machine = {"precision": choice.precision, **measured.this_machine(threads)}
    best = choices[measured.fastest(openers, networks, machine=machine)]
    if best.name == choice.name:
        return choice
    why = f"measured to be faster on this machine than {choice.name}, the usual choice"
    logger.info("engine %s in its place: %s", best.name, why)
    return replace(best, reason=why)


def _fastest(precision: str, device: int) -> tuple[str, Preflight, str]:
    found = _found(device)
    can = _able(found, precision)
    if not can:
        said = "; ".join(f"{name}: {one.reason}" for name, one in found.items())
        wish = "" if precision == "auto" else f" in {precision}"
        raise EngineError(f"No engine can run here{wish}. {said}.")
    on_gpu = [name for name in can if can[name].device != "CPU"]
    best = (on_gpu or list(can))[0]
    left_out = [name for name in found if name not in can]
    kind = "GPU" if on_gpu else "CPU"
    why = f"fastest {kind} engine of those that can run here ({', '.join(can)})"
    return best, can[best], why + (f"; not possible: {', '.join(left_out)}" if left_out else "")


def _found(device: int) -> dict[str, Preflight]:
    """What the preflights of the engines say that ``auto`` may take."""
    return {name: engine_module(name).preflight(device=device) for name in ENGINES if name not in ONLY_BY_NAME}


def _able(found: Mapping[str, Preflight], precision: str) -> dict[str, Preflight]:
    """Those that can run here in that precision, in the order of the table."""
    return {name: one for name, one in found.items() if one.available and precision in ("auto", *one.precisions)}
