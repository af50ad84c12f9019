"""Kernels that list and sort: what exceeds a threshold in scan order, and whole numbers from small to large."""

from __future__ import annotations

from numba import cuda

from runtime.device.kernels.jit import kernel


@kernel
def count_above(values, threshold, chunk, counts):  # type: ignore[no-untyped-def]
    """Adds to ``counts[i]`` how many of the i-th ``chunk`` of the flat ``values`` exceed the threshold."""
    for i in range(cuda.grid(1), values.size, cuda.gridsize(1)):
        if values[i] > threshold:
            cuda.atomic.add(counts, i // chunk, 1)


@kernel
def list_above(values, threshold, chunk, chunks, places, found):  # type: ignore[no-untyped-def]
    """Writes the indices at which the flat ``values`` exceed the threshold into ``found``, in their order.

    ``chunks`` are the chunks that hold any, ``places`` where each chunk's first index goes. One thread walks a chunk.
    """
    for n in range(cuda.grid(1), chunks.size, cuda.gridsize(1)):
        place = places[n]
        first = chunks[n] * chunk
        for i in range(first, min(first + chunk, values.size)):
            if values[i] > threshold:
                found[place] = i
                place += 1


@kernel
def sort_step(keys, distance, span):  # type: ignore[no-untyped-def]
    """One step of Batcher's bitonic sort (1968) over a power of two of keys: compare and swap ``distance`` apart."""
    for i in range(cuda.grid(1), keys.size, cuda.gridsize(1)):
        other = i ^ distance
        if other > i:
            a, b = keys[i], keys[other]
            if (a > b) == (i & span == 0):
                keys[i], keys[other] = b, a


@kernel
def number(values):  # type: ignore[no-untyped-def]
    """Fills ``values`` with 0, 1, 2, ..."""
    for i in range(cuda.grid(1), values.size, cuda.gridsize(1)):
        values[i] = i


@kernel
def take(values, indices, taken):  # type: ignore[no-untyped-def]
    """Fills ``taken`` with ``values`` at the indices."""
    for i in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        taken[i] = values[indices[i]]
