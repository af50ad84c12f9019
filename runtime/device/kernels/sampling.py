"""Kernels of resampling: the twins of ``runtime.kernels.sampling``. Every matrix is in z, y, x order."""

from __future__ import annotations

import numpy as np
from numba import cuda

from runtime.device.kernels.jit import device_function, kernel, product32, product64


@device_function
def _clamped(position, count):  # type: ignore[no-untyped-def]
    return min(max(position, 0.0), count - 1.0)


@device_function
def _between(first, second, share):  # type: ignore[no-untyped-def]
    """``first`` where ``share`` is 0, ``second`` where it is 1; all float32."""
    return product32(np.float32(1) - share, first) + product32(share, second)


@device_function
def _between_rows(source, z0, z1, y0, y1, x, fz, fy):  # type: ignore[no-untyped-def]
    near = _between(np.float32(source[z0, y0, x]), np.float32(source[z0, y1, x]), fy)
    far = _between(np.float32(source[z1, y0, x]), np.float32(source[z1, y1, x]), fy)
    return _between(near, far, fz)


@device_function
def _interpolate(source, z, y, x):  # type: ignore[no-untyped-def]
    z, y, x = _clamped(z, source.shape[0]), _clamped(y, source.shape[1]), _clamped(x, source.shape[2])
    z0, y0, x0 = int(z), int(y), int(x)
    z1, y1, x1 = min(z0 + 1, source.shape[0] - 1), min(y0 + 1, source.shape[1] - 1), min(x0 + 1, source.shape[2] - 1)
    fz, fy, fx = np.float32(z - z0), np.float32(y - y0), np.float32(x - x0)
    left = _between_rows(source, z0, z1, y0, y1, x0, fz, fy)
    return _between(left, _between_rows(source, z0, z1, y0, y1, x1, fz, fy), fx)


@device_function
def _position(matrix, axis, z, y, x):  # type: ignore[no-untyped-def]
    row = matrix[axis, 3] + product64(matrix[axis, 0], np.float64(z)) + product64(matrix[axis, 1], np.float64(y))
    return row + product64(matrix[axis, 2], np.float64(x))


@kernel
def sample(source, matrix, low, high, fill, out):  # type: ignore[no-untyped-def]
    """Fills ``out`` with ``source`` at ``matrix @ (z, y, x, 1)``, trilinear, ``fill`` outside low..high."""
    size_y, size_x = out.shape[1], out.shape[2]
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        z, y, x = i // (size_y * size_x), i // size_x % size_y, i % size_x
        pz, py, px = _position(matrix, 0, z, y, x), _position(matrix, 1, z, y, x), _position(matrix, 2, z, y, x)
        inside = low[0] <= pz <= high[0] and low[1] <= py <= high[1] and low[2] <= px <= high[2]
        out[z, y, x] = _interpolate(source, pz, py, px) if inside else fill


@kernel
def average(source, cells, weights, out):  # type: ignore[no-untyped-def]
    """Fills ``out`` with weighted means of boxes of ``source``.

    ``cells`` (n, 2) holds the first voxel and the count of each cell along z, then y, then x; ``weights`` (n, w) their
    weights, which sum to 1. The order of summation is that of ``runtime.kernels.sampling.average_slab``.
    """
    size_z, size_y, size_x = out.shape
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        z, y, x = i // (size_y * size_x), i // size_x % size_y, i % size_x
        cell_y, cell_x = size_z + y, size_z + size_y + x
        total = np.float32(0)
        for k in range(cells[cell_x, 1]):
            column = np.float32(0)
            for a in range(cells[z, 1]):
                for b in range(cells[cell_y, 1]):
                    weight = product32(weights[z, a], weights[cell_y, b])
                    value = np.float32(source[cells[z, 0] + a, cells[cell_y, 0] + b, cells[cell_x, 0] + k])
                    column += product32(weight, value)
            total += product32(weights[cell_x, k], column)
        out[z, y, x] = total
