"""DICOM through the whole runtime: the same findings as from NIfTI, and masks that lie on the slices as received."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from runtime.infer import main
from runtime.pipeline import Pipeline
from runtime.readers.dicom_source import labels_on_source
from runtime.volume import LPS_FROM_RAS, Volume
from tests.runtime.conftest import BALL_HU, RADIUS_MM
from tests.runtime.dicom_files import save as save_slice
from tests.runtime.dicom_files import slice_dataset


def write_volume(folder: Path, volume: Volume, *, series_uid: str, number: int = 4) -> None:
    """A volume on straight axes as a DICOM series."""
    affine = LPS_FROM_RAS @ volume.grid.affine_ras
    x_mm, y_mm, _ = volume.grid.spacing_xyz_mm
    for k, plane in enumerate(volume.array):
        stored = (plane.astype(int) + 1024).astype(np.uint16)
        dataset = slice_dataset(stored, (affine @ [0, 0, k, 1])[:3], SeriesInstanceUID=series_uid, SeriesNumber=number)
        dataset.ImageOrientationPatient = [*(affine[:3, 0] / x_mm), *(affine[:3, 1] / y_mm)]
        dataset.PixelSpacing = [y_mm, x_mm]
        save_slice(dataset, folder / f"{number}-{k:03d}.dcm")


@pytest.fixture(scope="module")
def pipeline(ball_bundle):
    with Pipeline.open(ball_bundle, precision="fp32") as opened:
        yield opened


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
def test_the_same_scan_as_dicom_and_as_nifti_gives_identical_findings(pipeline, ball_scan, save, tmp_path, orientation):
    scan = ball_scan(3, orientation=orientation)
    write_volume(tmp_path / "scan", scan.volume, series_uid=generate_uid())
    from_nifti = pipeline.run(save(scan.volume, tmp_path / "scan.nii.gz"))
    from_dicom = pipeline.run(tmp_path / "scan")
    assert len(from_nifti.vertebrae) == 3
    assert from_dicom.vertebrae == from_nifti.vertebrae
    assert from_dicom.warnings == from_nifti.warnings


@pytest.mark.parametrize("tilt_degrees", [0.0, 20.0])
@pytest.mark.parametrize("uneven", [False, True])
def test_masks_lie_on_the_slices_as_received_though_they_are_tilted_or_uneven(
    pipeline, ball_scan, tmp_path, tilt_degrees, uneven
):
    centres = ball_scan(3).centres_ras_mm @ LPS_FROM_RAS[:3, :3]
    angle, pixel_mm, count = np.radians(tilt_degrees), 1.5, 40
    column = np.array([0.0, np.cos(angle), -np.sin(angle)])
    steps = np.where(np.arange(120) % 30 < 20, 2.0, 3.0) if uneven else np.full(120, 2.0)
    low, high = centres[:, 2].min() - 25, centres[:, 2].max() + 25
    rng, truth = np.random.default_rng(0), []
    y, x = np.mgrid[:count, :count]
    for k, z in enumerate(low + np.cumsum(steps) - np.sin(-angle) * 30):
        if z > high + np.sin(angle) * 30:
            break
        position = np.array([centres[1, 0] - 30, centres[1, 1] - 30 * np.cos(angle), z])
        points = position + pixel_mm * (x[..., None] * [1, 0, 0] + y[..., None] * column)
        inside = [np.linalg.norm(points - centre, axis=-1) < RADIUS_MM for centre in centres]
        truth.append(np.select(inside, [1, 2, 3], 0))
        hu = np.where(truth[-1] > 0, BALL_HU, rng.integers(-3, 4, (count, count)))
        dataset = slice_dataset((hu + 1024).astype(np.uint16), position, PixelSpacing=[pixel_mm, pixel_mm])
        dataset.ImageOrientationPatient = [1, 0, 0, *column]
        save_slice(dataset, tmp_path / f"{k:03d}.dcm")
    analysis = pipeline.analyse(tmp_path)
    assert len(analysis.findings.vertebrae) == 3
    assert any("tilted by 20.0" in text for text in analysis.findings.warnings) == (tilt_degrees > 0)
    assert any("resampled from each slice's own position" in text for text in analysis.findings.warnings) == uneven
    found = np.array([v.centre_ras_mm for v in analysis.findings.vertebrae]) @ LPS_FROM_RAS[:3, :3]
    assert np.abs(found - centres).max() < 1.0
    brought, expected = labels_on_source(analysis.labels, analysis.volume), np.array(truth)
    assert brought.shape == expected.shape
    for number in (1, 2, 3):
        ours, true = brought == number, expected == number
        assert 2 * (ours & true).sum() / (ours.sum() + true.sum()) > 0.9
        for axis in range(3):
            shift = np.argwhere(ours)[:, axis].mean() - np.argwhere(true)[:, axis].mean()
            assert abs(shift) < 0.5, (number, axis)


@pytest.mark.parametrize(
    ("thickness_mm", "said"),
    [
        (5.0, ["Slices are 5.0 mm thick, 2.0 mm apart: above 3 mm"]),
        (2.0, []),
        (None, []),
        (150.0, []),  # no thickness
    ],
)
def test_thick_slices_that_overlap_are_warned_of(tmp_path, pipeline, ball_scan, thickness_mm, said):
    write_volume(tmp_path, ball_scan(2).volume, series_uid=generate_uid())
    if thickness_mm is not None:
        for path in tmp_path.iterdir():
            dataset = dcmread(path)
            dataset.SliceThickness = thickness_mm
            dataset.save_as(path)
    warned = [text for text in pipeline.run(tmp_path).warnings if text.startswith("Slices are")]
    assert [text.partition(", heights")[0] for text in warned] == said


def test_a_series_is_named_and_gaps_accepted_on_the_command_line(ball_bundle, ball_scan, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    two, three = generate_uid(), generate_uid()
    write_volume(tmp_path / "scan", ball_scan(2).volume, series_uid=two, number=2)
    write_volume(tmp_path / "scan", ball_scan(3).volume, series_uid=three, number=3)
    common = [str(tmp_path / "scan"), "--bundle", str(ball_bundle), "--precision", "fp32", "--json", "--no-overview"]
    assert main(common) == 0
    findings = json.loads(capsys.readouterr().out)
    assert len(findings["vertebrae"]) == 3
    assert any(text.startswith("Of 2 CT series, series 3") for text in findings["warnings"])
    assert main([*common, "--series", two]) == 0
    assert len(json.loads(capsys.readouterr().out)["vertebrae"]) == 2
    (tmp_path / "scan" / "3-020.dcm").unlink()
    (tmp_path / "scan" / "2-020.dcm").unlink()
    assert main(common) == 2
    assert "misses 1 slices" in capsys.readouterr().err
    assert main([*common, "--accept-gaps"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert len(findings["vertebrae"]) == 3
    assert any("accepted as asked" in text for text in findings["warnings"])
    assert main([common[0], *common, "--series", two]) == 2
    assert main([str(tmp_path / "scan"), "--series", "1.2.3", *common[1:]]) == 2
    assert "no CT series with the UID" in capsys.readouterr().err
