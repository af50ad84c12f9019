"""What the queue says is on the disk is on the disk itself, so that a power cut takes nothing that was promised."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

pytest.importorskip("pynetdicom", reason="the extra 'node' is not installed")

from runtime.node.audit import Audit
from runtime.node.config import FolderPeer, Storage
from runtime.node.delivery import _copy
from runtime.node.identity import Hasher, Redactor
from runtime.node.outbox import Outbox
from runtime.node.peer_errors import PeerError
from runtime.node.queue import Database, Queue
from runtime.node.records import QUEUED
from runtime.node.store import Store
from runtime.node.worker import Worker
from tests.runtime.node.fake_processor import FakeProcessor
from tests.runtime.node.studies import make_study

HASHER = Hasher(bytes(32))


class Flushed:
    """Notes what is brought to the disk: files with their size then, folders with the names in them then."""

    def __init__(self, monkeypatch):
        self.files, self.folders = {}, {}
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor):
        self._fsync(descriptor)
        found = os.fstat(descriptor)
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            self.folders[found.st_ino] = set(os.listdir(descriptor))
        else:
            self.files[found.st_ino] = found.st_size

    def holds(self, path, below):
        """Whether a file is on the disk: all of it, its name, and the names of the folders up to ``below``."""
        places = [path, *path.parents]
        return self.files.get(path.stat().st_ino) == path.stat().st_size and all(
            place.name in self.folders.get(place.parent.stat().st_ino, set())
            for place in places[: places.index(below)]
        )


@pytest.fixture
def flushed(monkeypatch):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to tell what a descriptor is")
    return Flushed(monkeypatch)


@pytest.fixture
def worker(tmp_path):
    """One that has a study of three images to analyse, and would give it up at its first failure."""
    database = Database(tmp_path / "queue.sqlite")
    queue, redact, audit = Queue(database, HASHER), Redactor(HASHER), Audit(tmp_path / "audit.jsonl")
    store = Store(tmp_path / "data", Storage(2**40, 0, 0.0, 0.0, 0.0, fsync=False), queue, redact, audit)
    for path in make_study(tmp_path / "study", slices=3).files:
        assert store.take(path.read_bytes(), peer="sender").outcome == "new"
    assert queue.decide(queue.studies()[0], QUEUED)
    processor = FakeProcessor(tmp_path / "notes")
    settings = SimpleNamespace(attempts=1, retry_s=0.0)
    yield Worker(settings, queue, store, processor, redact, audit, destinations=("out",))
    database.close()


# Results -------------------------------------------------------------------------------------------------------------


def test_results_are_on_the_disk_before_the_queue_says_so(worker, flushed, monkeypatch):
    data, finish, seen = worker._store.data, worker._queue.finish, []

    def watched(key, results, destinations):
        seen.extend(flushed.holds(data / result.path, data / "results") for result in results)
        return finish(key, results, destinations)

    monkeypatch.setattr(worker._queue, "finish", watched)
    assert worker.step()
    assert seen == [True, True]


def test_results_for_which_the_disk_has_no_room_when_they_are_flushed_are_made_again(worker, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker._settings, "attempts", 2)
    with monkeypatch.context() as patch:
        patch.setattr("runtime.node.worker.flush_with_files", full)
        assert worker.step()
    assert worker._queue.studies()[0].reason == "the disk is full; free some"
    assert worker.step()
    assert worker._queue.studies()[0].state == "ready"


def test_copies_in_a_folder_are_on_the_disk_before_they_count_as_sent(worker, flushed, tmp_path, monkeypatch):
    assert worker.step()
    due = Outbox(worker._queue.database).due("out")
    files = [(result, worker._store.data / result.path) for result in due]
    peer = FolderPeer("out", tmp_path / "out")
    assert _copy(peer, files) == {result.sop_uid: 0 for result in due}
    copies = [peer.path / result.study / path.name for result, path in files]
    assert [copy.read_bytes() for copy in copies] == [path.read_bytes() for _, path in files]
    assert all(flushed.holds(copy, peer.path) for copy in copies)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PeerError, match="No space left"):
        _copy(peer, files)
