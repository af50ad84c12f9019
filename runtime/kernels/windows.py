"""Compiled loops of the sliding window: adding a window's outputs to the volume and dividing by the weights."""

from __future__ import annotations

import numpy as np

from runtime.kernels.jit import njit


@njit(cache=True, nogil=True)
def add_window(block, profiles, start, total, first, last):  # type: ignore[no-untyped-def]
    """Add planes of a window, weighed, to ``total`` (c, z, y, x), in which the window begins at ``start``.

    What lies outside ``total`` is left out.

    Args:
        block: (c, z, y, x) of the window.
        profiles: along z, y and x, whose product is the weight.
        start: (z, y, x) of the window's first voxel, may be negative.
        total: written.
        first: plane of the window.
        last: one past the last.
    """
    wz, wy, wx = profiles
    _, size_z, size_y, size_x = total.shape
    begin, there, count = _shared(wx.size, start[2], size_x)
    for c in range(block.shape[0]):
        for z in range(max(first, -start[0]), min(last, size_z - start[0])):
            for y in range(max(0, -start[1]), min(wy.size, size_y - start[1])):
                weight, row = wz[z] * wy[y], y + start[1]
                for x in range(count):
                    total[c, z + start[0], row, there + x] += weight * wx[begin + x] * block[c, z, y, begin + x]


@njit(cache=True, nogil=True)
def add_weight(profiles, start, total, first, last):  # type: ignore[no-untyped-def]
    """Add the product of the profiles to ``total`` (z, y, x), as ``add_window`` weighs a window."""
    wz, wy, wx = profiles
    size_z, size_y, size_x = total.shape
    begin, there, count = _shared(wx.size, start[2], size_x)
    for z in range(max(first, -start[0]), min(last, size_z - start[0])):
        for y in range(max(0, -start[1]), min(wy.size, size_y - start[1])):
            weight = wz[z] * wy[y]
            for x in range(count):
                total[z + start[0], y + start[1], there + x] += weight * wx[begin + x]


@njit(cache=True, nogil=True)
def _shared(window, start, size):  # type: ignore[no-untyped-def]
    """Of a window's row and one of ``size`` voxels in which it begins at ``start``: the first voxel that both have, in
    either, and how many they are.

    Unsigned: that none counts from an end lets the compiler take several voxels at once.
    """
    begin, end = max(0, -start), min(window, size - start)
    return np.uintp(begin), np.uintp(max(0, start)), np.uintp(max(0, end - begin))


@njit(cache=True, nogil=True)
def divide_by_weight(total, weight):  # type: ignore[no-untyped-def]
    """Divide every channel of ``total`` (c, z, y, x) by ``weight`` (z, y, x) where that isn't zero."""
    for c in range(total.shape[0]):
        for z in range(weight.shape[0]):
            for y in range(weight.shape[1]):
                for x in range(weight.shape[2]):
                    if weight[z, y, x] > 0:
                        total[c, z, y, x] /= weight[z, y, x]
