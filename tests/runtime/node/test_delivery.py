"""Results on their way: destinations that are down, refuse, keep nothing, commit or don't."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydicom.uid import EncapsulatedPDFStorage, SecondaryCaptureImageStorage

from tests.runtime.node.fake_processor import FakeProcessor
from tests.runtime.node.nodes import config_of, running_node
from tests.runtime.node.peers import Archive, free_port, running, send, wait_until
from tests.runtime.node.studies import make_study


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "study", slices=2)


@contextmanager
def node_with(tmp_path, study, port, **changes):
    """A node that has been sent the study."""
    processor = FakeProcessor(tmp_path / "notes")
    with running_node(config_of(tmp_path, port, **changes), processor) as node:
        assert send(study.files, node.receiver.port) == [0, 0]
        yield node
        assert processor.runs == [2]


def results_of(node, study):
    return node.outbox.results(node.queue.hasher.short(study.uid))


def wait_for(node, study, state):
    wait_until(lambda: node.queue.study(node.queue.hasher.short(study.uid)).state == state, what=state)


def test_an_archive_that_is_down_gets_them_when_it_is_up(tmp_path, study):
    archive = Archive()
    with node_with(tmp_path, study, archive.port) as node:
        wait_until(lambda: [r for r in results_of(node, study) if r.attempts >= 2], what="two attempts")
        assert "did not answer" in results_of(node, study)[0].reason
        with running(archive):
            wait_for(node, study, "delivered")
        assert len(archive.uids) == len(set(archive.uids)) == 2


def test_waits_grow_from_the_first_to_the_longest(tmp_path, study, caplog):
    port = free_port()
    with node_with(tmp_path, study, port, deliver={"first_retry_s": 0.1, "max_retry_s": 0.35}) as node:
        wait_until(lambda: [r for r in results_of(node, study) if r.attempts >= 4], what="four attempts")
    waits = [r.args[-1] for r in caplog.records if "again in" in r.msg and r.args[1] == "pdf.dcm"]
    assert waits[:4] == pytest.approx([0.1, 0.2, 0.35, 0.35])


def test_what_is_refused_for_its_class_is_a_dead_letter_and_the_rest_arrives(tmp_path, study):
    archive = Archive()
    archive.classes = [SecondaryCaptureImageStorage]
    with running(archive), node_with(tmp_path, study, archive.port) as node:
        wait_for(node, study, "dead")
        key = node.queue.hasher.short(study.uid)
        letters = node.config.data / "dead-letters" / "archive" / key
        assert sorted(path.name for path in letters.iterdir()) == ["pdf.dcm", "pdf.dcm.json"]
        assert "objects of this class" in json.loads((letters / "pdf.dcm.json").read_text())["reason"]
        assert [dataset.SOPClassUID for dataset in archive.received] == [SecondaryCaptureImageStorage]
        archive.stop()
        archive.classes = None
        archive.start()
        assert node.queue.retry(key) == "ready"
        wait_for(node, study, "delivered")
        assert [dataset.SOPClassUID for dataset in archive.received][1:] == [EncapsulatedPDFStorage]


def test_a_failure_that_may_pass_is_tried_again_and_one_that_stays_is_given_up(tmp_path, study):
    archive = Archive()
    answers = {SecondaryCaptureImageStorage: [0xA700, 0xC000, 0], EncapsulatedPDFStorage: [0xC000] * 99}
    archive.status = lambda dataset: answers[dataset.SOPClassUID].pop(0)
    with running(archive), node_with(tmp_path, study, archive.port) as node:
        wait_for(node, study, "dead")
        states = {r.sop_class: (r.state, r.attempts) for r in results_of(node, study)}
        assert states == {SecondaryCaptureImageStorage: ("sent", 2), EncapsulatedPDFStorage: ("dead", 5)}


def test_after_the_time_for_trying_it_is_given_up(tmp_path, study):
    with node_with(tmp_path, study, free_port(), deliver={"give_up_s": 1.0}) as node:
        wait_for(node, study, "dead")
        assert "tried for 1 s" in results_of(node, study)[0].reason


@pytest.mark.parametrize("kept", [True, False])
def test_commitment_is_waited_for_and_what_is_not_kept_is_sent_again(tmp_path, study, kept):
    archive = Archive()
    asked = []

    def commit(request):
        uids = [item.ReferencedSOPInstanceUID for item in request.ReferencedSOPSequence]
        asked.append(uids)
        return (uids, []) if kept or len(asked) > 1 else (uids[:1], uids[1:])

    archive.commit = commit
    values = {"commitment": "require", "name": "keeper", "ae_title": "ARCHIVE", "host": "127.0.0.1"}
    changes = {"dicom": [{**values, "port": archive.port}], "deliver": {"to": ["keeper"]}}
    with running(archive), node_with(tmp_path, study, archive.port, **changes) as node:
        archive.node_port = node.receiver.port
        wait_for(node, study, "delivered")
        assert {r.state for r in results_of(node, study)} == {"committed"}
    assert [len(uids) for uids in asked] == ([2] if kept else [2, 1])


def test_what_an_archive_never_commits_to_is_given_up(tmp_path, study):
    archive = Archive()
    archive.commit = lambda request: ([], [item.ReferencedSOPInstanceUID for item in request.ReferencedSOPSequence])
    values = {"commitment": "ask", "name": "keeper", "ae_title": "ARCHIVE", "host": "127.0.0.1"}
    changes = {"dicom": [{**values, "port": archive.port}], "deliver": {"to": ["keeper"], "give_up_s": 1.5}}
    with running(archive), node_with(tmp_path, study, archive.port, **changes) as node:
        archive.node_port = node.receiver.port
        wait_for(node, study, "dead")
        assert {r.reason for r in results_of(node, study)} == {"keeper did not commit to it; tried for 1.5 s"}


def test_a_commitment_that_nobody_answers_is_noted_where_it_was_only_asked_for(tmp_path, study):
    archive = Archive()
    archive.commit = lambda request: ([], [])
    values = {"commitment": "ask", "name": "keeper", "ae_title": "ARCHIVE", "host": "127.0.0.1"}
    changes = {"dicom": [{**values, "port": archive.port}], "deliver": {"to": ["keeper"], "commitment_s": 0.5}}
    with running(archive), node_with(tmp_path, study, archive.port, **changes) as node:
        archive.node_port = node.receiver.port
        wait_for(node, study, "delivered")
        assert {r.reason for r in results_of(node, study)} == {"the request to commit to it was not answered"}


def test_a_destination_that_is_renamed_holds_no_study_back(tmp_path, study):
    port, out = free_port(), {"folder": [{"name": "out", "path": str(tmp_path / "out")}]}
    with node_with(tmp_path, study, port) as node:
        wait_until(lambda: results_of(node, study))
        key = node.queue.hasher.short(study.uid)
    processor = FakeProcessor(tmp_path / "notes")
    with running_node(config_of(tmp_path, port, deliver={"to": ["out"]}, **out), processor) as node:
        wait_for(node, study, "dead")
        reasons = {r.reason for r in results_of(node, study)}
        assert reasons == {"the settings' deliver.to does not name archive any more"}
    with running(Archive(port)) as archive:
        with running_node(config_of(tmp_path, port), processor) as node:
            assert node.queue.retry(key) == "ready"
            wait_for(node, study, "delivered")
        assert len(archive.uids) == 2
    assert processor.runs == [2]


@contextmanager
def stow_server(answers):
    """Answers POSTs with (status, JSON) one after the other, the last one for ever; counts them."""
    posts = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = answers[min(len(posts), len(answers) - 1)]
            posts.append((self.path, self.headers.get("Authorization"), len(body)))
            text = json.dumps(answer(body) if callable(answer) else answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1], posts
    finally:
        server.shutdown()
        server.server_close()


def stored(uids):
    items = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in uids]
    return {"00081199": {"vr": "SQ", "Value": items}}


def failed(uids, reason):
    item = {"00081197": {"vr": "US", "Value": [reason]}}
    return {"00081198": {"vr": "SQ", "Value": [{**item, "00081155": {"vr": "UI", "Value": [uid]}} for uid in uids]}}


def web_changes(port, tmp_path):
    token = tmp_path / "token"
    token.write_text("t0ken\n")
    web = {"name": "web", "url": f"http://127.0.0.1:{port}/dicom-web", "token_file": str(token)}
    return {"web": [web], "deliver": {"to": ["web"]}}


def test_stow_that_kept_nothing_is_no_success_though_it_says_200(tmp_path, study):
    uids = []
    answers = [(200, {}), (503, {}), (200, lambda body: stored(uids))]
    with (
        stow_server(answers) as (port, posts),
        node_with(tmp_path, study, free_port(), **web_changes(port, tmp_path)) as n,
    ):
        uids += [r.sop_uid for r in wait_until(lambda: results_of(n, study))]
        wait_for(n, study, "delivered")
        assert len(posts) == 3
        assert posts[0][:2] == ("/dicom-web/studies", "Bearer t0ken")


def test_stow_that_refuses_one_object_keeps_the_other(tmp_path, study):
    uids = []
    answers = [(202, lambda body: {**stored(uids[:1]), **failed(uids[1:], 0x0122)})]
    with (
        stow_server(answers) as (port, _),
        node_with(tmp_path, study, free_port(), **web_changes(port, tmp_path)) as node,
    ):
        uids += [r.sop_uid for r in wait_until(lambda: results_of(node, study))]
        wait_for(node, study, "dead")
        states = {r.sop_uid: r.state for r in results_of(node, study)}
        assert states == {uids[0]: "sent", uids[1]: "dead"}


def test_stow_that_is_refused_as_a_whole_is_given_up(tmp_path, study):
    with (
        stow_server([(415, {})]) as (port, _),
        node_with(tmp_path, study, free_port(), **web_changes(port, tmp_path)) as n,
    ):
        wait_for(n, study, "dead")
        assert {r.reason for r in results_of(n, study)} == {"web answered 415"}
