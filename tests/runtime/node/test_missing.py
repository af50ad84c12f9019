"""Series and studies that an archive has and the node doesn't: seen, waited for, fetched, from each archive apart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydicom import dcmread

pytest.importorskip("pynetdicom", reason="the extra 'node' is not installed")

from runtime.node.audit import Audit
from runtime.node.completeness import Completeness
from runtime.node.config import Complete, Reconcile, Storage
from runtime.node.database import Database
from runtime.node.identity import Hasher, Redactor
from runtime.node.outbox import PullList
from runtime.node.peer_errors import PeerError
from runtime.node.pull import Reconciler
from runtime.node.queue import Queue
from runtime.node.records import QUEUED, ArchivedSeries, ImageRecord
from runtime.node.store import Store
from tests.runtime.node.fake_processor import FakeProcessor
from tests.runtime.node.nodes import config_of, running_node
from tests.runtime.node.peers import Archive, running, send, wait_until
from tests.runtime.node.studies import capture, ct_slice, make_study

HASHER = Hasher(bytes(32))
STUDY, THICK, THIN = "2.25.1", "2.25.10", "2.25.11"
KEY = HASHER.short(STUDY)


class FakeArchive:
    """Lists what it is told; down while ``down``."""

    def __init__(self, name):
        self.name, self.down = name, False
        self.studies = {}

    def recent_studies(self, since):
        if self.down:
            raise PeerError("down")
        return list(self.studies)

    def series(self, uid):
        if self.down:
            raise PeerError("down")
        return {series: ArchivedSeries(n, is_ct) for series, (n, is_ct) in self.studies.get(uid, {}).items()}


def archive(name="archive"):
    """One with two CT series of the study, and a report."""
    found = FakeArchive(name)
    found.studies = {STUDY: {THICK: (2, True), THIN: (3, True), "2.25.12": (1, False)}}
    return found


class Parts(SimpleNamespace):
    """A queue, and what looks after what is missing in it."""

    def receive(self, series, count, *, study=STUDY):
        for n in range(count):
            name = f"{study}.{series}.{n}"
            self.queue.add_image(ImageRecord(study, series, name, f"images/{name}", 5, True))

    def reconciler(self, *archives, series="all", every_s=900.0):
        names = {one.name: one for one in archives}
        return Reconciler(Reconcile(tuple(names), series, 2, every_s), self.queue, self.pulls, names, self.audit)

    def completeness(self, *archives, series="sent"):
        settings = Complete(-1.0, tuple(one.name for one in archives), series, 15, 3600)
        fetch, planned = (lambda uid: False), self.pulls.plans
        return Completeness(settings, self.queue, archives, self.audit, fetch=fetch, is_fetched=planned)

    @property
    def planned(self):
        return sorted((pull.peer, pull.study_uid) for pull in self.pulls.waiting())

    @property
    def study(self):
        return self.queue.study(KEY)

    def age(self, seconds):
        """Have the study's last image be older."""
        with self.queue.database.transaction() as db:
            db.execute("UPDATE study SET last_s = last_s - ?", (seconds,))

    def to(self, state):
        with self.queue.database.transaction() as db:
            db.execute("UPDATE study SET state = ?", (state,))


@pytest.fixture
def parts(tmp_path):
    database = Database(tmp_path / "queue.sqlite")
    audit, queue = Audit(tmp_path / "audit.jsonl"), Queue(database, HASHER)
    storage = Storage(2**40, 0, 0.0, 0.0, 0.0, fsync=False)
    store = Store(tmp_path / "data", storage, queue, Redactor(HASHER), audit)
    yield Parts(queue=queue, pulls=PullList(database), audit=audit, store=store)
    database.close()


@pytest.mark.parametrize("state", ["received", "queued", "delivered", "dead"])
def test_at_the_start_a_ct_series_that_did_not_come_is_missing(parts, state):
    parts.receive(THICK, 2)
    parts.to(state)
    assert parts.reconciler(archive()).step()
    assert parts.planned == [("archive", STUDY)]


def test_a_study_of_which_nothing_can_be_told_keeps_no_other_from_being_fetched(parts):
    found = archive()
    found.studies = {"2.25.7": {THICK: (2, True)}, **found.studies}
    told = found.series
    found.series = lambda uid: told(uid) if uid == STUDY else int("x")
    for study in found.studies:
        parts.receive(THICK, 2, study=study)
    reconciler = parts.reconciler(found)
    assert not reconciler.step()
    assert parts.planned == [("archive", STUDY)]
    assert "archive" in reconciler.trouble
    found.series = told
    assert reconciler.step()
    assert reconciler.trouble == ""


def test_an_archive_that_answers_nothing_is_not_asked_for_every_study(parts):
    found, asked = archive(), []

    def series(uid):
        asked.append(uid)
        raise PeerError("down")

    found.series, found.studies = series, {f"2.25.7{n}": {THICK: (2, True)} for n in range(20)}
    for study in found.studies:
        parts.receive(THICK, 2, study=study)
    reconciler = parts.reconciler(found)
    assert not reconciler.step()
    assert len(asked) == 3
    assert reconciler.trouble == "", "that an archive is down is no defect of ours"


def test_what_is_all_here_is_not_missing(parts):
    parts.receive(THICK, 2)
    parts.receive(THIN, 3)
    assert parts.reconciler(archive()).step()
    assert parts.planned == []


def test_series_that_are_not_sent_are_not_missing_where_the_settings_say_so(parts):
    parts.receive(THICK, 2)
    reconciler = parts.reconciler(archive(), series="sent")
    reconciler.step()
    assert parts.planned == []
    with parts.queue.database.transaction() as db:
        db.execute("DELETE FROM image WHERE sop_uid = ?", (f"{STUDY}.{THICK}.1",))
    parts.reconciler(archive(), series="sent").step()
    assert parts.planned == [("archive", STUDY)]


def test_images_whose_files_are_gone_are_missing_while_their_study_waits(parts):
    """As often as an archive is asked, from whichever archive that lists the study."""
    parts.receive(THICK, 2)
    parts.receive(THIN, 3)
    parts.queue.lose([f"{STUDY}.{THICK}.1"])
    assert parts.reconciler(archive()).step()
    assert parts.planned == [("archive", STUDY)]


def test_a_sender_that_stopped_between_two_series_is_noticed_while_the_study_is_fresh(parts):
    """Whatever became of it meanwhile; at the second sight, since the first time it may be on its way."""
    reconciler = parts.reconciler(FakeArchive("archive"))
    reconciler.step()
    parts.receive(THICK, 2)
    parts.to("delivered")
    reconciler._archives[0].studies = archive().studies
    reconciler.step()
    assert parts.planned == []
    reconciler.step()
    assert parts.planned == [("archive", STUDY)]


def test_a_study_that_was_delivered_long_ago_is_not_compared_again(parts):
    reconciler = parts.reconciler(FakeArchive("archive"))
    reconciler.step()
    parts.receive(THICK, 2)
    parts.to("delivered")
    parts.age(3 * 900.0 + 1)
    reconciler._archives[0].studies = archive().studies
    for _ in range(3):
        reconciler.step()
    assert parts.planned == []


# Each archive apart --------------------------------------------------------------------------------------------------


def test_what_is_missing_from_one_of_two_archives_is_fetched_at_the_second_round(parts):
    first, second = FakeArchive("first"), FakeArchive("second")
    reconciler = parts.reconciler(first, second)
    reconciler.step()
    first.studies = archive().studies
    reconciler.step()
    assert parts.planned == []
    reconciler.step()
    assert parts.planned == [("first", STUDY)]


def test_a_study_in_both_archives_is_not_taken_for_one_seen_twice(parts):
    first, second = FakeArchive("first"), FakeArchive("second")
    reconciler = parts.reconciler(first, second)
    reconciler.step()
    first.studies = second.studies = archive().studies
    reconciler.step()
    assert parts.planned == []
    reconciler.step()
    assert parts.planned == [("first", STUDY), ("second", STUDY)]


def test_an_archive_that_was_down_at_the_start_is_acted_on_at_its_first_answer(parts):
    first, second = archive("first"), archive("second")
    second.down = True
    reconciler = parts.reconciler(first, second)
    assert not reconciler.step()
    assert parts.planned == [("first", STUDY)]
    second.down = False
    assert reconciler.step()
    assert parts.planned == [("first", STUDY), ("second", STUDY)]


# Completeness --------------------------------------------------------------------------------------------------------


def test_an_archive_that_is_down_was_asked_all_the_same(parts):
    """Studies wait for the first question, not for its answer."""
    down = archive()
    down.down = True
    reconciler = parts.reconciler(down)
    assert not reconciler.has_asked
    assert not reconciler.step()
    assert reconciler.has_asked
    assert parts.reconciler().has_asked


def test_a_study_that_is_being_fetched_waits_for_it(parts):
    """However long its turn takes: the first series alone is never analysed meanwhile."""
    parts.receive(THICK, 2)
    parts.pulls.add(STUDY, "archive")
    completeness = parts.completeness(archive())
    parts.age(1e6)
    assert not completeness.step()
    assert (parts.study.state, parts.study.reason) == ("received", "it is being fetched")
    parts.pulls.done(parts.pulls.due())
    with parts.queue.database.transaction() as db:
        db.execute("UPDATE study SET next_s = 0")
    assert completeness.step()
    assert parts.study.state == QUEUED


def test_a_fetch_that_was_given_up_is_not_waited_for(parts):
    parts.receive(THICK, 2)
    parts.pulls.add(STUDY, "archive")
    parts.pulls.failed(parts.pulls.due(), "gone", wait_s=None)
    assert parts.completeness(archive()).step()


@pytest.mark.parametrize(("series", "state"), [("all", "received"), ("sent", "queued")])
def test_all_series_of_the_archive_are_waited_for_where_the_settings_say_so(parts, series, state):
    parts.receive(THICK, 2)
    assert parts.completeness(archive(), series=series).step() == (state == "queued")
    assert parts.study.state == state
    if series == "all":
        assert parts.study.reason == "incomplete: 1 CT series of the archive did not come"
        parts.receive(THIN, 3)
        assert parts.completeness(archive(), series=series).step()


def test_what_is_not_kept_of_ct_series_counts_as_come(parts, tmp_path):
    """Dose reports and the like: secondary captures, or objects of classes of no use, in series of modality CT."""
    files = list(make_study(tmp_path / "study", slices=2, study_uid=STUDY, series_uid=THICK).files)
    report = capture(STUDY, "2.25.77", manufacturer="Scanner works")
    report.Modality, report.SeriesInstanceUID = "CT", THIN
    raw = ct_slice(STUDY, "2.25.13", 0)
    raw.SOPClassUID = raw.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66"  # raw data
    for name, image in (("report.dcm", report), ("raw.dcm", raw)):
        image.save_as(tmp_path / name, enforce_file_format=True)
        files.append(tmp_path / name)
    outcomes = [parts.store.take(path.read_bytes(), peer="sender").outcome for path in files]
    assert outcomes == ["new", "new", "new", "other"]
    there = archive()
    there.studies[STUDY] = {THICK: (2, True), THIN: (1, True), "2.25.13": (1, True)}
    parts.reconciler(there).step()
    assert parts.planned == []
    assert len(parts.store.files(KEY)) == 3
    assert parts.completeness(there, series="all").step()


# A whole node --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("find_s", [0.0, 1.5])
def test_a_node_that_ended_after_the_first_of_two_series_analyses_both(tmp_path, find_s):
    """However long the archive takes to say what it has: longer than the idle time, too."""
    archive, processor = Archive(), FakeProcessor(tmp_path / "notes")
    thick = make_study(tmp_path / "thick", slices=2)
    thin = make_study(tmp_path / "thin", slices=5, study_uid=thick.uid)
    archive.find_s = find_s
    archive.holds = [dcmread(path) for path in (*thick.files, *thin.files)]
    peer = {"name": "keeper", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": archive.port, "retrieve": "get"}
    changes = {"dicom": [peer], "reconcile": {"ask": ["keeper"], "every_s": 0}}
    with running(archive):
        with running_node(config_of(tmp_path, archive.port, complete={"idle_s": 3600}), processor) as node:
            assert send(thick.files, node.receiver.port) == [0, 0]
        with running_node(config_of(tmp_path, archive.port, **changes), processor) as node:
            key = node.queue.hasher.short(thick.uid)
            wait_until(lambda: node.queue.study(key).state == "delivered", what="delivered")
            assert sorted(archive.gets) == sorted({thick.series_uid, thin.series_uid})
    assert processor.runs == [7]
    assert len(archive.uids) == 2
