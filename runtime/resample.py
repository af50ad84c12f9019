"""Scans on other grids: anti-aliased, exact for oblique, sheared, flipped and permuted axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.kernels.threads import run_slabs
from runtime.volume import Grid, Volume

Float64 = npt.NDArray[np.float64]

_NO_REDUCTION_BELOW = 1.001
"""Source voxels per target step up to which trilinear interpolation alone is right."""
_EDGE = 1e-3
"""Slack, in source voxels, within which a point on the scan's very edge counts as inside."""


def working_grid(grid: Grid, spacing_mm: float) -> Grid:
    """The isotropic grid along RAS+ that covers a scan: the same one however the scan's axes are permuted or flipped.

    Args:
        grid: the scan's own; its extent reaches half a voxel beyond the outer voxels' centres.
        spacing_mm: of the result.

    Returns:
        A grid whose x index grows to the right, y anterior and z superior, centred on the box around the scan.
    """
    ends = [(-0.5, n - 0.5) for n in grid.shape_zyx]
    corners = grid.to_ras_mm([[z, y, x] for z in ends[0] for y in ends[1] for x in ends[2]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    counts = np.maximum(np.ceil((high - low) / spacing_mm - 1e-3).astype(int), 1)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = np.round((low + high) / 2 - spacing_mm * (counts - 1) / 2, 6)
    x, y, z = (int(n) for n in counts)
    return Grid((z, y, x), affine)


def index_map_zyx(source: Grid, target: Grid) -> Float64:
    """(3, 4) matrix from a target's voxel index (z, y, x, 1) to the source's fractional voxel index (z, y, x)."""
    matrix = np.linalg.inv(source.affine_ras) @ target.affine_ras
    return np.ascontiguousarray(np.hstack([matrix[2::-1, 2::-1], matrix[2::-1, 3:]]))


def is_aligned(matrix: Float64) -> bool:
    """Whether an :func:`index_map_zyx` leaves every axis by itself: neither turned, nor sheared, nor exchanged."""
    return not matrix[:, :3][~np.eye(3, dtype=bool)].any()


def resample(volume: Volume, target: Grid, *, fill_hu: float = -1024.0) -> np.ndarray:
    """The scan on another grid: (z, y, x) float32 HU.

    Where the target is coarser along a source axis, the scan's linear interpolation is first averaged over the target's
    step, in cells that lie on the target's voxels when the axes agree; then the rest is trilinear interpolation through
    the full affine. So the mean and linear ramps are kept. Only the source block around the target is read.

    Args:
        volume: int16 or float32 HU.
        target: any grid.
        fill_hu: for voxels whose centre is outside the scan's extent, which reaches half a voxel beyond the outer
            voxels' centres; within that half voxel the outer voxels' values go on.
    """
    out = np.empty(target.shape_zyx, np.float32)
    resample_into(out, volume, target, fill_hu=fill_hu)
    return out


def resample_into(out: np.ndarray, volume: Volume, target: Grid, *, fill_hu: float = -1024.0) -> None:
    """As :func:`resample`, written into ``out``: (z, y, x) float32, C-contiguous, of the target's shape."""
    plan = plan_resampling(volume.grid, target)
    if plan is None:
        out[...] = fill_hu
        return
    source = _block(volume.array, plan.axes) if plan.is_identity else _average(volume.array, plan.axes)
    _sample(source, plan.matrix, plan.low, plan.high, fill_hu, out)


@dataclass(frozen=True, eq=False)
class ResamplePlan:
    """How a scan is brought onto a grid: averaged over the cells of its axes, then sampled.

    Args:
        axes: along z, y and x of the scan.
        matrix: (3, 4) float64, the target's voxel index (z, y, x, 1) to the index in what the cells give.
        low: (3,) float64, such indices from which on the scan reaches.
        high: (3,) float64, and to where.
    """

    axes: tuple[AxisPlan, AxisPlan, AxisPlan]
    matrix: Float64
    low: Float64
    high: Float64

    @property
    def is_identity(self) -> bool:
        """Whether every cell is one voxel, so that there is nothing to average."""
        return all(axis.is_identity for axis in self.axes)

    @property
    def cells_zyx(self) -> tuple[int, int, int]:
        """Number of cells along each axis."""
        z, y, x = (len(axis.starts) for axis in self.axes)
        return z, y, x


def plan_resampling(source: Grid, target: Grid) -> ResamplePlan | None:
    """How a scan on the source grid is brought onto the target; None where the two have nothing in common."""
    matrix = index_map_zyx(source, target)
    sizes = np.array(source.shape_zyx)
    low_corner, high_corner = _bounds(matrix, target.shape_zyx)
    if (high_corner < -0.5 - _EDGE).any() or (low_corner > sizes - 0.5 + _EDGE).any():
        return None
    factors = np.linalg.norm(matrix[:, :3], axis=1)
    z, y, x = (
        _plan_axis(int(sizes[i]), low_corner[i], high_corner[i], anchor=matrix[i, 3], factor=factors[i])
        for i in range(3)
    )
    first, step = np.array([z.first, y.first, x.first]), np.array([z.step, y.step, x.step])
    inner = matrix / step[:, None]
    inner[:, 3] = (matrix[:, 3] - first) / step
    return ResamplePlan((z, y, x), inner, low=(-0.5 - _EDGE - first) / step, high=(sizes - 0.5 + _EDGE - first) / step)


def _bounds(matrix: Float64, shape_zyx: tuple[int, int, int]) -> tuple[Float64, Float64]:
    """Smallest and largest source index (z, y, x) that any of the target's voxel centres has."""
    spans = matrix[:, :3] * (np.array(shape_zyx) - 1)
    return matrix[:, 3] + np.minimum(spans, 0).sum(axis=1), matrix[:, 3] + np.maximum(spans, 0).sum(axis=1)


@dataclass(frozen=True, eq=False)
class AxisPlan:
    """How one source axis is reduced: cell k is centred at ``first + k * step`` (source index) and averages
    ``counts[k]`` voxels from ``starts[k]`` with ``weights[k]``, which sum to 1.
    """

    first: float
    step: float
    starts: np.ndarray
    counts: np.ndarray
    weights: np.ndarray

    @property
    def is_identity(self) -> bool:
        """Whether every cell is one voxel."""
        return self.step == 1.0 and self.weights.shape[1] == 1


def _plan_axis(size: int, low: float, high: float, *, anchor: float, factor: float) -> AxisPlan:
    """The cells that targets between source indices ``low`` and ``high`` need along an axis of ``size`` voxels.

    Args:
        size: of the source axis.
        low: smallest index asked for, may be outside.
        high: largest.
        anchor: source index of a target voxel; cells are centred on it, so that they match an aligned target.
        factor: source voxels per target step.
    """
    from runtime.kernels.sampling import fill_shares

    low, high = min(max(low, -0.5), size - 0.5), min(max(high, -0.5), size - 0.5)
    if factor <= _NO_REDUCTION_BELOW:
        begin = min(max(int(np.floor(low)), 0), size - 1)
        end = min(max(int(np.ceil(high)), begin), size - 1) + 1
        ones = np.ones(end - begin, np.int64)
        return AxisPlan(float(begin), 1.0, np.arange(begin, end), ones, ones[:, None].astype(np.float32))
    cells = np.arange(np.floor((low - anchor) / factor - 1e-6), np.ceil((high - anchor) / factor + 1e-6) + 1)
    centres = anchor + factor * cells
    left = np.maximum(centres - factor / 2, -0.5)
    right = np.minimum(centres + factor / 2, size - 0.5)
    kept = right - left > 1e-4 * factor
    left, right = left[kept], right[kept]
    starts = np.clip(np.floor(left + 1e-9).astype(np.int64), 0, size - 1)
    stops = np.clip(np.ceil(right - 1e-9).astype(np.int64) + 1, starts + 1, size)
    counts = stops - starts
    shares = np.zeros((len(counts), counts.max()))
    fill_shares(starts, counts, left, right, size, shares)
    weights = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return AxisPlan(float(centres[kept][0]), float(factor), starts, counts, weights)


def _block(array: np.ndarray, plans: tuple[AxisPlan, ...]) -> np.ndarray:
    """The source voxels of plans that reduce nothing: a view."""
    z, y, x = (slice(int(plan.starts[0]), int(plan.starts[-1]) + 1) for plan in plans)
    return array[z, y, x]


def _average(array: np.ndarray, plans: tuple[AxisPlan, ...]) -> np.ndarray:
    """(z, y, x) float32: one value per cell of the three plans."""
    from runtime.kernels.sampling import average_slab

    z, y, x = plans
    out = np.empty((len(z.starts), len(y.starts), len(x.starts)), np.float32)
    axes = (z.starts, z.counts, z.weights, y.starts, y.counts, y.weights, x.starts, x.counts, x.weights)
    run_slabs(lambda first, last: average_slab(array, *axes, out, first, last), out.shape[0])
    return out


def _sample(source: np.ndarray, matrix: Float64, low: Float64, high: Float64, fill: float, out: np.ndarray) -> None:
    from runtime.kernels.sampling import sample_slab, sample_slab_aligned

    value, sample = np.float32(fill), sample_slab_aligned if is_aligned(matrix) else sample_slab
    run_slabs(
        lambda first, last: sample(source, matrix, low, high, value, out, first, last),
        out.shape[0],
        voxels_each=out.shape[1] * out.shape[2],
    )
