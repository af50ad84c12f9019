"""Compiled loops that find how deep the voxels of a mask lie below its surface."""

from __future__ import annotations

import numpy as np

from runtime.kernels.jit import njit

_FAR, _HERE, _STEP = np.int32(2**28), np.int32(0), np.int32(1)


@njit(cache=True, nogil=True)
def squared_depth(mask):  # type: ignore[no-untyped-def]
    """(z, y, x) int32: of each voxel of ``mask`` (z, y, x; bool) the squared distance to the nearest on the surface.

    On the surface are the voxels of the mask that share a face, edge or corner with one that isn't in it; beyond the
    array none is. Outside the mask it is 0. Exact: the least over one axis after the other.
    """
    depth, rows, columns = mask.shape
    # From any voxel the surface is met within half of the shortest side: what lies further along an axis never counts.
    reach = (min(depth, rows, columns) - 1) // 2
    along_x = np.empty(mask.shape, np.int32)
    for z in range(depth):
        for y in range(rows):
            _fill_row(mask, z, y, along_x[z, y])
    along_yx = np.empty(mask.shape, np.int32)
    for z in range(depth):
        for y in range(rows):
            for x in range(columns):
                along_yx[z, y, x] = _least(along_x[z, :, x], y, reach)
    out = np.zeros(mask.shape, np.int32)
    for z in range(depth):
        for y in range(rows):
            for x in range(columns):
                if mask[z, y, x]:
                    out[z, y, x] = _least(along_yx[:, y, x], z, reach)
    return out


@njit(cache=True, nogil=True)
def _fill_row(mask, z, y, row):  # type: ignore[no-untyped-def]
    """Squared distances to the nearest voxel of the row that is on the surface."""
    last = _FAR
    for x in range(row.size):
        last = _HERE if mask[z, y, x] and _is_on_surface(mask, z, y, x) else last + _STEP
        row[x] = last
    last = _FAR
    for x in range(row.size - 1, -1, -1):
        last = _HERE if row[x] == 0 else last + _STEP
        nearest = min(row[x], last)
        row[x] = nearest * nearest if nearest < _FAR else _FAR


@njit(cache=True, nogil=True)
def _is_on_surface(mask, z, y, x):  # type: ignore[no-untyped-def]
    if z == 0 or y == 0 or x == 0 or z + 1 == mask.shape[0] or y + 1 == mask.shape[1] or x + 1 == mask.shape[2]:
        return True
    for k in range(z - 1, z + 2):
        for j in range(y - 1, y + 2):
            if not (mask[k, j, x - 1] and mask[k, j, x] and mask[k, j, x + 1]):
                return True
    return False


@njit(cache=True, nogil=True)
def _least(line, at, reach):  # type: ignore[no-untyped-def]
    """The least of ``line[i] + (i - at) ** 2`` for i within ``reach`` of ``at``."""
    best = line[at]
    for step in range(1, reach + 1):
        squared = step * step
        if squared >= best:
            break
        if at - step >= 0:
            best = min(best, line[at - step] + squared)
        if at + step < line.size:
            best = min(best, line[at + step] + squared)
    return best
