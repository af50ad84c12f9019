"""Folders in and out: the watched folder, and mercure's module convention."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import BasicTextSRStorage

from runtime.errors import BundleError, GeometryError, InputError
from runtime.node.commands import main
from runtime.node.config import Watch
from runtime.node.module import task_settings
from runtime.node.receiver import CANNOT_UNDERSTAND
from runtime.node.watch import FolderWatch
from runtime.readers import read_scan
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
    opened = Path.open

    def refused(path, *mode, **choices):
        if path == locked:
            raise PermissionError(13, "Permission denied")
        return opened(path, *mode, **choices)

    monkeypatch.setattr(Path, "open", refused)
    taken: list[bytes] = []
    watch = FolderWatch(Watch(watched, 0.0), lambda encoded, peer: taken.append(encoded) or 0)
    for _ in range(3):
        watch.step()
    assert len(taken) == 2
    assert locked.exists()


def refusing(taken):
    """Takes DICOM files into a list, as the receiver does, and refuses others."""

    def take(encoded, peer):
        if encoded[128:132] != b"DICM":
            return CANNOT_UNDERSTAND
        taken.append(encoded)
        return 0

    return take


def test_a_huge_file_that_is_no_dicom_is_refused_without_being_read(tmp_path):
    watched, taken = tmp_path / "in", []
    make_study(watched / "study", slices=2)
    with (watched / "huge.iso").open("wb") as stream:
        stream.truncate(1 << 40)  # sparse
    watch = FolderWatch(Watch(watched, 0.0), refusing(taken))
    for _ in range(2):
        watch.step()
    assert len(taken) == 2
    assert [path.name for path in (watched / "refused").iterdir()] == ["huge.iso"]
    assert (watched / "refused" / "huge.iso").stat().st_size == 1 << 40


def test_a_dicom_file_that_does_not_fit_in_memory_keeps_no_other_waiting(tmp_path, monkeypatch, caplog):
    watched, taken = tmp_path / "in", []
    make_study(watched / "study", slices=2)
    huge = watched / "huge.dcm"
    huge.write_bytes(bytes(128) + b"DICM" + bytes(3 << 20))
    opened = Path.open

    class Huge(BytesIO):
        def read(self, size=-1):
            if size == -1:
                raise MemoryError
            return super().read(size)

    def huge_or_opened(path, *mode, **choices):
        return Huge(bytes(128) + b"DICM") if path == huge else opened(path, *mode, **choices)

    monkeypatch.setattr(Path, "open", huge_or_opened)
    watch = FolderWatch(Watch(watched, 0.0), refusing(taken))
    for _ in range(2):
        watch.step()
    assert len(taken) == 2
    assert huge.exists()
    assert "a file of 3 MiB in the watched folder does not fit in memory" in caplog.text


def test_refused_files_of_the_same_name_are_all_kept(tmp_path):
    watched = tmp_path / "in"
    for folder in ("a", "b", "c"):
        (watched / folder).mkdir(parents=True)
        (watched / folder / "1.txt").write_text(folder)
    watch = FolderWatch(Watch(watched, 0.0), refusing([]))
    for _ in range(2):
        watch.step()
    kept = {path.name: path.read_text() for path in (watched / "refused").iterdir()}
    assert (sorted(kept), sorted(kept.values())) == (["1-2.txt", "1-3.txt", "1.txt"], ["a", "b", "c"])


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


def test_a_mercure_task_that_fails_says_why_and_ends_with_the_errors_status(tmp_path, mercure):
    mercure.error = GeometryError("slices are missing")
    assert main(["module"], opener=opener_of(mercure)) == 2
    notice = json.loads((tmp_path / "out" / "result.json").read_text())["__mercure_notification"]
    assert notice == {"text": "0 of 1 studies analysed; slices are missing", "requested": True}


def result_of(out):
    """What ``result.json`` says, beside which nothing may be left of a task that failed."""
    assert [path.name for path in out.iterdir()] == ["result.json"]
    result = json.loads((out / "result.json").read_text())
    assert result["__mercure_notification"]["requested"]
    return result


class Reading(FakeProcessor):
    """Reads the images as the pipeline does before it makes its results."""

    def __call__(self, series_files, out_dir):
        folder = self.notes / "study"
        folder.mkdir()
        for path in series_files:
            shutil.copy(path, folder)
        read_scan(folder)
        return super().__call__(series_files, out_dir)


@pytest.mark.parametrize("file", [0, 3, -1])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 0.99])
def test_a_task_with_a_file_that_was_cut_off_is_refused_wherever_the_cut_is(tmp_path, mercure, capsys, file, share):
    path = sorted((tmp_path / "in").iterdir())[file]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert main(["module"], opener=opener_of(Reading(tmp_path / "notes"))) == 2
    result = result_of(tmp_path / "out")
    (reason,) = [r for r in (result["error"], *(study["error"] for study in result["studies"])) if r]
    assert path.name in reason
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"failed: {reason}" in said


def test_every_cut_in_a_header_is_refused(tmp_path, mercure, capsys):
    *_, path = sorted((tmp_path / "in").iterdir())
    whole = path.read_bytes()
    end = whole.index(b"\xe0\x7f\x10\x00")
    for cut in range(0, end, 29):
        path.write_bytes(whole[:cut])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.rmtree(tmp_path / "notes", ignore_errors=True)
        assert main(["module"], opener=opener_of(Reading(tmp_path / "notes"))) == 2, cut
        assert path.name in result_of(tmp_path / "out")["__mercure_notification"]["text"], cut
    assert "Traceback" not in capsys.readouterr().err


def test_an_image_that_names_no_study_is_refused(tmp_path, mercure):
    path = sorted((tmp_path / "in").iterdir())[2]
    image = dcmread(path)
    del image.StudyInstanceUID
    image.save_as(path)
    assert main(["module"], opener=opener_of(mercure)) == 2
    assert f"{path.name} can't be decoded (its header ends early, or names no study)" in str(
        result_of(tmp_path / "out")
    )
    assert mercure.runs == []


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (BundleError("the bundle is damaged"), 3, "the bundle is damaged"),
        (MemoryError(), 4, "out of memory"),
        (KeyError("spacing"), 1, "a defect of this software (KeyError: 'spacing')"),
    ],
)
@pytest.mark.parametrize("at_opening", [False, True])
def test_whatever_fails_is_said_in_the_result(tmp_path, mercure, error, status, said, at_opening):
    mercure.error = error
    opener = opener_of(mercure)

    @contextmanager
    def failing(settings):
        raise error
        yield

    assert main(["module"], opener=failing if at_opening else opener) == status
    result = result_of(tmp_path / "out")
    assert said in result["__mercure_notification"]["text"]
    assert said in (result["error"] if at_opening else result["studies"][0]["error"])


def test_a_defect_in_one_study_does_not_cost_the_others_their_results(tmp_path, mercure):
    make_study(tmp_path / "in" / "second", slices=3)

    class Failing(FakeProcessor):
        def __call__(self, series_files, out_dir):
            made = super().__call__(series_files, out_dir)
            if len(series_files) == 6:
                raise RuntimeError("met")
            return made

    assert main(["module"], opener=opener_of(Failing(tmp_path / "notes"))) == 1
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert sorted(bool(study["error"]) for study in result["studies"]) == [False, True]
    named = [name for study in result["studies"] for name in study["results"]]
    assert len(named) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*named, "result.json"])


def test_objects_that_cannot_be_put_in_place_leave_nothing_behind(tmp_path, mercure, monkeypatch):
    move, moved = shutil.move, []

    def full(source, target):
        if moved:
            raise OSError(28, "No space left on device")
        moved.append(target)
        move(source, target)

    monkeypatch.setattr(shutil, "move", full)
    assert main(["module"], opener=opener_of(mercure)) == 2
    assert "can't be written (No space left on device)" in str(result_of(tmp_path / "out"))


def test_a_module_that_cannot_write_its_results_says_so_in_one_line(tmp_path, mercure, capsys):
    (tmp_path / "out").write_text("a file")
    assert main(["module"], opener=opener_of(mercure)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out can't be written (File exists); correct MERCURE_OUT_DIR" in line


def test_what_a_task_holds_besides_images_is_told_of(tmp_path, mercure, capsys):
    study = dcmread(next((tmp_path / "in").iterdir())).StudyInstanceUID
    report = capture(study, "2.25.8", manufacturer="Others")
    report.SOPClassUID, report.Modality, report.SeriesNumber = BasicTextSRStorage, "SR", 5
    report.save_as(tmp_path / "in" / "report.dcm", enforce_file_format=True)
    (tmp_path / "in" / "note.txt").write_text("no DICOM")
    (tmp_path / "in" / "DICOMDIR").write_bytes(b"any")
    assert main(["module"], opener=opener_of(mercure)) == 0
    assert mercure.runs == [6]
    said = capsys.readouterr().err
    assert "Not read: series 5: Basic Text SR (SR) is no CT image" in said
    assert "a file that is no DICOM file was left aside" in said


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
        ({"device": True}, "device"),
        ({"outputs": [["seg"]]}, "outputs"),
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
