"""Slabs of a loop over threads, for kernels that release the interpreter lock.

Numba's own parallel loops aren't used: the threading layer that is always there must not be entered from two threads
at once, and one open pipeline serves several.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def run_slabs(work: Callable[[int, int], object], count: int) -> None:
    """Calls ``work(first, last)`` for consecutive ranges that cover ``0..count`` once, on as many threads as Numba has.

    Args:
        work: handles the items ``first <= i < last``; different ranges must be independent.
        count: number of items.
    """
    ranges_in_threads(work, count, least=1)


def ranges_in_threads(work: Callable[[int, int], T], count: int, *, least: int) -> list[T]:
    """As ``run_slabs``, with ranges of at least ``least`` items where there are that many, and their results in order.

    What is done in one range (of a ``count`` of 0, too) is done on the caller's thread.
    """
    import numba

    workers = min(int(numba.config.NUMBA_NUM_THREADS), count // least)
    if workers <= 1:
        return [work(0, count)]
    pieces = min(count // least, 4 * workers)
    bounds = [count * i // pieces for i in range(pieces + 1)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, bounds[:-1], bounds[1:]))
