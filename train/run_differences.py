"""How two runs differ, in their images and validation samples too, and what data a run's weights come from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runtime.bundle_json import to_json
from runtime.errors import VertscanError
from train.config import LocNetRun, Run, seen_by_start
from train.weights import run_in

log = logging.getLogger(__name__)

_IMAGES = ("spacing_mm", "intensity", "sigma_voxels", "crop_shift_mm")
_VALIDATION = (
    "crop_shapes", "heatmap_threshold", "negative_fraction", "fractured_fraction", "narrow_field_fraction",
    "thick_slices_fraction", "dense_blood_fraction", "centre_jitter_mm", "class_counts", "sampling", "crops_per_scan",
    "negative_distance_mm", "data", "grades",
)  # fmt: skip
_VALIDATION_LOOP = ("seed", "batch", "validation_samples")


def differences(before: Run, after: Run) -> list[str]:
    """Each setting that is not the same in both, as ``"loop.steps from 3000 to 4000"``."""
    earlier, later = (_flat(json.loads(to_json(run))) for run in (before, after))
    return [
        f"{name} from {json.dumps(earlier.get(name))} to {json.dumps(later.get(name))}"
        for name in earlier | later
        if earlier.get(name) != later.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under ``key.subkey``, as ``override`` takes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def differences_in_images(one: Run, other: Run) -> list[str]:
    """Which settings of what a network sees and is to say differ between two runs: its weights belong to them."""
    return [name for name in _IMAGES if getattr(one, name, None) != getattr(other, name, None)]


def differences_in_validation(one: Run, other: Run) -> list[str]:
    """Which settings of the samples that validate differ between two runs: scores on others can't be compared.

    Args:
        one: a run as its folder tells it. Where it names no grades they don't count: earlier versions were given them
            and did not say so.
        other: the run that goes on with it.
    """
    names = [name for name in _VALIDATION if _as_compared(one, name) != _as_compared(other, name)]
    if not one.grades and "grades" in names:
        names.remove("grades")
    return names + [f"loop.{n}" for n in _VALIDATION_LOOP if getattr(one.loop, n) != getattr(other.loop, n)]


def _as_compared(run: Run, name: str) -> Any:
    if name == "data":
        return [_place(data) for data in run.data]
    return _place(run.grades) if name == "grades" else getattr(run, name, None)


def _place(name: str) -> Path | str:
    """What a name of data stands for: one folder is written in several ways, ``"phantoms"`` and ``""`` are none."""
    return name if name in ("phantoms", "") else Path(name)


def each_once(names: Iterable[str], *, but: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of data, each folder once and as it is written first, without those that ``but`` names."""
    left_out = {_place(name) for name in but}
    first: dict[Path | str, str] = {}
    for name in names:
        first.setdefault(_place(name), name)
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
