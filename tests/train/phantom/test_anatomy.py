from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from train.phantom import PhantomConfig, sample_anatomy
from train.phantom.spine import GRADE_BANDS
from train.phantom.tables import FRACTURE_WEIGHT, LABEL_OF_LEVEL, LEVEL_OF_LABEL, LEVEL_SIZES, TISSUE_HU, Tissue

SEEDS = range(30)


def test_labels_are_verses() -> None:
    assert [LABEL_OF_LEVEL[n] for n in ("C1", "C7", "T1", "T12", "L1", "L6", "T13")] == [1, 7, 8, 19, 20, 25, 28]
    assert {LEVEL_OF_LABEL[label] for label in LEVEL_OF_LABEL} == set(LEVEL_SIZES)
    assert not {26, 27} & set(LEVEL_OF_LABEL)
    assert set(FRACTURE_WEIGHT) <= set(LEVEL_SIZES)
    assert set(TISSUE_HU) == set(Tissue)


def test_grade_is_the_genant_band_of_the_loss() -> None:
    graded = 0
    for v in (v for seed in SEEDS for v in sample_anatomy(seed).vertebrae):
        low, high = GRADE_BANDS[v.grade]
        assert low <= v.height_loss < high
        loss = 1 - np.array(v.heights_mm) / np.array(v.original_heights_mm)
        worst = {"wedge": 0, "biconcave": 1, "crush": 2}.get(v.form)
        assert (worst is None) == (v.grade == 0)
        assert worst is None or loss[worst] == pytest.approx(loss.max())
        graded += v.grade > 0
    assert graded > 20


def test_configuration_rules_fractures_and_survives_json() -> None:
    none = PhantomConfig(spared_probability=1.0)
    assert PhantomConfig.from_json(none.to_json()) == none
    assert all(v.grade == 0 for v in sample_anatomy(3, none).vertebrae)
    severe = PhantomConfig(spared_probability=0.0, fracture_probability=0.5, grade_weights=(0.0, 0.0, 1.0))
    assert {v.grade for v in sample_anatomy(3, severe).vertebrae} == {0, 3}
    with pytest.raises(ValueError, match="nonsense"):
        PhantomConfig.from_json({"nonsense": 1})


def test_vertebrae_are_ordered_and_spaced_like_a_spine() -> None:
    for seed in SEEDS:
        anatomy = sample_anatomy(seed)
        centres = np.array([anatomy.centre_ras_mm(v) for v in anatomy.vertebrae])
        steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
        assert anatomy.vertebrae[0].level == "C1"
        assert (steps > 6).all()
        assert (steps < 55).all()
        for v in anatomy.vertebrae:
            np.testing.assert_allclose(v.axes @ v.axes.T, np.eye(3), atol=1e-9)
            assert v.axes[2, 2] > 0.3


def test_a_fracture_brings_its_neighbours_nearer() -> None:
    spans: dict[bool, list[float]] = {True: [], False: []}
    crushed = {"fracture_probability": 0.3, "grade_weights": (0.0, 0.0, 1.0), "shape_weights": (0.0, 0.0, 1.0)}
    config = replace(PhantomConfig(), spared_probability=0.0, **crushed)
    for seed in SEEDS:
        spine = sample_anatomy(seed, config).vertebrae
        for above, v, below in zip(spine, spine[1:], spine[2:], strict=False):
            if v.level in ("T11", "T12", "L1", "L2"):
                span = np.linalg.norm(above.origin_mm - below.origin_mm) / np.mean(v.original_heights_mm)
                spans[v.grade > 0].append(float(span))
    assert np.mean(spans[True]) < np.mean(spans[False]) - 0.25
