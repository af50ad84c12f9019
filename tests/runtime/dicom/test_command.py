"""``python -m runtime.infer --output ...``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

import runtime.dicom
from runtime.dicom import KINDS, parse_kinds
from runtime.errors import InputError
from runtime.findings import from_json
from runtime.infer import main
from runtime.output import RESULT_FILES
from runtime.volume import LPS_FROM_RAS
from tests.runtime.dicom.series import set_pixels, slice_dataset


def save_as_series(volume, folder: Path) -> Path:
    """An axis-aligned volume as a CT series."""
    folder.mkdir()
    affine = LPS_FROM_RAS @ volume.grid.affine_ras
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    row, column = affine[:3, 0] / spacing[0], affine[:3, 1] / spacing[1]
    for number, plane in enumerate(volume.array):
        dataset = slice_dataset(folder.name, 0)
        dataset.SOPInstanceUID += f".{number}"
        dataset.InstanceNumber = number + 1
        dataset.ImageOrientationPatient = [*row, *column]
        dataset.ImagePositionPatient = (affine @ [0, 0, number, 1])[:3].round(6).tolist()
        dataset.PixelSpacing, dataset.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        set_pixels(dataset, (plane + 1024).astype(np.uint16))
        dataset.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def series(tmp_path, ball_scan) -> Path:
    """Three balls as a DICOM series."""
    return save_as_series(ball_scan(3, orientation="LPS").volume, tmp_path / "series")


@pytest.fixture
def run(ball_bundle):
    return lambda *arguments: main([*map(str, arguments), "--bundle", str(ball_bundle), "--precision", "fp32"])


def content(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_all_kinds_are_written_beside_the_other_results(series, run, tmp_path, capsys):
    folder = tmp_path / "out"
    assert run(series, "-o", folder, "--output", "pdf,seg,sc,sr") == 0
    assert content(folder) == {"findings.json", "vertebrae.nii.gz", "overview.png", *(f"{kind}.dcm" for kind in KINDS)}
    assert content(folder) == set(RESULT_FILES)
    findings = from_json((folder / "findings.json").read_text())
    assert findings.timings_s["dicom"] > 0
    seg = pydicom.dcmread(folder / "seg.dcm")
    assert len(seg.SegmentSequence) == len(findings.vertebrae) == 3
    assert "3 vertebrae" in capsys.readouterr().out


def test_a_run_without_them_takes_old_ones_away(series, run, tmp_path):
    folder = tmp_path / "out"
    assert run(series, "-o", folder, "--output", "seg", "--no-overview", "--seg-type", "labelmap") == 0
    assert content(folder) == {"findings.json", "vertebrae.nii.gz", "seg.dcm"}
    assert pydicom.dcmread(folder / "seg.dcm").SegmentationType == "LABELMAP"
    assert run(series, "-o", folder) == 0
    assert content(folder) == {"findings.json", "vertebrae.nii.gz", "overview.png"}


@pytest.mark.parametrize(
    ("before", "named", "runs_again"),
    [
        ("labelmap", None, False),
        ("labelmap", "labelmap", False),
        ("labelmap", "binary", True),
        ("labelmap", "labelmap-rle", True),
        ("labelmap-rle", "labelmap-rle", False),
        (None, "binary", False),
    ],
)
def test_resume_runs_again_where_another_encoding_is_named(series, run, tmp_path, before, named, runs_again):
    arguments = [series, "-o", tmp_path / "out", "--output", "seg", "--no-overview"]
    assert run(*arguments, *(["--seg-type", before] if before else [])) == 0
    file = tmp_path / "out" / "seg.dcm"
    was = file.stat().st_ino, file.stat().st_mtime_ns
    assert run(*arguments, "--resume", *(["--seg-type", named] if named else [])) == 0
    assert ((file.stat().st_ino, file.stat().st_mtime_ns) != was) == runs_again
    expected = (named or before).upper()
    assert pydicom.dcmread(file).SegmentationType == expected.removesuffix("-RLE")


@pytest.mark.parametrize("content", [b"", b"no DICOM at all" * 100])
def test_resume_runs_again_where_the_segmentation_is_damaged(series, run, tmp_path, content):
    arguments = [series, "-o", tmp_path / "out", "--output", "seg", "--no-overview", "--seg-type", "binary"]
    assert run(*arguments) == 0
    file = tmp_path / "out" / "seg.dcm"
    file.write_bytes(content)
    assert run(*arguments, "--resume") == 0
    assert pydicom.dcmread(file).SegmentationType == "BINARY"


def test_the_findings_are_the_same_with_and_without(series, run, tmp_path, capsys):
    texts = []
    for options in ([], ["--output", "seg,sr"]):
        assert run(series, "--json", "-o", tmp_path / "out", *options) == 0
        texts.append(json.loads(capsys.readouterr().out))
    assert texts[0]["vertebrae"] == texts[1]["vertebrae"]


def test_other_scans_are_refused_before_anything_is_run(run, save, ball_scan, tmp_path, capsys, monkeypatch):
    scan = save(ball_scan(2).volume, tmp_path / "two.nii.gz")
    monkeypatch.setattr("runtime.pipeline.Pipeline.open", lambda *a, **k: pytest.fail("the networks were loaded"))
    assert run(scan, "-o", tmp_path / "out", "--output", "seg") == 2
    assert "two.nii.gz is no DICOM series" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["results", "seg;sr", ",", "seg,nifti"])
def test_unknown_kinds_are_refused(series, run, capsys, text):
    assert run(series, "--output", text) == 2
    err = capsys.readouterr().err
    assert "seg, sr, sc, pdf" in err
    assert "-o" in err


def test_kinds_come_once_and_in_order():
    assert parse_kinds("SR, seg,sr") == ("seg", "sr")
    with pytest.raises(InputError, match="met 'x'"):
        parse_kinds("x")


def test_a_missing_package_is_named_with_the_extra(series, run, monkeypatch, capsys):
    monkeypatch.setattr(runtime.dicom, "find_spec", lambda name: None if name == "reportlab" else object())
    assert run(series, "--output", "seg,pdf") == 2
    assert "the package reportlab; install it with: pip install 'vertscan[dicom]'" in capsys.readouterr().err


def test_what_fails_leaves_nothing(series, run, tmp_path, capsys):
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.FrameOfReferenceUID
        dataset.save_as(file)
    assert run(series, "-o", tmp_path / "out", "--output", "pdf,seg") == 2
    assert "no Frame of Reference UID" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_how_a_segmentation_is_encoded_is_asked_with_a_segmentation_only(series, run, capsys):
    assert run(series, "--seg-type", "labelmap") == 2
    assert "--seg-type is for --output seg; met --output nothing" in " ".join(capsys.readouterr().err.split())
