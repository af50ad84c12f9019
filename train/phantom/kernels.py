"""Numba kernels: signed distances of the primitives, the painter, and the texture noise.

Nothing outside this package calls these; :mod:`train.phantom.render` wraps them. Distances are millimetres, negative
inside. Primitive kinds and the meaning of their ten parameters are documented in :mod:`train.phantom.scene`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]

FAR = 1.0e6
BRICK = 4
LOOSE = 1.7
"""By how much the approximate distances may change faster than the true ones."""
DEEP = 12.0
"""Depth, mm, below which distances no longer matter: more than any shell."""


@njit(cache=True, inline="always")
def _smooth_min(a: float, b: float, k: float) -> float:
    h = max(k - abs(a - b), 0.0)
    return min(a, b) - (h * h * 0.25 / k if k > 0 else 0.0)


@njit(cache=True, inline="always")
def _smooth_max(a: float, b: float, k: float) -> float:
    return -_smooth_min(-a, -b, k)


@njit(cache=True, inline="always")
def _superellipse(u: float, v: float, square: float) -> float:
    """Gauge of a rounded rectangle: 1 on its outline; ``square`` 0 is an ellipse, 1 has exponent 4."""
    u, v = u * u, v * v
    return (1.0 - square) * math.sqrt(u + v) + square * math.sqrt(math.sqrt(u * u + v * v))


@njit(cache=True, nogil=True)
def _ellipsoid(x: float, y: float, z: float, q: Array) -> float:
    k0 = math.sqrt((x / q[0]) ** 2 + (y / q[1]) ** 2 + (z / q[2]) ** 2)
    k1 = math.sqrt((x / q[0] ** 2) ** 2 + (y / q[1] ** 2) ** 2 + (z / q[2] ** 2) ** 2)
    return k0 * (k0 - 1.0) / k1 if k1 > 1e-9 else -min(q[0], q[1], q[2])


@njit(cache=True, nogil=True)
def _capsule(x: float, y: float, z: float, q: Array) -> float:
    """A round cone from z=-q0 (radius q1) to z=+q0 (radius q2); its section is scaled by q3 in x and q4 in y."""
    zc = min(max(z, -q[0]), q[0])
    t = 0.5 + 0.5 * zc / q[0] if q[0] > 0 else 0.5
    r = q[1] + (q[2] - q[1]) * t
    u, v, w = x / q[3], y / q[4], z - zc
    f = math.sqrt(u * u + v * v + w * w)
    g = math.sqrt((u / q[3]) ** 2 + (v / q[4]) ** 2 + w * w)
    return f * (f - r) / g if g > 1e-9 else -r * min(q[3], q[4])


@njit(cache=True, nogil=True)
def _box(x: float, y: float, z: float, q: Array) -> float:
    dx, dy, dz = abs(x) - q[0] + q[3], abs(y) - q[1] + q[3], abs(z) - q[2] + q[3]
    out = math.sqrt(max(dx, 0.0) ** 2 + max(dy, 0.0) ** 2 + max(dz, 0.0) ** 2)
    return out + min(max(dx, dy, dz), 0.0) - q[3]


@njit(cache=True, inline="always")
def _height_at(u: float, v: float, q: Array) -> float:
    """Distance between the endplates at x=u*half width, y=v*half depth; exact at u=0, v=-0.75, 0, 0.75."""
    v = min(max(v, -0.9), 0.9)
    straight = 0.5 * (q[4] + q[6]) + (q[4] - q[6]) * v / 1.5
    dip = (q[5] - 0.5 * (q[4] + q[6])) * max(1.0 - (v / 0.75) ** 2, 0.0)
    return straight + max(dip, -0.9 * straight) * max(1.0 - u * u, 0.0)


@njit(cache=True, nogil=True)
def _body(x: float, y: float, z: float, q: Array) -> float:
    """A vertebral body around its reference middle.

    q = half width, half depth, waist, hollow, anterior, middle, posterior height, top share, edge, squareness.
    """
    tallest = max(q[4], q[5], q[6])
    w = min(abs(2.0 * z) / tallest, 1.0)
    shrink = 1.0 - q[2] * (1.0 - w * w)
    s2 = (x / (0.5 * q[0])) ** 2
    hollow = q[3] * min(max(-2.0 * y / q[1], 0.0), 1.0) / ((1.0 + s2) * (1.0 + s2))
    f = _superellipse(x / (q[0] * shrink), (y - hollow) / (q[1] * (0.5 + 0.5 * shrink)), q[9])
    radial = math.sqrt(x * x + y * y) * (1.0 - 1.0 / f) if f > 0.25 else -0.75 * min(q[0], q[1]) * (1.0 - f)
    missing = tallest - _height_at(x / q[0], y / q[1], q)
    top = z - (0.5 * tallest - q[7] * missing)
    bottom = -z - (0.5 * tallest - (1.0 - q[7]) * missing)
    return _smooth_max(radial, max(top, bottom), q[8])


@njit(cache=True, nogil=True)
def _tube(x: float, y: float, z: float, q: Array, table: Array) -> float:
    """A generalised cylinder: rows (cx, cy, rx, ry, squareness) spaced evenly over z = -q0..q0."""
    n = table.shape[0]
    t = min(max((z / q[0] * 0.5 + 0.5) * (n - 1), 0.0), n - 1.000001)
    i = int(t)
    t -= i
    cx = table[i, 0] * (1 - t) + table[i + 1, 0] * t
    cy = table[i, 1] * (1 - t) + table[i + 1, 1] * t
    rx = table[i, 2] * (1 - t) + table[i + 1, 2] * t
    ry = table[i, 3] * (1 - t) + table[i + 1, 3] * t
    t = table[i, 4] * (1 - t) + table[i + 1, 4] * t
    x, y = x - cx, y - cy
    f = _superellipse(x / rx, y / ry, t)
    radial = math.sqrt(x * x + y * y) * (1.0 - 1.0 / f) if f > 0.25 else -min(rx, ry)
    return max(radial - q[1], abs(z) - q[0])


@njit(cache=True, nogil=True)
def _plate(x: float, y: float, z: float, q: Array) -> float:
    """A triangle (three vertices in q0..q8) thickened by q9 on either side."""
    ax, ay, az = q[3] - q[0], q[4] - q[1], q[5] - q[2]
    bx, by, bz = q[6] - q[0], q[7] - q[1], q[8] - q[2]
    px, py, pz = x - q[0], y - q[1], z - q[2]
    aa, ab, bb = ax * ax + ay * ay + az * az, ax * bx + ay * by + az * bz, bx * bx + by * by + bz * bz
    pa, pb = px * ax + py * ay + pz * az, px * bx + py * by + pz * bz
    det = max(aa * bb - ab * ab, 1e-9)
    s, t = (bb * pa - ab * pb) / det, (aa * pb - ab * pa) / det
    if s < 0.0 or t < 0.0 or s + t > 1.0:
        best, bs, bt = FAR * FAR, 0.0, 0.0
        for edge in range(3):
            if edge == 0:
                e = min(max(pa / aa, 0.0), 1.0)
                cs, ct = e, 0.0
            elif edge == 1:
                e = min(max(pb / bb, 0.0), 1.0)
                cs, ct = 0.0, e
            else:
                e = min(max((aa - ab - pa + pb) / max(aa - 2 * ab + bb, 1e-9), 0.0), 1.0)
                cs, ct = 1.0 - e, e
            d2 = (px - cs * ax - ct * bx) ** 2 + (py - cs * ay - ct * by) ** 2 + (pz - cs * az - ct * bz) ** 2
            if d2 < best:
                best, bs, bt = d2, cs, ct
        s, t = bs, bt
    return math.sqrt((px - s * ax - t * bx) ** 2 + (py - s * ay - t * by) ** 2 + (pz - s * az - t * bz) ** 2) - q[9]


@njit(cache=True, nogil=True)
def _distance(kind: int, x: float, y: float, z: float, q: Array, table: Array) -> float:
    if kind == 0:
        return _ellipsoid(x, y, z, q)
    if kind == 1:
        return _capsule(x, y, z, q)
    if kind == 2:
        return _box(x, y, z, q)
    if kind == 3:
        return _body(x, y, z, q)
    if kind == 4:
        return _tube(x, y, z, q, table)
    return _plate(x, y, z, q)


@njit(cache=True, nogil=True)
def _merge(kind, op, blend, margin, frame, q, table, box, origin, field):  # type: ignore[no-untyped-def]
    """Joins (op 0) or cuts (op 1) one primitive into ``field``, whose voxel (0, 0, 0) is at index ``origin``.

    Bricks of voxels that are wholly outside by more than ``margin`` mm are skipped, those deep inside get one value.
    """
    reach = 0.5 * (BRICK - 1) * math.sqrt((frame[:, :3] ** 2).sum()) * LOOSE
    for k0 in range(box[0], box[3], BRICK):
        for j0 in range(box[1], box[4], BRICK):
            for i0 in range(box[2], box[5], BRICK):
                mk, mj, mi = k0 + 0.5 * (BRICK - 1), j0 + 0.5 * (BRICK - 1), i0 + 0.5 * (BRICK - 1)
                x = frame[0, 0] * mi + frame[0, 1] * mj + frame[0, 2] * mk + frame[0, 3]
                y = frame[1, 0] * mi + frame[1, 1] * mj + frame[1, 2] * mk + frame[1, 3]
                z = frame[2, 0] * mi + frame[2, 1] * mj + frame[2, 2] * mk + frame[2, 3]
                middle = _distance(kind, x, y, z, q, table)
                if middle > reach + margin:
                    continue
                deep = middle < -reach - margin - DEEP
                for k in range(k0, min(k0 + BRICK, box[3])):
                    for j in range(j0, min(j0 + BRICK, box[4])):
                        x = frame[0, 1] * j + frame[0, 2] * k + frame[0, 3]
                        y = frame[1, 1] * j + frame[1, 2] * k + frame[1, 3]
                        z = frame[2, 1] * j + frame[2, 2] * k + frame[2, 3]
                        for i in range(i0, min(i0 + BRICK, box[5])):
                            d = middle
                            if not deep:
                                d = _distance(
                                    kind, x + frame[0, 0] * i, y + frame[1, 0] * i, z + frame[2, 0] * i, q, table
                                )
                            at = k - origin[0], j - origin[1], i - origin[2]
                            if op == 1:
                                field[at] = _smooth_max(field[at], -d, blend)
                            else:
                                field[at] = _smooth_min(field[at], d, blend) if field[at] < FAR * 0.5 else d


@njit(cache=True, nogil=True)
def _blend_in(field, body, box, voxel, look, weights, hu, noise, mask, body_mask, label):  # type: ignore[no-untyped-def]
    """Paints one group: look = (shell mm, shell HU, core HU, body shell mm); weights = (2, 3) texture HU."""
    for k in range(field.shape[0]):
        for j in range(field.shape[1]):
            for i in range(field.shape[2]):
                d = field[k, j, i]
                if d >= 0.5 * voxel:
                    continue
                z, y, x = k + box[0], j + box[1], i + box[2]
                outer = min(0.5 - d / voxel, 1.0)
                shell = look[0]
                if label > 0 and body[k, j, i] <= d + 0.3:
                    shell = look[3]
                inner = min(max(0.5 - (d + shell) / voxel, 0.0), 1.0)
                n0, n1, n2 = noise[0, z, y, x], noise[1, z, y, x], noise[2, z, y, x]
                rim = look[1] + weights[0, 0] * n0 + weights[0, 1] * n1 + weights[0, 2] * n2
                core = look[2] + weights[1, 0] * n0 + weights[1, 1] * n1 + weights[1, 2] * n2
                hu[z, y, x] = hu[z, y, x] * (1.0 - outer) + rim * (outer - inner) + core * inner
                if label > 0:
                    inside_body = body[k, j, i] < 0.0
                    if inside_body or (d < 0.0 and body_mask[z, y, x] == 0):
                        mask[z, y, x] = label
                        body_mask[z, y, x] = label if inside_body else 0


@njit(cache=True, nogil=True)
def paint(  # type: ignore[no-untyped-def]
    groups, looks, weights, kinds, ops, frames, params, table_of, tables, boxes, voxel, hu, noise, mask, body_mask
):
    """Paints all groups in order into ``hu``, ``mask`` and ``body_mask``.

    Args:
        groups: (G, 4) int64: first primitive, number of primitives, label (0: none), blend in 0.001 mm.
        looks: (G, 4) float64 and weights: (G, 2, 3) float64, see ``_blend_in``.
        kinds, ops, table_of: (P,) int64; frames: (P, 3, 4) primitive coordinates from voxel indices (x, y, z).
        params: (P, 10); tables: (T, N, 5); boxes: (P, 6) int64 index ranges z0, y0, x0, z1, y1, x1 (empty: culled).
        voxel: mm over which an edge is spread.
    """
    for g in range(groups.shape[0]):
        first, count, label = groups[g, 0], groups[g, 1], groups[g, 2]
        lo, hi = np.full(3, 1 << 30), np.full(3, -1)
        for p in range(first, first + count):
            if ops[p] == 0 and boxes[p, 3] > boxes[p, 0] and boxes[p, 4] > boxes[p, 1] and boxes[p, 5] > boxes[p, 2]:
                for a in range(3):
                    lo[a], hi[a] = min(lo[a], boxes[p, a]), max(hi[a], boxes[p, a + 3])
        if hi[0] < 0:
            continue
        field = np.full((hi[0] - lo[0], hi[1] - lo[1], hi[2] - lo[2]), FAR)
        body = field
        for p in range(first, first + count):
            box = boxes[p].copy()
            for a in range(3):
                box[a], box[a + 3] = max(box[a], lo[a]), min(box[a + 3], hi[a])
            if box[3] > box[0] and box[4] > box[1] and box[5] > box[2]:
                blend = groups[g, 3] * 0.001
                margin = voxel + 0.5 + blend
                _merge(kinds[p], ops[p], blend, margin, frames[p], params[p], tables[table_of[p]], box, lo, field)
            if p == first and label > 0:
                body = field.copy()
        _blend_in(field, body, lo, voxel, looks[g], weights[g], hu, noise, mask, body_mask, label)


@njit(cache=True, inline="always")
def _hash(i: int, j: int, k: int, seed: int) -> float:
    h = (i * 73856093) ^ (j * 19349663) ^ (k * 83492791) ^ (seed * 2654435761)
    h = (h ^ (h >> 13)) * 1274126177
    h = h & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 2246822519) & 0xFFFFFFFF
    return ((h ^ (h >> 13)) & 0xFFFFFF) / 8388607.5 - 1.0


@njit(cache=True, nogil=True)
def value_noise(frame, shape, wavelength, seed, out):  # type: ignore[no-untyped-def]
    """Fills ``out`` (z, y, x) with smooth noise in [-1, 1] of the given wavelength, a function of patient mm alone."""
    for k in range(shape[0]):
        for j in range(shape[1]):
            for i in range(shape[2]):
                x = (frame[0, 0] * i + frame[0, 1] * j + frame[0, 2] * k + frame[0, 3]) / wavelength
                y = (frame[1, 0] * i + frame[1, 1] * j + frame[1, 2] * k + frame[1, 3]) / wavelength
                z = (frame[2, 0] * i + frame[2, 1] * j + frame[2, 2] * k + frame[2, 3]) / wavelength
                a, b, c = math.floor(x), math.floor(y), math.floor(z)
                u, v, w = x - a, y - b, z - c
                u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
                n = int(a), int(b), int(c)
                lower = (_hash(n[0], n[1], n[2], seed) * (1 - u) + _hash(n[0] + 1, n[1], n[2], seed) * u) * (1 - v) + (
                    _hash(n[0], n[1] + 1, n[2], seed) * (1 - u) + _hash(n[0] + 1, n[1] + 1, n[2], seed) * u
                ) * v
                upper = (_hash(n[0], n[1], n[2] + 1, seed) * (1 - u) + _hash(n[0] + 1, n[1], n[2] + 1, seed) * u) * (
                    1 - v
                ) + (
                    _hash(n[0], n[1] + 1, n[2] + 1, seed) * (1 - u) + _hash(n[0] + 1, n[1] + 1, n[2] + 1, seed) * u
                ) * v
                out[k, j, i] = lower * (1 - w) + upper * w


@njit(cache=True, nogil=True)
def convolve(source, kernel, axis, out):  # type: ignore[no-untyped-def]
    """Convolves ``source`` (z, y, x) with an odd symmetric ``kernel`` along ``axis``, edges repeated."""
    half = kernel.shape[0] // 2
    n = source.shape[axis]
    for k in range(source.shape[0]):
        for j in range(source.shape[1]):
            for i in range(source.shape[2]):
                here = k if axis == 0 else (j if axis == 1 else i)
                total = 0.0
                for t in range(kernel.shape[0]):
                    m = min(max(here + t - half, 0), n - 1)
                    if axis == 0:
                        total += kernel[t] * source[m, j, i]
                    elif axis == 1:
                        total += kernel[t] * source[k, m, i]
                    else:
                        total += kernel[t] * source[k, j, m]
                out[k, j, i] = total
