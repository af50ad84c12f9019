"""Kernels of voting and peak search: the twins of ``runtime.kernels.voting``. Voxels are numbered in scan order."""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from runtime.device.kernels.jit import device_function, kernel, product64

NOWHERE = np.int64(2**63 - 1)
"""The key of a vote that falls outside the volume: after every other key."""
_ORDER_BITS = 32
_ORDER = 2**_ORDER_BITS - 1


@kernel
def vote_keys(offsets, foreground, keys):  # type: ignore[no-untyped-def]
    """For each foreground voxel's vote the voxel it goes to, above its own number in the list; see ``sum_votes``."""
    size_z, size_y, size_x = offsets.shape[1], offsets.shape[2], offsets.shape[3]
    for i in range(cuda.grid(1), keys.size, cuda.gridsize(1)):
        key = NOWHERE
        if i < foreground.size:
            voxel = foreground[i]
            z, y, x = voxel // (size_y * size_x), voxel // size_x % size_y, voxel % size_x
            tz = z + np.float64(offsets[0, z, y, x]) + 0.5
            ty = y + np.float64(offsets[1, z, y, x]) + 0.5
            tx = x + np.float64(offsets[2, z, y, x]) + 0.5
            # Floats until they are known to lie inside: a wild offset has no integer.
            if 0 <= tz < size_z and 0 <= ty < size_y and 0 <= tx < size_x:
                key = ((int(tz) * size_y + int(ty)) * size_x + int(tx)) << _ORDER_BITS | i
        keys[i] = key


@kernel
def sum_votes(keys, heatmap, foreground, votes):  # type: ignore[no-untyped-def]
    """From sorted keys: every voxel's votes are summed by one thread, in scan order, as the processor does."""
    for i in range(cuda.grid(1), keys.size, cuda.gridsize(1)):
        target = keys[i] >> _ORDER_BITS
        if keys[i] != NOWHERE and (i == 0 or keys[i - 1] >> _ORDER_BITS != target):
            total = np.float32(0)
            k = i
            while k < keys.size and keys[k] >> _ORDER_BITS == target:
                total += heatmap[foreground[keys[k] & _ORDER]]
                k += 1
            votes[target] = total


@device_function
def _first(centre, reach):  # type: ignore[no-untyped-def]
    return max(0, centre - reach)


@device_function
def _end(centre, reach, size):  # type: ignore[no-untyped-def]
    return min(size, centre + reach + 1)


@device_function
def _squared(a, b, c):  # type: ignore[no-untyped-def]
    return a * a + b * b + c * c


@device_function
def _none_higher(density, z, y, x, separation, reach):  # type: ignore[no-untyped-def]
    """Whether nothing in the 3x3x3 neighbourhood, and nothing within the separation, exceeds the voxel."""
    value = density[z, y, x]
    for k in range(_first(z, reach), _end(z, reach, density.shape[0])):
        for j in range(_first(y, reach), _end(y, reach, density.shape[1])):
            for i in range(_first(x, reach), _end(x, reach, density.shape[2])):
                if density[k, j, i] > value:
                    is_neighbour = abs(k - z) <= 1 and abs(j - y) <= 1 and abs(i - x) <= 1
                    if is_neighbour or math.sqrt(float(_squared(k - z, j - y, i - x))) <= separation:
                        return False
    return True


@kernel
def mark_peaks(density, candidates, separation, reach, marks):  # type: ignore[no-untyped-def]
    """``marks[i]`` becomes 1 where candidate i is a peak by Algorithm 2, else 0; ``reach`` is at least 1."""
    size_y, size_x = density.shape[1], density.shape[2]
    for i in range(cuda.grid(1), candidates.size, cuda.gridsize(1)):
        voxel = candidates[i]
        z, y, x = voxel // (size_y * size_x), voxel // size_x % size_y, voxel % size_x
        marks[i] = np.float32(1) if _none_higher(density, z, y, x, separation, reach) else np.float32(0)


@device_function
def _number_of(candidates, voxel):  # type: ignore[no-untyped-def]
    """Where a voxel stands in the sorted list, which holds it."""
    low, high = 0, candidates.size - 1
    while low < high:
        middle = (low + high) // 2
        if candidates[middle] < voxel:
            low = middle + 1
        else:
            high = middle
    return low


@device_function
def _root(parents, i):  # type: ignore[no-untyped-def]
    while parents[i] != i:
        i = parents[i]
    return i


@device_function
def _join(parents, a, b):  # type: ignore[no-untyped-def]
    """Makes two sets one, whose root is its smallest member, while other threads do the same (Komura 2015)."""
    a, b = _root(parents, a), _root(parents, b)
    while a != b:
        if a < b:
            a, b = b, a
        met = cuda.atomic.min(parents, a, b)
        a = b if met == a else met


@kernel
def join_plateaus(density, candidates, parents):  # type: ignore[no-untyped-def]
    """Joins candidates of one value that touch (26-neighbourhood); ``parents`` is 0, 1, 2, ... at first."""
    size_y, size_x = density.shape[1], density.shape[2]
    for i in range(cuda.grid(1), candidates.size, cuda.gridsize(1)):
        voxel = candidates[i]
        z, y, x = voxel // (size_y * size_x), voxel // size_x % size_y, voxel % size_x
        for k in range(_first(z, 1), z + 1):
            for j in range(_first(y, 1), _end(y, 1, size_y)):
                for m in range(_first(x, 1), _end(x, 1, size_x)):
                    other = (k * size_y + j) * size_x + m
                    # Half of the neighbours: the others find this voxel.
                    if other < voxel and density[k, j, m] == density[z, y, x]:
                        _join(parents, i, _number_of(candidates, other))


@kernel
def find_roots(parents, members, roots):  # type: ignore[no-untyped-def]
    """``roots[i]`` becomes the smallest candidate of the plateau that candidate ``members[i]`` belongs to."""
    for i in range(cuda.grid(1), members.size, cuda.gridsize(1)):
        roots[i] = _root(parents, members[i])


@device_function
def _belongs(peaks, own, z, y, x, distance):  # type: ignore[no-untyped-def]
    """Whether no other peak is nearer to the voxel than ``own``, or as near and earlier in the list."""
    for rival in range(peaks.shape[0]):
        if rival != own:
            other = _squared(z - peaks[rival, 0], y - peaks[rival, 1], x - peaks[rival, 2])
            if other < distance or (other == distance and rival < own):
                return False
    return True


@kernel
def gather(density, heatmap, peaks, radius, reach, means, sums, maxima):  # type: ignore[no-untyped-def]
    """As ``runtime.kernels.voting.gather``: one thread for each peak sums its own voxels in scan order."""
    for p in range(cuda.grid(1), peaks.shape[0], cuda.gridsize(1)):
        pz, py, px = peaks[p, 0], peaks[p, 1], peaks[p, 2]
        total, mz, my, mx, highest = 0.0, 0.0, 0.0, 0.0, 0.0
        for z in range(_first(pz, reach), _end(pz, reach, density.shape[0])):
            for y in range(_first(py, reach), _end(py, reach, density.shape[1])):
                for x in range(_first(px, reach), _end(px, reach, density.shape[2])):
                    distance = _squared(z - pz, y - py, x - px)
                    if distance > product64(radius, radius) or not _belongs(peaks, p, z, y, x, distance):
                        continue
                    weight = np.float64(density[z, y, x])
                    total += weight
                    mz += product64(weight, np.float64(z - pz))
                    my += product64(weight, np.float64(y - py))
                    mx += product64(weight, np.float64(x - px))
                    highest = max(highest, np.float64(heatmap[z, y, x]))
        scale = 1.0 / total if total > 0 else 0.0
        means[p, 0] = pz + product64(mz, scale)
        means[p, 1] = py + product64(my, scale)
        means[p, 2] = px + product64(mx, scale)
        sums[p], maxima[p] = total, highest
