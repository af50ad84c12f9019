"""When the worker lets the processor rest."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("pynetdicom", reason="the extra 'node' is not installed")

from runtime.node import worker as worker_module
from runtime.node.worker import Worker


class _Queue:
    """Gives what is put into it, one by one."""

    def __init__(self):
        self.waiting = []

    def running(self):
        return []

    def claim(self):
        return self.waiting.pop(0) if self.waiting else None


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: clock.now_s, time=lambda: clock.now_s))
    return clock


@pytest.fixture
def worker(monkeypatch):
    processor = SimpleNamespace(rests=0)
    processor.rest = lambda: setattr(processor, "rests", processor.rests + 1)
    worker = Worker(None, _Queue(), None, processor, None, None, destinations=())
    monkeypatch.setattr(worker, "_run", lambda study: None)
    return worker


def rests(worker):
    return worker._processor.rests


def test_it_rests_once_and_only_after_studies(worker, clock):
    for _ in range(3):
        assert not worker.step()
        clock.now_s += 100
    assert rests(worker) == 0
    worker._queue.waiting = ["one", "another"]
    assert worker.step()
    assert worker.step()
    for _ in range(3):
        clock.now_s += 100
        assert not worker.step()
    assert rests(worker) == 1


def test_it_does_not_rest_while_results_are_about_to_be_sent_nor_between_studies(worker, clock):
    worker._queue.waiting = ["one"]
    worker.step()
    worker.step()
    clock.now_s += worker_module._REST_AFTER_S / 2
    worker._queue.waiting = ["another"]
    assert worker.step()
    clock.now_s += worker_module._REST_AFTER_S * 0.75
    worker.step()
    assert rests(worker) == 0
    clock.now_s += worker_module._REST_AFTER_S
    worker.step()
    assert rests(worker) == 1


def test_it_rests_after_a_study_that_met_a_defect_too(worker, clock, monkeypatch):
    def fail(study):
        raise RuntimeError("defect")

    monkeypatch.setattr(worker, "_run", fail)
    worker._queue.waiting = ["one"]
    with pytest.raises(RuntimeError):
        worker.step()
    clock.now_s += 100
    worker.step()
    assert rests(worker) == 1
