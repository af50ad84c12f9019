"""Compiled loops that find the normals of a vertebral body's endplates among those of all its surface."""

from __future__ import annotations

import numpy as np

from runtime.kernels.jit import njit


@njit(cache=True, nogil=True)
def _slope(before, after, steps):  # type: ignore[no-untyped-def]
    return (after - before) / np.float32(steps)


@njit(cache=True, nogil=True)
def surface_normals(share, least):  # type: ignore[no-untyped-def]
    """Outward unit normals (n, 3; x, y, z) where the gradient's size exceeds ``least``, and its size (n,), float32.

    The gradient of ``share`` (z, y, x) float32 is by central differences, one-sided at the faces; every axis has at
    least two voxels.
    """
    depth, rows, columns = share.shape
    normals = np.empty((share.size, 3), np.float32)
    sizes = np.empty(share.size, np.float32)
    count = 0
    for z in range(depth):
        z0, z1 = max(z - 1, 0), min(z + 1, depth - 1)
        for y in range(rows):
            y0, y1 = max(y - 1, 0), min(y + 1, rows - 1)
            for x in range(columns):
                x0, x1 = max(x - 1, 0), min(x + 1, columns - 1)
                gx = _slope(share[z, y, x0], share[z, y, x1], x1 - x0)
                gy = _slope(share[z, y0, x], share[z, y1, x], y1 - y0)
                gz = _slope(share[z0, y, x], share[z1, y, x], z1 - z0)
                size = np.sqrt(gx * gx + gy * gy + gz * gz)
                if size > least:
                    normals[count, 0], normals[count, 1], normals[count, 2] = -gx / size, -gy / size, -gz / size
                    sizes[count] = size
                    count += 1
    return normals[:count], sizes[:count]


@njit(cache=True, nogil=True)
def axis_between_endplates(normals, sizes, sharpness):  # type: ignore[no-untyped-def]
    """The unit axis (3,) halfway between the two endplates' normals, by mean shift that starts at the third axis.

    Args:
        normals: (n, 3) float32 unit vectors.
        sizes: (n,) float32, what each weighs.
        sharpness: of each step in turn, the power of the cosine to the axis by which normals weigh.
    """
    axis, upper, lower = np.empty(3), np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])
    for power in sharpness:
        _unit(upper - lower, axis)
        above, below = np.zeros(3), np.zeros(3)
        for n in range(sizes.size):
            x, y, z = np.float64(normals[n, 0]), np.float64(normals[n, 1]), np.float64(normals[n, 2])
            cosine = x * axis[0] + y * axis[1] + z * axis[2]
            weight = sizes[n] * abs(cosine) ** power
            side = above if cosine > 0 else below
            side[0] += weight * x
            side[1] += weight * y
            side[2] += weight * z
        _unit(above, upper)
        _unit(below, lower)
    _unit(upper - lower, axis)
    return axis


@njit(cache=True, nogil=True)
def _unit(vector, out):  # type: ignore[no-untyped-def]
    out[:] = vector / np.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2)
