import numpy as np
import pytest

from runtime.errors import InputError
from runtime.morphometry import Trabecular, measure_trabecular
from runtime.vertebral_body import Body, BodyMask, find_body, spine_tangents
from runtime.volume import Grid, Volume
from tests.runtime.bodies import CENTRE_RAS_MM, Solid, grid_of, local_mm, turn


def off_by_deg(axes, truth):
    return np.rad2deg(np.arccos(np.clip((axes * truth).sum(axis=0), -1, 1)))


@pytest.mark.parametrize("angles", [(0, 0, 0), (32, 0, 0), (-30, 10, 8), (15, -25, -15)])
@pytest.mark.parametrize("known", ["whole", "body"])
def test_the_axes_of_a_tilted_vertebra_are_found_without_knowing_its_neighbours(angles, known):
    grid, axes = grid_of((1.3, 1.3, 1.3)), turn(*angles)
    local = local_mm(grid, axes)
    body = Solid().body(local) if known == "body" else None
    found = find_body(BodyMask(grid, Solid().whole(local), body))
    assert off_by_deg(found.axes_ras, axes).max() < 3.0
    assert np.linalg.norm(found.centre_ras_mm() - CENTRE_RAS_MM) < 1.6


@pytest.mark.parametrize("solid", [Solid(), Solid(anterior=11.0), Solid(dent=6.0), Solid(anterior=9.0, posterior=9.0)])
def test_the_arch_is_cut_off_and_the_body_kept(solid):
    grid = grid_of()
    local = local_mm(grid)
    found = find_body(BodyMask(grid, solid.whole(local)))
    truth = solid.body(local)
    index = np.rint(found.grid.to_index_zyx(grid.to_ras_mm(np.argwhere(truth)))).astype(int)
    kept = found.inside[tuple(index.T)].mean()
    assert kept > 0.97
    assert found.inside.sum() < 1.1 * truth.sum()


def test_a_wedge_is_halved_by_its_axis():
    solid, grid = Solid(anterior=12.0, posterior=26.0), grid_of()
    found = find_body(BodyMask(grid, solid.whole(local_mm(grid))))
    assert off_by_deg(found.axes_ras, np.eye(3)).max() < 2.0


def test_a_spur_does_not_turn_the_axes():
    grid = grid_of()
    found = find_body(BodyMask(grid, Solid(spur=True).whole(local_mm(grid))))
    assert off_by_deg(found.axes_ras, np.eye(3)).max() < 2.0


@pytest.mark.parametrize("cortex_mm", [1, 3])
def test_trabecular_bone_is_what_lies_below_the_cortex(cortex_mm):
    shape = (50, 60, 60)
    body, inner = np.zeros(shape, np.float32), np.zeros(shape, bool)
    body[12:38, 10:46, 10:50] = 1.0
    inner[tuple(slice(a + cortex_mm, b - cortex_mm) for a, b in ((12, 38), (10, 46), (10, 50)))] = True
    hu = np.where(inner, 110, np.where(body > 0, 900, 40)).astype(np.int16)
    grid = Grid(shape, np.eye(4))
    assert measure_trabecular(Body(grid, body), Volume(hu, grid)).mean_hu == pytest.approx(110.0)


@pytest.mark.parametrize(("radius_mm", "dense"), [(3, False), (8, True), (11, True)])
def test_a_body_with_cement_has_no_trabecular_hu_and_one_with_a_small_island_has(radius_mm, dense):
    shape = (50, 60, 60)
    body = np.zeros(shape, np.float32)
    body[12:38, 10:46, 10:50] = 1.0
    distance_mm = np.linalg.norm(np.indices(shape) - np.array([25, 28, 30])[:, None, None, None], axis=0)
    hu = np.where(distance_mm < radius_mm, 1500, 110).astype(np.int16)
    grid = Grid(shape, np.eye(4))
    measured = measure_trabecular(Body(grid, body), Volume(hu, grid))
    assert measured.dense == dense
    assert (measured == Trabecular(None, dense=True)) == dense


@pytest.mark.parametrize("thick", [2, 3])
def test_a_sliver_that_is_surface_throughout_has_a_place(thick):
    """What a network may draw of a vertebra that the end of the scan all but cuts off."""
    body = np.zeros((40, 60, 60), bool)
    body[10 : 10 + thick, 30:50, 20:44] = True
    whole = body.copy()
    whole[10:16, 12:30, 28:36] = True
    found = find_body(BodyMask(Grid(body.shape, np.eye(4)), whole, body, complete=False))
    assert found is None or np.isfinite(found.grid.affine_ras).all()


def test_a_body_without_an_arch_is_kept_whole_and_faces_the_patients_front():
    grid, axes = grid_of(), turn(20, 0, 0)
    solid = Solid(arch=False)
    truth = solid.body(local_mm(grid, axes))
    for mask in (BodyMask(grid, truth), BodyMask(grid, None, truth)):
        found = find_body(mask)
        assert off_by_deg(found.axes_ras, axes).max() < 2.0
        assert found.inside.sum() > 0.9 * truth.sum()


def test_what_the_voxel_axes_are_does_not_matter():
    results = []
    for columns in (np.eye(3), np.eye(3)[:, [1, 2, 0]] * [-1, -1, 1], np.diag([-1, -1, 1])):
        grid = grid_of(directions=columns, shift=(0, 0, 0))
        results.append(find_body(BodyMask(grid, Solid(anterior=18.0).whole(local_mm(grid, turn(10, 5, 5))))))
    for other in results[1:]:
        assert off_by_deg(other.axes_ras, results[0].axes_ras).max() < 0.5
        assert np.linalg.norm(other.centre_ras_mm() - results[0].centre_ras_mm()) < 0.3


def test_the_same_mask_gives_the_same_body_every_time():
    grid = grid_of((1, 1, 2))
    whole = Solid(dent=3.0).whole(local_mm(grid, turn(12, 3, 0)))
    first, second = (find_body(BodyMask(grid, whole.copy())) for _ in range(2))
    assert np.array_equal(first.share, second.share)
    assert np.array_equal(first.grid.affine_ras, second.grid.affine_ras)


def test_tangents_point_cranially_along_the_spine():
    centres = [np.array([0, 10 * np.sin(t), -30 * t]) for t in np.linspace(0, 3, 7)]
    tangents = spine_tangents(centres)
    assert np.allclose(np.linalg.norm(tangents, axis=1), 1)
    truth = np.array([[0, -10 * np.cos(t), 30] for t in np.linspace(0, 3, 7)])
    assert ((tangents * truth).sum(axis=1) / np.linalg.norm(truth, axis=1) > 0.99).all()
    assert np.array_equal(spine_tangents([[1, 2, 3]]), [[0, 0, 1]])
    assert spine_tangents([]).shape == (0, 3)


def test_a_speck_is_no_body():
    grid = Grid((20, 20, 20), np.eye(4))
    whole = np.zeros(grid.shape_zyx, bool)
    whole[5:9, 5:9, 5:9] = True
    assert find_body(BodyMask(grid, whole)) is None
    assert find_body(BodyMask(grid, np.zeros_like(whole))) is None


def test_masks_that_do_not_fit_are_refused():
    grid = Grid((4, 4, 4), np.eye(4))
    with pytest.raises(InputError, match="neither"):
        BodyMask(grid, None)
    with pytest.raises(InputError, match=r"\(3, 4, 4\)"):
        BodyMask(grid, np.zeros((3, 4, 4), bool))
    with pytest.raises(InputError, match="empty"):
        BodyMask(grid, np.zeros((4, 4, 4), bool)).centre_ras_mm()
