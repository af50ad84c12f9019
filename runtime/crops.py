"""Crops around points: where they lie, and a scan's Hounsfield units in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.kernels.threads import each_in_threads
from runtime.resample import resample_into
from runtime.volume import Grid, Volume


def crop_grid(
    centre_ras_mm: npt.ArrayLike,
    *,
    spacing_mm: float,
    shape_zyx: tuple[int, int, int],
    shift_ras_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Grid:
    """The isotropic grid along RAS+ around a point.

    Args:
        centre_ras_mm: (x, y, z); without a shift it lies at the fractional index ``(n - 1) / 2`` of every axis.
        spacing_mm: of the crop.
        shape_zyx: of the crop, voxels.
        shift_ras_mm: (x, y, z) from the point to the crop's middle.
    """
    middle = np.asarray(centre_ras_mm, np.float64) + shift_ras_mm
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = middle - spacing_mm * (np.array(shape_zyx[::-1]) - 1) / 2
    return Grid(shape_zyx, affine)


def mirrored(grid: Grid) -> Grid:
    """The same voxels' places, counted along x from the other end: an image sampled there is the mirror image."""
    turn = np.diag([-1.0, 1.0, 1.0, 1.0])
    turn[0, 3] = grid.shape_zyx[2] - 1
    return Grid(grid.shape_zyx, grid.affine_ras @ turn)


def extract_crops(volume: Volume, grids: Sequence[Grid], *, fill_hu: float = -1024.0) -> np.ndarray:
    """The scan's Hounsfield units on each grid: (n, z, y, x) float32, as :func:`runtime.resample.resample` gives them.

    Several are cut at once, each by one thread: a crop is too small to be shared out well.

    Raises:
        ValueError: the grids differ in shape.
    """
    shapes = {grid.shape_zyx for grid in grids}
    if len(shapes) > 1:
        raise ValueError(f"Crops of one batch need one shape; met {sorted(shapes)}.")
    out = np.empty((len(grids), *(shapes.pop() if shapes else (0, 0, 0))), np.float32)
    each_in_threads(lambda i: resample_into(out[i], volume, grids[i], fill_hu=fill_hu), range(len(grids)))
    return out
