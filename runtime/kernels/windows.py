"""Compiled loops of the sliding window: adding a window's outputs to the volume and dividing by the weights."""

from __future__ import annotations

from runtime.kernels.jit import njit


@njit(cache=True, nogil=True)
def add_window(block, wz, wy, wx, start, total):  # type: ignore[no-untyped-def]
    """Add ``block`` (c, z, y, x) times the product of the profiles to ``total`` where it begins at ``start``.

    What lies outside ``total`` is left out.
    """
    size_z, size_y, size_x = total.shape[1:]
    first_x, last_x = max(0, -start[2]), min(wx.size, size_x - start[2])
    along_x = wx[first_x:last_x]
    for c in range(block.shape[0]):
        for z in range(max(0, -start[0]), min(wz.size, size_z - start[0])):
            for y in range(max(0, -start[1]), min(wy.size, size_y - start[1])):
                row = total[c, z + start[0], y + start[1], first_x + start[2] : last_x + start[2]]
                _add_row(block[c, z, y, first_x:last_x], wz[z] * wy[y], along_x, row)


@njit(cache=True, nogil=True)
def _add_row(values, weight, profile, row):  # type: ignore[no-untyped-def]
    """A loop over rows that begin at 0 and are as long: the compiler makes it one of several voxels at once."""
    for x in range(row.size):
        row[x] += weight * profile[x] * values[x]


@njit(cache=True, nogil=True)
def add_weight(wz, wy, wx, start, total):  # type: ignore[no-untyped-def]
    """Add the product of the profiles to ``total`` (z, y, x), as ``add_window`` weighs a window at ``start``."""
    size_z, size_y, size_x = total.shape
    first_x, last_x = max(0, -start[2]), min(wx.size, size_x - start[2])
    along_x = wx[first_x:last_x]
    for z in range(max(0, -start[0]), min(wz.size, size_z - start[0])):
        for y in range(max(0, -start[1]), min(wy.size, size_y - start[1])):
            row, weight = total[z + start[0], y + start[1], first_x + start[2] : last_x + start[2]], wz[z] * wy[y]
            for x in range(row.size):
                row[x] += weight * along_x[x]


@njit(cache=True, nogil=True)
def divide_by_weight(total, weight):  # type: ignore[no-untyped-def]
    """Divide every channel of ``total`` (c, z, y, x) by ``weight`` (z, y, x) where that isn't zero."""
    for c in range(total.shape[0]):
        for z in range(weight.shape[0]):
            for y in range(weight.shape[1]):
                for x in range(weight.shape[2]):
                    if weight[z, y, x] > 0:
                        total[c, z, y, x] /= weight[z, y, x]
