"""The queue's transitions, without network and threads."""

from __future__ import annotations

import sqlite3
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.node.database import Database
from runtime.node.identity import Hasher
from runtime.node.outbox import Outbox, PullList
from runtime.node.queue import GIVEN_BACK_S, Queue
from runtime.node.records import DEAD, DELIVERED, QUEUED, READY, RECEIVED, RUNNING, ImageRecord, ResultFile

HASHER = Hasher(bytes(32))
STUDY = "2.25.1"
KEY = HASHER.short(STUDY)
RESULTS = [ResultFile("2.25.901", "1.2.3", "results/a", 10), ResultFile("2.25.902", "1.2.3", "results/b", 10)]


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "queue.sqlite")
    yield database
    database.close()


@pytest.fixture
def queue(database):
    return Queue(database, HASHER)


def test_a_commit_that_fails_leaves_no_transaction_open(database):
    with database.transaction() as connection:
        connection.execute("CREATE TABLE one (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE two (id INTEGER REFERENCES one DEFERRABLE INITIALLY DEFERRED)")
    connection.execute("PRAGMA foreign_keys=ON")
    with pytest.raises(sqlite3.IntegrityError), database.transaction() as connection:
        connection.execute("INSERT INTO two VALUES (7)")
    with database.transaction() as connection:
        connection.execute("INSERT INTO one VALUES (7)")
        connection.execute("INSERT INTO two VALUES (7)")
    assert [row[0] for row in database.rows("SELECT id FROM two")] == [7]


def image(number, *, is_ct=True, study=STUDY):
    return ImageRecord(study, "2.25.10", f"2.25.{100 + number}", f"images/{number}", 5, is_ct)


def to_running(queue):
    study = queue.study(KEY)
    assert queue.decide(study, QUEUED)
    claimed = queue.claim()
    assert claimed.state == RUNNING
    return claimed


def state(queue):
    return queue.study(KEY).state


def test_the_whole_way(queue, database):
    assert queue.add_image(image(1))
    assert not queue.add_image(image(1))
    assert to_running(queue).taken == 1
    assert queue.claim() is None
    assert queue.finish(KEY, RESULTS, ["a", "b"])
    assert state(queue) == READY
    outbox = Outbox(database)
    for destination in ("a", "b"):
        for result in outbox.due(destination):
            assert state(queue) == READY
            outbox.sent(result)
    assert state(queue) == DELIVERED
    assert queue.is_result("2.25.901")
    assert queue.counts()[DELIVERED] == 1


def test_images_that_came_while_a_study_was_decided_on_keep_it_waiting(queue):
    queue.add_image(image(1))
    seen = queue.study(KEY)
    queue.add_image(image(2))
    assert not queue.decide(seen, QUEUED)
    assert state(queue) == RECEIVED


def test_what_ran_when_the_process_died_runs_again_and_is_given_up_in_the_end(queue):
    queue.add_image(image(1))
    to_running(queue)
    assert queue.recover(3) == ([KEY], [])
    assert queue.claim().attempts == 2
    assert queue.recover(3) == ([KEY], [])
    assert queue.claim().attempts == 3
    assert queue.recover(3) == ([], [KEY])
    assert "died 3 times" in queue.study(KEY).reason
    assert queue.retry(KEY) == RECEIVED


def test_what_an_ordinary_end_cuts_off_runs_again_and_counts_as_no_attempt(queue):
    queue.add_image(image(1))
    to_running(queue)
    assert queue.put_back() == [KEY]
    assert (state(queue), queue.study(KEY).attempts) == (QUEUED, 0)
    assert queue.recover(1) == ([], [])
    assert queue.claim().attempts == 1
    queue.add_image(image(2))
    assert queue.put_back() == [KEY]
    assert state(queue) == RECEIVED, "images that came meanwhile may not be all"
    assert queue.put_back() == []


def test_what_an_ordinary_end_cuts_off_after_long_counts_so_that_what_hangs_is_given_up(queue, database):
    queue.add_image(image(1))
    to_running(queue)
    for attempt in (1, 2, 3):
        assert queue.study(KEY).attempts == attempt
        with database.transaction() as db:
            db.execute("UPDATE study SET changed_s = changed_s - ?", (GIVEN_BACK_S + 1,))
        assert queue.put_back() == []
        assert queue.recover(3) == (([KEY], []) if attempt < 3 else ([], [KEY]))
        if attempt < 3:
            queue.claim()
    assert state(queue) == DEAD
    assert "stopped after more than 10 min" in queue.study(KEY).reason


def test_results_that_are_made_just_when_their_study_was_put_back_are_believed_and_a_failure_is_not(queue, database):
    queue.add_image(image(1))
    to_running(queue)
    queue.put_back()
    assert queue.fail(KEY, "cut off", retry_s=None) == QUEUED
    assert (state(queue), queue.study(KEY).attempts) == (QUEUED, 0)
    assert queue.finish(KEY, RESULTS, ["a"])
    assert state(queue) == READY
    assert queue.put_back() == []
    assert len(Outbox(database).due("a")) == 2


def test_results_that_are_there_already_are_not_sent_again(queue, database):
    outbox = Outbox(database)
    queue.add_image(image(1))
    to_running(queue)
    queue.finish(KEY, RESULTS, ["a"])
    for result in outbox.due("a"):
        outbox.sent(result)
    queue.add_image(image(2))
    to_running(queue)
    queue.finish(KEY, RESULTS, ["a"])
    assert outbox.due("a") == []
    assert state(queue) == DELIVERED


def test_late_images_withdraw_what_is_not_delivered(queue, database):
    outbox = Outbox(database)
    queue.add_image(image(1))
    to_running(queue)
    queue.finish(KEY, RESULTS, ["a"])
    on_their_way = outbox.due("a")
    queue.add_image(image(2))
    assert state(queue) == RECEIVED
    assert outbox.due("a") == []
    outbox.later(on_their_way[0], "down", wait_s=0)
    outbox.dead(on_their_way[0], "refused")
    outbox.sent(on_their_way[1])
    assert outbox.due("a") == []
    assert [result.state for result in outbox.results(KEY)] == ["superseded", "sent"]


def test_a_dead_delivery_is_retried_without_another_analysis(queue, database):
    outbox = Outbox(database)
    queue.add_image(image(1))
    to_running(queue)
    queue.finish(KEY, RESULTS, ["a"])
    first, second = outbox.due("a")
    outbox.sent(first)
    outbox.dead(second, "refused")
    assert state(queue) == DEAD
    assert queue.retry(KEY) == READY
    assert [result.sop_uid for result in outbox.due("a")] == [second.sop_uid]
    assert queue.retry(KEY) is None


def test_results_wait_their_time(queue, database):
    outbox = Outbox(database)
    queue.add_image(image(1))
    to_running(queue)
    queue.finish(KEY, RESULTS[:1], ["a"])
    outbox.later(outbox.due("a")[0], "down", wait_s=3600)
    assert outbox.due("a") == []
    outbox.later(outbox.results(KEY)[0], "down", wait_s=0)
    assert outbox.due("a")[0].attempts == 2


def test_removed_images_are_known_unless_their_study_needs_them(queue, database):
    queue.add_image(image(1))
    to_running(queue)
    with database.transaction() as db:
        db.execute("UPDATE image SET path = ''")
    assert queue.knows_image("2.25.101")
    queue.fail(KEY, "cannot", retry_s=None)
    assert not queue.knows_image("2.25.101")
    assert queue.add_image(image(1))
    assert state(queue) == RECEIVED


def test_fetches_are_planned_once_and_given_up_with_a_reason(database):
    pulls = PullList(database)
    assert pulls.add(STUDY, "archive")
    assert not pulls.add(STUDY, "archive")
    pulls.failed(pulls.due(), "down", wait_s=3600)
    assert pulls.due() is None
    pulls.failed(pulls.waiting()[0], "gone", wait_s=None)
    assert pulls.waiting()[0].state == DEAD
    assert pulls.add(STUDY, "archive")
    pulls.done(pulls.due())
    assert pulls.waiting() == []


def test_a_transaction_that_fails_changes_nothing(database, queue):
    queue.add_image(image(1))

    def half_done():
        with database.transaction() as db:
            db.execute("DELETE FROM image")
            db.execute("nonsense")

    with pytest.raises(sqlite3.OperationalError):
        half_done()
    assert queue.knows_image("2.25.101")


def test_a_file_that_is_no_queue_is_refused(tmp_path):
    (tmp_path / "queue.sqlite").write_bytes(b"no database at all, but long enough to be taken for one" * 20)
    with pytest.raises(InputError, match="can't be used"):
        Database(tmp_path / "queue.sqlite")
    connection = sqlite3.connect(tmp_path / "new.sqlite")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(InputError, match="version 99"):
        Database(tmp_path / "new.sqlite")


ACTIONS = ("image", "decide", "claim", "finish", "fail", "retry_later", "die", "stop", "send", "refuse", "retry")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=25))
def test_after_whatever_happened_every_image_ends_up_in_delivered_results(tmp_path_factory, actions):
    """However images, failures and deaths of the process interleave: left alone, the queue runs empty."""
    database = Database(tmp_path_factory.mktemp("queue") / "queue.sqlite")
    queue, outbox = Queue(database, HASHER), Outbox(database)
    numbers = iter(range(1000))
    queue.add_image(image(next(numbers)))
    runs: list[int] = []

    def act(action):
        study = queue.study(KEY)
        running = study.state == RUNNING
        due = outbox.due("a")
        if action == "image":
            queue.add_image(image(next(numbers)))
        elif action == "decide" and study.state == RECEIVED:
            queue.decide(study, QUEUED)
        elif action == "claim":
            queue.claim()
        elif action == "finish" and running:
            result = ResultFile(f"2.25.{5000 + study.taken}", "1.2.3", "results/x", 1)
            if queue.finish(KEY, [result], ["a"]):
                runs.append(study.taken)
        elif action in ("fail", "retry_later") and running:
            queue.fail(KEY, "why", retry_s=None if action == "fail" else 0)
        elif action == "die":
            queue.recover(3)
        elif action == "stop":
            queue.put_back()
            queue.recover(3)
        elif action == "send" and due:
            outbox.sent(due[0])
        elif action == "refuse" and due:
            outbox.dead(due[0], "no")
        elif action == "retry":
            queue.retry(KEY)

    for action in actions:
        act(action)
    queue.recover(100)
    for action in ("retry", "decide", "claim", "finish", "send", "retry", "send", "decide", "claim", "finish", "send"):
        act(action)
    count = queue.series_counts(KEY)["2.25.10"]
    delivered = [r.sop_uid for r in outbox.results(KEY) if r.state == "sent"]
    database.close()
    assert f"2.25.{5000 + count}" in delivered
    assert runs.count(count) >= 1


def test_study_times_are_of_the_wall_clock(queue):
    queue.add_image(image(1))
    assert abs(queue.study(KEY).last_s - time.time()) < 60
    assert queue.idle(3600) == []
    assert [study.key for study in queue.idle(-1)] == [KEY]


@pytest.mark.parametrize("noted_before", [0, 1, 2])
def test_a_commitment_that_is_answered_before_it_was_noted_counts(queue, database, noted_before):
    outbox = Outbox(database)
    queue.add_image(image(1))
    to_running(queue)
    queue.finish(KEY, RESULTS, ["a"])
    kept, lost = outbox.due("a")
    steps = [lambda one=one: outbox.asked(one, "2.25.7", until_s=time.time() + 3600) for one in (kept, lost)]
    steps.insert(noted_before, lambda: outbox.commitment("2.25.7", [kept.sop_uid], [lost.sop_uid]))
    for step in steps:
        step()
    states = {result.sop_uid: result.state for result in outbox.results(KEY)}
    assert states == {kept.sop_uid: "committed", lost.sop_uid: "uncommitted"}
    assert outbox.due("a") == []
    assert [result.sop_uid for result in outbox.uncommitted("a")] == [lost.sop_uid]
