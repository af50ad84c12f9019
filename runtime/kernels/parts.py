"""Compiled loops that number the connected parts of a mask, and leave some of them out."""

from __future__ import annotations

import numpy as np

from runtime.kernels.jit import njit


@njit(cache=True, nogil=True)
def number_parts(mask, numbers):  # type: ignore[no-untyped-def]
    """Number a mask's connected parts (faces touch) from 1 on, in the order of their first voxels; gives their sizes.

    What is joined are the runs of voxels along x.

    Args:
        mask: (z, y, x) bool.
        numbers: (z, y, x) int32, written; 0 outside the mask.
    """
    rows = mask.shape[1]
    begins, ends, first_run = _runs(mask)
    parent = np.arange(begins.size)  # of each run an earlier one of the same part, or itself
    for row in range(first_run.size - 1):
        if row % rows:
            _join_rows(parent, begins, ends, first_run, row - 1, row)
        if row >= rows:
            _join_rows(parent, begins, ends, first_run, row - rows, row)
    number_of = np.empty(begins.size, np.int32)
    sizes = np.zeros(begins.size, np.int64)
    parts = 0
    for row in range(first_run.size - 1):
        numbers[row // rows, row % rows, :] = 0
        for run in range(first_run[row], first_run[row + 1]):
            if parent[run] == run:
                parts += 1
                number_of[run] = parts
            else:
                number_of[run] = number_of[parent[run]]
            numbers[row // rows, row % rows, begins[run] : ends[run]] = number_of[run]
            sizes[number_of[run] - 1] += ends[run] - begins[run]
    return sizes[:parts].copy()


@njit(cache=True, nogil=True)
def _runs(mask):  # type: ignore[no-untyped-def]
    """The runs of voxels along x: the first x of each, one past its last, and (rows + 1,) each row's first run; int64.

    The last entry of these is how many runs there are.
    """
    rows = mask.shape[0] * mask.shape[1]
    room = rows * ((mask.shape[2] + 1) // 2)
    begins, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    first_run = np.empty(rows + 1, np.int64)
    count = 0
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            first_run[z * mask.shape[1] + y] = count
            is_inside = False
            for x in range(mask.shape[2]):
                if mask[z, y, x] != is_inside:
                    if is_inside:
                        ends[count - 1] = x
                    else:
                        begins[count] = x
                        count += 1
                    is_inside = not is_inside
            if is_inside:
                ends[count - 1] = mask.shape[2]
    first_run[-1] = count
    return begins[:count], ends[:count], first_run


@njit(cache=True, nogil=True)
def _join_rows(parent, begins, ends, first_run, earlier, row):  # type: ignore[no-untyped-def]
    """Join the runs of two rows that lie beside each other."""
    one, other = first_run[earlier], first_run[row]
    while one < first_run[earlier + 1] and other < first_run[row + 1]:
        if begins[one] < ends[other] and begins[other] < ends[one]:
            low, high = _first(parent, one), _first(parent, other)
            parent[max(low, high)] = min(low, high)
        if ends[one] < ends[other]:
            one += 1
        else:
            other += 1


@njit(cache=True, nogil=True)
def leave_out(values, numbers, dropped, kept):  # type: ignore[no-untyped-def]
    """Write ``values`` into ``kept``, with 0 where ``dropped`` is true of the number; all (z, y, x) but that."""
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            for x in range(values.shape[2]):
                kept[z, y, x] = 0 if dropped[numbers[z, y, x]] else values[z, y, x]


@njit(cache=True, nogil=True)
def _first(parent, run):  # type: ignore[no-untyped-def]
    """The first run of a part; the way there becomes shorter."""
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run
