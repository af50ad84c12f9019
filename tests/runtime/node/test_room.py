"""How much of the quota is used: known at once however many images there were, and always the sum."""

from __future__ import annotations

import errno
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.node.audit import Audit
from runtime.node.config import Storage
from runtime.node.database import Database
from runtime.node.identity import Hasher, Redactor
from runtime.node.loops import FULL, log_defect
from runtime.node.queue import Queue
from runtime.node.records import FINAL, QUEUED, ImageRecord
from runtime.node.retention import Retention
from runtime.node.store import DiskFullError, Store, remove_files
from runtime.node.worker import Worker
from tests.runtime.node.studies import make_study

pytest.importorskip("pynetdicom", reason="the extra 'node' is not installed")

HASHER = Hasher(bytes(32))
STORAGE = Storage(2**40, 0, 0.0, 0.0, 0.0, fsync=False)
SUM = "SELECT COALESCE(SUM(bytes), 0) FROM image WHERE path != ''"


def image(study, number, *, size=1000):
    name = f"{study}.{number}"
    return ImageRecord(study, "2.25.10", name, f"images/{HASHER.short(study)}/{number}", size, True)


def store_of(folder, database):
    return Store(folder / "data", STORAGE, Queue(database, HASHER), Redactor(HASHER), Audit(folder / "audit.jsonl"))


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "queue.sqlite")
    yield database
    database.close()


def instructions(database, ask):
    """How many steps sqlite's machine makes."""
    steps = []
    database._connection.set_progress_handler(lambda: steps.append(1) and None, 1)
    ask()
    database._connection.set_progress_handler(None, 0)
    return len(steps)


def test_asking_for_room_takes_as_long_after_a_year_as_on_the_first_day(tmp_path, database):
    store = store_of(tmp_path, database)
    store.used_bytes()
    store._queue.add_image(image("2.25.1", 0))
    first_day = instructions(database, store.used_bytes)
    with database.transaction() as db:
        rows = ((f"1.{n}", f"{n // 100}", "2.25.10", f"images/{n}" if n % 2 else "", 7, 1) for n in range(5000))
        db.executemany("INSERT INTO image VALUES (?, ?, ?, ?, ?, ?)", rows)
    assert instructions(database, store.used_bytes) == first_day
    assert store.used_bytes() == database.rows(SUM)[0][0] == 1000 + 2500 * 7


def test_knowing_an_own_result_takes_as_long_after_a_year_as_on_the_first_day(tmp_path, database):
    queue = store_of(tmp_path, database)._queue
    few = instructions(database, lambda: queue.is_result("2.1"))
    with database.transaction() as db:
        db.executemany(
            "INSERT INTO result (destination, sop_uid, sop_class, study, path, bytes, state, first_s, next_s) "
            "VALUES ('a', ?, '1', 'a', '', 0, 'sent', 0, 0)",
            ((f"1.{n}",) for n in range(5000)),
        )
    assert instructions(database, lambda: queue.is_result("2.1")) == few
    assert queue.is_result("1.7")


def test_looking_for_what_may_be_removed_does_not_read_what_was_removed(tmp_path, database):
    """The images of a year ago are but names; retention looks once a minute."""
    store = store_of(tmp_path, database)
    retention = Retention(STORAGE, store._queue, store)
    with database.transaction() as db:
        for study in range(5):
            db.execute("INSERT INTO study (key, uid, state, first_s, last_s, changed_s) VALUES (?, ?, ?, 0, 0, 0)",
                       (str(study), str(study), FINAL[0]))  # fmt: skip
    few = instructions(database, lambda: retention._finished("image", 1e12))
    with database.transaction() as db:
        rows = ((f"1.{n}", f"{n % 5}", "2.25.10", "", 7, 1) for n in range(5000))
        db.executemany("INSERT INTO image VALUES (?, ?, ?, ?, ?, ?)", rows)
    assert instructions(database, lambda: retention._finished("image", 1e12)) == few


steps = st.one_of(
    st.tuples(st.just("come"), st.integers(0, 2), st.integers(0, 5), st.integers(0, 9999)),
    st.tuples(st.sampled_from(["remove", "forget", "die", "lose"]), st.integers(0, 2)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=25))
def test_the_counter_is_the_sum_whatever_happens(tmp_path_factory, actions):
    folder = tmp_path_factory.mktemp("room")
    database = Database(folder / "queue.sqlite")
    store = store_of(folder, database)
    queue = store._queue
    for action, number, *more in actions:
        study = f"2.25.{number}"
        key = HASHER.short(study)
        if action == "come":
            queue.add_image(image(study, more[0], size=more[1]))
        elif action == "remove":
            with database.transaction() as db:
                db.execute("UPDATE study SET state = 'delivered' WHERE key = ?", (key,))
            Retention(STORAGE, queue, store)._remove_images(key)
            with database.transaction() as db:  # so that images are welcome again
                db.execute("UPDATE study SET state = 'received' WHERE key = ?", (key,))
        elif action == "forget":
            queue.forget(key, lambda key=key: remove_files(folder / "data", key, "images"))
        elif action == "lose":
            store.mend()  # there are no files: every image is gone
        elif action == "die":
            database.close()
            database = Database(folder / "queue.sqlite")
            store = store_of(folder, database)
            queue = store._queue
        assert store.used_bytes() == database.rows(SUM)[0][0]
    database.close()


def test_a_queue_of_an_earlier_release_is_counted_when_it_is_opened(tmp_path):
    Database(tmp_path / "queue.sqlite").close()
    connection = sqlite3.connect(tmp_path / "queue.sqlite")
    connection.executescript(
        "DROP TABLE kept; DROP TRIGGER image_added; DROP TRIGGER image_changed; DROP TRIGGER image_forgotten;"
        "INSERT INTO image VALUES ('1.1', 'a', '2', 'images/1', 40, 1), ('1.2', 'a', '2', '', 50, 1);"
    )
    connection.close()
    database = Database(tmp_path / "queue.sqlite")
    assert store_of(tmp_path, database).used_bytes() == 40
    store_of(tmp_path, database)._queue.add_image(image("2.25.1", 0, size=2))
    assert store_of(tmp_path, database).used_bytes() == 42
    database.close()


def test_results_count_once_however_many_destinations_they_go_to(tmp_path, database):
    entry = (
        "INSERT INTO result (destination, sop_uid, sop_class, study, path, bytes, state, first_s, next_s) "
        "VALUES (?, ?, '1', 'a', ?, ?, 'sent', 0, 0)"
    )
    with database.transaction() as db:
        for destination in ("one", "other"):
            db.execute(entry, (destination, "1.1", "results/1", 30))
            db.execute(entry, (destination, "1.2", "", 99))
    assert store_of(tmp_path, database).used_bytes() == 30


# A full disk ---------------------------------------------------------------------------------------------------------


def test_an_image_that_was_on_the_disk_before_its_record_is_entered_though_the_quota_is_used_up(tmp_path, database):
    study = make_study(tmp_path / "study", slices=3)
    store = store_of(tmp_path, database)
    for path in study.files:
        assert store.take(path.read_bytes(), peer="sender").outcome == "new"
    kept = {path: path.read_bytes() for path in store.files(HASHER.short(study.uid))}
    with database.transaction() as db:
        db.execute("DELETE FROM image WHERE sop_uid = (SELECT MIN(sop_uid) FROM image)")
    full = Store(tmp_path / "data", replace(STORAGE, quota_bytes=1), store._queue, Redactor(HASHER), store._audit)
    assert full.mend() == (1, 0)
    assert {path: path.read_bytes() for path in full.files(HASHER.short(study.uid))} == kept
    with pytest.raises(DiskFullError, match="quota"):
        full.take(make_study(tmp_path / "other", slices=1).files[0].read_bytes(), peer="sender")


def test_a_file_that_is_no_image_or_in_a_wrong_place_is_put_right_at_the_start(tmp_path, database):
    study = make_study(tmp_path / "study", slices=1)
    store = store_of(tmp_path, database)
    folder = tmp_path / "data" / "images" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "odd.dcm").write_bytes(b"no DICOM")
    (folder / "slice.dcm").write_bytes(study.files[0].read_bytes())
    assert store.mend() == (1, 0)
    (kept,) = store.files(HASHER.short(study.uid))
    assert kept.read_bytes() == study.files[0].read_bytes()
    assert list(folder.iterdir()) == []
    assert store.mend() == (0, 0)


@pytest.fixture
def worker(tmp_path, database):
    """One that has a study to analyse, for which its processor has no room."""
    store = store_of(tmp_path, database)
    (path,) = make_study(tmp_path / "study", slices=1, study_uid="2.25.1").files
    store.take(path.read_bytes(), peer="sender")
    (study,) = store._queue.studies()
    assert store._queue.decide(study, QUEUED)

    def processor(files, out_dir):
        raise OSError(errno.ENOSPC, "No space left on device")

    settings = SimpleNamespace(attempts=2, retry_s=0.0)
    return Worker(settings, store._queue, store, processor, Redactor(HASHER), store._audit, destinations=("a",))


def test_an_analysis_for_which_there_is_no_room_is_tried_again_and_nobodys_defect(worker, caplog):
    queue = worker._queue
    assert worker.step()
    (study,) = queue.studies()
    assert (study.state, study.reason) == ("queued", "the disk is full; free some")
    assert "Traceback" not in caplog.text
    assert "defect" not in caplog.text
    assert worker.step()
    assert queue.studies()[0].state == "dead"


def test_a_study_whose_end_could_not_be_noted_does_not_stay_running(worker, database, monkeypatch):
    """The disk is full for the queue's file, too."""
    queue = worker._queue

    def full(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(queue, "fail", full)
        with pytest.raises(sqlite3.OperationalError):
            worker.step()
        assert queue.studies()[0].state == "running"
        with pytest.raises(sqlite3.OperationalError):
            worker.step()
    assert worker.step()
    assert queue.studies()[0].state == "dead"
    assert queue.studies()[0].attempts == 2


def test_an_audit_log_that_cant_be_written_leaves_no_study_running(worker, monkeypatch):
    written = []

    def full_at_first(event, **_):
        written.append(event)
        if len(written) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker._audit, "write", full_at_first)
    assert worker.step()
    assert worker._queue.studies()[0].state == "queued"


def test_a_full_disk_is_said_in_one_line(tmp_path, caplog):
    connection = sqlite3.connect(tmp_path / "small.sqlite")
    connection.executescript("CREATE TABLE one (text); PRAGMA max_page_count=4;")
    try:
        connection.execute("INSERT INTO one VALUES (?)", ("x" * 100_000,))
    except sqlite3.OperationalError:
        assert log_defect("worker") == FULL
    connection.close()
    assert [record.getMessage() for record in caplog.records] == [f"worker can't go on: {FULL}"]
