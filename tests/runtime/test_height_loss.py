import numpy as np
import pytest

from runtime.height_loss import _counted, grade_of, measure_loss, shape_of
from runtime.heights import BodyHeights

LEVELS = [f"T{n}" for n in range(4, 13)] + [f"L{n}" for n in range(1, 6)]
USUAL_MM = {  # mean height, anterior to posterior; after published morphometry
    **{f"T{n}": (18.0 + 0.5 * (n - 4), 0.95) for n in range(4, 9)},
    **{"T9": (20.7, 0.95), "T10": (21.6, 0.95), "T11": (22.8, 0.94), "T12": (24.4, 0.93)},
    **{"L1": (26.0, 0.95), "L2": (27.0, 1.0), "L3": (28.0, 1.01), "L4": (28.0, 1.05), "L5": (28.0, 1.18)},
}


def spine(levels=LEVELS, *, size=1.0, losses=None, seed=None):
    """Heights of a spine; ``losses`` maps a level to its (anterior, middle, posterior) losses."""
    rng = np.random.default_rng(seed)
    out = []
    for level in levels:
        mean, ratio = USUAL_MM[level]
        posterior = size * 2 * mean / (1 + ratio)
        heights = np.array([ratio * posterior, 0.93 * 0.5 * (1 + ratio) * posterior, posterior])
        if seed is not None:
            heights *= rng.normal(1, 0.01) * rng.normal(1, 0.015, 3)
        heights *= 1 - np.array((losses or {}).get(level, (0, 0, 0)))
        out.append(BodyHeights(*heights))
    return out


@pytest.mark.parametrize(
    ("loss", "grade"), [(0, 0), (0.199, 0), (0.2, 1), (0.249, 1), (0.25, 2), (0.399, 2), (0.4, 3), (0.9, 3)]
)
def test_grades_follow_genants_limits(loss, grade):
    assert grade_of(loss) == grade


@pytest.mark.parametrize(
    ("losses", "shape"),
    [
        ((0.4, 0.2, 0.05), "wedge"),
        ((0.1, 0.4, 0.1), "biconcave"),
        ((0.3, 0.35, 0.3), "crush"),
        ((0.0, 0.1, 0.3), "crush"),
        ((0.13, 0.05, 0.0), "wedge"),
        ((0.02, 0.01, 0.015), None),
        ((0.11, 0.1, 0.11), None),
        ((-0.01, -0.02, -0.03), None),
    ],
)
def test_shapes(losses, shape):
    assert shape_of(losses) == shape


@pytest.mark.parametrize("size", [0.82, 1.0, 1.18])
@pytest.mark.parametrize("known", [True, False])
def test_a_healthy_spine_of_any_size_has_lost_nothing(size, known):
    for seed in range(5):
        found = measure_loss(spine(size=size, seed=seed), LEVELS if known else [None] * len(LEVELS))
        assert [f.grade for f in found] == [0] * len(LEVELS)
        assert max(f.height_loss for f in found) < 0.12
        assert {f.shape for f in found} == {None}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("losses", "grade", "shape"),
    [
        ((0.33, 0.2, 0.03), 2, "wedge"),
        ((0.1, 0.33, 0.1), 2, "biconcave"),
        ((0.31, 0.33, 0.33), 2, "crush"),
        ((0.55, 0.3, 0.1), 3, "wedge"),
        ((0.5, 0.5, 0.5), 3, "crush"),
    ],
)
def test_a_fracture_is_measured_against_its_neighbours(known, losses, grade, shape):
    found = measure_loss(spine(size=0.95, losses={"L1": losses}, seed=3), LEVELS if known else [None] * len(LEVELS))
    one = found[LEVELS.index("L1")]
    assert one.height_loss == pytest.approx(max(losses), abs=0.06)
    assert (one.grade, one.shape) == (grade, shape)
    assert [f.grade for n, f in enumerate(found) if LEVELS[n] != "L1"] == [0] * (len(LEVELS) - 1)


def test_many_fractures_do_not_hide_each_other():
    bad = dict.fromkeys(("T7", "T8", "T11", "T12", "L1", "L2", "L3"), (0.45, 0.35, 0.1))
    bad["T9"] = (0.35, 0.35, 0.35)
    found = dict(zip(LEVELS, measure_loss(spine(losses=bad, seed=1), LEVELS), strict=True))
    for level, losses in bad.items():
        assert found[level].height_loss == pytest.approx(max(losses), abs=0.06)
    assert all(found[level].grade == 0 for level in LEVELS if level not in bad)


@pytest.mark.parametrize("level", ["T6", "T12", "L1", "L4"])
def test_one_vertebra_alone_is_judged_by_its_own_shape(level):
    for levels in ([level], [None]):
        wedge = measure_loss(spine([level], losses={level: (0.42, 0.25, 0.0)}), levels)[0]
        biconcave = measure_loss(spine([level], losses={level: (0.05, 0.42, 0.05)}), levels)[0]
        healthy = measure_loss(spine([level]), levels)[0]
        assert wedge.grade >= 2
        assert wedge.shape == "wedge"
        assert biconcave.grade >= 2
        assert biconcave.shape == "biconcave"
        assert healthy.grade == 0


def test_an_unknown_level_between_known_ones_is_counted():
    heights, levels = spine(losses={"L1": (0.5, 0.3, 0.0)}, seed=2), list(LEVELS)
    whole = measure_loss(heights, levels)
    gaps = measure_loss(heights, [None if n % 3 == 1 else level for n, level in enumerate(levels)])
    for a, b in zip(whole, gaps, strict=True):
        assert a == b


@pytest.mark.parametrize(
    ("level", "below", "expected"),
    [("L6", -1, "L5"), ("L6", -2, "L4"), ("L6", 1, "L5"), ("T13", -1, "T12"), ("T13", -2, "T11"), ("T13", 1, "L1"),
     ("L1", -1, "T12"), ("T12", 1, "L1"), ("C7", 1, "T1")],
)  # fmt: skip
def test_levels_are_counted_from_those_that_few_have(level, below, expected):
    assert _counted(level, below) == expected


def test_cervical_and_unmeasured_vertebrae_get_nothing():
    heights = [BodyHeights(13, 12, 13), None, *spine(["T4", "T5"])]
    found = measure_loss(heights, ["C5", "C6", "T4", "T5"])
    assert found[:2] == (None, None)
    assert found[2].grade == found[3].grade == 0
    assert measure_loss([], []) == ()
    assert measure_loss([None], [None]) == (None,)


def test_what_is_probably_cervical_is_not_judged_and_changes_no_expectation():
    trunk = spine(["T4", "T5", "T6"], losses={"T5": (0.3, 0.2, 0.0)})
    neck = [BodyHeights(13, 12, 13), BodyHeights(13.5, 12, 13)]
    for levels in ([None, "T5", None], [None, None, None]):
        found = measure_loss([*neck, *trunk], [None, None, *levels], in_neck=[True, True, False, False, False])
        assert found[:2] == (None, None)
        assert found[2:] == measure_loss(trunk, levels)


def test_more_vertebrae_than_the_trunk_has_are_no_error():
    heights = [BodyHeights(20, 19, 20)] * 24
    assert len(measure_loss(heights, [None] * 24)) == 24


def test_variants_have_a_normal_shape_too():
    levels = ["T12", "T13", "L1", "L5", "L6"]
    heights = [BodyHeights(23.5, 23, 25), BodyHeights(24, 23.5, 26), *spine(["L1", "L5", "L5"])]
    assert [f.grade for f in measure_loss(heights, levels)] == [0] * 5


def test_losses_are_those_of_the_expected_heights():
    heights = spine(losses={"T8": (0.3, 0.2, 0.0)}, seed=4)
    for h, f in zip(heights, measure_loss(heights, LEVELS), strict=True):
        assert np.allclose(f.losses, 1 - h.as_array() / f.expected.as_array())
        assert f.height_loss == pytest.approx(max(0, *f.losses))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 heights"):
        measure_loss(spine(["T4", "T5"]), ["T4"])
    with pytest.raises(ValueError, match="1 entries of in_neck"):
        measure_loss(spine(["T4", "T5"]), ["T4", "T5"], in_neck=[True])
