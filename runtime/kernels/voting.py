"""Compiled loops of voting and peak search. Arrays are (z, y, x), float32 and C-contiguous."""

from __future__ import annotations

import math

import numpy as np

from runtime.kernels.jit import njit

_CHUNK = 2048


@njit(cache=True, nogil=True)
def voxels_above(volume, threshold):  # type: ignore[no-untyped-def]
    """The places (n, 3) at which a volume exceeds the threshold, in scan order.

    Chunks are counted before they are looked into, since counting lets the compiler compare many values at once and
    most chunks hold nothing.
    """
    flat = volume.reshape(-1)
    size_y, size_x = volume.shape[1], volume.shape[2]
    found = np.empty((1024, 3), np.int64)
    count = 0
    for first in range(0, flat.size, _CHUNK):
        chunk = flat[first : first + _CHUNK]
        above = np.int32(0)
        for i in range(chunk.size):
            above += np.int32(chunk[i] > threshold)
        if above == 0:
            continue
        while count + above > found.shape[0]:
            found = np.concatenate((found, np.empty_like(found)))
        for i in range(chunk.size):
            if chunk[i] > threshold:
                row, x = divmod(first + i, size_x)
                found[count, 0], found[count, 1], found[count, 2] = row // size_y, row % size_y, x
                count += 1
    return found[:count]


@njit(cache=True, nogil=True)
def _bounds(centre, reach, size):  # type: ignore[no-untyped-def]
    return max(0, centre - reach), min(size, centre + reach + 1)


@njit(cache=True, nogil=True)
def cast_votes(heatmap, offsets, foreground, votes):  # type: ignore[no-untyped-def]
    """Add each foreground voxel's heatmap value to ``votes`` where its offset points, in the order of the list."""
    size_z, size_y, size_x = heatmap.shape
    for i in range(foreground.shape[0]):
        z, y, x = foreground[i]
        # Floats until they are known to lie inside: a wild offset has no integer.
        tz = math.floor(z + np.float64(offsets[0, z, y, x]) + 0.5)
        ty = math.floor(y + np.float64(offsets[1, z, y, x]) + 0.5)
        tx = math.floor(x + np.float64(offsets[2, z, y, x]) + 0.5)
        if 0 <= tz < size_z and 0 <= ty < size_y and 0 <= tx < size_x:
            votes[int(tz), int(ty), int(tx)] += heatmap[z, y, x]


@njit(cache=True, nogil=True)
def _is_neighbourhood_maximum(density, z, y, x):  # type: ignore[no-untyped-def]
    z0, z1 = _bounds(z, 1, density.shape[0])
    y0, y1 = _bounds(y, 1, density.shape[1])
    x0, x1 = _bounds(x, 1, density.shape[2])
    value = density[z, y, x]
    for k in range(z0, z1):
        for j in range(y0, y1):
            for i in range(x0, x1):
                if density[k, j, i] > value:
                    return False
    return True


@njit(cache=True, nogil=True)
def _none_higher_within(density, z, y, x, separation, reach):  # type: ignore[no-untyped-def]
    z0, z1 = _bounds(z, reach, density.shape[0])
    y0, y1 = _bounds(y, reach, density.shape[1])
    x0, x1 = _bounds(x, reach, density.shape[2])
    value = density[z, y, x]
    for k in range(z0, z1):
        for j in range(y0, y1):
            for i in range(x0, x1):
                if density[k, j, i] > value:
                    distance = math.sqrt(float((k - z) ** 2 + (j - y) ** 2 + (i - x) ** 2))
                    if distance <= separation:
                        return False
    return True


@njit(cache=True, nogil=True)
def literal_peaks(density, candidates, separation, reach):  # type: ignore[no-untyped-def]
    """Those of the candidates (n, 3) that Algorithm 2 calls peaks; ``reach`` is the separation as whole voxels."""
    found = np.empty_like(candidates)
    count = 0
    for i in range(candidates.shape[0]):
        z, y, x = candidates[i]
        if _is_neighbourhood_maximum(density, z, y, x) and _none_higher_within(density, z, y, x, separation, reach):
            found[count] = candidates[i]
            count += 1
    return found[:count].copy()


@njit(cache=True, nogil=True)
def _plateau(density, start, marks):  # type: ignore[no-untyped-def]
    """The marked voxels (1) that are joined to ``start`` by voxels of its value; what was visited is marked 2 or 3."""
    value = density[start[0], start[1], start[2]]
    stack = np.empty((32, 3), np.int64)
    members = np.empty((32, 3), np.int64)
    stack[0], height, count = start, 1, 0
    marks[start[0], start[1], start[2]] = 2
    while height:
        height -= 1
        z, y, x = stack[height]
        if marks[z, y, x] == 2:
            if count == members.shape[0]:
                members = np.concatenate((members, np.empty_like(members)))
            members[count, 0], members[count, 1], members[count, 2] = z, y, x
            count += 1
        z0, z1 = _bounds(z, 1, density.shape[0])
        y0, y1 = _bounds(y, 1, density.shape[1])
        x0, x1 = _bounds(x, 1, density.shape[2])
        for k in range(z0, z1):
            for j in range(y0, y1):
                for i in range(x0, x1):
                    if density[k, j, i] == value and marks[k, j, i] < 2:
                        marks[k, j, i] = 2 if marks[k, j, i] == 1 else 3
                        if height == stack.shape[0]:
                            stack = np.concatenate((stack, np.empty_like(stack)))
                        stack[height, 0], stack[height, 1], stack[height, 2] = k, j, i
                        height += 1
    return members[:count]


@njit(cache=True, nogil=True)
def one_per_plateau(density, peaks, marks):  # type: ignore[no-untyped-def]
    """Of the peaks on one plateau the one nearest to their mean, ties to the first in scan order.

    ``marks`` is uint8 zeros of the density's shape, to be thrown away afterwards.
    """
    for i in range(peaks.shape[0]):
        marks[peaks[i, 0], peaks[i, 1], peaks[i, 2]] = 1
    chosen = np.empty_like(peaks)
    count = 0
    for i in range(peaks.shape[0]):
        if marks[peaks[i, 0], peaks[i, 1], peaks[i, 2]] != 1:
            continue
        members = _plateau(density, peaks[i], marks)
        n = members.shape[0]
        sz, sy, sx = members[:, 0].sum(), members[:, 1].sum(), members[:, 2].sum()
        best, best_far = 0, np.inf
        for m in range(n):
            z, y, x = members[m]
            # n times the distance to the mean: whole numbers, so that ties are ties.
            far = float(n * z - sz) ** 2 + float(n * y - sy) ** 2 + float(n * x - sx) ** 2
            earlier = (z, y, x) < (members[best, 0], members[best, 1], members[best, 2])
            if far < best_far or (far == best_far and earlier):
                best, best_far = m, far
        chosen[count] = members[best]
        count += 1
    return chosen[:count].copy()


@njit(cache=True, nogil=True)
def _squared_distance(a, b):  # type: ignore[no-untyped-def]
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2


@njit(cache=True, nogil=True)
def _belongs(voxel, own, peaks, rivals):  # type: ignore[no-untyped-def]
    """Whether none of the rivals is nearer to the voxel than peak ``own``, or as near and earlier in the list."""
    distance = _squared_distance(voxel, peaks[own])
    for rival in rivals:
        other = _squared_distance(voxel, peaks[rival])
        if other < distance or (other == distance and rival < own):
            return False
    return True


@njit(cache=True, nogil=True)
def _rivals(own, peaks, radius):  # type: ignore[no-untyped-def]
    near = np.empty(peaks.shape[0], np.int64)
    count = 0
    for other in range(peaks.shape[0]):
        if other != own and _squared_distance(peaks[own], peaks[other]) <= 4 * radius * radius:
            near[count] = other
            count += 1
    return near[:count]


@njit(cache=True, nogil=True)
def gather(density, heatmap, peaks, radius, reach, means, sums, maxima):  # type: ignore[no-untyped-def]
    """For each peak, over the voxels within ``radius`` that are its own: weighted mean, sum, highest heatmap value."""
    voxel = np.empty(3, np.int64)
    for p in range(peaks.shape[0]):
        rivals = _rivals(p, peaks, radius)
        bounds = [_bounds(peaks[p, axis], reach, density.shape[axis]) for axis in range(3)]
        total, mz, my, mx, highest = 0.0, 0.0, 0.0, 0.0, 0.0
        for z in range(bounds[0][0], bounds[0][1]):
            for y in range(bounds[1][0], bounds[1][1]):
                for x in range(bounds[2][0], bounds[2][1]):
                    voxel[0], voxel[1], voxel[2] = z, y, x
                    if _squared_distance(voxel, peaks[p]) > radius * radius or not _belongs(voxel, p, peaks, rivals):
                        continue
                    weight = np.float64(density[z, y, x])
                    total += weight
                    mz += weight * (z - peaks[p, 0])
                    my += weight * (y - peaks[p, 1])
                    mx += weight * (x - peaks[p, 2])
                    highest = max(highest, np.float64(heatmap[z, y, x]))
        scale = 1.0 / total if total > 0 else 0.0
        means[p, 0] = peaks[p, 0] + mz * scale
        means[p, 1] = peaks[p, 1] + my * scale
        means[p, 2] = peaks[p, 2] + mx * scale
        sums[p], maxima[p] = total, highest
