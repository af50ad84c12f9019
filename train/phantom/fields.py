"""Clinical fields of view: the grids on which patients are scanned."""

from __future__ import annotations

import numpy as np

from runtime.errors import InputError
from runtime.volume import Grid
from train.phantom.anatomy import Anatomy

FIELDS: dict[str, tuple[str, str, float, float, float]] = {
    "whole": ("C1", "S5", 0.15, 60.0, 1.05),
    "chest": ("C7", "L1", 0.22, 35.0, 1.05),
    "abdomen": ("T9", "S5", 0.22, 35.0, 1.05),
    "lumbar": ("T11", "S3", 0.15, 25.0, 0.6),
    "pelvis": ("L3", "S9", 0.08, 25.0, 1.05),
    "neck": ("C1", "T4", 0.06, 30.0, 0.6),
    "spine": ("T1", "S3", 0.06, 25.0, 0.5),
    "small": ("", "", 0.06, 20.0, 0.3),
    "narrow": ("T10", "S3", 0.05, 25.0, 0.32),
    "heart": ("T4", "T12", 0.04, 20.0, 0.6),
    "prostate": ("L5", "S9", 0.04, 15.0, 0.65),
}
"""Name: first and last level, probability, margin in mm, width relative to the trunk."""
_FORWARD_MM = {"heart": 45.0, "prostate": 30.0}
"""By how much the middle of a narrow field lies before the spine; the spine may be at its very edge."""

_BELOW = {"S3": -60.0, "S5": -120.0, "S9": -170.0}
MOST_VOXELS = 16_000_000
TOO_MANY_VOXELS = 400_000_000


def random_scan_grid(
    anatomy: Anatomy, rng: np.random.Generator, *, spacing_mm: float | None = None, field: str | None = None
) -> Grid:
    """A plausible clinical grid: axial slices, one of the fields of view, ``spacing_mm`` isotropic or drawn.

    Args:
        field: one of ``FIELDS``; drawn when None. Raises ``KeyError`` for another name, ``InputError`` for more voxels
            than would fit into memory.
    """
    names = list(FIELDS)
    weights = np.array([FIELDS[n][2] for n in names])
    name = field or names[int(rng.choice(len(names), p=weights / weights.sum()))]
    top, bottom, _, margin, share = FIELDS[name]
    z_of = {v.level: float(anatomy.centre_ras_mm(v)[2]) for v in anatomy.vertebrae}
    levels = [v.level for v in anatomy.vertebrae]
    if name == "small":
        n = int(rng.integers(len(levels) - 3))
        top, bottom = levels[n], levels[n + int(rng.integers(1, 4))]
    low = anatomy.to_ras_mm((0.0, 0.0, _BELOW[bottom]))[2] if bottom in _BELOW else z_of.get(bottom, z_of["L1"])
    high = z_of.get(top, z_of["T10"])
    low, high = low - margin * rng.uniform(0.3, 1.2), high + margin * rng.uniform(0.3, 1.2)
    middle = _middle(anatomy, (low + high) / 2)
    half_x, half_y = anatomy.half_sizes_mm
    if share > 0.9:
        reach_x, reach_y = half_x * rng.uniform(0.85, 1.15), half_y * rng.uniform(0.95, 1.25)
        forward = anatomy.trunk_y_mm * 0.6
    else:
        reach_x = half_x * share * rng.uniform(0.8, 1.3)
        reach_y, forward = max(reach_x * rng.uniform(0.8, 1.1), 55.0), _FORWARD_MM.get(name, 0.0)
    centre = np.array([middle[0] + rng.uniform(-8, 8), middle[1] + forward + rng.uniform(-10, 10), (low + high) / 2])
    extent = np.array([2 * reach_x, 2 * reach_y, high - low])
    spacing = _spacing(rng, extent, spacing_mm)
    shape = np.maximum(np.round(extent / spacing), 8).astype(int)
    if (voxels := int(np.prod(shape))) > TOO_MANY_VOXELS:
        raise InputError(f"{name} at {spacing_mm} mm has {voxels} voxels: choose a wider spacing or a smaller field.")
    turn = _small_turn(rng)
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[2]), int(shape[1]), int(shape[0])), affine)


def _middle(anatomy: Anatomy, z: float) -> np.ndarray:
    centres = np.array([anatomy.centre_ras_mm(v) for v in anatomy.vertebrae])[::-1]
    return np.array([np.interp(z, centres[:, 2], centres[:, n]) for n in range(3)])


def _spacing(rng: np.random.Generator, extent: np.ndarray, spacing_mm: float | None) -> np.ndarray:
    if spacing_mm is not None:
        return np.full(3, float(spacing_mm))
    plane = rng.uniform(0.7, 1.2)
    spacing = np.array([plane, plane, rng.choice([0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0])])
    if rng.random() < 0.3:
        spacing[:] = rng.uniform(0.9, 3.0)
    voxels = float(np.prod(extent / spacing))
    return spacing * max(1.0, voxels / MOST_VOXELS) ** (1 / 3)


def _small_turn(rng: np.random.Generator) -> np.ndarray:
    """Identity, or now and then a tilted gantry."""
    if rng.random() < 0.85:
        return np.eye(3)
    a = np.deg2rad(rng.uniform(-18, 18))
    return np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
