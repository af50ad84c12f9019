"""Compiled loops that number the connected parts of a mask, and leave some of them out."""

from __future__ import annotations

import numpy as np

from runtime.kernels.jit import njit


@njit(cache=True, nogil=True)
def number_parts(mask, numbers):  # type: ignore[no-untyped-def]
    """Number a mask's connected parts (faces touch) from 1 on, in the order of their first voxels; gives their sizes.

    Args:
        mask: (z, y, x) bool.
        numbers: (z, y, x) int32, written; 0 outside the mask.
    """
    parent = np.empty(mask.size // 2 + 2, np.int64)  # of each number given, a lower one of the same part, or itself
    count = np.int64(0)
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                if not mask[z, y, x]:
                    numbers[z, y, x] = 0
                    continue
                number = np.int64(0)
                if x > 0 and mask[z, y, x - 1]:
                    number = np.int64(numbers[z, y, x - 1])
                if y > 0 and mask[z, y - 1, x]:
                    number = _joined(parent, number, np.int64(numbers[z, y - 1, x]))
                if z > 0 and mask[z - 1, y, x]:
                    number = _joined(parent, number, np.int64(numbers[z - 1, y, x]))
                if number == 0:
                    count += 1
                    number = count
                    parent[number] = number
                numbers[z, y, x] = number
    parts = 0
    for given in range(1, count + 1):
        lower = parent[given]
        if lower == given:
            parts += 1
            parent[given] = parts  # from here on the part's own number: all lower ones have theirs
        else:
            parent[given] = parent[lower]
    sizes = np.zeros(parts, np.int64)
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                if numbers[z, y, x]:
                    number = parent[numbers[z, y, x]]
                    numbers[z, y, x] = number
                    sizes[number - 1] += 1
    return sizes


@njit(cache=True, nogil=True)
def leave_out(values, numbers, dropped, kept):  # type: ignore[no-untyped-def]
    """Write ``values`` into ``kept``, with 0 where ``dropped`` is true of the number; all (z, y, x) but that."""
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            for x in range(values.shape[2]):
                kept[z, y, x] = 0 if dropped[numbers[z, y, x]] else values[z, y, x]


@njit(cache=True, nogil=True)
def _joined(parent, one, other):  # type: ignore[no-untyped-def]
    """The lowest number of the part that two numbers (the first may be 0: none) are now of together."""
    other = _lowest(parent, other)
    if one == 0:
        return other
    one = _lowest(parent, one)
    low, high = min(one, other), max(one, other)
    parent[high] = low
    return low


@njit(cache=True, nogil=True)
def _lowest(parent, number):  # type: ignore[no-untyped-def]
    """The lowest number of a part; the way there becomes shorter."""
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number
