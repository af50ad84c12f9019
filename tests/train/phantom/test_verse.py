from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from runtime.volume import Grid
from tests.train.phantom.helpers import centre_of, clean_appearance
from train.phantom import PhantomScan, render, sample_anatomy, write_verse
from train.phantom.__main__ import main


def _scan_stored_as_pir() -> PhantomScan:
    anatomy = sample_anatomy(4)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 4], [-4, 0, 0], [0, -4, 0]], float)
    shape = (24, 30, 28)
    affine[:3, 3] = centre_of(anatomy, "L1") - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return render(anatomy, Grid(shape, affine), clean_appearance(), np.random.default_rng(0))


def test_verse_layout_round_trip(tmp_path: Path) -> None:
    scan = _scan_stored_as_pir()
    write_verse(scan, tmp_path, "phantom1", split="test")
    derived = tmp_path / "derivatives" / "sub-phantom1"
    image = nibabel.load(tmp_path / "rawdata" / "sub-phantom1" / "sub-phantom1_ct.nii.gz")
    np.testing.assert_allclose(np.asarray(image.dataobj).transpose(2, 1, 0), np.round(scan.volume.array))
    mask = np.asarray(nibabel.load(derived / "sub-phantom1_seg-vert_msk.nii.gz").dataobj)
    np.testing.assert_array_equal(mask.transpose(2, 1, 0), scan.mask)
    first, *rest = json.loads((derived / "sub-phantom1_seg-subreg_ctd.json").read_text())
    assert first == {"direction": ["P", "I", "R"]} == {"direction": list(nibabel.aff2axcodes(image.affine))}
    assert [entry["label"] for entry in rest] == [v.label for v in scan.vertebrae]
    for entry, v in zip(rest, scan.vertebrae, strict=True):
        at = nibabel.affines.apply_affine(image.affine, [entry["X"], entry["Y"], entry["Z"]])
        np.testing.assert_allclose(at, v.centre_ras_mm, atol=0.05)
        assert mask[round(entry["X"]), round(entry["Y"]), round(entry["Z"])] == entry["label"]


def test_grades_of_several_subjects_are_kept_together(tmp_path: Path) -> None:
    scan = _scan_stored_as_pir()
    write_verse(scan, tmp_path, "a")
    write_verse(scan, tmp_path, "b", split="test")
    grades = json.loads((tmp_path / "genant.json").read_text())
    assert set(grades) == {"training", "test"}
    for v in scan.vertebrae:
        assert grades["training"][f"sub-a_{v.label}"] == grades["test"][f"sub-b_{v.label}"] == v.grade
    assert not list(tmp_path.rglob(".*"))


def test_command_writes_a_scan_and_its_labels(tmp_path: Path) -> None:
    out = tmp_path / "scan.nii.gz"
    assert main(["scan", str(out), "--seed", "3", "--spacing", "6", "--fov", "lumbar", "--labels"]) == 0
    labels = np.asarray(nibabel.load(tmp_path / "scan-labels.nii.gz").dataobj)
    assert labels.shape == nibabel.load(out).shape
    assert 22 in labels


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scan", "x.txt"], "nii"),
        (["scan", "x.nii", "--spacing", "0"], "0.3 and 20 mm"),
        (["scan", "x.nii", "--spacing", "nan"], "0.3 and 20 mm"),
        (["scan", "x.nii", "--spacing", "thick"], "thick"),
        (["scan", "x.nii", "--seed", "-1"], "at least 0"),
        (["scan", "x.nii", "--seed", "1.5"], "whole number"),
        (["dataset", "d", "--count", "0"], "at least 1"),
        (["dataset", "d", "--count", "1", "--spacing", "-2"], "0.3 and 20 mm"),
    ],
)
def test_bad_options_are_refused_in_words(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["scan", str(tmp_path / "file" / "scan.nii.gz"), "--spacing", "12", "--fov", "small"]) == 2
    assert "can't write" in capsys.readouterr().err
