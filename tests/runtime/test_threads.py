"""How many threads libraries use, told before and after they are loaded."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
import weakref

import numba
import pytest

from runtime.kernels.threads import each_in_threads, run_slabs


@pytest.mark.parametrize("loaded", ["before", "after"])
def test_itk_uses_as_many_threads_as_it_is_told(loaded):
    load = "import SimpleITK"
    limit = "from runtime.kernels.threads import limit_threads; limit_threads(3); limit_threads(1)"
    first, second = (load, limit) if loaded == "before" else (limit, load)
    said = "print(SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads())"
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{second}\n{said}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1"]


def test_telling_does_not_load_itk():
    limit = "import sys; from runtime.kernels.threads import limit_threads; limit_threads(2)"
    asked = "print('SimpleITK' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{limit}\n{asked}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.fixture
def four_threads(monkeypatch):
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 4)


def test_a_loop_within_a_loop_starts_no_more_threads(four_threads):
    together = threading.Barrier(4)

    def threads_within(_):
        together.wait(60)
        met = []
        run_slabs(lambda first, last: met.append((threading.get_ident(), first, last)), 8, voxels_each=2**20)
        return threading.get_ident(), met

    found = each_in_threads(threads_within, range(4))
    assert len({outer for outer, _ in found}) == 4
    assert all(met == [(outer, 0, 8)] for outer, met in found)


def test_one_item_leaves_the_loop_within_it_its_threads(four_threads):
    together = threading.Barrier(4)
    each_in_threads(lambda _: run_slabs(lambda *_: together.wait(60), 4, voxels_each=2**20), range(1))


def test_the_same_threads_serve_one_loop_after_the_other(four_threads):
    def threads():
        together = threading.Barrier(4)
        return set(each_in_threads(lambda _: together.wait(60) * 0 + threading.get_ident(), range(4)))

    assert threads() == threads()


def test_when_one_item_fails_none_is_worked_on_any_more(four_threads):
    begun, release, ended = threading.Event(), threading.Event(), []

    def work(item):
        if item == 0:
            begun.wait(60)
            threading.Timer(0.2, release.set).start()
            raise ValueError("the first")
        if item == 1:
            begun.set()
            release.wait(60)
        ended.append(item)

    with pytest.raises(ValueError, match="the first"):
        each_in_threads(work, range(4))
    assert 1 in ended


class Arrays:
    """Stands for what a scan takes of the memory."""


def test_an_error_that_was_caught_leaves_nothing_of_the_loop(four_threads):
    held = []

    def work(item):
        arrays = Arrays()
        held.append(weakref.ref(arrays))
        raise MemoryError(item)

    gc.disable()
    try:
        with contextlib.suppress(MemoryError):
            each_in_threads(work, range(4))
        assert [arrays() for arrays in held] == [None] * len(held)
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_forked_process_has_threads_of_its_own():
    code = """
import os, numba
numba.config.NUMBA_NUM_THREADS = 2
from runtime.kernels.threads import each_in_threads
each_in_threads(abs, [1, 2])
child = os.fork()
if not child:
    os._exit(each_in_threads(abs, [-3, 4])[0])
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["3"]
