"""Curved sagittal and coronal views of a scan: the grey values, and each vertebra's mask, on square pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from runtime.curve import SpineCurve, extent_ras_mm, spine_curve
from runtime.kernels.threads import run_slabs
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
    label_count: int,
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
        label_count: masks of the labels 1..label_count are given.
        max_height: pixels of a view.
        max_width: pixels of both views together.
    """
    curve = spine_curve(centres_ras_mm, volume.grid)
    low, high = _shown_box(curve, centres_ras_mm, volume.grid)
    width_mm, depth_mm, height_mm = high - low
    scale = min(max_height / height_mm, max_width / (width_mm + depth_mm))
    z_mm = _pixel_centres(high[2], height_mm, scale)
    y_mm = _pixel_centres(high[1], depth_mm, scale)
    x_mm = _pixel_centres(high[0], width_mm, scale)
    sides = (curve.x_at(z_mm), y_mm, True, high[1]), (curve.y_at(z_mm), x_mm, False, high[0])
    sagittal, coronal = (
        _view(
            volume,
            labels,
            along_mm,
            z_mm,
            columns_mm,
            label_count=label_count,
            is_sagittal=is_sagittal,
            edges_mm=(high[2], left_mm),
            scale=scale,
        )
        for along_mm, columns_mm, is_sagittal, left_mm in sides
    )
    return sagittal, coronal


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
    along_mm: Float64,
    z_mm: Float64,
    columns_mm: Float64,
    *,
    label_count: int,
    is_sagittal: bool,
    edges_mm: tuple[float, float],
    scale: float,
) -> View:
    """Sample scan and labels on the surface that runs through ``along_mm`` (x of a sagittal view, else y) at ``z_mm``.

    Args:
        volume: the scan.
        labels: (z, y, x) uint8 on its grid.
        along_mm: (rows,) RAS+ mm.
        z_mm: (rows,) RAS+ mm.
        columns_mm: (columns,) y of a sagittal view, x of a coronal one, RAS+ mm.
        label_count: as above.
        is_sagittal: which of the two; the slab extends across it.
        edges_mm: the view's upper and left edge.
        scale: pixels per mm.
    """
    hu = np.empty((len(z_mm), len(columns_mm)), np.float32)
    masks = np.zeros((label_count + 1, *hu.shape), np.bool_)
    fill = _filler(volume, labels, along_mm, z_mm, columns_mm, is_sagittal=is_sagittal)
    run_slabs(lambda first, last: fill(hu, masks, first, last), len(hu))
    met = {label: mask for label, mask in enumerate(masks) if mask.any()}
    return View(hu, met, float(edges_mm[0]), float(edges_mm[1]), float(scale))


def _filler(
    volume: Volume,
    labels: npt.NDArray[np.uint8],
    along_mm: Float64,
    z_mm: Float64,
    columns_mm: Float64,
    *,
    is_sagittal: bool,
) -> Callable[[npt.NDArray[np.float32], npt.NDArray[np.bool_], int, int], None]:
    """What fills the rows ``first`` to ``last`` of a view's grey values and masks; arguments as of :func:`_view`."""
    from runtime.kernels.views import view_rows, view_rows_aligned

    inverse, origin = np.linalg.inv(volume.grid.affine_ras[:3, :3]), volume.grid.affine_ras[:3, 3]
    offsets_mm, outside = np.array([-SLAB_MM, 0.0, SLAB_MM]), np.float32(OUTSIDE_HU)
    if not _runs_along_patient(inverse):
        surface = (along_mm, z_mm, columns_mm, is_sagittal, offsets_mm, outside)
        return partial(view_rows, volume.array, labels, inverse, origin, *surface)
    patient_axes = (2, 0, 1) if is_sagittal else (2, 1, 0)  # of x, y, z: the view's heights, across it, its columns
    index_axes = [int(np.flatnonzero(inverse[:, axis])[0]) for axis in patient_axes]  # of the index x, y, z
    z_at, across_at, columns_at = (
        inverse[index, axis] * (mm - origin[axis])
        for index, axis, mm in zip(index_axes, patient_axes, (z_mm, along_mm, columns_mm), strict=True)
    )
    array_axes = [2 - index for index in index_axes]
    scan = (volume.array.transpose(array_axes), labels.transpose(array_axes))
    offsets_voxels = offsets_mm * inverse[index_axes[1], patient_axes[1]]
    return partial(view_rows_aligned, *scan, z_at, across_at, columns_at, offsets_voxels, outside)


def _runs_along_patient(inverse: np.ndarray) -> bool:
    """Whether each of the patient's axes changes one index alone (3, 3); what rounding leaves elsewhere is not zero."""
    return bool(((inverse != 0).sum(axis=0) == 1).all())
