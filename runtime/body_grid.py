"""The body grid: the 1 mm voxels on which a vertebral body is found and measured, and masks' parts on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

BODY_GRID_MM = 1.0
INSIDE = 0.5
"""Share of a voxel, or probability, from which it belongs to the mask."""


def main_part(share: Float32) -> Float32:
    """Zero outside the largest connected part (with a voxel around it, where the surface is interpolated)."""
    return np.where(numbered_parts(share > INSIDE) > 1, np.float32(0.0), share)


def connected_parts(mask: Bool) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Connected parts (sides touch) of a mask of two or three dimensions, numbered from 1 by their first voxels.

    Returns:
        The numbers, of the mask's shape and 0 outside of it, and how many voxels have each number, 0 included.
    """
    from runtime.kernels.parts import number_parts

    volume = np.ascontiguousarray(mask, bool).reshape((1,) * (3 - mask.ndim) + mask.shape)
    numbers = np.empty(volume.shape, np.int32)
    sizes = number_parts(volume, numbers)
    return numbers.reshape(mask.shape), np.concatenate([[mask.size - sizes.sum()], sizes])


def numbered_parts(mask: Bool) -> npt.NDArray[np.int32]:
    """As :func:`connected_parts`, numbered from 1 by falling size; of equal ones the first keeps the lower number."""
    numbers, sizes = connected_parts(mask)
    order = 1 + np.argsort(-sizes[1:], kind="stable")
    if (np.diff(order) > 0).all():
        return numbers
    by_size = np.zeros(len(sizes), np.int32)
    by_size[order] = np.arange(1, len(sizes))
    return by_size[numbers]


def squared_depth(mask: Bool) -> npt.NDArray[np.int32]:
    """(z, y, x) int32: how deep each voxel of a mask lies, as the squared distance to the nearest on its surface.

    On the surface are the mask's voxels that share a side, edge or corner with one that isn't in it, or with the
    outside of the array; they have depth 0, as has all outside the mask. In voxels.
    """
    from runtime.kernels.depth import squared_depth as squared_depth_of

    out = np.zeros(mask.shape, np.int32)
    ends = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if len(ends[0]):
        box = tuple(slice(int(met[0]), int(met[-1]) + 1) for met in ends)
        out[box] = squared_depth_of(np.ascontiguousarray(mask[box]))
    return out
