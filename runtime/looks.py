"""Two looks of the second network at one vertebra: the crop, and its mirror image, which may lie half a voxel off.

Half a voxel off along every axis, the second look's voxels lie in the middles between eight of the first one's: both
together see the borders of bone at places that either alone would have to guess (docs/decisions/0022).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.bundle import FracSegNetSpec
from runtime.crops import mirrored
from runtime.kernels.threads import run_slabs
from runtime.masks import filled_block
from runtime.volume import Block, Grid

Float32 = npt.NDArray[np.float32]

KEEP_PROBABILITY = 0.01
"""Masks are trimmed to where their probability exceeds this: less memory, the same masks."""


def second_look(grid: Grid, spec: FracSegNetSpec) -> Grid:
    """Where the second look's input lies, for a first one on ``grid``."""
    return mirrored(_moved(grid, 0.5) if spec.interleaved else grid)


def looks_together(first: Float32, second: Float32, grid: Grid, spec: FracSegNetSpec) -> tuple[Float32, Grid]:
    """The masks that both looks give, and their grid.

    Args:
        first: (k, z, y, x) probabilities on ``grid``.
        second: (k, z, y, x) those on :func:`second_look` of it.
        grid: of the first look.
        spec: says how the second one lies.

    Returns:
        Mean probabilities (k, z, y, x): on ``grid``, or where the looks are interleaved on one of half its spacing,
        trimmed to the masks, each look being interpolated trilinearly where the other has its voxels.
    """
    turned = second[..., ::-1]
    if not spec.interleaved:
        return np.float32(0.5) * (first + turned), grid
    block = support(np.maximum(first, turned).max(axis=0))
    fine = twice_as_fine(grid.sub_grid_at(block))
    masks = np.empty((len(first), *fine.shape_zyx), np.float32)
    for one, other, mean in zip(first, turned, masks, strict=True):
        _interleave(np.ascontiguousarray(one[block]), np.ascontiguousarray(other[block]), mean)
    return masks, fine


def mean_of_interleaved(first: Float32, second: Float32) -> Float32:
    """The mean of two volumes (z, y, x), the second half a voxel further along every axis: (2z, 2y, 2x) float32.

    Each is interpolated trilinearly at half its spacing, from the first voxel of ``first`` on.
    """
    z, y, x = (2 * n for n in first.shape)
    mean = np.empty((z, y, x), np.float32)
    _interleave(first, second, mean)
    return mean


def _interleave(first: Float32, second: Float32, mean: Float32) -> None:
    from runtime.kernels.sampling import interleave_slab

    z, y, x = mean.shape
    run_slabs(lambda low, high: interleave_slab(first, second, mean, low, high), z, voxels_each=y * x)


def support(probability: Float32) -> Block:
    """The block of (z, y, x) with every voxel above KEEP_PROBABILITY, and one voxel more on each side.

    Where there is none it is the first voxel.
    """
    first = slice(0, 1)
    return filled_block(probability > KEEP_PROBABILITY, margin=1) or (first, first, first)


def _moved(grid: Grid, voxels: float) -> Grid:
    """The same grid, so many of its voxels further along each of its axes."""
    return grid.sub_grid([voxels] * 3, grid.shape_zyx)


def twice_as_fine(grid: Grid) -> Grid:
    """Twice as many voxels at half the spacing; every other one, from the first, lies where one of ``grid`` does."""
    z, y, x = (2 * n for n in grid.shape_zyx)
    return Grid((z, y, x), grid.affine_ras @ np.diag([0.5, 0.5, 0.5, 1.0]))
