"""kill -9 at every stage: after a new start there is exactly one final result."""

from __future__ import annotations

import threading

import pytest

from runtime.node.audit import broken_lines
from tests.runtime.node.nodes import node_process, settings, write_toml
from tests.runtime.node.peers import Archive, running, send, wait_until
from tests.runtime.node.studies import make_study

pytestmark = pytest.mark.slow


@pytest.fixture
def archive():
    with running(Archive()) as archive:
        yield archive


@pytest.fixture
def node(tmp_path, archive):
    values = settings(tmp_path, archive.port, complete={"ask": ["archive"]})
    with node_process(tmp_path, write_toml(tmp_path / "node.toml", values)) as node:
        node.port = values["receive"]["port"]
        node.start()
        yield node


@pytest.fixture
def study(tmp_path, archive):
    study = make_study(tmp_path / "study", slices=8)
    archive.counts = {study.series_uid: 8}
    return study


def is_delivered(node, capsys):
    return node.status(capsys)["counts"]["delivered"] == 1


def check_one_result(node, archive, study, capsys):
    wait_until(lambda: is_delivered(node, capsys), what="delivery after the second start")
    (entry,) = node.status(capsys)["studies"]
    assert entry["images"] == 8
    assert sorted(result["state"] for result in entry["results"]) == ["sent", "sent"]
    assert len(set(archive.uids)) == 2
    assert {dataset.StudyInstanceUID for dataset in archive.received} == {study.uid}
    assert node.end() == 0
    log, audit = node.log.read_text(), node.folder / "data" / "audit.jsonl"
    for word in study.words:
        assert word not in log
        assert word not in audit.read_text()
    assert broken_lines(audit) == []
    assert not list((node.folder / "data" / "images").rglob("*.part"))


def test_killed_while_images_come(node, archive, study, capsys):
    assert send(study.files[:5], node.port) == [0] * 5
    node.kill()
    (node.folder / "data" / "images" / "cut.part").write_bytes(b"half an image")
    node.start()
    send(study.files, node.port)
    check_one_result(node, archive, study, capsys)
    assert node.processor.runs == [8]


def test_killed_between_an_images_file_and_its_record(node, archive, study, capsys):
    """The file has its name and the queue doesn't know it: it is entered at the start."""
    from runtime.node.database import QUEUE_FILE, Database

    send(study.files, node.port)
    node.kill()
    database = Database(node.folder / "data" / QUEUE_FILE)
    with database.transaction() as db:
        db.execute("DELETE FROM image WHERE sop_uid IN (SELECT sop_uid FROM image LIMIT 3)")
    database.close()
    node.start()
    check_one_result(node, archive, study, capsys)
    assert node.processor.runs == [8]


def test_killed_while_a_study_is_analysed(node, archive, study, capsys):
    (node.processor.notes / "hold").touch()
    send(study.files, node.port)
    wait_until((node.processor.notes / "held").exists)
    node.kill()
    (node.processor.notes / "hold").unlink()
    node.start()
    check_one_result(node, archive, study, capsys)
    assert node.processor.runs == [8, 8]


def test_killed_while_results_are_sent(node, archive, study, capsys):
    sending, go_on = threading.Event(), threading.Event()

    def slow(dataset):
        sending.set()
        go_on.wait(30)
        return 0

    archive.status = slow
    send(study.files, node.port)
    assert sending.wait(60)
    node.kill()
    go_on.set()
    node.start()
    check_one_result(node, archive, study, capsys)
    assert node.processor.runs == [8]


def test_a_study_that_kills_the_process_is_given_up_in_the_end(node, archive, study, capsys):
    (node.processor.notes / "hold").touch()
    send(study.files, node.port)
    for _ in range(3):
        wait_until((node.processor.notes / "held").exists)
        node.kill()
        (node.processor.notes / "held").unlink()
        node.start()
    wait_until(lambda: node.status(capsys)["counts"]["dead"] == 1)
    assert "died 3 times" in node.status(capsys)["studies"][0]["reason"]
    assert node.end() == 0
