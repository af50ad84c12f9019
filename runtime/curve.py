"""Surfaces along the spine: where the pixels of curved sagittal and coronal views lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.volume import Grid

Float64 = npt.NDArray[np.float64]

SMOOTHING_MM = 6.0
"""Standard deviation of the Gaussian that rounds the corners of the line through the centres."""
STEP_MM = 1.0
"""Sampling of that line."""
TREND_MM = 30.0
"""How far beyond the outer centres the line goes on in its direction; then it goes straight up and down."""

OUTLIER_MM = 40.0
"""A centre this far to the side of its neighbours' median is on no spine; within two vertebrae even a severe
deformity moves less."""


@dataclass(frozen=True, eq=False)
class SpineCurve:
    """A smooth line along the spine: right-left and front-back position as functions of height.

    Args:
        z_mm: heights, rising, RAS+ mm.
        x_mm: RAS+ mm at these heights.
        y_mm: RAS+ mm at these heights.
    """

    z_mm: Float64
    x_mm: Float64
    y_mm: Float64

    def x_at(self, z_mm: Float64) -> Float64:
        """Right-left position (RAS+ mm) at heights."""
        return np.interp(z_mm, self.z_mm, self.x_mm)

    def y_at(self, z_mm: Float64) -> Float64:
        """Front-back position (RAS+ mm) at heights."""
        return np.interp(z_mm, self.z_mm, self.y_mm)


def extent_ras_mm(grid: Grid) -> tuple[Float64, Float64]:
    """Lowest and highest x, y, z of a scan, to the outer faces of its voxels, RAS+ mm."""
    ends = [(-0.5, n - 0.5) for n in grid.shape_zyx]
    corners = grid.to_ras_mm([[z, y, x] for z in ends[0] for y in ends[1] for x in ends[2]])
    return corners.min(axis=0), corners.max(axis=0)


def spine_curve(centres_ras_mm: npt.ArrayLike, grid: Grid) -> SpineCurve:
    """The line through the vertebral centres; straight up and down through one centre, or through the scan's middle.

    Args:
        centres_ras_mm: (n, 3), in any order, n may be 0.
        grid: of the scan; the line covers its whole height.
    """
    low, high = extent_ras_mm(grid)
    centres = np.asarray(centres_ras_mm, dtype=np.float64).reshape(-1, 3)
    if not len(centres):
        centres = ((low + high) / 2)[None]
    centres = _without_outliers(centres[np.argsort(centres[:, 2])])
    bottom, top = min(low[2], centres[0, 2]), max(high[2], centres[-1, 2])
    z_mm = np.arange(bottom - STEP_MM, top + 2 * STEP_MM, STEP_MM)
    if len(centres) < 2:
        return SpineCurve(z_mm, np.full_like(z_mm, centres[0, 0]), np.full_like(z_mm, centres[0, 1]))
    points = np.vstack([_beyond(centres[:3]), centres, _beyond(centres[:-4:-1])])
    return SpineCurve(
        z_mm, _smooth(np.interp(z_mm, points[:, 2], points[:, 0])), _smooth(np.interp(z_mm, points[:, 2], points[:, 1]))
    )


def _without_outliers(centres: Float64) -> Float64:
    """Centres, sorted by height, without those far from the median of their neighbours: a false one bends no spine."""
    near = [np.median(centres[max(0, i - 2) : i + 3, :2], axis=0) for i in range(len(centres))]
    kept = centres[np.abs(centres[:, :2] - near).max(axis=1) <= OUTLIER_MM]
    return kept if len(kept) else centres


def _beyond(outer: Float64) -> Float64:
    """The point that continues the line beyond its outer centre, the first of ``outer``; never more than 45 degrees."""
    end, inner = outer[0], outer[-1]
    rise = end[2] - inner[2]
    if abs(rise) < STEP_MM:
        return end
    slope = np.clip((end[:2] - inner[:2]) / rise, -1.0, 1.0)
    step = np.copysign(TREND_MM, rise)
    return np.array([*(end[:2] + slope * step), end[2] + step])


def _smooth(values: Float64) -> Float64:
    reach = int(np.ceil(3 * SMOOTHING_MM / STEP_MM))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * STEP_MM / SMOOTHING_MM) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), kernel / kernel.sum(), mode="valid")
