"""What the queue says is on the disk is on the disk itself, so that a power cut takes nothing that was promised."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom import dcmread

pytest.importorskip("pynetdicom", reason="the extra 'node' is not installed")

from runtime.node.audit import Audit
from runtime.node.completeness import Completeness
from runtime.node.config import Complete, FolderPeer, Storage
from runtime.node.database import Database
from runtime.node.delivery import _copy
from runtime.node.identity import Hasher, Redactor
from runtime.node.outbox import Outbox
from runtime.node.peer_errors import PeerError
from runtime.node.queue import Queue
from runtime.node.records import QUEUED
from runtime.node.store import Store
from runtime.node.worker import Worker
from tests.runtime.node.fake_processor import FakeProcessor
from tests.runtime.node.studies import capture, make_study

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
            place.name in self.folders.get(place.parent.stat().st_ino, set()) for place in places[: places.index(below)]
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


def test_copies_come_to_a_drop_folder_that_may_be_written_and_not_listed(worker, tmp_path, monkeypatch):
    """Such as one of mode 0733 and another user's; to root every folder is open."""
    assert worker.step()
    due = Outbox(worker._queue.database).due("out")
    files = [(result, worker._store.data / result.path) for result in due]
    peer, opened = FolderPeer("out", tmp_path / "out"), os.open

    def refused(path, *rest, **choices):
        if path == peer.path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *rest, **choices)

    monkeypatch.setattr(os, "open", refused)
    assert _copy(peer, files) == {result.sop_uid: 0 for result in due}


# Images --------------------------------------------------------------------------------------------------------------


def complete(worker):
    """What looks whether studies are complete, where nobody can count."""
    nobody = Complete(-1.0, (), "sent", 15, 3600)
    audit, queue = worker._audit, worker._queue
    return Completeness(nobody, queue, [], audit, fetch=lambda uid: False, is_fetched=lambda uid: False)


def again(study, state):
    return [study.state, study.attempts, study.reason] == [state, 0, ""]


def test_a_study_of_which_a_file_is_gone_is_not_analysed_until_the_image_came_again(worker, tmp_path, caplog):
    queue, store = worker._queue, worker._store
    (study,) = queue.studies()
    lost = store.files(study.key)[1]
    content = lost.read_bytes()
    lost.unlink()
    assert worker.step()
    assert worker._processor.runs == []
    assert again(queue.studies()[0], "received")
    assert f"study {study.key} is not analysed and waits: 1 image(s) are on the disk no more" in caplog.text
    assert not complete(worker).step()
    assert queue.studies()[0].reason == "1 image(s) are on the disk no more and must come again"
    assert store.take(content, peer="sender").outcome == "new"
    assert complete(worker).step()
    assert worker.step()
    assert worker._processor.runs == [3]
    assert queue.studies()[0].state == "ready"


def test_a_study_whose_images_cant_be_looked_at_is_put_off_and_loses_none(worker, monkeypatch):
    queue, store = worker._queue, worker._store
    monkeypatch.setattr(worker._settings, "attempts", 3)
    away = store.data / "away"
    (store.data / "images").rename(away)
    assert worker.step()
    reason = f"the folder of images, {store.data / 'images'}, is not there; see to its disk or mount"
    assert (queue.studies()[0].state, queue.studies()[0].reason) == ("queued", reason)
    away.rename(store.data / "images")

    stat = Path.stat

    def stale(path, **choices):
        if path.suffix == ".dcm":
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **choices)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stale)
        assert worker.step()
        with pytest.raises(OSError, match="Stale"):
            store.mend()
    reason = f"images in {store.data / 'images'} can't be looked at (Stale file handle); see to its disk"
    assert (queue.studies()[0].state, queue.studies()[0].reason) == ("queued", reason)
    assert worker._processor.runs == []
    assert worker.step()
    assert worker._processor.runs == [3]
    assert queue.studies()[0].state == "ready"


def test_a_study_of_which_a_file_is_gone_waits_though_that_cant_be_noted(worker, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker._settings, "attempts", 2)
    worker._store.files(worker._queue.studies()[0].key)[1].unlink()
    with monkeypatch.context() as patch:
        patch.setattr(worker._audit, "write", full)
        with pytest.raises(OSError, match="No space"):
            worker.step()
    assert worker._queue.studies()[0].state == "received"
    assert not worker.step()
    assert not complete(worker).step()


@pytest.mark.parametrize("state", ["received", "queued", "running"])
def test_a_study_whose_file_is_found_to_be_gone_at_the_start_waits_for_it(worker, state):
    queue, store = worker._queue, worker._store
    with queue.database.transaction() as db:
        db.execute("UPDATE study SET state = ?, taken = 3", (state,))
    store.files(queue.studies()[0].key)[1].unlink()
    assert store.mend() == (0, 1)
    queue.recover(1)
    assert queue.studies()[0].state == "received"
    assert not complete(worker).step()
    assert not worker.step()
    assert store.mend() == (0, 0)


def test_a_capture_that_is_gone_is_not_waited_for(worker, tmp_path):
    queue, store = worker._queue, worker._store
    (study,) = queue.studies()
    capture(study.uid, "2.25.9", manufacturer="Others").save_as(tmp_path / "capture.dcm", enforce_file_format=True)
    store.take((tmp_path / "capture.dcm").read_bytes(), peer="sender")
    next(path for path in store.files(study.key) if dcmread(path).Modality == "OT").unlink()
    assert worker.step()
    assert again(queue.studies()[0], "received")
    assert complete(worker).step()
    assert worker.step()
    assert worker._processor.runs == [3]
