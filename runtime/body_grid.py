"""The body grid: the 1 mm voxels on which a vertebral body is found and measured, and masks on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.masks import connected_parts, filled_block

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

BODY_GRID_MM = 1.0
INSIDE = 0.5
"""Share of a voxel, or probability, from which it belongs to the mask."""


def main_part(share: Float32) -> Float32:
    """Zero outside the largest connected part (with a voxel around it, where the surface is interpolated)."""
    parts, sizes = connected_parts(share > INSIDE)
    if len(sizes) <= 2:
        return share
    largest = 1 + int(np.argmax(sizes[1:]))
    return np.where((parts > 0) & (parts != largest), np.float32(0.0), share)


def squared_depth(mask: Bool) -> npt.NDArray[np.int32]:
    """(z, y, x) int32: how deep each voxel of a mask lies, as the squared distance to the nearest on its surface.

    On the surface are the mask's voxels that share a side, edge or corner with one that isn't in it, or with the
    outside of the array; they have depth 0, as has all outside the mask. In voxels.
    """
    from runtime.kernels.depth import squared_depth as squared_depth_of

    out = np.zeros(mask.shape, np.int32)
    block = filled_block(mask)
    if block is not None:
        out[block] = squared_depth_of(np.ascontiguousarray(mask[block]))
    return out
