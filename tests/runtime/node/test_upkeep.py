"""Health, check, status and what is removed when."""

from __future__ import annotations

import json
import socket
import struct
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from runtime.node.commands import main
from runtime.node.config import load_config
from runtime.node.health import HealthServer
from runtime.node.retention import Retention
from tests.runtime.node.fake_processor import FakeProcessor
from tests.runtime.node.nodes import config_of, running_node, settings, write_toml
from tests.runtime.node.peers import Archive, free_port, running, send, wait_until
from tests.runtime.node.studies import make_study


@pytest.fixture
def archive():
    with running(Archive()) as archive:
        yield archive


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            body = error.read()
            return error.code, json.loads(body) if body.startswith(b"{") else None


def test_health_says_how_the_node_is(tmp_path, archive):
    port, study = free_port(), make_study(tmp_path / "study")
    config = config_of(tmp_path, archive.port, node={"health_port": port})
    with running_node(config, FakeProcessor(tmp_path / "notes")) as node:
        send(study.files, node.receiver.port)
        wait_until(lambda: get(f"http://127.0.0.1:{port}/health")[1]["studies"]["delivered"] == 1)
        status, said = get(f"http://127.0.0.1:{port}/health")
        assert (status, said["status"], said["engine"]) == (200, "ok", "fake engine")
        assert get(f"http://127.0.0.1:{port}/other")[0] == 404
        assert not any(word in json.dumps(said) for word in study.words)
        loop = next(loop for loop in node._loops if loop.name == "retention")
        assert loop.stop(30)
        status, said = get(f"http://127.0.0.1:{port}/health")
        assert (status, said["problems"]) == (503, ["retention has ended"])


def probe_of(report, *, hangs_up):
    """A request to a health endpoint; whether it hangs up while the report is made."""
    made = threading.Event()

    def watched():
        if hangs_up:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()  # with a reset
        made.set()
        return report()

    server = HealthServer("127.0.0.1", 0, watched)
    server.start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert made.wait(10)
    return server


def test_a_probe_that_hangs_up_is_one_line_in_the_log(caplog, capfd):
    with caplog.at_level("DEBUG", "runtime.node"):
        server = probe_of(lambda: {"status": "ok", "text": "x" * 10_000_000}, hangs_up=True)
        wait_until(lambda: caplog.records, what="a line in the log", deadline_s=30)
        server.stop()
    (line,) = caplog.records
    assert line.levelname == "DEBUG"
    assert line.getMessage().startswith("a probe from 127.0.0.1 hung up (")
    assert capfd.readouterr().err == ""


def test_a_defect_of_a_health_report_is_in_the_log_and_nowhere_else(caplog, capfd):
    def report():
        raise ZeroDivisionError("boom")

    server = probe_of(report, hangs_up=False)
    wait_until(lambda: caplog.records, what="a line in the log", deadline_s=30)
    server.stop()
    assert "the health endpoint met a defect" in caplog.text
    assert capfd.readouterr().err == ""


def test_check_echoes_every_peer(tmp_path, archive, capsys):
    changes = {"web": [{"name": "web", "url": f"http://127.0.0.1:{free_port()}"}]}
    values = settings(tmp_path, archive.port, folder=[{"name": "out", "path": str(tmp_path / "out")}], **changes)
    values["dicom"] = values["dicom"][1:]
    values["receive"]["accept"] = ["archive"]
    path = write_toml(tmp_path / "node.toml", values)
    assert main(["--config", str(path), "check"]) == 5
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "ok      node.data",
        "ok      analyse",
        "ok      receive.accept",
        "ok      peer archive",
        "FAILED  peer web",
        "ok      peer out",
    ]
    del values["web"]
    assert main(["--config", str(write_toml(path, values)), "check"]) == 0
    archive.stop()
    capsys.readouterr()
    assert main(["--config", str(path), "check"]) == 5
    assert "FAILED  peer archive: archive at 127.0.0.1" in capsys.readouterr().out
    values["analyse"] = {**values.get("analyse", {}), "bundle": str(tmp_path / "nowhere")}
    main(["--config", str(write_toml(path, values)), "check"])
    assert "FAILED  analyse: There is no bundle" in capsys.readouterr().out


def test_check_and_run_refuse_a_wrong_configuration(tmp_path, capsys):
    path = tmp_path / "node.toml"
    path.write_text("[node]\n")
    for command in (["check"], ["run"], []):
        assert main(["--config", str(path), *command]) == 2
        assert "node.data: is missing" in capsys.readouterr().err
    assert main([]) == 2
    assert "--config" in capsys.readouterr().err


def test_status_shows_the_queue_beside_a_node_that_runs(tmp_path, archive, capsys):
    study = make_study(tmp_path / "study")
    config = config_of(tmp_path, archive.port)
    path = str(tmp_path / "node.toml")
    with running_node(config, FakeProcessor(tmp_path / "notes")) as node:
        send(study.files, node.receiver.port)
        key = node.queue.hasher.short(study.uid)
        wait_until(lambda: node.queue.study(key).state == "delivered")
        assert main(["--config", path, "status"]) == 0
        said = capsys.readouterr().out
        assert "delivered 1" in said
        assert f"{key}  delivered       6     2 of 2" in said
        assert not any(word in said for word in study.words)
        assert main(["--config", path, "key", study.uid]) == 0
        assert capsys.readouterr().out.strip() == key
        assert main(["--config", path, "retry", key]) == 0
        assert "is unknown or not dead" in capsys.readouterr().out


def test_pull_takes_a_list_and_refuses_what_is_no_uid(tmp_path, archive, capsys):
    config_of(tmp_path, archive.port)
    path, listed = str(tmp_path / "node.toml"), tmp_path / "list.txt"
    listed.write_text("# studies\n1.2.3\n\n1.2.4\n")
    assert main(["--config", path, "pull", "--from", "archive", "--list", str(listed), "1.2.3"]) == 0
    assert "2 of 3 studies" in capsys.readouterr().out
    assert main(["--config", path, "pull", "--from", "archive", "Doe, Jane"]) == 2
    assert main(["--config", path, "pull", "--from", "ghost", "1.2.3"]) == 2
    assert main(["--config", path, "pull", "--from", "archive"]) == 2


def test_a_study_that_the_archive_does_not_have_is_not_asked_for_again_and_can_be_forgotten(tmp_path, archive, capsys):
    config = config_of(tmp_path, archive.port)
    path = str(tmp_path / "node.toml")
    with running_node(config, FakeProcessor(tmp_path / "notes")) as node:
        assert main(["--config", path, "pull", "--from", "archive", "1.2.3.4.5.6.7"]) == 0
        wait_until(lambda: node.pulls.waiting()[0].state == "dead")
        (pull,) = node.pulls.waiting()
        assert pull.attempts == 1
        key = node.queue.hasher.short("1.2.3.4.5.6.7")
        assert main(["--config", path, "status"]) == 0
        said = capsys.readouterr().out
        assert f"to fetch: {key} from archive (dead) not found at archive" in said
        assert main(["--config", path, "cancel", key]) == 0
        assert f"{key}: is fetched no more" in capsys.readouterr().out
        assert node.pulls.waiting() == []
        assert main(["--config", path, "forget", key]) == 0
        assert f"{key}: is unknown" in capsys.readouterr().out


def test_a_study_that_was_forgotten_is_new_when_it_comes_again(tmp_path, archive, capsys):
    with delivered_node(tmp_path, archive) as (node, study, key):
        assert main(["--config", str(tmp_path / "node.toml"), "forget", key]) == 0
        assert "was delivered and is forgotten" in capsys.readouterr().out
        assert node.queue.study(key) is None
        assert (files(node, "images"), files(node, "results")) == ([], [])
        send(study.files, node.receiver.port)
        wait_until(lambda: (found := node.queue.study(key)) is not None and found.state == "delivered")
        assert node.processor.runs == [6, 6]


def test_what_is_analysed_is_not_forgotten(tmp_path, archive, capsys):
    study, processor = make_study(tmp_path / "study"), FakeProcessor(tmp_path / "notes")
    (processor.notes / "hold").touch()
    with running_node(config_of(tmp_path, archive.port), processor) as node:
        send(study.files, node.receiver.port)
        wait_until((processor.notes / "held").exists)
        key = node.queue.hasher.short(study.uid)
        assert main(["--config", str(tmp_path / "node.toml"), "forget", key]) == 0
        assert "is running and stays" in capsys.readouterr().out
        (processor.notes / "hold").unlink()
        wait_until(lambda: node.queue.study(key).state == "delivered")


@contextmanager
def delivered_node(tmp_path, archive, **storage):
    """A node whose study is delivered."""
    study = make_study(tmp_path / "study")
    config = config_of(tmp_path, archive.port, storage=storage)
    with running_node(config, FakeProcessor(tmp_path / "notes")) as node:
        send(study.files, node.receiver.port)
        key = node.queue.hasher.short(study.uid)
        wait_until(lambda: node.queue.study(key).state == "delivered")
        yield node, study, key


def files(node, kind):
    return [path for path in (node.config.data / kind).rglob("*") if path.is_file()]


def test_images_go_after_their_time_and_the_study_is_still_known(tmp_path, archive):
    with delivered_node(tmp_path, archive, keep_images_h=0, keep_results_h=24) as (node, study, key):
        Retention(node.config.storage, node.queue, node.store).step()
        assert (len(files(node, "images")), len(files(node, "results"))) == (0, 2)
        assert send(study.files, node.receiver.port) == [0] * 6
        assert node.queue.study(key).state == "delivered"
        assert files(node, "images") == []


def test_a_late_slice_of_a_study_whose_images_are_gone_waits_for_all_of_them(tmp_path, archive):
    with delivered_node(tmp_path, archive, keep_images_h=0) as (node, study, key):
        Retention(node.config.storage, node.queue, node.store).step()
        late = make_study(tmp_path / "late", slices=1, first=6, study_uid=study.uid, series_uid=study.series_uid)
        send(late.files, node.receiver.port)
        wait_until(lambda: "must come again" in node.queue.study(key).reason)
        send(study.files, node.receiver.port)
        wait_until(lambda: node.queue.study(key).state == "delivered")
        assert node.processor.runs == [6, 7]


def test_when_the_quota_nears_finished_studies_make_room_first(tmp_path, archive):
    with delivered_node(tmp_path, archive, keep_images_h=24) as (node, _, key):
        roomy, tight = (
            load_config(tmp_path / "node.toml").storage,
            config_of(tmp_path, archive.port, storage={"quota_gib": 0.001, "keep_images_h": 24}).storage,
        )
        Retention(roomy, node.queue, node.store).step()
        assert len(files(node, "images")) == 6
        with node.queue.database.transaction() as db:
            db.execute("UPDATE image SET bytes = 1000000")
        Retention(tight, node.queue, node.store).step()
        assert files(node, "images") == []
        assert node.queue.study(key).state == "delivered"


def test_records_are_forgotten_after_their_time(tmp_path, archive):
    with delivered_node(tmp_path, archive, keep_images_h=0, keep_results_h=0) as (node, _, key):
        with node.queue.database.transaction() as db:
            db.execute("UPDATE study SET changed_s = 1000")
        Retention(node.config.storage, node.queue, node.store).step()
        assert node.queue.study(key) is None
        assert node.queue.database.rows("SELECT * FROM image") == []
        assert node.queue.database.rows("SELECT * FROM result") == []
