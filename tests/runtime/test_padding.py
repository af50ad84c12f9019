from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from runtime import pipeline as pipeline_module
from runtime.padding import find_padding, raised_to_air, without_padded
from runtime.pipeline import Pipeline
from runtime.readers import read_scan
from runtime.resample import resample, working_grid
from runtime.segment import SegmentedVertebra
from runtime.volume import Grid, Volume

SHARED = Path(__file__).parents[3] / "shared" / "data" / "spinefe-verse004-v21" / "ct.nii.gz"
GRID = Grid((40, 40, 40), np.eye(4))


def noisy(dtype=np.int16):
    return np.random.default_rng(0).normal(40, 20, GRID.shape_zyx).astype(dtype)


def vertebra(z):
    """Found in a scan on ``GRID``: a block of 8 x 12 x 12 mm with its middle at this height."""
    grid = GRID.sub_grid((z - 6, 12, 12), (12, 16, 16))
    mask = np.zeros(grid.shape_zyx, np.float32)
    mask[2:10, 2:14, 2:14] = 1.0
    return SegmentedVertebra(
        0, (20.0, 20.0, float(z)), 1.0, grid, mask, mask, (1.0, 0.0, 0.0, 0.0), None, None, True, True
    )


@pytest.mark.parametrize("value", [0, -1024, -3024])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_vertebra_in_padding_is_none_and_one_that_reaches_into_it_is_cut(value, dtype):
    hu = noisy(dtype)
    hu[24:] = value
    padding = find_padding(Volume(hu, GRID))
    assert padding.values == (value,)
    inside, reaching, outside = vertebra(12), vertebra(22), vertebra(32)
    kept = without_padded([inside, reaching, outside], padding, threshold=0.5)
    assert [v.centre_ras_mm[2] for v in kept] == [12, 22]
    assert kept[0].complete
    assert kept[0].body_complete
    assert not kept[1].complete
    assert not kept[1].body_complete


def share_by_definition(padding, mask, grid):
    """The slow twin of ``Padding.share_of``: every voxel of the mask with its neighbours, one after the other."""
    array, count = padding.volume.array, 0
    last = np.array(array.shape) - 1
    for voxel in np.argwhere(mask):
        at = np.clip(np.rint(padding.volume.grid.to_index_zyx(grid.to_ras_mm(voxel[None]))[0]).astype(int), 0, last)
        around = [np.clip(at + step * np.eye(3, dtype=int)[axis], 0, last) for axis in range(3) for step in (-1, 0, 1)]
        count += len({array[tuple(place)] for place in around}) == 1 and array[tuple(at)] in padding.values
    return count / np.count_nonzero(mask)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_shares_are_those_of_the_definition(dtype):
    hu = noisy(dtype)
    hu[24:] = -1024
    hu[:, 30:] = 0
    hu[18:24, 10:20, 10:20] = np.random.default_rng(1).choice(np.array([0, -1024], dtype), (6, 10, 10), p=[0.95, 0.05])
    padding = find_padding(Volume(hu, GRID))
    assert padding.values == (-1024, 0)
    mask = np.random.default_rng(2).random((14, 12, 30)) < 0.4
    for first in ((2, 3, 2), (15, 3, 5), (14, 25, 8), (30, 34, 20)):
        grid = GRID.sub_grid(first, mask.shape)
        assert padding.share_of(mask, grid) == share_by_definition(padding, mask, grid)
    assert padding.share_of(mask, GRID.sub_grid((2, 3, 2), mask.shape)) == 0.0


def test_a_round_field_of_view_is_padding():
    _, y, x = np.indices(GRID.shape_zyx)
    hu = np.where((y - 20) ** 2 + (x - 20) ** 2 < 15**2, noisy(), np.int16(-2000))
    assert find_padding(Volume(hu, GRID)).values == (-2000,)


@pytest.mark.parametrize("value", [-32768, -3024, -2000])
def test_padding_below_air_does_not_darken_the_rim_of_a_body_and_is_still_known(tmp_path, value):
    """Read from a file and averaged over 3 mm: beside padding, bone looks as it does beside air."""
    _, y, x = np.indices(GRID.shape_zyx)
    outside = (y - 20) ** 2 + (x - 20) ** 2 >= 15**2
    read = {}
    for padding in (value, -1024):
        hu = np.where(outside, np.int16(padding), noisy() + np.int16(200))
        nib.save(nib.Nifti1Image(hu.T, np.eye(4)), tmp_path / "a.nii")
        read[padding] = raised_to_air(read_scan(tmp_path / "a.nii"))
    coarse = working_grid(GRID, 3.0)
    np.testing.assert_array_equal(resample(read[value], coarse), resample(read[-1024], coarse))
    assert find_padding(read[value]).values == (-1024,)


def test_air_that_has_noise_is_no_padding_beside_padding_of_its_lowest_value(tmp_path):
    """What is raised to -1024 and real air around -1000 that now and then falls to it lie side by side."""
    air = np.maximum(np.random.default_rng(1).normal(-1005, 15, GRID.shape_zyx), -1024).astype(np.int16)
    hu = np.where(np.indices(GRID.shape_zyx)[1] < 30, noisy(), air)
    hu[:, :, 32:] = -3024
    nib.save(nib.Nifti1Image(hu.T, np.eye(4)), tmp_path / "a.nii")
    padding = find_padding(raised_to_air(read_scan(tmp_path / "a.nii")))
    in_air, in_padding = np.zeros(GRID.shape_zyx, bool), np.zeros(GRID.shape_zyx, bool)
    in_air[10:30, 32:38, 5:25] = True
    in_padding[10:30, 5:25, 34:39] = True
    assert padding.values == (-1024,)
    assert padding.share_of(in_air, GRID) == 0.0
    assert padding.share_of(in_padding, GRID) == 1.0


def test_noise_and_what_is_flat_far_inside_are_no_padding():
    """Metal is cut off at the scanner's highest value, cement may be flat too: neither fills the scan's faces."""
    hu = noisy()
    hu[16:24, 10:30, 10:30] = 3071
    padding = find_padding(Volume(hu, GRID))
    assert padding.values == ()
    found = [vertebra(20)]
    assert without_padded(found, padding, threshold=0.5) == found


def test_a_value_of_the_padding_in_the_picture_is_no_padding_where_it_has_noise_around():
    hu = noisy()
    hu[30:] = 40
    assert (hu[:24] == 40).any()
    padding = find_padding(Volume(hu, GRID))
    mask = np.ones((20, 40, 40), bool)
    assert padding.share_of(mask, GRID.sub_grid((2, 0, 0), mask.shape)) == 0.0
    assert padding.share_of(np.zeros_like(mask), GRID.sub_grid((2, 0, 0), mask.shape)) == 0.0


def test_the_pipeline_rejects_what_lies_in_padding_and_says_so(ball_bundle, ball_scan, monkeypatch):
    """The network is made to outline one more ball above the others, where the scan is filled with one value."""
    scan = ball_scan(3)
    hu = scan.volume.array.copy()
    hu[np.argwhere(scan.labels == 1)[:, 0].min() - 3 :] = 0
    segmented = pipeline_module.segment

    def one_more(*args, **options):
        found = segmented(*args, **options)
        up = np.eye(4)
        up[2, 3] = 30.0
        x, y, z = found[0].centre_ras_mm
        grid = Grid(found[0].grid.shape_zyx, up @ found[0].grid.affine_ras)
        return (replace(found[0], grid=grid, centre_ras_mm=(x, y, z + 30.0)), *found)

    monkeypatch.setattr(pipeline_module, "segment", one_more)
    with Pipeline.open(ball_bundle, precision="fp32") as pipeline:
        findings = pipeline.run(replace(scan.volume, array=hu))
    assert len(findings.vertebrae) == 2
    said = "1 candidate centre was rejected: it lies where the scan is filled with one value."
    assert said in findings.warnings


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_nothing_is_outlined_in_the_padding_of_a_real_crop():
    scan = read_scan(SHARED)
    with Pipeline.open(precision="fp32") as pipeline:
        analysis = pipeline.analyse(scan)
    flat = np.asarray(scan.array == 0)
    assert flat.mean() > 0.8
    for v in analysis.findings.vertebrae:
        assert flat[analysis.labels == v.mask_label].mean() < 0.5
