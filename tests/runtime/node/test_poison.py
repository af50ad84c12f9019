"""Things that nobody foresaw: each is put off with a reason, and nothing behind it waits for it."""

from __future__ import annotations

import errno
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pynetdicom", reason="the extra 'node' is not installed")

from pydicom import dcmread
from pydicom.uid import SecondaryCaptureImageStorage, XRayRadiationDoseSRStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, StudyRootQueryRetrieveInformationModelFind

from runtime.errors import InputError
from runtime.node import dimse, web
from runtime.node import watch as watch_module
from runtime.node.archive import Archive
from runtime.node.audit import Audit
from runtime.node.completeness import Completeness
from runtime.node.config import Complete, DicomPeer, Reconcile, Storage, Watch, WebPeer
from runtime.node.database import Database
from runtime.node.identity import Hasher, Redactor
from runtime.node.loops import Loop
from runtime.node.outbox import PullList
from runtime.node.peer_errors import PeerError
from runtime.node.pull import Puller, Reconciler
from runtime.node.queue import Queue
from runtime.node.records import ImageRecord
from runtime.node.store import Store
from runtime.node.watch import FolderWatch
from tests.runtime.node.peers import free_port, nobody, wait_until
from tests.runtime.node.studies import ct_slice

HASHER = Hasher(bytes(32))
PEER = nobody("archive", retrieve="get")


class Parts(SimpleNamespace):
    """A queue with what stands around it, without threads."""


@contextmanager
def parts_in(tmp_path):
    database = Database(tmp_path / "queue.sqlite")
    redact, audit = Redactor(HASHER), Audit(tmp_path / "audit.jsonl")
    queue = Queue(database, HASHER)
    storage = Storage(2**40, 0, 0.0, 0.0, 0.0, fsync=False)
    yield Parts(
        queue=queue,
        pulls=PullList(database),
        redact=redact,
        audit=audit,
        store=Store(tmp_path / "data", storage, queue, redact, audit),
    )
    database.close()


@pytest.fixture
def parts(tmp_path):
    with parts_in(tmp_path) as parts:
        yield parts


@pytest.fixture(scope="module")
def lasting_parts(tmp_path_factory):
    with parts_in(tmp_path_factory.mktemp("parts")) as parts:
        yield parts


class Archives(dict):
    """Archives by name, each of which does what a function says."""

    def __init__(self, **does):
        super().__init__({name: SimpleNamespace(name=name, **methods) for name, methods in does.items()})


def raises(error):
    def method(*_):
        raise error

    return method


def image(study, number=1, series="2.25.10"):
    return ImageRecord(study, series, f"{study}.{number}", f"images/{study}-{number}", 5, True)


# Fetching ------------------------------------------------------------------------------------------------------------


def test_a_fetch_that_meets_a_defect_is_put_off_and_the_next_one_comes(parts, caplog):
    fetched = []
    good = lambda uid, take: fetched.append(uid) or 1  # noqa: E731
    archives = Archives(bad={"fetch": raises(TypeError("odd"))}, good={"fetch": good})
    puller = Puller(parts.pulls, archives, parts.queue, parts.redact, parts.audit, take=lambda encoded, peer: 0)
    parts.pulls.add("2.25.1", "bad")
    parts.pulls.add("2.25.2", "good")
    assert [puller.step() for _ in range(3)] == [True, True, False]
    assert fetched == ["2.25.2"]
    (left,) = parts.pulls.waiting()
    assert (left.state, left.attempts) == ("pending", 1)
    assert left.reason == "a defect of this software (TypeError); its log has the trace"
    assert "Traceback" in caplog.text


@contextmanager
def archive_that_only_finds():
    """Takes CT contexts and C-FIND, but no C-GET, C-MOVE or C-ECHO."""
    entity, port = AE(ae_title="ARCHIVE"), free_port()
    entity.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, lambda event: [])])
    try:
        yield DicomPeer("archive", "ARCHIVE", "127.0.0.1", port, (), "get", "off", None, 5.0)
    finally:
        server.shutdown()


def test_an_archive_that_does_not_offer_a_service_is_at_fault_and_said_so():
    with archive_that_only_finds() as peer:
        with pytest.raises(PeerError, match=r"archive does not offer .*GET"):
            dimse.get(peer, "NODE", "2.25.1", "2.25.2", lambda encoded: 0)
        with pytest.raises(PeerError, match=r"archive does not offer .*MOVE"):
            dimse.move(peer, "NODE", "2.25.1", "2.25.2")
        with pytest.raises(PeerError, match="archive does not offer Verification"):
            dimse.echo(peer, "NODE")
        assert dimse.series(peer, "NODE", "2.25.1") == {}


@contextmanager
def web_server(kind, body):
    """Answers every request with 200 and the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield WebPeer("web", f"http://127.0.0.1:{server.server_address[1]}/x", "", None, None, None, None, None, 5.0)
    finally:
        server.shutdown()
        server.server_close()


PART = b"--b\r\nContent-Type: application/dicom\r\n\r\nno DICOM at all\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<p>log in first</p>"),
        ("multipart/related; boundary=b", b"nothing of the kind"),
        ("multipart/related; boundary=b", PART),
    ],
    ids=["a page", "no parts", "no image"],
)
def test_a_web_server_that_sends_something_else_than_images_is_at_fault(kind, body):
    with web_server(kind, body) as peer, pytest.raises(PeerError, match=r"web at http\S+ (?!did not answer)"):
        web.retrieve(peer, "1.2.3", "1.2.4", lambda encoded: 0)


@pytest.mark.parametrize("body", [b"<p>log in first</p>", b'["text"]', b'[{"0020000E": 7}]'])
def test_a_web_server_that_answers_a_search_with_something_else_is_at_fault(body):
    with (
        web_server("application/dicom+json", body) as peer,
        pytest.raises(PeerError, match=r"web at http\S+ (?!did not answer)"),
    ):
        web.series(peer, "1.2.3")


# Asking --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [InputError("a password file can't be read"), TypeError("odd"), PeerError("down")])
def test_an_archive_that_cant_be_asked_keeps_no_other_from_being_asked(parts, error):
    found = {"recent_studies": lambda since: ["2.25.1"]}
    archives = Archives(bad={"recent_studies": raises(error)}, good=found)
    settings = Reconcile(ask=("bad", "good"), series="all", days=2, every_s=900)
    assert not Reconciler(settings, parts.queue, parts.pulls, archives, parts.audit).step()
    assert [(pull.study_uid, pull.peer) for pull in parts.pulls.waiting()] == [("2.25.1", "good")]


@pytest.mark.parametrize("error", [InputError("a password file can't be read"), TypeError("odd")])
def test_a_study_that_cant_be_counted_waits_and_the_next_one_goes_on(parts, error):
    def series(uid):
        if uid == "2.25.1":
            raise error
        return {}

    archives = Archives(archive={"series": series})
    for study in ("2.25.1", "2.25.2"):
        parts.queue.add_image(image(study))
    complete = Completeness(
        Complete(-1.0, ("archive",), "sent", 15, 3600),
        parts.queue,
        [archives["archive"]],
        parts.audit,
        fetch=lambda uid: False,
        is_fetched=parts.pulls.plans,
    )
    assert complete.step()
    states = {uid: parts.queue.study(HASHER.short(uid)) for uid in ("2.25.1", "2.25.2")}
    assert [study.state for study in states.values()] == ["received", "queued"]
    assert type(error).__name__ in states["2.25.1"].reason or str(error) in states["2.25.1"].reason
    assert states["2.25.1"].next_s > states["2.25.1"].changed_s


# Objects that come in ------------------------------------------------------------------------------------------------


def encoded(image):
    with BytesIO() as stream:
        image.save_as(stream, enforce_file_format=True)
        return stream.getvalue()


SLICE = encoded(ct_slice("2.25.1", "2.25.2", 0))


@pytest.mark.parametrize("field", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_an_object_with_two_values_for_a_uid_is_refused(parts, field):
    odd = dcmread(BytesIO(SLICE))
    setattr(odd, field, ["1.2.3", "1.2.4"])
    with BytesIO() as stream:
        odd.save_as(stream)
        with pytest.raises(InputError, match=f"several values in {field}"):
            parts.store.take(stream.getvalue(), peer="folder")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(128, len(SLICE) - 513), st.integers(0, 255)), max_size=6), st.integers(0, 300))
def test_whatever_is_wrong_with_a_file_it_is_taken_or_refused(lasting_parts, changes, cut):
    damaged = bytearray(SLICE[: len(SLICE) - 512 - cut])
    for place, value in changes:
        if place < len(damaged):
            damaged[place] = value
    with suppress(InputError):
        assert lasting_parts.store.take(bytes(damaged), peer="folder").outcome in ("new", "known", "other", "own")


# The watched folder --------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    clock = SimpleNamespace(now_s=100.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr(watch_module, "time", clock)
    return clock


def test_a_file_that_cant_be_taken_is_tried_at_growing_intervals_and_keeps_none_behind_it_waiting(tmp_path, clock):
    watched, tries = tmp_path / "in", []
    watched.mkdir()
    for name in ("a", "b"):
        (watched / name).write_bytes(name.encode())

    def take(encoded, peer):
        tries.append((clock.now_s, encoded))
        return 0x0110 if encoded == b"a" else 0

    watch = FolderWatch(Watch(watched, 0.0), take)
    for _ in range(600):
        watch.step()
        clock.now_s += 0.5
    times = [at_s for at_s, encoded in tries if encoded == b"a"]
    assert [encoded for _, encoded in tries].count(b"b") == 1
    assert [b - a for a, b in pairwise(times)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert [path.name for path in watched.iterdir()] == ["a"]


def test_a_file_that_cant_be_removed_is_taken_once(tmp_path, clock, monkeypatch):
    watched, taken = tmp_path / "in", []
    watched.mkdir()
    (watched / "a").write_bytes(b"a")
    monkeypatch.setattr("pathlib.Path.unlink", raises(PermissionError(13, "Permission denied")))
    watch = FolderWatch(Watch(watched, 0.0), lambda encoded, peer: taken.append(encoded) or 0)
    for _ in range(9):
        watch.step()
        clock.now_s += 100
    assert taken == [b"a"]
    (watched / "a").write_bytes(b"another")
    for _ in range(9):
        watch.step()
        clock.now_s += 100
    assert taken == [b"a", b"another"]


# Loops ---------------------------------------------------------------------------------------------------------------


def test_what_cant_be_looked_at_keeps_nothing_else_in_the_folder_waiting(tmp_path, clock, monkeypatch):
    watched, taken = tmp_path / "in", []
    watched.mkdir()
    for name in ("a", "lost", "z"):
        (watched / name).write_bytes(name.encode())
    is_file = Path.is_file

    def lost(path):
        if path.name == "lost":
            raise OSError(errno.ESTALE, "Stale file handle")
        return is_file(path)

    monkeypatch.setattr("pathlib.Path.is_file", lost)
    watch = FolderWatch(Watch(watched, 0.0), lambda encoded, peer: taken.append(encoded) or 0)
    for _ in range(3):
        watch.step()
        clock.now_s += 1
    assert sorted(taken) == [b"a", b"z"]
    assert watch.trouble == ""
    monkeypatch.setattr("pathlib.Path.iterdir", raises(OSError(errno.ESTALE, "Stale file handle")))
    watch.step()
    assert "Stale file handle" in watch.trouble


def test_a_series_that_does_not_come_keeps_no_other_from_coming(monkeypatch):
    came = []

    def get(peer, ae_title, study, series, take):
        if series == "2.25.1":
            raise PeerError("1 image(s) did not come")
        came.append(series)

    monkeypatch.setattr(dimse, "ct_series", lambda *asked: ["2.25.1", "2.25.2"])
    monkeypatch.setattr(dimse, "get", get)
    with pytest.raises(PeerError, match="1 image"):
        Archive(PEER, "NODE").fetch("2.25.9", lambda encoded: 0)
    assert came == ["2.25.2"]


def test_a_get_takes_what_else_lies_in_a_ct_series(monkeypatch):
    asked = []

    @contextmanager
    def associated(peer, ae_title, contexts, **more):
        asked.extend(contexts)
        yield SimpleNamespace(send_c_get=lambda *query: [])

    monkeypatch.setattr(dimse, "associated", associated)
    dimse.get(PEER, "NODE", "2.25.9", "2.25.1", lambda encoded: 0)
    assert {SecondaryCaptureImageStorage, XRayRadiationDoseSRStorage} < {one.abstract_syntax for one in asked}
    assert len(asked) <= 128, "an association has no more"


def test_a_loop_shows_a_defect_only_until_it_works_again(monkeypatch):
    monkeypatch.setattr("runtime.node.loops._AFTER_DEFECT_S", 0.01)
    broken = threading.Event()
    broken.set()

    def step():
        if broken.is_set():
            raise ZeroDivisionError("boom")
        return False

    loop = Loop("test", step, pause_s=0.01)
    loop.start()
    wait_until(lambda: loop.last_error == "ZeroDivisionError in test")
    broken.clear()
    wait_until(lambda: loop.last_error == "", deadline_s=30)
    assert loop.stop(10)
