"""The acceptance tests of docs/pacs.md against a real Orthanc, with a quick stand-in for the analysis."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from runtime.node.commands import main
from tests.pacs.orthanc import Orthanc
from tests.runtime.node.certificates import make_authority, make_certificate
from tests.runtime.node.peers import echo, send, wait_until
from tests.runtime.node.studies import capture, make_study

ASK = {"complete": {"idle_s": 1.0, "ask_every_s": 0.3, "ask": ["archive"]}}


def wait_for_results(bench, node, study, capsys, count=2):
    wait_until(lambda: node.is_delivered(capsys), what=f"delivery: {node.log}")
    results = bench.orthanc.results(study.uid)
    assert len(results) == len(set(results)) == count
    return results


def test_1_echo_from_listed_callers_and_to_the_archive(bench, capsys):
    bench.orthanc.start()
    node = bench.node().start()
    assert bench.orthanc.post("/modalities/node/echo", {}) == {}
    assert echo(bench.node_port)
    assert not echo(bench.node_port, calling="STRANGER")
    assert not echo(bench.node_port, called="WRONG")
    assert main(["--config", str(node.config), "check"]) == 5  # the sender, a scanner, answers nobody
    said = capsys.readouterr().out
    assert "ok      peer archive" in said
    assert "ok      peer web" in said


def test_2_4_5_a_study_sent_by_the_archive_has_its_results_once_whatever_is_sent_again(bench, study, capsys):
    bench.orthanc.start().upload(study.files)
    node = bench.node(**ASK).start()
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])
    results = wait_for_results(bench, node, study, capsys)
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])  # with the results that are in it now
    bench.orthanc.stays(study.uid, 2, 3)
    assert bench.orthanc.results(study.uid) == results
    assert node.processor.runs == [8]


def test_4_an_archive_that_forwards_whatever_became_stable_causes_one_run(bench, study, capsys):
    bench.orthanc.settings |= {"StableAge": 2, "LuaScripts": [str(bench.orthanc.folder / "forward.lua")]}
    node = bench.node(**ASK).start()
    bench.orthanc.start().upload(study.files)
    wait_for_results(bench, node, study, capsys)
    audit = node.folder / "data" / "audit.jsonl"
    wait_until(lambda: audit.read_text().count("own result came back") >= 2, what="results that come back")
    bench.orthanc.stays(study.uid, 2, 3)
    assert node.processor.runs == [8]


def test_results_can_go_to_the_archive_by_stow(bench, study, capsys):
    bench.orthanc.start().upload(study.files)
    node = bench.node(deliver={"to": ["web"]}, complete={"ask": ["web"], "idle_s": 1.0}).start()
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])
    wait_for_results(bench, node, study, capsys)
    assert node.processor.runs == [8]


def test_the_archive_commits_to_what_it_stored(bench, study, capsys):
    bench.orthanc.start().upload(study.files)
    node = bench.node(archive={"commitment": "require"}, **ASK).start()
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])
    wait_for_results(bench, node, study, capsys)
    assert {result["state"] for result in node.status(capsys)["studies"][0]["results"]} == {"committed"}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("way", ["move", "get", "web"])
def test_3_a_pulled_study_has_identical_voxels(bench, study, capsys, way, syntax):
    for path in study.files if syntax == RLELossless else ():
        image = dcmread(path)
        image.compress(syntax, generate_instance_uid=False)
        image.save_as(path)
    bench.orthanc.start().upload(study.files)
    node = bench.node(archive={"retrieve": "get" if way == "get" else "move"}, **ASK).start()
    peer = "web" if way == "web" else "archive"
    assert main(["--config", str(node.config), "pull", "--from", peer, study.uid]) == 0
    wait_for_results(bench, node, study, capsys)
    kept = {dcmread(path).SOPInstanceUID: dcmread(path) for path in (node.folder / "data" / "images").rglob("*.dcm")}
    for path in study.files:
        sent = dcmread(path)
        came = kept.pop(sent.SOPInstanceUID)
        np.testing.assert_array_equal(came.pixel_array, sent.pixel_array)
        assert came.file_meta.TransferSyntaxUID == syntax
    assert not kept
    assert node.processor.runs == [8]


def test_6_a_stall_in_mid_series_waits_for_the_count_and_late_slices_run_once_more(bench, study, capsys, tmp_path):
    names = bench.orthanc.start().upload(study.files)
    node = bench.node(**ASK).start()
    bench.orthanc.send_to_node(names[:5])
    wait_until(lambda: "5 of 8" in "".join(s["reason"] for s in node.status(capsys)["studies"]))
    bench.orthanc.stays(study.uid, 0, 3)
    assert node.processor.runs == []
    bench.orthanc.send_to_node(names[5:])
    wait_for_results(bench, node, study, capsys)
    assert node.processor.runs == [8]
    from tests.runtime.node.studies import make_study

    late = make_study(tmp_path / "late", slices=2, first=8, study_uid=study.uid, series_uid=study.series_uid)
    bench.orthanc.send_to_node(bench.orthanc.upload(late.files))
    wait_until(lambda: node.processor.runs == [8, 10] and node.is_delivered(capsys))
    bench.orthanc.stays(study.uid, 4, 2)
    assert node.processor.runs == [8, 10]


def test_7_killed_during_receive(bench, study, capsys):
    names = bench.orthanc.start().upload(study.files)
    node = bench.node(reconcile={"ask": ["archive"]}, **ASK).start()
    bench.orthanc.send_to_node(names[:5])
    node.kill()
    node.start()
    wait_for_results(bench, node, study, capsys)  # the archive has the rest, and is asked for it
    assert node.processor.runs == [8]


def test_7_killed_during_the_analysis(bench, study, capsys):
    bench.orthanc.start().upload(study.files)
    node = bench.node(**ASK)
    (node.processor.notes / "hold").touch()
    node.start()
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])
    wait_until((node.processor.notes / "held").exists)
    node.kill()
    (node.processor.notes / "hold").unlink()
    node.start()
    wait_for_results(bench, node, study, capsys)
    assert node.processor.runs == [8, 8]


def test_7_killed_during_send(bench, study, capsys):
    """The results were sent and the node died before it could note that: they are sent again and are there once."""
    bench.orthanc.start().upload(study.files)
    node = bench.node(**ASK).start()
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])
    wait_until(lambda: bench.orthanc.results(study.uid), what="the first result")
    node.kill()
    from runtime.node.database import QUEUE_FILE, Database

    database = Database(node.folder / "data" / QUEUE_FILE)
    with database.transaction() as db:
        db.execute("UPDATE result SET state = 'pending'")
        db.execute("UPDATE study SET state = 'ready'")
    database.close()
    node.start()
    wait_for_results(bench, node, study, capsys)
    assert node.processor.runs == [8]


def test_8_results_wait_while_the_archive_is_down(bench, study, capsys):
    bench.orthanc.start().upload(study.files)
    node = bench.node(**ASK)
    (node.processor.notes / "hold").touch()
    node.start()
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])
    wait_until((node.processor.notes / "held").exists)
    bench.orthanc.stop()
    (node.processor.notes / "hold").unlink()
    wait_until(lambda: any(r["attempts"] >= 2 for s in node.status(capsys)["studies"] for r in s["results"]))
    bench.orthanc.start()
    wait_for_results(bench, node, study, capsys)
    assert node.processor.runs == [8]


def test_8_a_class_that_the_archive_refuses_is_a_dead_letter_with_its_reason(bench, study, capsys):
    bench.orthanc.start().upload(study.files)
    node = bench.node(**ASK)
    (node.processor.notes / "strange").touch()
    node.start()
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])
    wait_until(lambda: node.status(capsys)["counts"]["dead"] == 1)
    letters = list((node.folder / "data" / "dead-letters").rglob("*.json"))
    assert [letter.name for letter in letters] == ["strange.dcm.json"]
    assert "does not take objects of this class" in json.loads(letters[0].read_text())["reason"]
    assert len(bench.orthanc.results(study.uid)) == 2


@pytest.mark.parametrize("way", ["move", "web"])
def test_9_an_archive_killed_inside_its_stable_age_is_asked_at_the_nodes_start(bench, study, capsys, way):
    bench.orthanc.settings |= {"StableAge": 60, "LuaScripts": [str(bench.orthanc.folder / "forward.lua")]}
    bench.orthanc.start().upload(study.files)
    bench.orthanc.kill()  # its event for the stable study is lost with it
    bench.orthanc.start()
    peer = "web" if way == "web" else "archive"
    node = bench.node(reconcile={"ask": [peer], "every_s": 0}, **ASK).start()
    wait_for_results(bench, node, study, capsys)
    assert node.processor.runs == [8]


@pytest.mark.parametrize("way", ["get", "web"])
def test_9_a_node_killed_after_the_first_of_two_series_fetches_the_other_and_analyses_both(
    bench, study, capsys, tmp_path, way
):
    thin = make_study(tmp_path / "thin", slices=11, study_uid=study.uid)
    bench.orthanc.start()
    peer = "web" if way == "web" else "archive"
    changes = {"archive": {"retrieve": "get"}, "reconcile": {"ask": [peer], "every_s": 0}}
    node = bench.node(**changes, **ASK).start()
    assert send(study.files, bench.node_port) == [0] * 8
    node.kill()
    bench.orthanc.upload((*study.files, *thin.files))
    node.start()
    wait_for_results(bench, node, study, capsys)
    assert node.processor.runs == [19]


def test_15_mutual_tls_both_ways_and_no_patient_data_in_the_logs(bench, study, capsys, tmp_path):
    authority = make_authority(tmp_path / "pki", "authority")
    ours, theirs, scanner = (make_certificate(authority, name) for name in ("node", "archive", "scanner"))
    bench.orthanc = Orthanc(
        bench.folder / "secure",
        bench.node_port,
        DicomTlsEnabled=True,
        DicomTlsCertificate=theirs["certificate"],
        DicomTlsPrivateKey=theirs["key"],
        DicomTlsTrustedCertificates=theirs["ca"],
        DicomTlsRemoteCertificateRequired=True,
    )
    bench.orthanc.start().upload(study.files)
    tls = {"receive": {"tls": ours}}
    node = bench.node(archive={"tls": ours}, **ASK, **tls).start()
    assert not echo(bench.node_port)
    assert not echo(bench.orthanc.port, calling="NODE", called="ARCHIVE")
    from runtime.node.config import Tls
    from runtime.node.tls import client_context

    assert echo(bench.node_port, tls=(client_context(Tls(**scanner)), "127.0.0.1"))
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])
    wait_for_results(bench, node, study, capsys)
    assert node.end() == 0
    assert node.log.read_text().rstrip().endswith("ended")
    logs = node.log.read_text() + (node.folder / "data" / "audit.jsonl").read_text()
    assert len(logs.splitlines()) > 10
    assert not [word for word in study.words if word in logs]
    assert not [image for image in study.files if dcmread(image).SOPInstanceUID in logs]


def test_15_logs_of_failures_hold_no_patient_data_either(bench, study, capsys):
    bench.orthanc.start().upload(study.files)
    node = bench.node(**ASK)
    (node.processor.notes / "fail").write_text(f"Zwetschkenbaum^Leopoldine: {study.uid} PID-47110815")
    node.start()
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])
    send([capture(study.uid, "2.25.5", manufacturer="Others")], bench.node_port)
    wait_until(lambda: node.status(capsys)["counts"]["dead"] == 1)
    said = json.dumps(node.status(capsys)) + node.log.read_text()
    said += (node.folder / "data" / "audit.jsonl").read_text()
    assert "[withheld]" in said
    assert not [word for word in study.words if word in said]
