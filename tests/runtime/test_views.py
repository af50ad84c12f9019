"""The curved views' compiled loops against slow NumPy twins, and outlines against those drawn all over the picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from runtime.curve import spine_curve
from runtime.kernels.views import view_rows, view_rows_aligned
from runtime.overview import FILL, GRADE_COLOURS, _outline, _ring
from runtime.views import OUTSIDE_HU, SLAB_MM, View, _filler, curved_views
from runtime.volume import Grid, Volume

AFFINES = {
    "ras": np.array([[1.0, 0, 0, -20], [0, 1.5, 0, 7], [0, 0, 2.0, 100], [0, 0, 0, 1]]),
    "pil": np.array([[0, 0, -1.0, 0], [-0.8, 0, 0, 0], [0, -1.25, 0, 0], [0, 0, 0, 1]]),
    "oblique": np.array([[0.76, -0.24, 0.1, 3], [0.24, 0.76, 0, -5], [0, -0.1, 1.2, 8], [0, 0, 0, 1]]),
}


def corners(array: np.ndarray, index_zyx: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The eight voxels around each (..., 3) place and their trilinear weights; at the edge the outer one goes on."""
    last = np.array(array.shape) - 1
    clamped = np.clip(index_zyx, 0, last)
    first = np.minimum(clamped.astype(int), np.maximum(last - 1, 0))
    upper = (clamped - first).astype(np.float32)
    found = []
    for corner in np.ndindex(2, 2, 2):
        z, y, x = np.moveaxis(np.minimum(first + corner, last), -1, 0)
        weight = np.float32(1)
        for axis in range(3):
            weight = weight * (upper[..., axis] if corner[axis] else 1 - upper[..., axis])
        found.append((array[z, y, x], weight))
    return found


def twin(volume: Volume, labels: np.ndarray, view: View, points_ras_mm: np.ndarray, across: int):
    """What a view should hold: HU, and the weight of each label around every pixel, which is 0 outside the scan."""
    hu = np.zeros(view.hu.shape, np.float32)
    for offset_mm in (-SLAB_MM, 0.0, SLAB_MM):
        index = volume.grid.to_index_zyx(points_ras_mm + offset_mm * (np.arange(3) == across))
        hu += sum(weight * voxel for voxel, weight in corners(volume.array, index)) / 3
    index = volume.grid.to_index_zyx(points_ras_mm)
    inside = ((index >= -0.5) & (index <= np.array(labels.shape) - 0.5)).all(axis=-1)
    hu[~inside] = OUTSIDE_HU
    around = corners(labels, index)
    shares = {k: inside * sum(w * (voxel == k) for voxel, w in around) for k in range(1, int(labels.max()) + 1)}
    return hu, shares, inside


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("shape", [(12, 14, 10), (11, 2, 13), (9, 12, 1)])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_views_equal_their_twins(affine, shape, dtype):
    rng = np.random.default_rng(sum(shape))
    grid = Grid(shape, affine)
    volume = Volume((rng.normal(size=shape) * 1000).astype(dtype), grid)
    labels = np.repeat(rng.integers(0, 6, (shape[0], shape[1], 1)), shape[2], axis=2).astype(np.uint8)
    places = [[0.8 * (n - 1) for n in shape], [0.2 * (shape[0] - 1), 0.5 * (shape[1] - 1), 0.6 * (shape[2] - 1)]]
    centres = [tuple(point) for point in grid.to_ras_mm(places)]
    views = curved_views(volume, labels, centres, label_count=int(labels.max()), max_height=60, max_width=90)
    curve = spine_curve(centres, grid)
    outside = 0
    for across, view in enumerate(views):
        rows, columns = view.hu.shape
        z_mm = (view.top_mm - (np.arange(rows) + 0.5) / view.pixels_per_mm)[:, None]
        along_mm = (curve.x_at if across == 0 else curve.y_at)(z_mm)
        column_mm = (view.left_mm - (np.arange(columns) + 0.5) / view.pixels_per_mm)[None]
        xy = (along_mm, column_mm) if across == 0 else (column_mm, along_mm)
        hu, shares, inside = twin(volume, labels, view, np.stack(np.broadcast_arrays(*xy, z_mm), axis=-1), across)
        outside += int((~inside).sum())
        np.testing.assert_allclose(view.hu, hu, rtol=1e-5, atol=1e-2)
        for label, share in shares.items():
            mask = view.masks.get(label, np.zeros(view.hu.shape, bool))
            clear = np.abs(share - 0.5) > 1e-4
            assert (mask == (share >= 0.5))[clear].all()
    if affine is AFFINES["oblique"]:
        assert outside


@pytest.mark.parametrize(
    ("name", "kernel"), [("ras", view_rows_aligned), ("pil", view_rows_aligned), ("oblique", view_rows)]
)
@pytest.mark.parametrize("is_sagittal", [True, False])
def test_scans_along_the_patients_axes_have_a_way_of_their_own(name, kernel, is_sagittal):
    volume = Volume(np.zeros((5, 4, 3), np.int16), Grid((5, 4, 3), AFFINES[name]))
    labels, places_mm = np.zeros((5, 4, 3), np.uint8), np.zeros(2)
    assert _filler(volume, labels, places_mm, places_mm, places_mm, is_sagittal=is_sagittal).func is kernel


def test_labels_beyond_the_count_are_left_out():
    labels = np.ones((8, 6, 6), np.uint8)
    labels[4:] = 9
    volume = Volume(np.zeros(labels.shape, np.float32), Grid(labels.shape, np.eye(4)))
    every, lower = (
        curved_views(volume, labels, [], label_count=count, max_height=40, max_width=100)[0].masks for count in (9, 8)
    )
    assert set(every) == {1, 9}
    assert set(lower) == {1}
    np.testing.assert_array_equal(lower[1], every[1])


def test_a_row_midway_between_two_vertebrae_is_in_both_masks():
    labels = np.ones((8, 6, 6), np.uint8)
    labels[4:] = 2
    volume = Volume(np.zeros(labels.shape, np.int16), Grid(labels.shape, np.eye(4)))
    for view in curved_views(volume, labels, [], label_count=2, max_height=9, max_width=100):
        assert view.hu.shape[0] == 9
        both = view.masks[1] & view.masks[2]
        assert np.flatnonzero(both.any(axis=1)).tolist() == [4]
        assert both[4].mean() > 0.5  # in single precision some weights fall short of one half


@pytest.mark.parametrize("place", [(0, 0), (20, 30), (34, 61), (0, 61)])
def test_outlines_are_those_of_the_whole_picture(place):
    rng = np.random.default_rng(7)
    mask = np.zeros((50, 80), bool)
    mask[place[0] : place[0] + 16, place[1] : place[1] + 19] = rng.random((16, 19)) > 0.2
    grey = rng.integers(0, 255, (50, 80, 3)).astype(np.uint8)
    drawn, expected = Image.fromarray(grey.copy()), Image.fromarray(grey.copy())
    _outline(drawn, mask, GRADE_COLOURS[2])
    colour = Image.new("RGB", expected.size, GRADE_COLOURS[2])
    expected.paste(colour, mask=Image.fromarray(mask.astype(np.uint8) * np.uint8(FILL)))
    ring = Image.fromarray(_ring(mask).astype(np.uint8) * np.uint8(255)).filter(ImageFilter.GaussianBlur(0.6))
    expected.paste(colour, mask=ring)
    assert np.any(np.asarray(drawn) != grey)
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))
