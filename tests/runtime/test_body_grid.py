"""Middles, connected parts and depths of masks against slow twins that follow the definitions."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.body_grid import main_part, squared_depth
from runtime.masks import centroid_zyx, numbered_parts, row_ends_zyx


def masks(fewest_axes: int):
    @st.composite
    def drawn(draw):
        shape = draw(st.lists(st.integers(1, 7), min_size=fewest_axes, max_size=3))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        return rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95, 1.0]))

    return drawn()


def parts_twin(mask: np.ndarray) -> np.ndarray:
    """Flood from each voxel in turn; the largest part first, of equal ones the one met first."""
    seen, parts = np.zeros(mask.shape, bool), []
    steps = [tuple(sign * (np.arange(mask.ndim) == axis)) for axis in range(mask.ndim) for sign in (-1, 1)]
    for start in map(tuple, np.argwhere(mask)):
        if seen[start]:
            continue
        part, waiting = [], deque([start])
        seen[start] = True
        while waiting:
            at = waiting.popleft()
            part.append(at)
            for step in steps:
                to = tuple(int(i + s) for i, s in zip(at, step, strict=True))
                if all(0 <= i < n for i, n in zip(to, mask.shape, strict=True)) and mask[to] and not seen[to]:
                    seen[to] = True
                    waiting.append(to)
        parts.append(part)
    numbers = np.zeros(mask.shape, int)
    for number, part in enumerate(sorted(parts, key=len, reverse=True), start=1):
        for at in part:
            numbers[at] = number
    return numbers


def depth_twin(mask: np.ndarray) -> np.ndarray:
    """The least of all squared distances to voxels with one of their 26 neighbours outside the mask."""
    padded = np.pad(mask, 1)
    inner = np.ones(mask.shape, bool)
    for z, y, x in np.ndindex(3, 3, 3):
        inner &= padded[z : z + mask.shape[0], y : y + mask.shape[1], x : x + mask.shape[2]]
    surface = np.argwhere(mask & ~inner)
    out = np.zeros(mask.shape, int)
    for at in np.argwhere(mask):
        out[tuple(at)] = ((surface - at) ** 2).sum(axis=1).min()
    return out


@settings(max_examples=100, deadline=None)
@given(mask=masks(fewest_axes=3))
def test_the_middle_is_the_mean_of_all_voxels(mask):
    middle, voxels = centroid_zyx(mask[::-1, :, ::2])
    places = np.argwhere(mask[::-1, :, ::2])
    assert voxels == len(places)
    np.testing.assert_allclose(middle, places.mean(axis=0) if voxels else np.nan, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(mask=masks(fewest_axes=3), direction=st.tuples(*[st.floats(-1, 1)] * 3))
def test_no_voxel_lies_further_out_than_a_row_s_end(mask, direction):
    ends, places = row_ends_zyx(mask), np.argwhere(mask)
    assert {tuple(end) for end in ends} <= {tuple(place) for place in places}
    assert bool(len(ends)) == bool(len(places))
    if len(places):
        assert (ends @ direction).max() == pytest.approx((places @ direction).max())


@settings(max_examples=150, deadline=None)
@given(mask=masks(fewest_axes=2))
def test_parts_are_those_that_a_flood_finds(mask):
    np.testing.assert_array_equal(numbered_parts(mask), parts_twin(mask))


@pytest.mark.parametrize("shape", [(40, 30), (12, 20, 16)])
def test_parts_are_those_that_the_library_finds(shape):
    """The library that numbered them before; it orders parts of equal size by their first voxels, too."""
    import SimpleITK as sitk  # noqa: N813

    mask = np.random.default_rng(1).random(shape) < 0.35
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8))))
    np.testing.assert_array_equal(numbered_parts(mask), sitk.GetArrayFromImage(parts))


def test_a_part_that_is_met_as_many_is_one():
    """A comb: its teeth get numbers of their own before its back joins them, the last first."""
    mask = np.zeros((1, 5, 41), bool)
    mask[0, :4, ::2] = True
    mask[0, 4] = True
    assert numbered_parts(mask).max() == 1
    np.testing.assert_array_equal(numbered_parts(np.flip(mask)), np.flip(mask))


def test_masks_need_not_be_contiguous():
    mask = np.random.default_rng(5).random((9, 8, 7)) < 0.5
    np.testing.assert_array_equal(numbered_parts(mask[::2, ::-1].T), parts_twin(mask[::2, ::-1].T))


def test_the_main_part_is_the_largest_and_keeps_what_surrounds_it():
    share = np.full((4, 4, 9), 0.2, np.float32)
    share[1:3, 1:3, 1:4] = 0.9
    share[1:3, 1:3, 6:8] = 0.8
    kept = main_part(share)
    assert not kept[1:3, 1:3, 6:8].any()
    kept[1:3, 1:3, 6:8] = 0.8
    np.testing.assert_array_equal(kept, share)


@settings(max_examples=150, deadline=None)
@given(mask=masks(fewest_axes=3))
def test_depths_are_the_least_of_all_distances(mask):
    np.testing.assert_array_equal(squared_depth(mask), depth_twin(mask))


@pytest.mark.parametrize("noise", [1.0, 0.998])
def test_the_depth_of_a_body_is_the_one_that_a_distance_map_has(noise):
    """A body's size, whole and with holes, against the library that measured it before."""
    import SimpleITK as sitk  # noqa: N813

    z, y, x = np.indices((30, 36, 40)) - np.array([14.0, 18.3, 19.1])[:, None, None, None]
    mask = (np.abs(z) < 12) & ((y / 15) ** 2 + (x / 18) ** 2 < 1)
    mask &= np.random.default_rng(0).random(mask.shape) < noise
    image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
    depth = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, True, False, True))[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(np.sqrt(squared_depth(mask)[mask]), depth[mask], atol=1e-5)
