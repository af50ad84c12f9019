"""Deliveries step by step on a clock that is set by hand, with a destination that answers what it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

pytest.importorskip("pynetdicom", reason="the extra 'node' is not installed")

from runtime.node import dead_letters, dimse
from runtime.node import delivery as delivery_module
from runtime.node import outbox as outbox_module
from runtime.node import queue as queue_module
from runtime.node.audit import Audit
from runtime.node.config import Deliver
from runtime.node.database import Database
from runtime.node.dead_letters import DeadLetters, Strays
from runtime.node.delivery import Delivery
from runtime.node.identity import Hasher, Redactor
from runtime.node.outbox import Outbox
from runtime.node.own import read_result
from runtime.node.queue import Queue
from runtime.node.records import QUEUED, ImageRecord, ResultFile
from tests.runtime.node.peers import nobody
from tests.runtime.node.studies import ct_slice

HOUR_S, DAY_S = 3600.0, 86400.0
HASHER = Hasher(bytes(32))
STUDY = "2.25.1"
KEY = HASHER.short(STUDY)
SETTINGS = Deliver(to=("keeper",), first_retry_s=10, max_retry_s=1800, give_up_s=DAY_S, commitment_s=HOUR_S)
PEER = nobody("keeper")


class Rig:
    """A queue with one study whose results are due, and the delivery of them."""

    def __init__(self, data, clock, *, names=("a.dcm", "b.dcm"), destinations=("keeper",)):
        self.data, self.clock = data, clock
        self.database = Database(data / "queue.sqlite")
        self.queue, self.outbox = Queue(self.database, HASHER), Outbox(self.database)
        self.audit, self.redact = Audit(data / "audit.jsonl"), Redactor(HASHER)
        self.sends: list[tuple[float, list[str]]] = []
        self.answer = lambda result: 0
        self.enter(STUDY, names, destinations)

    def enter(self, study, names, destinations, *, number=0):
        """Have results of a study due; their UIDs begin with a number."""
        results, key = [], HASHER.short(study)
        for n, name in enumerate(names, start=number):
            (self.data / name).write_bytes(b"result")
            results.append(ResultFile(f"2.25.90{n}", "1.2.3", name, 6))
        self.queue.add_image(ImageRecord(study, "2.25.10", f"2.25.100{number}", "images/1", 5, True))
        assert self.queue.decide(self.queue.study(key), QUEUED)
        assert self.queue.claim() is not None
        assert self.queue.finish(key, results, destinations)

    def delivery(self, **changes):
        peer = replace(PEER, **changes)
        return Delivery(SETTINGS, peer, "NODE", self.data, self.outbox, self.redact, self.audit)

    def send(self, peer, ae_title, files, *, transaction_uid):
        self.sends.append((self.clock.now_s, [result.sop_uid for result, _ in files]))
        return {result.sop_uid: self.answer(result) for result, _ in files}, bool(transaction_uid)

    def run(self, delivery, seconds, *, every_s=1.0, after_step=lambda: None):
        """Steps as the loop makes them, for so long on the clock."""
        end_s = self.clock.now_s + seconds
        while self.clock.now_s < end_s:
            for _ in range(50):
                if not delivery.step():
                    break
                after_step()
            else:
                pytest.fail("it sends without a pause")
            self.clock.now_s += every_s

    @property
    def state(self):
        return self.queue.study(KEY).state

    @property
    def results(self):
        return self.outbox.results(KEY)

    def strays(self, *destinations):
        return Strays(destinations, self.outbox, DeadLetters(self.data, self.outbox, self.redact, self.audit))

    def letters(self, destination="keeper", key=KEY):
        folder = self.data / "dead-letters" / destination / key
        return {path.name: json.loads(path.read_text())["reason"] for path in folder.glob("*.json")}


@pytest.fixture
def rig(tmp_path, monkeypatch):
    clock = SimpleNamespace(now_s=1e9)
    clock.time = clock.monotonic = lambda: clock.now_s
    for module in (delivery_module, outbox_module, queue_module):
        monkeypatch.setattr(module, "time", clock)
    rig = Rig(tmp_path, clock)
    monkeypatch.setattr(dimse, "send", rig.send)
    yield rig
    rig.database.close()


def test_what_is_never_committed_to_is_sent_at_growing_intervals_and_given_up_in_the_end(rig):
    def refuse():
        for result in rig.results:
            if result.state == "committing":
                rig.outbox.commitment(result.transaction_uid, [], [r.sop_uid for r in rig.results])

    rig.run(rig.delivery(commitment="ask"), 1.1 * DAY_S, every_s=20.0, after_step=refuse)
    times = [at_s for at_s, _ in rig.sends]
    waits = [after - before for before, after in pairwise(times)]
    assert waits[:8] == pytest.approx([10, 20, 40, 80, 160, 320, 640, 1280], abs=45)
    assert waits[8:] == pytest.approx([1800] * len(waits[8:]), abs=45)
    assert times[-1] - times[0] == pytest.approx(DAY_S, abs=HOUR_S)
    assert rig.state == "dead"
    reason = "keeper did not commit to it; tried for 86400 s"
    assert rig.letters() == {"a.dcm.json": reason, "b.dcm.json": reason}


def test_what_is_committed_to_at_the_second_time_is_done(rig):
    answers = [lambda uids: (uids[:1], uids[1:]), lambda uids: (uids, [])]

    def answer():
        uids = [r.sop_uid for r in rig.results if r.state == "committing"]
        transactions = {r.transaction_uid for r in rig.results if r.state == "committing"}
        for transaction in transactions:
            rig.outbox.commitment(transaction, *answers.pop(0)(uids))

    rig.run(rig.delivery(commitment="require"), 60, after_step=answer)
    assert [len(uids) for _, uids in rig.sends] == [2, 1]
    assert rig.state == "delivered"


@pytest.mark.parametrize("state", ["uncommitted", "committing"])
def test_a_destination_that_is_no_dicom_peer_any_more_gets_what_it_did_not_commit_to(rig, state):

    for result in rig.results:
        rig.outbox.asked(result, "2.25.7", until_s=rig.clock.now_s + 5)
    if state == "uncommitted":
        rig.outbox.commitment("2.25.7", [], [r.sop_uid for r in rig.results])
    rig.run(rig.delivery(commitment="off"), 60)
    assert rig.state == "delivered"


@pytest.mark.parametrize("status", [0xA700, 0xA7FF, 0x0213])
def test_an_archive_whose_disk_is_full_for_half_a_day_gets_them_when_there_is_room(rig, status):
    full_until_s = rig.clock.now_s + DAY_S / 2
    rig.answer = lambda result: status if rig.clock.now_s < full_until_s else 0
    rig.run(rig.delivery(), DAY_S / 2, every_s=20.0)
    assert rig.state == "ready"
    assert {r.reason for r in rig.results} == {f"keeper refused it with status {status:04X}: it has no room"}
    rig.run(rig.delivery(), HOUR_S, every_s=20.0)
    assert rig.state == "delivered"
    assert rig.letters() == {}


def test_an_archive_whose_disk_stays_full_is_given_up_after_the_time_for_trying(rig):
    rig.answer = lambda result: 0xA700
    rig.run(rig.delivery(), 1.1 * DAY_S, every_s=20.0)
    assert rig.state == "dead"
    reason = "keeper refused it with status A700: it has no room; tried for 86400 s"
    assert rig.letters() == {"a.dcm.json": reason, "b.dcm.json": reason}


@pytest.mark.parametrize(("status", "sends"), [(0xC000, 5), (0x0110, 5), (0x0122, 1), (0xA900, 1)])
def test_other_failures_are_given_up_sooner(rig, status, sends):
    rig.answer = lambda result: status
    rig.run(rig.delivery(), HOUR_S, every_s=20.0)
    assert (rig.state, len(rig.sends)) == ("dead", sends)


def test_attempts_while_the_archive_was_down_or_full_are_not_held_against_the_object(rig):
    answers = {result.sop_uid: [0xA700] * 8 + [0xC000] * 4 + [0] for result in rig.results}
    rig.answer = lambda result: answers[result.sop_uid].pop(0)
    rig.run(rig.delivery(), DAY_S / 2, every_s=20.0)
    assert rig.state == "delivered"


def test_a_study_whose_delivery_meets_a_defect_is_put_off_and_the_next_one_goes(rig):
    other = "2.25.2"
    rig.enter(other, ("c.dcm",), ("keeper",), number=5)

    def answer(result):
        if result.study == KEY:
            raise TypeError("odd")
        return 0

    rig.answer = answer
    rig.run(rig.delivery(), 1)
    assert rig.queue.study(HASHER.short(other)).state == "delivered"
    assert {(r.state, r.attempts) for r in rig.results} == {("pending", 1)}
    assert {r.reason for r in rig.results} == {"a defect of this software (TypeError); its log has the trace"}
    rig.run(rig.delivery(), 2 * DAY_S, every_s=60.0)
    assert rig.state == "dead"


def test_a_result_that_cant_be_read_is_given_up_and_its_studys_others_go(rig, monkeypatch):
    sound, damaged = (rig.data / name for name in ("a.dcm", "b.dcm"))
    ct_slice("2.25.1", "2.25.2", 0).save_as(sound, enforce_file_format=True)

    def read_and_send(peer, ae_title, files, **more):
        for _, path in files:
            read_result(path)
        return rig.send(peer, ae_title, files, **more)

    monkeypatch.setattr(dimse, "send", read_and_send)
    rig.run(rig.delivery(), 60)
    assert {one.path: one.state for one in rig.results} == {"a.dcm": "sent", "b.dcm": "dead"}
    assert list(rig.letters()) == [f"{damaged.name}.json"]


def test_a_dead_letter_that_cant_be_written_leaves_the_result_for_later(rig, monkeypatch):
    rig.answer = lambda result: 0x0122
    with monkeypatch.context() as patch:
        patch.setattr(dead_letters.shutil, "copy2", _full_disk)
        rig.run(rig.delivery(), 50)
    assert len(rig.sends) == 1
    assert rig.state == "ready"
    assert "its dead letter can't be written (No space left on device)" in rig.results[0].reason
    rig.run(rig.delivery(), 60)
    assert rig.state == "dead"
    assert sorted(rig.letters()) == ["a.dcm.json", "b.dcm.json"]


def _full_disk(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("state", ["pending", "uncommitted"])
def test_results_for_a_destination_that_the_settings_do_not_name_any_more_are_given_up(rig, state):
    rig.enter("2.25.2", ("c.dcm", "d.dcm"), ("keeper", "gone"), number=5)
    rig.run(rig.delivery(), 1)
    key = HASHER.short("2.25.2")
    if state == "uncommitted":
        for result in rig.outbox.due("gone"):
            rig.outbox.asked(result, "2.25.7", until_s=1e12)
        rig.outbox.commitment("2.25.7", [], [r.sop_uid for r in rig.outbox.results(key)])
    assert rig.queue.study(key).state == "ready"
    assert rig.strays("keeper", "gone").step()
    assert rig.queue.study(key).state == "ready"
    assert rig.strays("keeper").step()
    assert rig.queue.study(key).state == "dead"
    reason = "the settings' deliver.to does not name gone any more"
    assert rig.letters("gone", key) == {"c.dcm.json": reason, "d.dcm.json": reason}
    assert {(r.destination, r.state) for r in rig.outbox.results(key)} == {("keeper", "sent"), ("gone", "dead")}
    assert rig.state == "delivered"
    assert rig.queue.retry(key) == "ready"  # the destination came back
    rig.strays("keeper", "gone").step()
    rig.run(rig.delivery(name="gone"), 1)
    assert rig.queue.study(key).state == "delivered"


def test_what_a_destination_that_is_gone_was_only_to_commit_to_counts_as_sent(rig):
    for result in rig.results:
        rig.outbox.asked(result, "2.25.7", until_s=1e12)
    rig.strays("other").step()
    assert rig.state == "delivered"
    assert rig.letters() == {}
