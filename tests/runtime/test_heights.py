import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.heights import ANTERIOR_AT, POSTERIOR_AT, measure_body
from runtime.vertebral_body import Body, BodyMask, find_body
from runtime.volume import Grid
from tests.runtime.bodies import CENTRE_RAS_MM, Solid, grid_of, local_mm, turn


def truth(solid):
    return np.array([solid.height_at(at * solid.half_depth) for at in (ANTERIOR_AT, 0.0, POSTERIOR_AT)])


def measured(solid, grid, axes=None, *, body_known=False):
    local = local_mm(grid, axes)
    body = solid.body(local) if body_known else None
    found = find_body(BodyMask(grid, solid.whole(local), body))
    return measure_body(found)


BODIES = {
    "plain": Solid(),
    "wedge": Solid(anterior=15.0, posterior=25.0),
    "lordotic": Solid(anterior=30.0, posterior=24.0),
    "biconcave": Solid(dent=4.0),
    "crush": Solid(anterior=11.0, posterior=12.0),
    "severe wedge": Solid(anterior=7.0, posterior=25.0),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("body_known", [False, True])
def test_heights_of_solids_are_known(name, body_known):
    solid = BODIES[name]
    got = measured(solid, grid_of((0.9, 0.9, 1.1)), turn(8, 4, -5), body_known=body_known)
    assert np.abs(got.heights.as_array() - truth(solid)).max() < 0.9


@pytest.mark.parametrize("angles", [(30, 0, 0), (-33, 0, 0), (0, 28, 0), (20, 15, 12)])
def test_tilt_does_not_change_heights(angles):
    solid = BODIES["wedge"]
    got = measured(solid, grid_of(), turn(*angles))
    assert np.abs(got.heights.as_array() - truth(solid)).max() < 0.9


@pytest.mark.parametrize("spacing_xyz_mm", [(1, 1, 2), (0.46, 0.46, 3), (3, 0.46, 0.46), (2, 2, 2)])
@pytest.mark.parametrize("angles", [(0, 0, 0), (17, 6, 4)])
def test_heights_stand_voxels_of_unequal_sides(spacing_xyz_mm, angles):
    """Either end of a column in a binary mask can be wrong by half a slice."""
    solid = BODIES["wedge"]
    got = measured(solid, grid_of(spacing_xyz_mm), turn(*angles))
    assert np.abs(got.heights.as_array() - truth(solid)).max() < 0.4 + 0.55 * spacing_xyz_mm[2]


def test_what_the_voxel_axes_are_does_not_matter():
    solid, axes = BODIES["wedge"], turn(10, 5, 5)
    for columns in (np.eye(3)[:, [1, 2, 0]] * [-1, -1, 1], np.diag([-1, -1, 1]), np.eye(3)[:, [2, 1, 0]]):
        got = measured(solid, grid_of(directions=columns), axes)
        assert np.abs(got.heights.as_array() - truth(solid)).max() < 0.9


@pytest.mark.parametrize("solid", [Solid(spur=True), Solid(spur=True, anterior=18.0)])
def test_a_spur_in_the_midline_adds_no_height(solid):
    got = measured(solid, grid_of())
    assert np.abs(got.heights.as_array() - truth(solid)).max() < 1.2


def test_probabilities_are_read_below_the_voxel():
    grid, errors = grid_of((2, 2, 2)), []
    for height in np.linspace(20, 22, 6):
        solid = Solid(anterior=height, posterior=height)
        fine = local_mm(grid)
        soft = np.clip(0.5 + (0.5 * height - np.abs(fine[..., 2])) / 2.0, 0, 1) * solid.body(fine * [1, 1, 0])
        body = find_body(BodyMask(grid, None, soft.astype(np.float32)))
        errors.append(measure_body(body).heights.middle_mm - height)
    assert np.abs(errors).max() < 0.4


def test_depth_and_width_are_those_of_the_section():
    got = measured(Solid(), grid_of(), body_known=True)
    assert got.depth_mm == pytest.approx(30, abs=1.5)
    assert got.width_mm == pytest.approx(42, abs=2.0)


def test_a_hole_inside_the_mask_does_not_matter():
    grid = grid_of()
    local = local_mm(grid)
    whole = Solid().whole(local) & ~((np.abs(local[..., 2]) < 4) & (np.abs(local[..., :2]) < 3).all(axis=-1))
    got = measure_body(find_body(BodyMask(grid, whole)))
    assert np.abs(got.heights.as_array() - 24).max() < 0.9


@pytest.mark.parametrize("name", ["plain", "wedge", "biconcave"])
@pytest.mark.parametrize("angles", [(0, 0, 0), (17, 6, 4)])
def test_end_points_lie_on_the_endplates_as_far_apart_as_the_heights(name, angles):
    solid, axes = BODIES[name], turn(*angles)
    got = measured(solid, grid_of((0.9, 0.9, 1.1)), axes)
    segments = np.array([got.ends.anterior, got.ends.middle, got.ends.posterior])
    apart_mm = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1)
    np.testing.assert_allclose(apart_mm, got.heights.as_array(), atol=1e-6)
    local = (segments - CENTRE_RAS_MM) @ axes
    y_mm = np.array([ANTERIOR_AT, 0.0, POSTERIOR_AT]) * solid.half_depth
    half = 0.5 * truth(solid)
    assert np.abs(local[..., 0]).max() < 1.0
    assert np.abs(local[..., 1] - y_mm[:, None]).max() < 2.0
    assert np.abs(local[:, 0, 2] + half).max() < 1.0
    assert np.abs(local[:, 1, 2] - half).max() < 1.0


def profiled(upper_mm, *, depth=30, width=30):
    """A body whose lower endplate is flat, and whose upper one rises by ``upper_mm`` at every place along its depth."""
    share = np.zeros((60, depth + 10, width + 10), np.float32)
    for y, rise in enumerate(np.asarray(upper_mm, int)):
        share[10 : 10 + rise, 5 + y, 5:-5] = 1.0
    return Body(Grid(share.shape, np.eye(4)), share)


@settings(max_examples=60, deadline=None)
@given(
    middle=st.integers(6, 40), fall=st.floats(0, 120), rim=st.integers(2, 40), noise=st.integers(0, 6),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_heights_are_positive_whatever_the_mask(middle, fall, rim, noise, seed):
    """A steep dome with a rim once gave a height of -10 mm, and with it no grade for the whole spine."""
    y = np.linspace(-1, 1, 30)
    upper = np.where(np.abs(y) <= 0.65, np.maximum(middle - fall * y**2, 2), rim)
    upper = upper + np.random.default_rng(seed).integers(0, noise + 1, 30)
    got = measure_body(profiled(np.clip(upper, 1, 45)))
    if got is not None:
        assert got.heights.as_array().min() > 0


def test_endplates_that_cross_are_not_measured():
    y = np.linspace(-1, 1, 30)
    dome = profiled(np.where(np.abs(y) <= 0.65, np.maximum(40 - 110 * y**2, 2), 30))
    assert measure_body(dome) is None
    assert measure_body(profiled(np.full(30, 24))).heights.as_array() == pytest.approx([24, 24, 24], abs=0.5)
