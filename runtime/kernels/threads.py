"""Slabs of a loop over threads, for kernels that release the interpreter lock.

Numba's own parallel loops aren't used: the threading layer that is always there must not be entered from two threads
at once, and one open pipeline serves several.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


_ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
"""What ITK reads when it is loaded, which takes long enough to be left until it is needed."""
_WORTH_A_THREAD = 2**16
"""Voxels that take a few times as long as handing them to a thread does."""
_here = threading.local()


def run_slabs(work: Callable[[int, int], object], count: int, *, voxels_each: int = _WORTH_A_THREAD) -> None:
    """Calls ``work(first, last)`` for consecutive ranges that cover ``0..count`` once, on as many threads as Numba has.

    Args:
        work: handles the items ``first <= i < last``; different ranges must be independent.
        count: number of items.
        voxels_each: how many voxels one item has; small jobs are done on the caller's thread.
    """
    ranges_in_threads(work, count, least=max(1, -(-_WORTH_A_THREAD // max(1, voxels_each))))


def each_in_threads(work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """``work`` of every item, in order, on as many threads as Numba has; items must be independent."""
    return [result for part in ranges_in_threads(lambda a, b: [work(i) for i in items[a:b]], len(items), least=1)
            for result in part]  # fmt: skip


def ranges_in_threads(work: Callable[[int, int], T], count: int, *, least: int) -> list[T]:
    """As ``run_slabs``, with ranges of at least ``least`` items where there are that many, and their results in order.

    What is done in one range (of a ``count`` of 0, too) is done on the caller's thread, and so is a loop within such a
    loop, whose threads are at work already. When this returns or raises, no range is being worked on any more.
    """
    import numba

    threads = 1 if getattr(_here, "is_one_of_them", False) else int(numba.config.NUMBA_NUM_THREADS)
    workers = min(threads, count // least)
    if workers <= 1:
        return [work(0, count)]
    pieces = min(count // least, 4 * workers)
    pool = _pool(threads)
    futures: list[Future[T]] = []
    try:
        for ends in pairwise(count * i // pieces for i in range(pieces + 1)):
            futures.append(pool.submit(work, *ends))
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:  # when one fails, or the caller is interrupted, those that aren't begun never are
        cancelled = {future for future in futures if future.cancel()}
        wait(futures)
    done = [future for future in reversed(futures) if future not in cancelled]
    futures.clear()
    cancelled.clear()
    return [done.pop().result() for _ in range(len(done))]  # the first error; it is kept by nothing here


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept, since a scan has hundreds of such loops; threads of one that another has replaced end by themselves."""

    def begin() -> None:
        _here.is_one_of_them = True

    return ThreadPoolExecutor(threads, "kernels", initializer=begin)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def limit_threads(count: int) -> None:
    """Let this process's kernels and SimpleITK use so many threads; engines are told at opening."""
    import numba

    numba.config.NUMBA_NUM_THREADS = count
    os.environ[_ITK_THREADS] = str(count)
    loaded = sys.modules.get("SimpleITK")
    if loaded is not None:
        loaded.ProcessObject.SetGlobalDefaultNumberOfThreads(count)
