"""Compiled loops over what a mask holds: how many voxels, where on the whole, and between which ends."""

from __future__ import annotations

import numpy as np

from runtime.kernels.jit import njit


@njit(cache=True, nogil=True)
def index_sums(mask):  # type: ignore[no-untyped-def]
    """(4,) int64: how many voxels a mask (z, y, x) of bool holds, and the sums of their z, y and x indices."""
    sums = np.zeros(4, np.int64)
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            count, along = np.int64(0), np.int64(0)
            for x in range(mask.shape[2]):
                if mask[z, y, x]:
                    count += 1
                    along += x
            sums[0] += count
            sums[1] += count * z
            sums[2] += count * y
            sums[3] += along
    return sums


@njit(cache=True, nogil=True)
def mask_ends(mask):  # type: ignore[no-untyped-def]
    """(3, 2) int64: along z, y and x the first index of a mask (z, y, x) of bool and one past its last; 0 if empty."""
    ends = np.zeros((3, 2), np.int64)
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            found = False
            for x in range(mask.shape[2]):  # to the end: several voxels at once, which takes less than stopping early
                found |= mask[z, y, x]
            if not found:
                continue
            is_first_row = ends[0, 1] == 0
            first, last = 0, mask.shape[2]
            while (is_first_row or first < ends[2, 0]) and not mask[z, y, first]:
                first += 1
            while (is_first_row or last > ends[2, 1]) and not mask[z, y, last - 1]:
                last -= 1
            if is_first_row:
                ends[0, 0], ends[1, 0], ends[2, 0] = z, y, first
            ends[0, 1] = z + 1
            ends[1, 0], ends[1, 1] = min(ends[1, 0], y), max(ends[1, 1], y + 1)
            ends[2, 0], ends[2, 1] = min(ends[2, 0], first), max(ends[2, 1], last)
    return ends
