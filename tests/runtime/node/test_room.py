"""How much of the quota is used: known at once however many images there were, and always the sum."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.node.audit import Audit
from runtime.node.config import Storage
from runtime.node.identity import Hasher, Redactor
from runtime.node.queue import Database, Queue
from runtime.node.records import FINAL, ImageRecord
from runtime.node.retention import Retention
from runtime.node.store import Store, remove_files

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
            store.mend()  # there are no files: every record goes
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
