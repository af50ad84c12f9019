from __future__ import annotations

import numpy as np
import pytest

from runtime.volume import Grid
from tests.train.phantom.helpers import centre_of, clean_appearance, grid_around
from train.phantom import (
    Anatomy,
    PhantomConfig,
    PhantomScan,
    PhantomVertebra,
    make_scan,
    random_scan_grid,
    render,
    sample_anatomy,
)
from train.phantom.fields import FIELDS

BROKEN = PhantomConfig(spared_probability=0.0, fracture_probability=0.4, tilt_probability=1.0)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return sample_anatomy(11, BROKEN)


@pytest.fixture(scope="module")
def fine(anatomy: Anatomy) -> PhantomScan:
    grid = grid_around(centre_of(anatomy, "T12"), (130, 90, 90), 1.0)
    return render(anatomy, grid, clean_appearance(), np.random.default_rng(0))


def _whole_bodies(scan: PhantomScan) -> list[PhantomVertebra]:
    """Vertebrae whose body does not touch the grid's border."""
    inner = scan.body_mask[1:-1, 1:-1, 1:-1]
    sizes = np.bincount(scan.body_mask.ravel(), minlength=30), np.bincount(inner.ravel(), minlength=30)
    return [v for v in scan.vertebrae if sizes[0][v.label] == sizes[1][v.label] > 0]


def test_same_seed_same_bytes() -> None:
    one, two, other = make_scan(5, spacing_mm=6.0), make_scan(5, spacing_mm=6.0), make_scan(6, spacing_mm=6.0)
    assert one.volume.array.tobytes() == two.volume.array.tobytes()
    assert one.mask.tobytes() == two.mask.tobytes()
    assert one.volume.grid.same_as(two.volume.grid)
    assert one.volume.array.tobytes() != other.volume.array.tobytes()


def test_a_crop_is_rendered_as_it_lies_in_the_whole(anatomy: Anatomy) -> None:
    whole = grid_around(centre_of(anatomy, "L2"), (44, 52, 48), 3.0)
    start, shape = (7, 9, 11), (24, 28, 22)
    big = render(anatomy, whole, clean_appearance(), np.random.default_rng(0))
    crop = render(anatomy, whole.sub_grid(start, shape), clean_appearance(), np.random.default_rng(1))
    part = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    np.testing.assert_allclose(crop.volume.array, big.volume.array[part], atol=0.5)
    np.testing.assert_array_equal(crop.mask, big.mask[part])
    np.testing.assert_array_equal(crop.body_mask, big.body_mask[part])


@pytest.mark.parametrize(
    ("order", "flips"), [((0, 1, 2), (1, 1, -1)), ((2, 0, 1), (-1, 1, 1)), ((1, 2, 0), (1, -1, -1))]
)
def test_permuted_and_flipped_grids_give_the_permuted_image(
    anatomy: Anatomy, order: tuple[int, int, int], flips: tuple[int, int, int]
) -> None:
    grid = grid_around(centre_of(anatomy, "T9"), (26, 22, 24), 3.0)
    straight = render(anatomy, grid, clean_appearance(), np.random.default_rng(0))
    shape = tuple(grid.shape_zyx[n] for n in order)
    corner = [0 if flip > 0 else grid.shape_zyx[n] - 1 for n, flip in zip(order, flips, strict=True)]
    affine = grid.affine_ras.copy()
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        affine[:3, 2 - new] = grid.affine_ras[:3, 2 - old] * flip
    first = np.zeros(3)
    first[list(order)] = corner
    affine[:3, 3] = grid.to_ras_mm(first)
    turned = render(anatomy, Grid(shape, affine), clean_appearance(), np.random.default_rng(0))
    step = tuple(slice(None, None, flip) for flip in flips)
    expected = straight.mask.transpose(order)[step]
    assert (turned.mask == expected).mean() > 0.9999
    difference = np.abs(turned.volume.array - straight.volume.array.transpose(order)[step])
    assert np.quantile(difference, 0.999) < 1.0


def test_masks_hold_the_centres_and_the_bodies_lie_in_the_vertebrae(fine: PhantomScan) -> None:
    np.testing.assert_array_equal(fine.mask[fine.body_mask > 0], fine.body_mask[fine.body_mask > 0])
    grid, checked = fine.volume.grid, 0
    for v in fine.vertebrae:
        z, y, x = np.round(grid.to_index_zyx(v.centre_ras_mm)).astype(int)
        assert fine.body_mask[z, y, x] == v.label
        assert fine.mask[z, y, x] == v.label
    for v in _whole_bodies(fine):
        centroid = grid.to_ras_mm(np.argwhere(fine.body_mask == v.label).mean(axis=0))
        assert np.linalg.norm(centroid - v.centre_ras_mm) < 1.0
        checked += 1
    assert checked >= 2


def test_true_heights_are_those_of_the_body_mask(fine: PhantomScan) -> None:
    grid, checked = fine.volume.grid, 0
    along = np.arange(-25.0, 25.0, 0.1)
    for v in _whole_bodies(fine):
        for share, height in zip((0.75, 0.0, -0.75), v.heights_mm, strict=True):
            start = v.origin_ras_mm + v.axes_ras[:, 1] * share * v.half_depth_mm
            index = np.round(grid.to_index_zyx(start + along[:, None] * v.axes_ras[:, 2])).astype(int)
            index = index[((index >= 0) & (index < grid.shape_zyx)).all(axis=1)]
            measured = 0.1 * float((fine.body_mask[tuple(index.T)] == v.label).sum())
            assert measured == pytest.approx(height, abs=1.3)
            checked += 1
    assert checked >= 6


def test_complete_means_that_nothing_of_it_is_cut_off() -> None:
    anatomy = sample_anatomy(11, BROKEN)
    grid = grid_around(centre_of(anatomy, "L2"), (50, 64, 64), 3.0)
    scan = render(anatomy, grid, clean_appearance(), np.random.default_rng(0))
    border = scan.mask.copy()
    border[1:-1, 1:-1, 1:-1] = 0
    assert not {v.label for v in scan.vertebrae if v.complete} & set(np.unique(border).tolist())
    assert any(v.complete for v in scan.vertebrae)
    assert not all(v.complete for v in scan.vertebrae)


def test_c1_has_its_centre_in_its_own_mask() -> None:
    anatomy = sample_anatomy(2)
    grid = grid_around(centre_of(anatomy, "C2"), (48, 60, 60), 1.2)
    scan = render(anatomy, grid, clean_appearance(), np.random.default_rng(0))
    for v in scan.vertebrae:
        z, y, x = np.round(grid.to_index_zyx(v.centre_ras_mm)).astype(int)
        assert scan.mask[z, y, x] == v.label
    assert {"C1", "C2", "C3"} <= {v.level for v in scan.vertebrae}


def test_values_are_finite_and_in_range_for_every_field_of_view() -> None:
    for seed, field in enumerate(FIELDS):
        anatomy, rng = sample_anatomy(seed), np.random.default_rng(seed)
        grid = random_scan_grid(anatomy, rng, spacing_mm=7.0, field=field)
        scan = render(anatomy, grid, clean_appearance(seed), rng)
        hu = scan.volume.array
        assert hu.dtype == np.float32
        assert np.isfinite(hu).all()
        assert -2048 <= hu.min() < hu.max() <= 3071
        assert 26 not in scan.mask
        assert scan.vertebrae
        assert [v.label for v in scan.vertebrae] == [
            v.label for v in anatomy.vertebrae if v.label in {w.label for w in scan.vertebrae}
        ]


def test_bone_is_brighter_than_what_surrounds_it(anatomy: Anatomy) -> None:
    grid = grid_around(centre_of(anatomy, "L3"), (30, 40, 40), 2.5)
    scan = render(anatomy, grid, clean_appearance(), np.random.default_rng(0))
    assert scan.volume.array[scan.mask > 0].mean() > scan.volume.array[scan.mask == 0].mean() + 60


def test_defects_of_every_kind_leave_values_finite() -> None:
    busy = PhantomConfig(
        screw_probability=1.0, cement_probability=1.0, hip_prosthesis_probability=1.0, wires_probability=1.0,
        motion_probability=1.0, circular_field_probability=1.0, wild_probability=1.0, thick_slice_probability=1.0,
    )  # fmt: skip
    for seed in range(3):
        hu = make_scan(seed, busy, spacing_mm=6.0).volume.array
        assert np.isfinite(hu).all()
        assert -2048 <= hu.min() < hu.max() <= 3071
