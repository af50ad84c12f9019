from __future__ import annotations

import numpy as np
import pytest

from runtime.crops import crop_grid, extract_crops, mirrored
from runtime.resample import resample
from runtime.volume import Grid, Volume


def scan() -> Volume:
    array = (np.random.default_rng(4).normal(size=(30, 40, 50)) * 300).astype(np.int16)
    affine = np.array([[0, 0, -1.2, 20.0], [0.7, 0.1, 0, 5], [-0.1, 0.7, 0, -9], [0, 0, 0, 1]])
    return Volume(array, Grid(array.shape, affine))


@pytest.mark.parametrize("shape", [(8, 10, 12), (7, 9, 11), (1, 2, 3)])
def test_the_centre_lies_in_the_middle(shape):
    grid = crop_grid([3.0, -4.0, 5.5], spacing_mm=1.5, shape_zyx=shape)
    assert grid.shape_zyx == shape
    assert grid.orientation == "RAS"
    np.testing.assert_allclose(grid.to_ras_mm((np.array(shape) - 1) / 2), [3.0, -4.0, 5.5])
    np.testing.assert_allclose(grid.spacing_xyz_mm, 1.5)


@pytest.mark.parametrize("shift", [(0.0, -18.0, -4.0), (5.5, 0.25, 100.0)])
def test_a_shift_moves_the_crop_and_nothing_else(shift):
    options = {"spacing_mm": 1.5, "shape_zyx": (8, 9, 10)}
    grid, plain = crop_grid([3.0, -4.0, 5.5], **options, shift_ras_mm=shift), crop_grid([3.0, -4.0, 5.5], **options)
    corners = grid.to_ras_mm([[0, 0, 0], [7, 8, 9]])
    np.testing.assert_allclose(corners, plain.to_ras_mm([[0, 0, 0], [7, 8, 9]]) + np.array(shift))
    np.testing.assert_allclose(grid.to_ras_mm((np.array((8, 9, 10)) - 1) / 2), np.add([3.0, -4.0, 5.5], shift))
    assert grid.shape_zyx == plain.shape_zyx
    assert grid.orientation == "RAS"
    np.testing.assert_allclose(grid.spacing_xyz_mm, 1.5)


def test_crops_are_the_scan_resampled_on_each_grid():
    volume = scan()
    middle = volume.grid.to_ras_mm([15, 20, 25])
    grids = [crop_grid(middle + np.array([0, shift, 0]), spacing_mm=2.0, shape_zyx=(6, 7, 8)) for shift in (-4, 0, 300)]
    crops = extract_crops(volume, grids, fill_hu=-500)
    assert crops.shape == (3, 6, 7, 8)
    assert crops.dtype == np.float32
    for crop, grid in zip(crops, grids, strict=True):
        np.testing.assert_array_equal(crop, resample(volume, grid, fill_hu=-500))
    assert (crops[2] == -500).all()


def test_crops_of_different_shapes_are_refused():
    grids = [crop_grid([0, 0, 0], spacing_mm=1.0, shape_zyx=(n, 4, 4)) for n in (4, 5)]
    with pytest.raises(ValueError, match="one shape"):
        extract_crops(scan(), grids)


def test_no_grids_give_no_crops():
    assert len(extract_crops(scan(), [])) == 0


def test_a_mirrored_grid_samples_the_mirror_image() -> None:
    volume = scan()
    grid = crop_grid(volume.grid.to_ras_mm([14.2, 20.3, 25.6]), spacing_mm=1.7, shape_zyx=(6, 5, 8))
    there, back = extract_crops(volume, [grid, mirrored(grid)])
    np.testing.assert_allclose(back, there[..., ::-1], atol=1e-3)
    np.testing.assert_allclose(mirrored(mirrored(grid)).affine_ras, grid.affine_ras, atol=1e-12)
