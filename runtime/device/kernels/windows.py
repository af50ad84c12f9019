"""Kernels of the sliding window: the twins of ``runtime.kernels.windows``, and what the processor does with slices."""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from runtime.device.kernels.jit import device_function, kernel, product32


@kernel
def fill(values, value):  # type: ignore[no-untyped-def]
    """Sets every element of a flat array."""
    for i in range(cuda.grid(1), values.size, cuda.gridsize(1)):
        values[i] = value


@device_function
def _is_inside(z, y, x, shape):  # type: ignore[no-untyped-def]
    return 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= x < shape[2]


@kernel
def mark_reaching(hu, starts, size_z, size_y, size_x, threshold, reaches):  # type: ignore[no-untyped-def]
    """Sets ``reaches[n]`` to 1 where the window at ``starts[n]`` sees a voxel of at least ``threshold``."""
    size = size_z * size_y * size_x
    for i in range(cuda.grid(1), starts.shape[0] * size, cuda.gridsize(1)):
        n, voxel = i // size, i % size
        z = starts[n, 0] + voxel // (size_y * size_x)
        y = starts[n, 1] + voxel // size_x % size_y
        x = starts[n, 2] + voxel % size_x
        # Several threads may write here, all of them the same.
        if _is_inside(z, y, x, hu.shape) and hu[z, y, x] >= threshold:
            reaches[n] = 1


@kernel
def gather_windows(hu, starts, first, low, scale, outside, out):  # type: ignore[no-untyped-def]
    """Fills ``out`` (n, 1, z, y, x) with the windows from ``starts[first]`` on, normalised to 0..1."""
    size_z, size_y, size_x = out.shape[2], out.shape[3], out.shape[4]
    size = size_z * size_y * size_x
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        n, voxel = i // size, i % size
        k, j, m = voxel // (size_y * size_x), voxel // size_x % size_y, voxel % size_x
        z, y, x = starts[first + n, 0] + k, starts[first + n, 1] + j, starts[first + n, 2] + m
        value = outside
        if _is_inside(z, y, x, hu.shape):
            value = min(max(product32(hu[z, y, x] - low, scale), np.float32(0)), np.float32(1))
        out[n, 0, k, j, m] = value


@kernel
def add_window(block, n, wz, wy, wx, start_z, start_y, start_x, total):  # type: ignore[no-untyped-def]
    """Adds ``block[n]`` (c, z, y, x) times the product of the profiles to ``total`` (c, z, y, x) at the start."""
    size_y, size_x = wy.size, wx.size
    for i in range(cuda.grid(1), wz.size * size_y * size_x, cuda.gridsize(1)):
        k, j, m = i // (size_y * size_x), i // size_x % size_y, i % size_x
        z, y, x = start_z + k, start_y + j, start_x + m
        if _is_inside(z, y, x, total.shape[1:]):
            weight = product32(product32(wz[k], wy[j]), wx[m])
            for c in range(total.shape[0]):
                total[c, z, y, x] += product32(weight, block[n, c, k, j, m])


@kernel
def add_weight(wz, wy, wx, start_z, start_y, start_x, total):  # type: ignore[no-untyped-def]
    """Adds the product of the profiles to ``total`` (z, y, x), as ``add_window`` weighs a window at the start."""
    size_y, size_x = wy.size, wx.size
    for i in range(cuda.grid(1), wz.size * size_y * size_x, cuda.gridsize(1)):
        k, j, m = i // (size_y * size_x), i // size_x % size_y, i % size_x
        z, y, x = start_z + k, start_y + j, start_x + m
        if _is_inside(z, y, x, total.shape):
            total[z, y, x] += product32(product32(wz[k], wy[j]), wx[m])


@kernel
def divide_by_weight(total, weight):  # type: ignore[no-untyped-def]
    """Divides every channel of ``total`` (c, n) by ``weight`` (n) where that isn't zero."""
    for i in range(cuda.grid(1), weight.size, cuda.gridsize(1)):
        if weight[i] > 0:
            for c in range(total.shape[0]):
                total[c, i] /= weight[i]


@kernel
def mark_not_finite(values, marks, place):  # type: ignore[no-untyped-def]
    """Sets ``marks[place]`` to 1 where the flat ``values`` hold NaN or infinity."""
    for i in range(cuda.grid(1), values.size, cuda.gridsize(1)):
        if not math.isfinite(values[i]):
            marks[place] = 1
