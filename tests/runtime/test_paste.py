from __future__ import annotations

import numpy as np
import pytest

from runtime.crops import crop_grid, extract_crops
from runtime.paste import paste_masks
from runtime.volume import Grid, Volume

AFFINES = {
    "ras": np.diag([1.0, 1.0, 1.0, 1.0]),
    "lps": np.diag([-0.7, -0.7, 1.3, 1.0]),
    "pir": np.array([[0, 0, 1.0, 0], [-0.8, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 0, 1]]),
    "oblique": np.array([[0.76, -0.24, 0, 3], [0.24, 0.76, 0, -5], [0, 0, 1.2, 8], [0, 0, 0, 1]]),
    "sheared": np.array([[0.8, 0, 0, 3], [0, 0.8, 0.4, -5], [0, 0, 1.2, 8], [0, 0, 0, 1]]),
}


def ball(grid: Grid, centre_ras_mm: np.ndarray, radius_mm: float) -> np.ndarray:
    points = grid.to_ras_mm(np.moveaxis(np.indices(grid.shape_zyx), 0, -1))
    return np.linalg.norm(points - centre_ras_mm, axis=-1) <= radius_mm


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_mask_cropped_and_pasted_is_the_same_within_a_voxel(affine):
    target = Grid((40, 50, 60), affine)
    centre = target.to_ras_mm([20, 25, 30])
    mask = ball(target, centre, 10.0)
    crop = crop_grid(centre + 0.3, spacing_mm=0.7, shape_zyx=(40, 40, 40))
    probability = extract_crops(Volume(mask.astype(np.float32), target), [crop], fill_hu=0.0)[0]
    pasted = paste_masks([(crop, probability)], target, threshold=0.5)
    assert pasted.dtype == np.uint8
    assert pasted.shape == target.shape_zyx
    reach = 1.01 * max(target.spacing_xyz_mm)
    assert (pasted[ball(target, centre, 10.0 - reach)] == 1).all()
    assert (pasted[~ball(target, centre, 10.0 + reach)] == 0).all()
    assert pasted.sum() == pytest.approx(mask.sum(), rel=0.03)


def test_a_mask_on_the_targets_own_grid_is_kept_exactly():
    target = Grid((10, 12, 14), AFFINES["sheared"])
    probability = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    pasted = paste_masks([(target.sub_grid((3, 2, 5), (4, 5, 6)), probability)], target, threshold=0.6)
    expected = np.zeros(target.shape_zyx, np.uint8)
    expected[3:7, 2:7, 5:11] = probability >= 0.6
    np.testing.assert_array_equal(pasted, expected)


def overlapping(target: Grid) -> list[tuple[Grid, np.ndarray]]:
    rng = np.random.default_rng(5)
    starts = [(0, 0, 0), (3, 2, 1), (5, 5, 5), (2, 4, 6)]
    return [(target.sub_grid(start, (8, 8, 8)), rng.random((8, 8, 8), dtype=np.float32)) for start in starts]


def test_the_highest_probability_wins_where_masks_overlap():
    target = Grid((14, 14, 14), AFFINES["lps"])
    stack = np.zeros((4, *target.shape_zyx), np.float32)
    pairs = overlapping(target)
    for layer, (grid, probability) in zip(stack, pairs, strict=True):
        z, y, x = np.rint(target.to_index_zyx(grid.to_ras_mm([0, 0, 0]))).astype(int)
        layer[z : z + 8, y : y + 8, x : x + 8] = probability
    expected = np.where(stack.max(axis=0) >= 0.4, stack.argmax(axis=0) + 1, 0)
    pasted = paste_masks(pairs, target, threshold=0.4)
    assert np.mean(pasted != expected) < 1e-3  # probabilities closer than 1/65535 are a tie


def test_the_order_of_masks_only_renames_labels():
    target = Grid((14, 14, 14), AFFINES["oblique"])
    pairs = overlapping(target)
    forward = paste_masks(pairs, target, threshold=0.4)
    backward = paste_masks(iter(pairs[::-1]), target, threshold=0.4)
    np.testing.assert_array_equal(np.where(backward > 0, len(pairs) + 1 - backward.astype(int), 0), forward)


def test_ties_go_to_the_lower_label():
    target = Grid((6, 6, 6), np.eye(4))
    pairs = [(target, np.full((6, 6, 6), 0.8, np.float32))] * 3
    assert (paste_masks(pairs, target, threshold=0.5) == 1).all()


def test_masks_partly_or_wholly_outside_the_target_are_cut():
    target = Grid((6, 6, 6), AFFINES["lps"])
    ones = np.ones((6, 6, 6), np.float32)
    pairs = [(target.sub_grid((100, 0, 0), (6, 6, 6)), ones), (target.sub_grid((-3, 0, 0), (6, 6, 6)), ones)]
    pasted = paste_masks(pairs, target, threshold=0.5)
    assert (pasted[:3] == 2).all()
    assert (pasted[3:] == 0).all()
    assert not paste_masks(pairs[:1], target, threshold=0.5).any()


def test_nothing_to_paste_gives_background():
    pasted = paste_masks([], Grid((2, 3, 4), np.eye(4)), threshold=0.5)
    assert pasted.shape == (2, 3, 4)
    assert not pasted.any()


def test_too_many_masks_and_wrong_shapes_are_refused():
    target = Grid((2, 2, 2), np.eye(4))
    with pytest.raises(ValueError, match="at most 255 masks; met 256"):
        paste_masks([(target, np.zeros((2, 2, 2), np.float32))] * 256, target, threshold=0.5)
    with pytest.raises(ValueError, match="does not match its grid"):
        paste_masks([(target, np.zeros((2, 2, 3), np.float32))], target, threshold=0.5)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_what_lies_far_below_the_threshold_around_a_mask_changes_nothing(affine):
    target = Grid((30, 34, 28), affine)
    rng = np.random.default_rng(11)
    grid = crop_grid(target.to_ras_mm([15, 17, 14]), spacing_mm=1.3, shape_zyx=(9, 8, 7))
    inner = np.pad(rng.random((5, 4, 3), dtype=np.float32), 2)
    low = inner + np.float32(1e-3)  # every voxel may count, and none more does
    tight = paste_masks([(grid.sub_grid((1, 1, 1), (7, 6, 5)), inner[1:-1, 1:-1, 1:-1])], target, threshold=0.5)
    wide = paste_masks([(grid, inner)], target, threshold=0.5)
    assert np.count_nonzero(wide) > 0
    np.testing.assert_array_equal(wide, tight)
    assert (paste_masks([(grid, low)], target, threshold=0.5) >= wide).all()
    assert not paste_masks([(grid, inner)], target, threshold=1.5).any()
