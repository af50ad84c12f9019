"""Every variation shows where it is asked for, and none of them touches a true height."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runtime.errors import InputError
from tests.train.phantom.helpers import centre_of, clean_appearance, grid_around
from train.phantom import (
    Anatomy,
    PhantomConfig,
    PhantomScan,
    imaging,
    random_scan_grid,
    render,
    sample_anatomy,
)
from train.phantom.degeneration import sample_bridges
from train.phantom.spine import sample_spine

UPRIGHT = PhantomConfig(tilt_probability=0.0, scoliosis_probability=0.0, count_variant_probability=0.0)
AGED = PhantomConfig(
    spared_probability=0.0, fracture_probability=0.35, degeneration=(0.9, 1.0), bridge_probability=0.4,
    dish_probability=1.0, bamboo_probability=1.0, ossified_ligament_probability=1.0, disc_gas_probability=1.0,
    endplate_sclerosis_probability=0.5, metastases_probability=1.0, haemangioma_probability=0.3, slip_probability=1.0,
    ivory_probability=0.1, bone_island_probability=0.3, block_probability=1.0, sacralised_probability=1.0,
    lumbarised_probability=1.0, cement_probability=1.0, cement_leak_probability=1.0,
)  # fmt: skip


def _render(anatomy: Anatomy, level: str, shape: tuple[int, int, int], spacing_mm: float) -> PhantomScan:
    grid = grid_around(centre_of(anatomy, level), shape, spacing_mm)
    return render(anatomy, grid, clean_appearance(), np.random.default_rng(0))


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_heights_stay_true_however_old_the_spine(seed: int) -> None:
    scan = _render(sample_anatomy(seed, AGED), "T12", (150, 80, 80), 1.0)
    grid, along, errors = scan.volume.grid, np.arange(-25.0, 25.0, 0.1), []
    cut = set(np.unique(scan.body_mask[[0, -1]]).tolist())
    for v in (v for v in scan.vertebrae if v.label not in cut):
        for share, height in zip((0.75, 0.0, -0.75), v.heights_mm, strict=True):
            start = v.origin_ras_mm + v.axes_ras[:, 1] * share * v.half_depth_mm
            index = np.round(grid.to_index_zyx(start + along[:, None] * v.axes_ras[:, 2])).astype(int)
            index = index[((index >= 0) & (index < grid.shape_zyx)).all(axis=1)]
            errors.append(abs(0.1 * float((scan.body_mask[tuple(index.T)] == v.label).sum()) - height))
    assert len(errors) >= 9
    assert max(errors) < 1.3


def test_what_fills_the_marrow_changes_no_mask() -> None:
    names = ("haemangioma", "bone_island", "ivory", "endplate_sclerosis", "metastases", "banded", "irradiated")
    scans = [
        _render(sample_anatomy(3, replace(UPRIGHT, **{f"{n}_probability": p for n in names})), "L1", (60, 40, 40), 2.0)
        for p in (0.0, 1.0)
    ]
    np.testing.assert_array_equal(scans[0].mask, scans[1].mask)
    np.testing.assert_array_equal(scans[0].body_mask, scans[1].body_mask)
    difference = np.abs(scans[0].volume.array - scans[1].volume.array)
    assert difference[scans[0].body_mask > 0].mean() > 40


def test_a_bridge_belongs_to_the_two_vertebrae_that_it_joins_and_to_neither_body() -> None:
    config = replace(UPRIGHT, dish_probability=1.0, spared_probability=1.0, degeneration=(0.4, 0.5))
    shapes, _, degeneration = sample_spine(np.random.default_rng([7, 1]), config)
    struts = sample_bridges(shapes, degeneration, config, np.random.default_rng(0))
    joined = [v.level for v in shapes if struts[v.label]]
    assert len(joined) >= 4
    anatomy = sample_anatomy(7, config)
    scan = _render(anatomy, "T9", (230, 60, 60), 1.5)
    touching = 0
    for upper, lower in zip(scan.mask[:-1], scan.mask[1:], strict=True):
        ours, theirs = np.sort([upper, lower], axis=0)
        touching += int(((ours > 0) & (ours != theirs)).sum())
    assert touching > 20
    np.testing.assert_array_equal(scan.mask[scan.body_mask > 0], scan.body_mask[scan.body_mask > 0])


def test_a_sacralised_vertebra_reaches_for_the_sacrum() -> None:
    reach = {}
    for probability in (0.0, 1.0):
        anatomy = sample_anatomy(5, replace(UPRIGHT, sacralised_probability=probability, spared_probability=1.0))
        lowest = anatomy.vertebrae[-1]
        scan = _render(anatomy, lowest.level, (40, 60, 80), 2.0)
        ras = scan.volume.grid.to_ras_mm(np.argwhere(scan.mask == lowest.label))
        local = (ras - anatomy.to_ras_mm(lowest.origin_mm)) @ (anatomy.patient_axes @ lowest.axes)
        low = local[local[:, 2] < -0.35 * lowest.tallest_mm]
        reach[probability] = float(np.abs(low[:, 0]).max())
    assert reach[1.0] > reach[0.0] + 10


@pytest.mark.parametrize("seed", range(4))
def test_the_sacrum_is_bone_without_a_label_up_to_the_hip_bones(seed: int) -> None:
    anatomy = sample_anatomy(seed, UPRIGHT)
    scan = _render(anatomy, anatomy.vertebrae[-1].level, (70, 60, 90), 2.0)
    lowest = anatomy.vertebrae[-1]
    middle = lowest.origin_mm - lowest.axes[:, 2] * (0.5 * lowest.tallest_mm + lowest.disc_mm + 14)
    z, y, x = np.round(scan.volume.grid.to_index_zyx(anatomy.to_ras_mm(middle))).astype(int)
    assert not scan.mask[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2].any()
    bone = (scan.volume.array[z - 6 : z + 5, :, x - 30 : x + 31] > 150).any(axis=(0, 1))
    assert bone.mean() > 0.9


def test_narrow_discs_hold_gas_where_it_is_asked_for() -> None:
    config = replace(UPRIGHT, degeneration=(1.0, 1.0), disc_gas_probability=1.0, contrast_probability=0.0)
    dark = []
    for chance in (0.0, 1.0):
        scan = _render(sample_anatomy(4, replace(config, disc_gas_probability=chance)), "L2", (90, 16, 16), 1.0)
        dark.append(int((scan.volume.array < -150).sum()))
    assert dark[0] == 0
    assert dark[1] > 30


def test_sharp_kernels_give_noise_whose_neighbours_differ_and_starved_ones_streaks() -> None:
    grid = grid_around(np.zeros(3), (12, 60, 60), 1.0)
    plain = replace(clean_appearance(), noise_hu=20.0, noise_grain_mm=0.3, sharpen=0.0, starvation=0.0)
    lag = {}
    for name, appearance in {
        "plain": plain, "sharp": replace(plain, sharpen=1.2), "starved": replace(plain, starvation=0.7)
    }.items():  # fmt: skip
        noise = imaging._noise(grid, appearance, np.random.default_rng(1))
        assert noise.std() == pytest.approx(20, rel=0.5)
        lag[name] = [
            float(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]),
            float(np.corrcoef(noise[..., :-1].ravel(), noise[..., 1:].ravel())[0, 1]),
        ]
    assert lag["sharp"][0] < lag["plain"][0] - 0.05
    assert lag["starved"][1] > lag["plain"][1] + 0.2


def test_a_grid_beyond_memory_is_refused() -> None:
    anatomy = sample_anatomy(0)
    with pytest.raises(InputError, match="wider spacing"):
        random_scan_grid(anatomy, np.random.default_rng(0), spacing_mm=0.3, field="whole")


def test_aged_patients_are_the_same_for_the_same_seed() -> None:
    one, two = sample_anatomy(9, AGED).scene, sample_anatomy(9, AGED).scene
    np.testing.assert_array_equal(one.params, two.params)
    np.testing.assert_array_equal(one.frames, two.frames)
    np.testing.assert_array_equal(one.looks, two.looks)
