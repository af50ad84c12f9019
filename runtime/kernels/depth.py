"""Compiled loops that find how deep the voxels of a mask lie below its surface."""

from __future__ import annotations

import numpy as np

from runtime.kernels.jit import njit

_FAR, _HERE, _STEP = np.int32(2**28), np.int32(0), np.int32(1)


@njit(cache=True, nogil=True)
def squared_depth(mask):  # type: ignore[no-untyped-def]
    """(z, y, x) int32: of each voxel of ``mask`` (z, y, x; bool) the squared distance to the nearest on the surface.

    On the surface are the voxels of the mask that share a face, edge or corner with one that isn't in it; beyond the
    array none is. Outside the mask it is 0. Exact: the least over one axis after the other. A way along an axis that
    leaves the mask has crossed the surface before, so voxels outside never count.
    """
    depth, rows, columns = mask.shape
    # From any voxel the surface is met within half of the shortest side: what lies further along an axis never counts.
    reach = (min(depth, rows, columns) - 1) // 2
    inner = _inner(mask)
    along_x = np.empty(mask.shape, np.int32)
    for z in range(depth):
        for y in range(rows):
            _fill_row(mask[z, y], inner[z, y], along_x[z, y])
    along_yx = along_x.copy()
    for z in range(depth):
        for y in range(rows):
            for other in range(max(0, y - reach), min(rows, y + reach + 1)):
                squared = np.int32((other - y) * (other - y))
                for x in range(columns):  # several voxels at once, which a function on slices isn't
                    along_yx[z, y, x] = min(along_yx[z, y, x], np.int32(along_x[z, other, x] + squared))
            for x in range(columns):
                along_yx[z, y, x] = along_yx[z, y, x] if mask[z, y, x] else _FAR
    out = along_yx.copy()
    for z in range(depth):
        for y in range(rows):
            for other in range(max(0, z - reach), min(depth, z + reach + 1)):
                squared = np.int32((other - z) * (other - z))
                for x in range(columns):
                    out[z, y, x] = min(out[z, y, x], np.int32(along_yx[other, y, x] + squared))
            for x in range(columns):
                out[z, y, x] = out[z, y, x] if mask[z, y, x] else 0
    return out


@njit(cache=True, nogil=True)
def _inner(mask):  # type: ignore[no-untyped-def]
    """(z, y, x) bool: the voxels that aren't on the surface, nor outside; one axis after the other."""
    depth, rows, columns = mask.shape
    along_x, along_yx = np.zeros(mask.shape, np.bool_), np.zeros(mask.shape, np.bool_)
    inner = np.zeros(mask.shape, np.bool_)
    for z in range(depth):
        for y in range(rows):
            for x in range(1, columns - 1):
                along_x[z, y, x] = mask[z, y, x - 1] & mask[z, y, x] & mask[z, y, x + 1]
        for y in range(1, rows - 1):
            for x in range(columns):
                along_yx[z, y, x] = along_x[z, y - 1, x] & along_x[z, y, x] & along_x[z, y + 1, x]
    for z in range(1, depth - 1):
        for y in range(rows):
            for x in range(columns):
                inner[z, y, x] = along_yx[z - 1, y, x] & along_yx[z, y, x] & along_yx[z + 1, y, x]
    return inner


@njit(cache=True, nogil=True)
def _fill_row(mask, inner, row):  # type: ignore[no-untyped-def]
    """Squared distances to the nearest voxel of the row that is on the surface, FAR outside the mask."""
    last = _FAR
    for x in range(row.size):
        last = _HERE if mask[x] and not inner[x] else last + _STEP
        row[x] = last
    last = _FAR
    for x in range(row.size - 1, -1, -1):
        last = _HERE if row[x] == 0 else last + _STEP
        nearest = min(row[x], last)
        row[x] = nearest * nearest if mask[x] else _FAR  # a row of the mask has an end, which is on the surface
