from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK

from runtime.resample import resample, working_grid
from runtime.volume import LPS_FROM_RAS, Grid, Volume


def oblique_affine(spacing=(1.0, 1.0, 1.0), *, angle=0.3, shear=0.0) -> np.ndarray:
    """Rotated about two axes, moved, optionally with a slice axis that is sheared like a tilted gantry's."""
    c, s = np.cos(angle), np.sin(angle)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.array([[1, 0, 0], [0, 1, shear], [0, 0, 1]]) @ np.diag(spacing)
    affine[:3, 3] = [12.0, -30.0, 7.5]
    return affine


def straight_affine(spacing=(1.0, 1.0, 1.0)) -> np.ndarray:
    return oblique_affine(spacing, angle=0.0)


def random_volume(shape=(14, 17, 19), affine=None, dtype=np.float32, seed=0) -> Volume:
    array = (np.random.default_rng(seed).normal(size=shape) * 400).astype(dtype)
    return Volume(array, Grid(shape, straight_affine() if affine is None else affine))


def ramp_volume(shape, affine) -> Volume:
    """Its value at every point is x + 2 y - 3 z of the patient, in mm."""
    grid = Grid(shape, affine)
    points = grid.to_ras_mm(np.moveaxis(np.indices(shape), 0, -1))
    return Volume((points @ [1.0, 2.0, -3.0]).astype(np.float32), grid)


def reoriented(volume: Volume) -> list[Volume]:
    """The same scan with its axes permuted and flipped in all 48 ways."""
    found = []
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            axes = [axis for axis in range(3) if flips[axis]]
            array = np.flip(volume.array.transpose(order), axes)
            step = np.zeros((4, 4))  # from the new index (x, y, z, 1) to the old one
            step[3, 3] = 1
            for new, old in enumerate(order):
                step[2 - old, 2 - new] = -1 if flips[new] else 1
                step[2 - old, 3] = array.shape[new] - 1 if flips[new] else 0
            found.append(Volume(np.ascontiguousarray(array), Grid(array.shape, volume.grid.affine_ras @ step)))
    return found


AFFINES = {
    "straight": straight_affine((0.8, 0.9, 1.7)),
    "oblique": oblique_affine((0.8, 0.9, 1.7)),
    "sheared": oblique_affine((0.8, 0.9, 1.7), shear=0.4),
}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("spacing_mm", [0.7, 1.0, 3.0])
def test_all_48_orientations_give_the_same_array(affine, spacing_mm):
    volumes = reoriented(random_volume(affine=affine))
    assert len({volume.grid.orientation for volume in volumes}) == 48
    expected_grid = working_grid(volumes[0].grid, spacing_mm)
    expected = resample(volumes[0], expected_grid)
    for volume in volumes[1:]:
        grid = working_grid(volume.grid, spacing_mm)
        assert grid.shape_zyx == expected_grid.shape_zyx
        np.testing.assert_array_equal(grid.affine_ras, expected_grid.affine_ras)
        np.testing.assert_allclose(resample(volume, grid), expected, atol=1e-2)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("spacing_mm", [0.5, 1.0, 3.0])
def test_the_working_grid_covers_the_scan_tightly(affine, spacing_mm):
    scan = Grid((14, 17, 19), affine)
    grid = working_grid(scan, spacing_mm)
    assert grid.orientation == "RAS"
    np.testing.assert_allclose(grid.spacing_xyz_mm, spacing_mm)
    ends = [(-0.5, n - 0.5) for n in scan.shape_zyx]
    index = grid.to_index_zyx(scan.to_ras_mm(list(product(*ends))))
    slack = 2e-3
    assert (index >= -0.5 - slack).all()
    assert (index <= np.array(grid.shape_zyx) - 0.5 + slack).all()
    assert (index.max(axis=0) - index.min(axis=0) > np.array(grid.shape_zyx) - 1).all()


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_without_downsampling_it_equals_simpleitk(affine, dtype):
    volume = random_volume(affine=affine, dtype=dtype)
    target = working_grid(volume.grid, 0.75)
    ours = resample(volume, target, fill_hu=-2000)

    def to_itk(array, grid):
        image = SimpleITK.GetImageFromArray(array)
        lps = LPS_FROM_RAS @ grid.affine_ras
        image.SetSpacing(grid.spacing_xyz_mm)
        image.SetOrigin(lps[:3, 3])
        image.SetDirection((lps[:3, :3] / grid.spacing_xyz_mm).ravel())
        return image

    image = to_itk(volume.array.astype(np.float32), volume.grid)
    reference = to_itk(np.zeros(target.shape_zyx, np.float32), target)
    theirs = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(image, reference, SimpleITK.Transform(), SimpleITK.sitkLinear, -2000.0)
    )
    inside = ours != -2000
    assert 0.3 < inside.mean() <= 1
    assert np.mean(inside != (theirs != -2000)) < 1e-3
    both = inside & (theirs != -2000)
    np.testing.assert_allclose(ours[both], theirs[both], atol=0.05)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("spacing_mm", [0.6, 1.3, 3.0])
def test_linear_ramps_are_reproduced_exactly(affine, spacing_mm):
    volume = ramp_volume((24, 36, 36), affine)
    target = working_grid(volume.grid, spacing_mm)
    result = resample(volume, target)
    points = target.to_ras_mm(np.moveaxis(np.indices(target.shape_zyx), 0, -1))
    index = volume.grid.to_index_zyx(points)
    margin = 2 * spacing_mm / min(volume.grid.spacing_xyz_mm) + 1
    inner = ((index > margin) & (index < np.array(volume.array.shape) - 1 - margin)).all(axis=-1)
    assert inner.sum() > 10
    np.testing.assert_allclose(result[inner], (points @ [1.0, 2.0, -3.0])[inner], atol=2e-3)


@pytest.mark.parametrize("factor", [2, 3, 2.5])
def test_downsampling_keeps_the_mean(factor):
    volume = random_volume((30, 30, 30), dtype=np.int16)
    result = resample(volume, working_grid(volume.grid, float(factor)))
    assert result.shape == (30 / factor,) * 3
    assert result.mean() == pytest.approx(volume.array.mean(), abs=0.05)


def averages_twin(size: int, centres: np.ndarray, width: float) -> np.ndarray:
    """(cells, size): what each voxel adds to the mean of the linear interpolation in each cell, by fine sampling."""
    rows = []
    for centre in centres:
        points = centre + width * ((np.arange(4000) + 0.5) / 4000 - 0.5)
        points = points[(points > -0.5) & (points < size - 0.5)]
        rows.append([np.interp(points, np.arange(size), unit).mean() for unit in np.eye(size)])
    return np.array(rows)


@pytest.mark.parametrize("spacing_mm", [1.1, 2.0, 2.7, 5.0])
def test_downsampling_is_the_mean_of_the_linear_interpolation_in_each_cell(spacing_mm):
    volume = random_volume((12, 9, 15), dtype=np.int16)
    target = working_grid(volume.grid, spacing_mm)
    result = resample(volume, target)
    axes = []
    for axis in range(3):
        index = np.zeros((target.shape_zyx[axis], 3))
        index[:, axis] = np.arange(target.shape_zyx[axis])
        centres = volume.grid.to_index_zyx(target.to_ras_mm(index))[:, axis]
        axes.append(averages_twin(volume.array.shape[axis], centres, spacing_mm))
    np.testing.assert_allclose(result, np.einsum("az,by,cx,zyx->abc", *axes, volume.array), atol=0.5)


def test_downsampling_does_not_alias():
    stripes = np.where(np.indices((40, 40, 40)).sum(axis=0) % 2, 1000, -1000).astype(np.int16)
    volume = Volume(stripes, Grid(stripes.shape, oblique_affine()))
    target = working_grid(Grid((8, 8, 8), volume.grid.sub_grid((16, 16, 16), (8, 8, 8)).affine_ras), 4.0)
    assert np.abs(resample(volume, target)).max() < 60


def test_the_scans_own_grid_gives_the_scan():
    volume = random_volume(affine=oblique_affine((0.8, 0.9, 1.7), shear=0.2))
    np.testing.assert_allclose(resample(volume, volume.grid), volume.array, atol=1e-2)


def test_outside_is_filled_and_the_outer_half_voxel_is_not():
    volume = Volume(np.full((4, 4, 4), 50, np.int16), Grid((4, 4, 4), np.eye(4)))
    target = Grid((1, 1, 60), np.array([[0.1, 0, 0, -1.0], [0, 1, 0, 2], [0, 0, 1, 2], [0, 0, 0, 1]]))
    x = -1.0 + 0.1 * np.arange(60)
    expected = np.where((x > -0.501) & (x < 3.501), 50, -77)
    np.testing.assert_array_equal(resample(volume, target, fill_hu=-77)[0, 0], expected)


@pytest.mark.parametrize("offset", [-500.0, 500.0])
@pytest.mark.parametrize("spacing_mm", [1.0, 4.0])
def test_a_target_beyond_the_scan_is_all_fill(offset, spacing_mm):
    volume = random_volume()
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = offset
    assert (resample(volume, Grid((3, 4, 5), affine)) == -1024).all()


@pytest.mark.parametrize(("kind", "spacing_mm"), [("straight", 0.9), ("straight", 2.2), ("sheared", 0.8)])
def test_a_part_of_a_target_gives_that_part(kind, spacing_mm):
    """Also holds for oblique scans, except that averaging cells start at each target's first voxel."""
    volume = random_volume(affine=AFFINES[kind])
    target = working_grid(volume.grid, spacing_mm)
    start, shape = (2, 1, 3), (3, 4, 2)
    part = resample(volume, target.sub_grid(start, shape))
    z, y, x = (slice(a, a + n) for a, n in zip(start, shape, strict=True))
    np.testing.assert_allclose(part, resample(volume, target)[z, y, x], atol=1e-2)


def test_only_the_block_around_the_target_is_read():
    """Poison everywhere else must not reach the result."""
    array = np.full((60, 60, 60), np.nan, np.float32)
    array[20:40, 20:40, 20:40] = 3.0
    volume = Volume(array, Grid(array.shape, straight_affine()))
    for spacing_mm, size in ((1.0, 10), (2.0, 6)):
        target = working_grid(volume.grid.sub_grid((25, 25, 25), (10, 10, 10)), spacing_mm)
        assert target.shape_zyx[0] <= size
        np.testing.assert_array_equal(resample(volume, target), np.float32(3.0))


def test_a_view_with_strides_is_read_right():
    base = random_volume((14, 17, 19), dtype=np.int16)
    view = base.array[:, ::-1]
    flipped = Volume(view, Grid(view.shape, base.grid.affine_ras))
    copied = Volume(view.copy(), Grid(view.shape, base.grid.affine_ras))
    for spacing_mm in (0.8, 2.0):
        target = working_grid(base.grid, spacing_mm)
        np.testing.assert_array_equal(resample(flipped, target), resample(copied, target))


def test_a_thick_slice_scan_keeps_slices_and_averages_pixels():
    volume = random_volume((6, 24, 24), affine=straight_affine((0.5, 0.5, 5.0)), dtype=np.int16)
    target = Grid((6, 6, 6), straight_affine((2.0, 2.0, 5.0)) + np.pad([[0.75], [0.75]], ((0, 2), (3, 0))))
    pixels = averages_twin(24, np.arange(6) * 4 + 1.5, 4.0)
    np.testing.assert_allclose(
        resample(volume, target), np.einsum("by,cx,zyx->zbc", pixels, pixels, volume.array), atol=0.5
    )


def test_several_threads_may_resample_at_once():
    volume = random_volume((40, 40, 40), dtype=np.int16)
    target = working_grid(volume.grid, 2.0)
    expected = resample(volume, target)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: resample(volume, target), range(32)):
            np.testing.assert_array_equal(result, expected)
