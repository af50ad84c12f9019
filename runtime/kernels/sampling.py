"""Compiled loops of resampling and pasting. Arrays are (z, y, x); every matrix is in z, y, x order too."""

from __future__ import annotations

import numpy as np

from runtime.kernels.jit import njit


@njit(cache=True, nogil=True, inline="always")
def neighbours(position, count):  # type: ignore[no-untyped-def]
    """The two voxels around a position that is clamped to the voxel centres, and the share of the second."""
    clamped = min(max(position, 0.0), count - 1.0)
    first = int(clamped)
    return first, min(first + 1, count - 1), np.float32(clamped - first)


@njit(cache=True, nogil=True)
def interpolate(source, z, y, x):  # type: ignore[no-untyped-def]
    """The value at an index (z, y, x) between voxels, trilinear, in single precision; the outer voxels go on beyond."""
    z0, z1, fz = neighbours(z, source.shape[0])
    y0, y1, fy = neighbours(y, source.shape[1])
    x0, x1, fx = neighbours(x, source.shape[2])
    return _trilinear(
        source[z0, y0, x0], source[z0, y0, x1], source[z0, y1, x0], source[z0, y1, x1],
        source[z1, y0, x0], source[z1, y0, x1], source[z1, y1, x0], source[z1, y1, x1], fz, fy, fx,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _trilinear(v000, v001, v010, v011, v100, v101, v110, v111, fz, fy, fx):  # type: ignore[no-untyped-def]
    """The value between eight, by the shares of those further along z, y and x, in single precision.

    Along x comes last, so that rows can be brought together before: see ``_between_rows``.
    """
    return _linear(_bilinear(v000, v010, v100, v110, fz, fy), _bilinear(v001, v011, v101, v111, fz, fy), fx)


@njit(cache=True, nogil=True, inline="always")
def _bilinear(v00, v01, v10, v11, fz, fy):  # type: ignore[no-untyped-def]
    """The value between four, by the shares of those further along z and y."""
    near = _linear(np.float32(v00), np.float32(v01), fy)
    return _linear(near, _linear(np.float32(v10), np.float32(v11), fy), fz)


@njit(cache=True, nogil=True, inline="always")
def _linear(first, second, share):  # type: ignore[no-untyped-def]
    """``first`` where ``share`` is 0, ``second`` where it is 1."""
    return (np.float32(1) - share) * first + share * second


@njit(cache=True, nogil=True)
def sample_slab(source, matrix, low, high, fill, out, first, last):  # type: ignore[no-untyped-def]
    """Fills ``out[first:last]`` with ``source`` at ``matrix @ (z, y, x, 1)``, trilinear, ``fill`` outside low..high."""
    for z in range(first, last):
        for y in range(out.shape[1]):
            row_z = matrix[0, 3] + matrix[0, 0] * z + matrix[0, 1] * y
            row_y = matrix[1, 3] + matrix[1, 0] * z + matrix[1, 1] * y
            row_x = matrix[2, 3] + matrix[2, 0] * z + matrix[2, 1] * y
            for x in range(out.shape[2]):
                pz = row_z + matrix[0, 2] * x
                py = row_y + matrix[1, 2] * x
                px = row_x + matrix[2, 2] * x
                inside = low[0] <= pz <= high[0] and low[1] <= py <= high[1] and low[2] <= px <= high[2]
                out[z, y, x] = interpolate(source, pz, py, px) if inside else fill


@njit(cache=True, nogil=True)
def sample_slab_aligned(source, matrix, low, high, fill, out, first, last):  # type: ignore[no-untyped-def]
    """As ``sample_slab``, the same to the bit, for a ``matrix`` (3, 4) whose every row has one axis alone: its own."""
    columns = _columns(matrix[2], out.shape[2], source.shape[2])
    begin, end = _range_within(matrix[2], low[2], high[2], out.shape[2])
    spare = np.empty(source.shape[2], np.float32)
    for z in range(first, last):
        pz = matrix[0, 3] + matrix[0, 0] * z
        z0, z1, fz = neighbours(pz, source.shape[0])
        for y in range(out.shape[1]):
            py = matrix[1, 3] + matrix[1, 1] * y
            row = out[z, y]
            if not (low[0] <= pz <= high[0] and low[1] <= py <= high[1]):
                row[:] = fill
                continue
            y0, y1, fy = neighbours(py, source.shape[1])
            _between_rows(source[z0, y0], source[z0, y1], source[z1, y0], source[z1, y1], fz, fy, columns, spare, row)
            row[:begin] = fill
            row[end:] = fill


@njit(cache=True, nogil=True)
def columns_around(places, size):  # type: ignore[no-untyped-def]
    """For each place on a row of so many voxels: the two columns around it, and the share of the second."""
    count = places.size
    before, after, shares = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.float32)
    for x in range(count):
        before[x], after[x], shares[x] = neighbours(places[x], size)
    return before, after, shares


@njit(cache=True, nogil=True)
def _columns(row, count, size):  # type: ignore[no-untyped-def]
    """As ``columns_around``, for x of 0..count where the matrix has ``row``."""
    return columns_around(row[3] + row[2] * np.arange(count), size)


@njit(cache=True, nogil=True)
def _range_within(row, low, high, count):  # type: ignore[no-untyped-def]
    """From which x of 0..count on, and up to which, the position is one of ``low``..``high``."""
    begin, end = count, count
    for x in range(count):
        if low <= row[3] + row[2] * x <= high:
            begin, end = min(begin, x), x + 1
    return begin, end


@njit(cache=True, nogil=True)
def _between_rows(near0, near1, far0, far1, fz, fy, columns, spare, out):  # type: ignore[no-untyped-def]
    """The values between four rows; ``spare`` (float32, as long as these) is for the row that they make together."""
    before, after, shares = columns
    for x in range(spare.size):
        spare[x] = _bilinear(near0[x], near1[x], far0[x], far1[x], fz, fy)
    for x in range(out.size):
        out[x] = _linear(spare[before[x]], spare[after[x]], shares[x])


@njit(cache=True, nogil=True)
def fill_shares(starts, counts, left, right, size, shares):  # type: ignore[no-untyped-def]
    """Fills ``shares`` (cells, w): how much each voxel of a row counts in the integral of its linear interpolation.

    Beyond the outer voxels' centres the interpolation goes on with their values.

    Args:
        starts: (cells,) first voxel of each cell.
        counts: (cells,) its voxels.
        left: (cells,) float64, index where the integral begins.
        right: (cells,) float64, and where it ends.
        size: voxels of the row.
        shares: float64, written.
    """
    last = size - 1.0
    for cell in range(starts.size):
        for k in range(counts[cell]):
            voxel, begin, end = starts[cell] + k, left[cell], right[cell]
            share = _integral(min(max(end, 0.0), last) - voxel) - _integral(min(max(begin, 0.0), last) - voxel)
            if voxel == 0:
                share += min(end, 0.0) - min(begin, 0.0)
            if voxel == last:
                share += max(end, last) - max(begin, last)
            shares[cell, k] = share


@njit(cache=True, nogil=True)
def _integral(t):  # type: ignore[no-untyped-def]
    """Of a triangle of height 1 from -1 to 1, up to ``t``."""
    t = min(max(t, -1.0), 1.0)
    return (1.0 + t) ** 2 / 2.0 if t < 0.0 else 1.0 - (1.0 - t) ** 2 / 2.0


@njit(cache=True, nogil=True)
def average_slab(  # type: ignore[no-untyped-def]
    source,
    starts_z,
    counts_z,
    weights_z,
    starts_y,
    counts_y,
    weights_y,
    starts_x,
    counts_x,
    weights_x,
    out,
    first,
    last,
):
    """Fills ``out[first:last]`` with weighted means of boxes of ``source``; per axis a start, a count and weights.

    The weights of a box sum to 1 along each axis.
    """
    left = np.min(starts_x)
    right = np.max(starts_x + counts_x)
    row = np.empty(right - left, np.float32)
    for z in range(first, last):
        for y in range(out.shape[1]):
            row[:] = 0
            for i in range(counts_z[z]):
                for j in range(counts_y[y]):
                    weight = weights_z[z, i] * weights_y[y, j]
                    line = source[starts_z[z] + i, starts_y[y] + j, left:right]
                    for x in range(row.size):
                        row[x] += weight * np.float32(line[x])
            for x in range(out.shape[2]):
                total = np.float32(0)
                for k in range(counts_x[x]):
                    total += weights_x[x, k] * row[starts_x[x] - left + k]
                out[z, y, x] = total


@njit(cache=True, nogil=True)
def highest_of_rows(volume):  # type: ignore[no-untyped-def]
    """(z, y) the highest value of each row along x of a volume (z, y, x)."""
    highest = np.empty(volume.shape[:2], volume.dtype)
    for z in range(volume.shape[0]):
        for y in range(volume.shape[1]):
            most = volume[z, y, 0]
            for x in range(1, volume.shape[2]):
                most = max(most, volume[z, y, x])
            highest[z, y] = most
    return highest


@njit(cache=True, nogil=True)
def paste_slab(probability, matrix, label, threshold, labels, confidence, first, last):  # type: ignore[no-untyped-def]
    """Gives ``label`` to the voxels of ``labels[first:last]`` where ``probability`` reaches the threshold and wins.

    ``confidence`` holds the winner's probability in 1/65535; an equal one doesn't take a voxel over. Voxels outside the
    probability map's extent are left alone.
    """
    for z in range(first, last):
        for y in range(labels.shape[1]):
            row_z = matrix[0, 3] + matrix[0, 0] * z + matrix[0, 1] * y
            row_y = matrix[1, 3] + matrix[1, 0] * z + matrix[1, 1] * y
            row_x = matrix[2, 3] + matrix[2, 0] * z + matrix[2, 1] * y
            for x in range(labels.shape[2]):
                pz = row_z + matrix[0, 2] * x
                py = row_y + matrix[1, 2] * x
                px = row_x + matrix[2, 2] * x
                if not (
                    _is_within(pz, probability.shape[0])
                    and _is_within(py, probability.shape[1])
                    and _is_within(px, probability.shape[2])
                ):
                    continue
                value = interpolate(probability, pz, py, px)
                if value >= threshold:
                    _take(label, value, labels, confidence, z, y, x)


@njit(cache=True, nogil=True)
def paste_slab_aligned(  # type: ignore[no-untyped-def]
    probability, highest, matrix, label, threshold, labels, confidence, first, last
):
    """As ``paste_slab``, the same to the bit, for a ``matrix`` (3, 4) whose every row has one axis alone: its own.

    ``highest`` (z, y) is that of each row of ``probability``: rows of voxels between lower ones are passed over.
    """
    columns = _columns(matrix[2], labels.shape[2], probability.shape[2])
    begin, end = _range_within(matrix[2], -0.5 - 1e-6, probability.shape[2] - 0.5 + 1e-6, labels.shape[2])
    values, spare = np.empty(labels.shape[2], np.float32), np.empty(probability.shape[2], np.float32)
    for z in range(first, last):
        pz = matrix[0, 3] + matrix[0, 0] * z
        if not _is_within(pz, probability.shape[0]):
            continue
        z0, z1, fz = neighbours(pz, probability.shape[0])
        for y in range(labels.shape[1]):
            py = matrix[1, 3] + matrix[1, 1] * y
            if not _is_within(py, probability.shape[1]):
                continue
            y0, y1, fy = neighbours(py, probability.shape[1])
            if max(max(highest[z0, y0], highest[z0, y1]), max(highest[z1, y0], highest[z1, y1])) < threshold - 1e-5:
                continue
            _between_rows(
                probability[z0, y0], probability[z0, y1], probability[z1, y0], probability[z1, y1], fz, fy, columns,
                spare, values,
            )  # fmt: skip
            for x in range(begin, end):
                if values[x] >= threshold:
                    _take(label, values[x], labels, confidence, z, y, x)


@njit(cache=True, nogil=True, inline="always")
def _is_within(position, count):  # type: ignore[no-untyped-def]
    """Whether a position lies in the extent of so many voxels."""
    return -0.5 - 1e-6 <= position <= count - 0.5 + 1e-6


@njit(cache=True, nogil=True, inline="always")
def _take(label, value, labels, confidence, z, y, x):  # type: ignore[no-untyped-def]
    """Give a voxel the label, unless another's probability is as high."""
    rank = np.uint16(min(max(value, 0.0), 1.0) * 65535.0 + 0.5)
    if labels[z, y, x] == 0 or rank > confidence[z, y, x]:
        labels[z, y, x] = label
        confidence[z, y, x] = rank


@njit(cache=True, nogil=True)
def interleave_slab(first, second, out, low, high):  # type: ignore[no-untyped-def]
    """Fills ``out[low:high]``, (2z, 2y, 2x), with the mean of two volumes (z, y, x) interpolated at its voxels.

    Voxel ``i`` of ``first`` lies at ``2 i`` along every axis, that of ``second`` at ``2 i + 1``. Between two voxels
    comes their mean, beyond the outermost one its own value.
    """
    depth, height, width = first.shape
    one = np.empty(width, np.float32)
    other = np.empty(width, np.float32)
    half, eighth = np.float32(0.5), np.float32(0.125)
    for z in range(low, high):
        za, zb = z // 2, min(z // 2 + z % 2, depth - 1)
        zc, zd = max(z // 2 - 1 + z % 2, 0), z // 2
        for y in range(out.shape[1]):
            ya, yb = y // 2, min(y // 2 + y % 2, height - 1)
            yc, yd = max(y // 2 - 1 + y % 2, 0), y // 2
            for x in range(width):
                one[x] = eighth * ((first[za, ya, x] + first[za, yb, x]) + (first[zb, ya, x] + first[zb, yb, x]))
                other[x] = eighth * ((second[zc, yc, x] + second[zc, yd, x]) + (second[zd, yc, x] + second[zd, yd, x]))
            row = out[z, y]
            row[0] = one[0] + other[0]
            row[2 * width - 1] = one[width - 1] + other[width - 1]
            for x in range(1, width):
                row[2 * x] = one[x] + half * (other[x - 1] + other[x])
                row[2 * x - 1] = half * (one[x - 1] + one[x]) + other[x - 1]
