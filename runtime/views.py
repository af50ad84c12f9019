"""Curved sagittal and coronal views of a scan: the grey values, and each vertebra's mask, on square pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.curve import SpineCurve, extent_ras_mm, spine_curve
from runtime.volume import Grid, Volume

Float64 = npt.NDArray[np.float64]

ABOVE_BELOW_MM = 50.0
FRONT_MM, BACK_MM, SIDE_MM = 75.0, 85.0, 75.0
"""How much is shown around the outer centres."""
SLAB_MM = 1.5
"""Each pixel is the mean of three samples, this far apart across the view."""
OUTSIDE_HU = -2000.0


@dataclass(frozen=True, eq=False)
class View:
    """One curved view.

    Args:
        hu: (rows, columns) float32, mean HU of a thin slab; OUTSIDE_HU outside the scan.
        masks: label to (rows, columns) bool.
        top_mm: z of the upper edge, RAS+ mm.
        left_mm: y (sagittal) or x (coronal) of the left edge; it falls to the right, so anterior, or the patient's
            right, is on the left.
        pixels_per_mm: in both directions.
    """

    hu: npt.NDArray[np.float32]
    masks: dict[int, npt.NDArray[np.bool_]]
    top_mm: float
    left_mm: float
    pixels_per_mm: float

    def row_of(self, z_mm: float) -> float:
        """Row of a height."""
        return (self.top_mm - z_mm) * self.pixels_per_mm

    def column_of(self, position_mm: float) -> float:
        """Column of a y (sagittal) or x (coronal)."""
        return (self.left_mm - position_mm) * self.pixels_per_mm


def curved_views(
    volume: Volume,
    labels: npt.NDArray[np.uint8],
    centres_ras_mm: Sequence[tuple[float, float, float]],
    *,
    max_height: int,
    max_width: int,
) -> tuple[View, View]:
    """The sagittal and the coronal view along the spine, both at the same scale and heights.

    The sagittal view follows the spine to the side, so that every body is cut in its middle, and keeps its front-back
    curvature; the coronal view follows it front to back. Rows are true heights in both. With fewer than two centres
    both are plain slices.

    Args:
        volume: the scan.
        labels: (z, y, x) uint8 on its grid.
        centres_ras_mm: of the vertebrae.
        max_height: pixels of a view.
        max_width: pixels of both views together.
    """
    curve = spine_curve(centres_ras_mm, volume.grid)
    low, high = _shown_box(curve, centres_ras_mm, volume.grid)
    width_mm, depth_mm, height_mm = high - low
    scale = min(max_height / height_mm, max_width / (width_mm + depth_mm))
    z_mm = _pixel_centres(high[2], height_mm, scale)[:, None]
    y_mm = _pixel_centres(high[1], depth_mm, scale)[None, :]
    x_mm = _pixel_centres(high[0], width_mm, scale)[None, :]
    sagittal = np.stack(np.broadcast_arrays(curve.x_at(z_mm), y_mm, z_mm), axis=-1)
    coronal = np.stack(np.broadcast_arrays(x_mm, curve.y_at(z_mm), z_mm), axis=-1)
    return (
        _view(volume, labels, sagittal, across=0, top_mm=high[2], left_mm=high[1], scale=scale),
        _view(volume, labels, coronal, across=1, top_mm=high[2], left_mm=high[0], scale=scale),
    )


def _shown_box(
    curve: SpineCurve, centres_ras_mm: Sequence[tuple[float, float, float]], grid: Grid
) -> tuple[Float64, Float64]:
    """Lowest and highest x, y, z to show: around the vertebrae, within the scan; all of it where there are none."""
    low, high = extent_ras_mm(grid)
    if len(centres_ras_mm) == 0:
        return low, high
    heights_mm = [centre[2] for centre in centres_ras_mm]
    bottom, top = min(heights_mm) - ABOVE_BELOW_MM, max(heights_mm) + ABOVE_BELOW_MM
    shown = (curve.z_mm >= bottom) & (curve.z_mm <= top)
    x_mm, y_mm = curve.x_mm[shown], curve.y_mm[shown]
    wanted_low = np.array([x_mm.min() - SIDE_MM, y_mm.min() - BACK_MM, bottom])
    wanted_high = np.array([x_mm.max() + SIDE_MM, y_mm.max() + FRONT_MM, top])
    return np.maximum(low, np.minimum(wanted_low, high - 1.0)), np.minimum(high, np.maximum(wanted_high, low + 1.0))


def _pixel_centres(first_edge_mm: float, length_mm: float, pixels_per_mm: float) -> Float64:
    count = max(1, round(length_mm * pixels_per_mm))
    return first_edge_mm - (np.arange(count, dtype=np.float64) + 0.5) / pixels_per_mm


def _view(
    volume: Volume,
    labels: npt.NDArray[np.uint8],
    points_ras_mm: Float64,
    *,
    across: int,
    top_mm: float,
    left_mm: float,
    scale: float,
) -> View:
    """Sample scan and labels at (rows, columns, 3) points; the slab extends along the RAS axis ``across``."""
    hu = np.zeros(points_ras_mm.shape[:2], np.float32)
    for offset_mm in (-SLAB_MM, 0.0, SLAB_MM):
        shifted = points_ras_mm.copy()
        shifted[..., across] += offset_mm
        hu += sum(weight * voxel for voxel, weight in _corners(volume.array, volume.grid, shifted))
    hu /= 3.0
    index = volume.grid.to_index_zyx(points_ras_mm)
    inside = ((index >= -0.5) & (index <= np.array(volume.grid.shape_zyx) - 0.5)).all(axis=-1)
    hu[~inside] = OUTSIDE_HU
    corners = list(_corners(labels, volume.grid, points_ras_mm))
    present = np.unique(np.stack([voxel for voxel, _ in corners]))
    masks = {
        int(label): (sum(weight * (voxel == label) for voxel, weight in corners) >= 0.5) & inside
        for label in present[present > 0]
    }
    return View(hu, {k: m for k, m in masks.items() if m.any()}, float(top_mm), float(left_mm), float(scale))


def _corners(
    array: np.ndarray, grid: Grid, points_ras_mm: Float64
) -> Iterator[tuple[np.ndarray, npt.NDArray[np.float32]]]:
    """The eight voxels around each point, each with its trilinear weight; beyond the edge the outer voxel goes on."""
    shape = np.array(grid.shape_zyx)
    index = np.clip(grid.to_index_zyx(points_ras_mm), 0, shape - 1)
    low = np.minimum(index.astype(np.intp), np.maximum(shape - 2, 0))
    upper = np.ascontiguousarray(np.moveaxis(index - low, -1, 0), dtype=np.float32)
    weights = np.stack([1.0 - upper, upper], axis=1)
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    steps = np.where(shape > 1, strides, 0)
    flat, first = np.ascontiguousarray(array).reshape(-1), low @ strides
    for z, y, x in np.ndindex(2, 2, 2):
        yield flat[first + int(steps @ (z, y, x))], weights[0, z] * weights[1, y] * weights[2, x]
