import contextlib
import gc
import threading
import weakref

import pytest

from runtime.read_ahead import one_ahead


def test_the_next_one_is_under_way_while_the_caller_works_and_no_more():
    begun, release = [], {n: threading.Event() for n in range(4)}
    started = {n: threading.Event() for n in range(4)}

    def work(n):
        begun.append(n)
        started[n].set()
        assert release[n].wait(10)
        return n * n

    release[0].set()
    found = []
    for n, result in one_ahead(work, range(4), on_wait=lambda _: None):
        if n + 1 < 4:
            assert started[n + 1].wait(10), "the next one should have begun"
        assert begun == list(range(min(n + 2, 4)))
        assert result.beside_another == (n > 0)
        found.append((n, result.take()))
        if n + 1 < 4:
            release[n + 1].set()
    assert found == [(n, n * n) for n in range(4)]


def test_an_error_is_raised_for_its_own_item_alone():
    def work(n):
        return 1 // n

    waited, found = [], []
    for n, result in one_ahead(work, [1, 0, 1], on_wait=waited.append):
        if n:
            found.append(result.take())
        else:
            with pytest.raises(ZeroDivisionError):
                result.take()
    assert found == [1, 1]
    assert waited == [1, 0, 1]


def test_nothing_to_do_is_done():
    assert list(one_ahead(print, [], on_wait=print)) == []


class Arrays:
    """Stands for what a scan takes of the memory."""


def test_an_error_that_was_taken_holds_nothing_that_the_work_had():
    made = []

    def work(_):
        arrays = Arrays()
        made.append(weakref.ref(arrays))
        raise MemoryError

    gc.disable()
    try:
        for _, result in one_ahead(work, [0], on_wait=lambda _: None):
            with contextlib.suppress(MemoryError):
                result.take()
            assert made[0]() is None
    finally:
        gc.enable()


def test_what_was_dropped_makes_room_and_is_begun_anew_in_its_turn():
    made = []

    def work(n):
        arrays = Arrays()
        made.append((n, weakref.ref(arrays)))
        return arrays

    for n, result in one_ahead(work, range(3), on_wait=lambda _: None):
        if n == 0:
            result.following.drop()
            assert [number for number, _ in made] == [0, 1]
            assert made[1][1]() is None
        assert isinstance(result.take(), Arrays)
        assert (result.following is None) == (n == 2)
    assert [number for number, _ in made] == [0, 1, 1, 2]
