"""What data a run's weights come from: its own, and all that was seen by the weights that it began with."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from runtime.errors import VertscanError
from train.config import LocNetRun, Run, seen_by_start
from train.weights import run_in

log = logging.getLogger(__name__)


def place_of(name: str) -> Path | str:
    """What a name of data stands for: one folder is written in several ways, ``"phantoms"`` and ``""`` are none."""
    return name if name in ("phantoms", "") else Path(name)


def each_once(names: Iterable[str], *, but: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of data, each folder once and as it is written first, without those that ``but`` names."""
    left_out = {place_of(name) for name in but}
    first: dict[Path | str, str] = {}
    for name in names:
        first.setdefault(place_of(name), name)
    return tuple(name for place, name in first.items() if place not in left_out)


def data_seen(run: Run) -> tuple[str, ...]:
    """All data that a run's weights come from.

    That is what it is trained on, what it was trained on before it was resumed with other data, and what was seen by
    the weights that it began with and by its teacher.
    """
    return each_once((*run.data, *seen_before(run), *taught_on(run)))


def taught_on(run: Run) -> tuple[str, ...]:
    """All data that the weights of a run's teacher come from."""
    return run.distillation.data if isinstance(run, LocNetRun) else ()


def seen_before(run: Run, *, within: frozenset[Path] = frozenset()) -> tuple[str, ...]:
    """The run's ``data_before``; for what its start has seen and it does not say, what that run or bundle tells.

    Where that is not there any more, or tells nothing, the name that says so is left as it is.

    Args:
        run: the run.
        within: folders on the way to it: one that was overwritten by what started from it tells nothing of before.
    """
    unknown, folder = seen_by_start(run.loop.start_from), Path(run.loop.start_from).absolute()
    if unknown not in run.data_before or folder in within:
        return run.data_before
    try:
        start = run_in(folder, type(run).__name__.removesuffix("Run").lower(), type(run))
    except VertscanError as error:
        log.warning("what %s was trained on is not known: %s", run.loop.start_from, error)
        return run.data_before
    told = (*start.data, *seen_before(start, within=within | {folder}), *taught_on(start))
    return each_once((*(name for name in run.data_before if name != unknown), *told))
