"""Small grids and clean appearances for the phantom's tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runtime.volume import Grid
from train.phantom import Anatomy, Appearance, sample_appearance


def grid_around(centre_ras_mm: np.ndarray, shape_zyx: tuple[int, int, int], spacing_mm: float) -> Grid:
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = np.asarray(centre_ras_mm) - spacing_mm * (np.array(shape_zyx[::-1]) - 1) / 2
    return Grid(shape_zyx, affine)


def clean_appearance(seed: int = 0) -> Appearance:
    """No noise, shading, bend or cropped field, but blur, sharpening and thick slices."""
    drawn = sample_appearance(np.random.default_rng(seed))
    return replace(
        drawn, noise_hu=0.0, shading_hu=0.0, streak_hu=0.0, gamma=1.0, field_mm=0.0, ghost_mm=0.0, blur_mm=1.2,
        sharpen=0.5, slice_mm=5.0,
    )  # fmt: skip


def centre_of(anatomy: Anatomy, level: str) -> np.ndarray:
    return next(anatomy.centre_ras_mm(v) for v in anatomy.vertebrae if v.level == level)
