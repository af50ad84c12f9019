"""Compiled loop over what a mask holds: how many voxels, and where on the whole."""

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
