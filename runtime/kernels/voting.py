"""Compiled loops of voting and peak search. Volumes are (z, y, x) float32 and C-contiguous, or bricks of them.

Bricks are those of ``runtime.sparse_volume``: ``index`` says where a brick's values are, ``bricks`` holds them.
"""

from __future__ import annotations

import math

import numpy as np

from runtime.kernels.jit import njit
from runtime.sparse_volume import BRICK

_CHUNK = 2048


@njit(cache=True, nogil=True)
def voxels_above(flat, threshold, first, last):  # type: ignore[no-untyped-def]
    """The indices from ``first`` to before ``last`` at which a flat volume exceeds the threshold, in their order.

    Chunks are counted before they are looked into, since counting lets the compiler compare many values at once and
    most chunks hold nothing.
    """
    found = np.empty(1024, np.int64)
    count = 0
    for start in range(first, last, _CHUNK):
        chunk = flat[start : min(start + _CHUNK, last)]
        above = np.int32(0)
        for i in range(chunk.size):
            above += np.int32(chunk[i] > threshold)
        if above == 0:
            continue
        while count + above > found.size:
            found = np.concatenate((found, np.empty_like(found)))
        for i in range(chunk.size):
            if chunk[i] > threshold:
                found[count] = start + i
                count += 1
    return found[:count].copy()


@njit(cache=True, nogil=True)
def vote_targets(offsets, foreground, first_z, size_z, targets):  # type: ignore[no-untyped-def]
    """For each foreground voxel the flat index in the volume that its offset points to; -1 for outside.

    The foreground is flat indices in a slab that begins at plane ``first_z`` of the volume's ``size_z``; the offsets
    (3, z, y, x) are the slab's.
    """
    size_y, size_x = offsets.shape[2:]
    for i in range(foreground.size):
        row, x = divmod(foreground[i], size_x)
        z, y = divmod(row, size_y)
        # Floats until they are known to lie inside: a wild offset has no integer.
        tz = math.floor(first_z + z + np.float64(offsets[0, z, y, x]) + 0.5)
        ty = math.floor(y + np.float64(offsets[1, z, y, x]) + 0.5)
        tx = math.floor(x + np.float64(offsets[2, z, y, x]) + 0.5)
        targets[i] = -1
        if 0 <= tz < size_z and 0 <= ty < size_y and 0 <= tx < size_x:
            targets[i] = (int(tz) * size_y + int(ty)) * size_x + int(tx)


@njit(cache=True, nogil=True)
def mark_bricks(voxels, shape, index):  # type: ignore[no-untyped-def]
    """Mark in ``index`` the bricks that hold any of the flat indices ``voxels``; those below 0 are left out."""
    for voxel in voxels:
        if voxel >= 0:
            row, x = divmod(voxel, shape[2])
            index[row // shape[1] // BRICK, row % shape[1] // BRICK, x // BRICK] = 0


@njit(cache=True, nogil=True)
def mark_around(places, reach, shape, index):  # type: ignore[no-untyped-def]
    """Mark in ``index`` the bricks that hold a voxel within ``reach`` of any of the places (n, 3) along every axis."""
    for i in range(places.shape[0]):
        z0, z1 = _bounds(places[i, 0], reach, shape[0])
        y0, y1 = _bounds(places[i, 1], reach, shape[1])
        x0, x1 = _bounds(places[i, 2], reach, shape[2])
        for z in range(z0 // BRICK, (z1 - 1) // BRICK + 1):
            for y in range(y0 // BRICK, (y1 - 1) // BRICK + 1):
                for x in range(x0 // BRICK, (x1 - 1) // BRICK + 1):
                    index[z, y, x] = 0


@njit(cache=True, nogil=True)
def fill_bricks(volume, corners, bricks, outside):  # type: ignore[no-untyped-def]
    """Copy a volume's values to the bricks (n, 8, 8, 8) that begin at ``corners``; what juts out gets ``outside``."""
    for n in range(corners.shape[0]):
        for k in range(BRICK):
            for j in range(BRICK):
                for i in range(BRICK):
                    z, y, x = corners[n, 0] + k, corners[n, 1] + j, corners[n, 2] + i
                    inside = z < volume.shape[0] and y < volume.shape[1] and x < volume.shape[2]
                    bricks[n, k, j, i] = volume[z, y, x] if inside else outside


@njit(cache=True, nogil=True)
def cast_votes(weights, targets, shape, index, bricks):  # type: ignore[no-untyped-def]
    """Add each weight to the brick that its target (a flat index) lies in, in the list's order."""
    for i in range(targets.size):
        if targets[i] >= 0:
            row, x = divmod(targets[i], shape[2])
            z, y = divmod(row, shape[1])
            n = index[z // BRICK, y // BRICK, x // BRICK]
            bricks[n, z % BRICK, y % BRICK, x % BRICK] += weights[i]


@njit(cache=True, nogil=True)
def _bounds(centre, reach, size):  # type: ignore[no-untyped-def]
    return max(0, centre - reach), min(size, centre + reach + 1)


@njit(cache=True, nogil=True)
def _none_higher_within(index, bricks, place, separation, reach):  # type: ignore[no-untyped-def]
    """Whether no voxel in the 3x3x3 neighbourhood, and none within the separation, is higher than the place.

    What no brick holds is never higher. What juts out of the volume must not be, nor must the place be out there.
    """
    z, y, x = place
    value = bricks[index[z // BRICK, y // BRICK, x // BRICK], z % BRICK, y % BRICK, x % BRICK]
    z0, z1 = _bounds(z, reach, index.shape[0] * BRICK)
    y0, y1 = _bounds(y, reach, index.shape[1] * BRICK)
    x0, x1 = _bounds(x, reach, index.shape[2] * BRICK)
    for bz in range(z0 // BRICK, (z1 - 1) // BRICK + 1):
        for by in range(y0 // BRICK, (y1 - 1) // BRICK + 1):
            for bx in range(x0 // BRICK, (x1 - 1) // BRICK + 1):
                n = index[bz, by, bx]
                if n < 0:
                    continue
                for k in range(max(z0, bz * BRICK), min(z1, bz * BRICK + BRICK)):
                    for j in range(max(y0, by * BRICK), min(y1, by * BRICK + BRICK)):
                        for i in range(max(x0, bx * BRICK), min(x1, bx * BRICK + BRICK)):
                            if bricks[n, k % BRICK, j % BRICK, i % BRICK] > value:
                                near = abs(k - z) <= 1 and abs(j - y) <= 1 and abs(i - x) <= 1
                                distance = math.sqrt(float((k - z) ** 2 + (j - y) ** 2 + (i - x) ** 2))
                                if near or distance <= separation:
                                    return False
    return True


@njit(cache=True, nogil=True)
def literal_peaks(index, corners, bricks, threshold, separation, reach, first, last):  # type: ignore[no-untyped-def]
    """The places (n, 3) in bricks ``first`` to before ``last`` that Algorithm 2 calls peaks; they come in no order.

    ``reach`` is the separation as whole voxels. Voxels that jut out of the volume must not exceed the threshold.
    """
    found = np.empty((64, 3), np.int64)
    count = 0
    for n in range(first, last):
        for k in range(BRICK):
            for j in range(BRICK):
                for i in range(BRICK):
                    if not bricks[n, k, j, i] > threshold:
                        continue
                    place = (corners[n, 0] + k, corners[n, 1] + j, corners[n, 2] + i)
                    if not _none_higher_within(index, bricks, place, 1.0, 1):
                        continue
                    if reach > 1 and not _none_higher_within(index, bricks, place, separation, reach):
                        continue
                    if count == found.shape[0]:
                        found = np.concatenate((found, np.empty_like(found)))
                    found[count, 0], found[count, 1], found[count, 2] = place
                    count += 1
    return found[:count].copy()


@njit(cache=True, nogil=True)
def _plateau(index, bricks, start, marks):  # type: ignore[no-untyped-def]
    """The marked voxels (1) that are joined to ``start`` by voxels of its value; what was visited is marked 2 or 3."""
    z, y, x = start[0], start[1], start[2]
    n = index[z // BRICK, y // BRICK, x // BRICK]
    value = bricks[n, z % BRICK, y % BRICK, x % BRICK]
    stack = np.empty((32, 3), np.int64)
    members = np.empty((32, 3), np.int64)
    stack[0], height, count = start, 1, 0
    marks[n, z % BRICK, y % BRICK, x % BRICK] = 2
    while height:
        height -= 1
        z, y, x = stack[height]
        if marks[index[z // BRICK, y // BRICK, x // BRICK], z % BRICK, y % BRICK, x % BRICK] == 2:
            if count == members.shape[0]:
                members = np.concatenate((members, np.empty_like(members)))
            members[count, 0], members[count, 1], members[count, 2] = z, y, x
            count += 1
        z0, z1 = _bounds(z, 1, index.shape[0] * BRICK)
        y0, y1 = _bounds(y, 1, index.shape[1] * BRICK)
        x0, x1 = _bounds(x, 1, index.shape[2] * BRICK)
        for k in range(z0, z1):
            for j in range(y0, y1):
                for i in range(x0, x1):
                    n, ck, cj, ci = index[k // BRICK, j // BRICK, i // BRICK], k % BRICK, j % BRICK, i % BRICK
                    if n >= 0 and bricks[n, ck, cj, ci] == value and marks[n, ck, cj, ci] < 2:
                        marks[n, ck, cj, ci] = 2 if marks[n, ck, cj, ci] == 1 else 3
                        if height == stack.shape[0]:
                            stack = np.concatenate((stack, np.empty_like(stack)))
                        stack[height, 0], stack[height, 1], stack[height, 2] = k, j, i
                        height += 1
    return members[:count]


@njit(cache=True, nogil=True)
def one_per_plateau(index, bricks, peaks, marks):  # type: ignore[no-untyped-def]
    """Of the peaks on one plateau the one nearest to their mean, ties to the first in scan order.

    ``marks`` is uint8 zeros of the bricks' shape, to be thrown away afterwards.
    """
    for i in range(peaks.shape[0]):
        z, y, x = peaks[i]
        marks[index[z // BRICK, y // BRICK, x // BRICK], z % BRICK, y % BRICK, x % BRICK] = 1
    chosen = np.empty_like(peaks)
    count = 0
    for i in range(peaks.shape[0]):
        z, y, x = peaks[i]
        if marks[index[z // BRICK, y // BRICK, x // BRICK], z % BRICK, y % BRICK, x % BRICK] != 1:
            continue
        members = _plateau(index, bricks, peaks[i], marks)
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
def weigh_around(index, bricks, shape, peaks, radius, reach, means, sums):  # type: ignore[no-untyped-def]
    """For each peak the mean and sum of the values of the voxels within ``radius`` that are its own."""
    voxel = np.empty(3, np.int64)
    for p in range(peaks.shape[0]):
        rivals = _rivals(p, peaks, radius)
        z0, z1 = _bounds(peaks[p, 0], reach, shape[0])
        y0, y1 = _bounds(peaks[p, 1], reach, shape[1])
        x0, x1 = _bounds(peaks[p, 2], reach, shape[2])
        total, mz, my, mx = 0.0, 0.0, 0.0, 0.0
        for z in range(z0, z1):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    n = index[z // BRICK, y // BRICK, x // BRICK]
                    voxel[0], voxel[1], voxel[2] = z, y, x
                    is_near = _squared_distance(voxel, peaks[p]) <= radius * radius
                    if n < 0 or not is_near or not _belongs(voxel, p, peaks, rivals):
                        continue
                    weight = np.float64(bricks[n, z % BRICK, y % BRICK, x % BRICK])
                    total += weight
                    mz += weight * (z - peaks[p, 0])
                    my += weight * (y - peaks[p, 1])
                    mx += weight * (x - peaks[p, 2])
        scale = 1.0 / total if total > 0 else 0.0
        means[p, 0] = peaks[p, 0] + mz * scale
        means[p, 1] = peaks[p, 1] + my * scale
        means[p, 2] = peaks[p, 2] + mx * scale
        sums[p] = total


@njit(cache=True, nogil=True)
def highest_around(volume, peaks, radius, reach, maxima):  # type: ignore[no-untyped-def]
    """For each peak the highest value of a volume, at least 0, among the voxels within ``radius`` that are its own."""
    voxel = np.empty(3, np.int64)
    for p in range(peaks.shape[0]):
        rivals = _rivals(p, peaks, radius)
        z0, z1 = _bounds(peaks[p, 0], reach, volume.shape[0])
        y0, y1 = _bounds(peaks[p, 1], reach, volume.shape[1])
        x0, x1 = _bounds(peaks[p, 2], reach, volume.shape[2])
        highest = 0.0
        for z in range(z0, z1):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    voxel[0], voxel[1], voxel[2] = z, y, x
                    is_near = _squared_distance(voxel, peaks[p]) <= radius * radius
                    if is_near and volume[z, y, x] > highest and _belongs(voxel, p, peaks, rivals):
                        highest = np.float64(volume[z, y, x])
        maxima[p] = highest
