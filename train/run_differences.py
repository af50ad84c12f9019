"""How two runs differ, in their images and in the samples that validate them too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime.bundle_json import to_json
from train.config import Run
from train.data_seen import place_of

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
        return [place_of(data) for data in run.data]
    return place_of(run.grades) if name == "grades" else getattr(run, name, None)
