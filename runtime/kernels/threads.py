"""Slabs of a loop over threads, for kernels that release the interpreter lock.

Numba's own parallel loops aren't used: the threading layer that is always there must not be entered from two threads
at once, and one open pipeline serves several.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def run_slabs(work: Callable[[int, int], object], count: int) -> None:
    """Calls ``work(first, last)`` for consecutive ranges that cover ``0..count`` once, on as many threads as Numba has.

    Args:
        work: handles the items ``first <= i < last``; different ranges must be independent.
        count: number of items.
    """
    import numba

    workers = min(int(numba.config.NUMBA_NUM_THREADS), count)
    if workers <= 1:
        work(0, count)
        return
    pieces = min(count, 4 * workers)
    bounds = [count * i // pieces for i in range(pieces + 1)]
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, bounds[:-1], bounds[1:]):
            pass
