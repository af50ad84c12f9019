"""Folders in and out: the watched folder, and mercure's module convention."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydicom import dcmread

from runtime.errors import GeometryError, InputError
from runtime.node.commands import main
from runtime.node.config import Watch
from runtime.node.module import task_settings
from runtime.node.watch import FolderWatch
from tests.runtime.node.fake_processor import FakeProcessor, opener_of
from tests.runtime.node.nodes import config_of, running_node
from tests.runtime.node.peers import free_port, wait_until
from tests.runtime.node.studies import capture, make_study


def test_files_in_a_watched_folder_come_out_as_results(tmp_path):
    watched, study = tmp_path / "in", make_study(tmp_path / "study")
    config = config_of(
        tmp_path,
        free_port(),
        watch={"path": str(watched), "settle_s": 0.2},
        folder=[{"name": "out", "path": str(tmp_path / "out")}],
        deliver={"to": ["out"]},
    )
    with running_node(config, FakeProcessor(tmp_path / "notes")) as node:
        shutil.copytree(tmp_path / "study", watched / "one" / "two")
        (watched / "note.txt").write_text("no DICOM")
        key = node.queue.hasher.short(study.uid)
        wait_until(
            lambda: (tmp_path / "out" / key / "sc.dcm").exists() and (tmp_path / "out" / key / "pdf.dcm").exists()
        )
        wait_until((watched / "refused" / "note.txt").exists)
        assert not list(watched.rglob("*.dcm"))
        assert node.processor.runs == [6]


def test_one_odd_entry_does_not_stop_the_watch(tmp_path, monkeypatch):
    watched = tmp_path / "in"
    make_study(watched / "study", slices=2)
    (watched / "ring").symlink_to("ring")
    locked = watched / "locked.dcm"
    locked.write_bytes(b"x")
    read_bytes = Path.read_bytes

    def refused(path):
        if path == locked:
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    taken: list[bytes] = []
    watch = FolderWatch(Watch(watched, 0.0), lambda encoded, peer: taken.append(encoded) or 0)
    for _ in range(3):
        watch.step()
    assert len(taken) == 2
    assert locked.exists()


def test_linked_folders_are_followed_once_and_what_lies_in_them_stays(tmp_path):
    watched, study = tmp_path / "in", make_study(tmp_path / "study")
    watched.mkdir()
    (watched / "link").symlink_to(tmp_path / "study", target_is_directory=True)
    (watched / "another").symlink_to(tmp_path / "study", target_is_directory=True)
    (tmp_path / "study" / "around").symlink_to(watched, target_is_directory=True)
    taken: list[bytes] = []
    watch = FolderWatch(Watch(watched, 0.0), lambda encoded, peer: taken.append(encoded) or 0)
    for _ in range(4):
        watch.step()
    assert sorted(taken) == sorted(path.read_bytes() for path in study.files)
    assert all(path.exists() for path in study.files)


@pytest.fixture
def mercure(tmp_path, monkeypatch):
    """Folders as mercure makes them, and a way to run the module on them."""
    make_study(tmp_path / "in")
    monkeypatch.setenv("MERCURE_IN_DIR", str(tmp_path / "in"))
    monkeypatch.setenv("MERCURE_OUT_DIR", str(tmp_path / "out"))
    return FakeProcessor(tmp_path / "notes")


def test_a_mercure_task_ends_with_objects_and_a_result(tmp_path, mercure):
    (tmp_path / "in" / "task.json").write_text(json.dumps({"id": "x", "process": {"settings": {"outputs": ["sc"]}}}))
    assert main(["module"], opener=opener_of(mercure)) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["studies"] == [{"results": ["sc.dcm", "pdf.dcm"], "error": None}]
    assert result["__mercure_notification"] == {"text": "1 of 1 studies analysed", "requested": False}
    assert dcmread(tmp_path / "out" / "sc.dcm").Manufacturer == "vertscan"
    assert mercure.runs == [6]


def test_a_damaged_image_in_a_mercure_task_is_refused_and_what_is_no_dicom_left_aside(tmp_path, mercure, capsys):
    (tmp_path / "in" / "note").write_bytes(b"no DICOM")
    assert main(["module"], opener=opener_of(mercure)) == 0
    assert mercure.runs == [6]
    first = min((tmp_path / "in").glob("*.dcm"))
    first.write_bytes(first.read_bytes()[:154])
    assert main(["module"], opener=opener_of(mercure)) == 2
    assert "A DICOM file in " in capsys.readouterr().err
    assert mercure.runs == [6]


def test_a_mercure_task_that_fails_says_why_and_ends_with_the_errors_status(tmp_path, mercure):
    mercure.error = GeometryError("slices are missing")
    assert main(["module"], opener=opener_of(mercure)) == 2
    notice = json.loads((tmp_path / "out" / "result.json").read_text())["__mercure_notification"]
    assert notice == {"text": "0 of 1 studies analysed; slices are missing", "requested": True}


def test_own_results_among_the_images_are_left_aside(tmp_path, mercure):
    study = dcmread(next((tmp_path / "in").iterdir())).StudyInstanceUID
    capture(study, "2.25.7", manufacturer="vertscan").save_as(tmp_path / "in" / "own.dcm", enforce_file_format=True)
    assert main(["module"], opener=opener_of(mercure)) == 0
    assert mercure.runs == [6]


def test_a_folder_without_images_is_refused(tmp_path, mercure, capsys):
    shutil.rmtree(tmp_path / "in")
    assert main(["module"], opener=opener_of(mercure)) == 2
    (tmp_path / "in").mkdir()
    assert main(["module"], opener=opener_of(mercure)) == 2
    assert "no CT image" in capsys.readouterr().err


def test_without_mercures_variables_the_folders_must_be_named(monkeypatch, capsys):
    monkeypatch.delenv("MERCURE_IN_DIR", raising=False)
    assert main(["module"]) == 2
    assert "MERCURE_IN_DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"outputs": ["png"]}, "outputs"),
        ({"engine": "abacus"}, "engine"),
        ({"precision": "int1"}, "precision"),
        ({"device": "first"}, "device"),
        ({"exhaustive": "yes"}, "exhaustive"),
        ("text", "must be an object"),
    ],
)
def test_wrong_settings_of_a_task_are_named(tmp_path, settings, said):
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"process": {"settings": settings}}))
    with pytest.raises(InputError, match=said):
        task_settings(path)


def test_settings_are_found_in_a_list_of_processes_and_may_be_left_out(tmp_path):
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"process": [{"settings": {"outputs": "seg,sr", "other": 1}}]}))
    assert task_settings(path).outputs == ("seg", "sr")
    path.write_text("{}")
    assert task_settings(path).outputs == ("seg", "sr", "sc", "pdf")
    path.write_text("{")
    with pytest.raises(InputError, match="can't be read"):
        task_settings(path)
