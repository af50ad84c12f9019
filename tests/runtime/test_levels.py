"""Levels: the decoding along the spine against an enumeration of all namings, and the network's crops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import level_chain as chain_model
from runtime.anatomy import HAS_L6, HAS_T13, LEVEL_NAMES, LEVELS, NO_T12, PRESENCE, STEPS, routes
from runtime.bundle import IntensityWindow, LevelNetSpec
from runtime.engines.base import EngineInfo
from runtime.errors import EngineError
from runtime.level_chain import level_marginals
from runtime.levels import LevelCall, decode_levels, in_neck, level_evidence
from runtime.volume import Grid, Volume

USUAL = tuple(name for name in LEVELS if name not in ("T13", "L6"))
LENGTH_MM = {(step.upper, step.lower): step.length_mm for step in STEPS}


def spine(levels: Sequence[str], *, size: float = 1.0, direction=(0.0, 0.0, -1.0)) -> np.ndarray:
    """Centres of neighbouring levels on a straight line, as far apart as they usually are."""
    gaps = [LENGTH_MM[pair] * size for pair in itertools.pairwise(levels)]
    return np.cumsum([0.0, *gaps])[:, None] * np.asarray(direction) / np.linalg.norm(direction)


def says(levels: Sequence[str], *, p: float = 0.6, shift: int = 0) -> np.ndarray:
    """Evidence for these names with probability ``p``, the rest shared by the names beside them."""
    evidence = np.full((len(levels), len(LEVEL_NAMES)), 1e-4)
    for row, name in zip(evidence, levels, strict=True):
        k = LEVEL_NAMES.index(name) + (shift if name != "none" else 0)
        row[k] += p
        row[max(k - 1, 0)] += (1 - p) / 2
        row[min(k + 1, len(row) - 1)] += (1 - p) / 2
    return evidence / evidence.sum(axis=1, keepdims=True)


def names(calls) -> list[str | None]:
    return ["none" if not call.is_vertebra else call.level for call in calls]


def decode(centres, evidence, confidence: float = 0.9):
    return decode_levels(centres, [confidence] * len(centres), evidence)


# Anatomy.


def test_every_level_is_reached_from_c1_in_every_variant() -> None:
    assert all(routes("C1", level) for level in LEVELS[1:])
    assert routes("T5", "T4") == routes("T5", "T5") == ()
    assert [r.steps for r in sorted(routes("T11", "L1"), key=lambda r: r.steps)] == [1, 2, 3]
    assert sum(r.prior for r in routes("C3", "L4")) == pytest.approx(1.0)
    assert sum(r.prior for r in routes("C3", "T13")) == pytest.approx(PRESENCE["T13"])


def test_spacings_are_those_of_the_regions() -> None:
    for step in STEPS:
        low, high = {"C": (14, 20), "T": (18, 32), "L": (30, 40)}[step.upper[0]]
        assert low <= step.length_mm <= high, step


# Against an enumeration.


@cache
def ways_down(upper: str, lower: str) -> tuple[tuple[float, int, float], ...]:
    """Share, vertebrae between and distance of every way, written out by hand for the one place where ways part."""
    line = {"last T11": list(USUAL), "usual": list(USUAL), "T13": list(USUAL)}
    line["last T11"].remove("T12")
    line["T13"].insert(line["T13"].index("L1"), "T13")
    shares = {"last T11": NO_T12, "usual": (1 - NO_T12) * (1 - HAS_T13), "T13": (1 - NO_T12) * HAS_T13}
    given_upper = {"T12": 1 - NO_T12, "T13": PRESENCE["T13"]}.get(upper, 1.0)
    found: dict[tuple[str, ...], float] = {}
    for variant, levels in line.items():
        whole = [*levels, "L6"]
        if upper in whole and lower in whole and whole.index(upper) < whole.index(lower):
            passed = tuple(whole[whole.index(upper) : whole.index(lower) + 1])
            share = shares[variant] / given_upper * (HAS_L6 if lower == "L6" else 1.0)
            found[passed] = found.get(passed, 0.0) + share
    return tuple(
        (share, len(passed) - 2, sum(LENGTH_MM[pair] for pair in itertools.pairwise(passed)))
        for passed, share in found.items()
    )


def student(z: float) -> float:
    nu = chain_model.GAP_FREEDOM
    return (1 + z * z / nu) ** (-(nu + 1) / 2)


def link(upper: str, lower: str, distance: float, size: float) -> float:
    if distance < chain_model.NEAREST_MM:
        return 0.0
    total = 0.0
    for share, between, length in ways_down(upper, lower):
        usual = size * length
        deviation = chain_model.GAP_SPREAD * usual / math.sqrt(between + 1)
        if distance >= chain_model.NEAREST_SHARE * usual:
            fit = student((distance - usual) / deviation) / math.sqrt(between + 1)
            total += share * chain_model.MISSED**between * fit
    return total


def namings(count: int):
    """Every naming of a chain: indices into LEVEL_NAMES, 0 for none, otherwise growing."""
    for vertebrae in itertools.product((False, True), repeat=count):
        for levels in itertools.combinations(range(1, len(LEVEL_NAMES)), sum(vertebrae)):
            rest = iter(levels)
            yield tuple(next(rest) if is_vertebra else 0 for is_vertebra in vertebrae)


def enumerated(z_mm: Sequence[float], confidences: Sequence[float], evidence: np.ndarray) -> np.ndarray:
    """(n, 27) marginals for centres straight above each other, by summing every naming for every size of patient."""
    tempered = np.empty_like(evidence)
    for row, target, confidence in zip(evidence, tempered, confidences, strict=True):
        none = min(max(row[0], 1e-3), 1 - 1e-3)
        which = np.maximum(confused(row[1:] / row[1:].sum()), 1e-3) ** (2 / 3)
        target[0] = none ** (2 / 3) * (1 - confidence / 2)
        target[1:] = 26 * (1 - none) ** (2 / 3) * which / which.sum()
    sizes = np.array([max(math.exp(-(((s - 1) / 0.12) ** 2) / 2), 0.05) for s in chain_model.SIZES])
    marginals = np.zeros_like(evidence)
    for prior, size in zip(sizes / sizes.sum(), chain_model.SIZES, strict=True):
        for naming in namings(len(z_mm)):
            weight = prior * math.prod(tempered[i, k] for i, k in enumerate(naming))
            chain = [(i, LEVEL_NAMES[k]) for i, k in enumerate(naming) if k]
            if chain:
                weight *= PRESENCE.get(chain[0][1], 1.0) / 26
            for (j, upper), (i, lower) in itertools.pairwise(chain):
                weight *= link_of(upper, lower, z_mm[j] - z_mm[i], size)
            for i, k in enumerate(naming):
                marginals[i, k] += weight
    return marginals / marginals.sum(axis=1, keepdims=True)


def confused(which: np.ndarray) -> np.ndarray:
    """A fifth of each level's probability goes to those next to it, by how common it is that they are next to it."""
    out = 0.8 * which
    has_t12 = 1 - NO_T12
    beside: dict[str, dict[str, float]] = {name: {} for name in LEVELS}
    common = dict.fromkeys(itertools.pairwise(USUAL), 1.0) | {("L5", "L6"): HAS_L6, ("T11", "L1"): NO_T12}
    common |= {("T11", "T12"): has_t12, ("T12", "L1"): has_t12 * (1 - HAS_T13)}
    common |= {("T12", "T13"): has_t12 * HAS_T13, ("T13", "L1"): has_t12 * HAS_T13}
    for (upper, lower), share in common.items():
        beside[upper][lower] = beside[lower][upper] = share
    for k, name in enumerate(LEVELS):
        for other, share in beside[name].items():
            out[LEVELS.index(other)] += 0.2 * which[k] * share / sum(beside[name].values())
    return out


link_of = cache(link)


@settings(max_examples=40, deadline=None)
@given(
    gaps=st.lists(st.floats(1.0, 130.0), min_size=0, max_size=2),
    seed=st.integers(0, 10**6),
    sharpness=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_marginals_are_those_of_the_sum_over_every_naming(gaps, seed, sharpness) -> None:
    rng = np.random.default_rng(seed)
    z_mm = -np.cumsum([0.0, *gaps])
    evidence = rng.dirichlet(np.full(len(LEVEL_NAMES), sharpness), len(z_mm)) + 1e-9
    evidence /= evidence.sum(axis=1, keepdims=True)
    confidences = rng.uniform(0, 1, len(z_mm))
    centres = np.stack([np.zeros_like(z_mm), np.zeros_like(z_mm), z_mm], axis=1)
    met = level_marginals(centres, list(confidences), evidence)
    expected = enumerated(z_mm, confidences, evidence)
    np.testing.assert_allclose(met.none, expected[:, 0], atol=1e-9)
    np.testing.assert_allclose(met.levels, expected[:, 1:], atol=1e-9)


# What the decoding does.


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6), st.sampled_from([0.02, 0.2, 2.0]))
def test_levels_that_are_told_grow_along_any_chain(count, seed, sharpness) -> None:
    rng = np.random.default_rng(seed)
    centres = np.cumsum(rng.normal((0, 0, -25), (8, 8, 12), (count, 3)), axis=0)
    evidence = rng.dirichlet(np.full(len(LEVEL_NAMES), sharpness), count)
    calls = decode_levels(centres, list(rng.uniform(0, 1, count)), evidence)
    told = [LEVELS.index(call.level) for call in calls if call.level is not None]
    assert told == sorted(set(told))
    assert all(0.0 <= call.confidence <= 1.0 for call in calls)
    assert all(call.level is None for call in calls if not call.is_vertebra)


@pytest.mark.parametrize("size", [0.65, 1.0, 1.15])
def test_a_plain_spine_is_read_as_it_is(size: float) -> None:
    calls = decode(spine(USUAL, size=size), says(USUAL))
    assert names(calls) == list(USUAL)
    assert min(call.confidence for call in calls) > 0.9


def test_one_wrong_crop_among_right_ones_is_overruled() -> None:
    levels = USUAL[-8:]
    evidence = says(levels, p=0.8)
    evidence[3] = says(["T7"], p=0.99)[0]
    assert names(decode(spine(levels), evidence)) == list(levels)


def test_a_false_centre_between_true_ones_is_rejected() -> None:
    levels = ("T11", "T12", "L1", "L2", "L3")
    centres = np.insert(spine(levels), 3, [14.0, -9.0, -75.0], axis=0)
    evidence = np.insert(says(levels), 3, says(["none"], p=0.8)[0], axis=0)
    assert names(decode(centres, evidence)) == [*levels[:3], "none", *levels[3:]]


def test_a_false_centre_the_network_takes_for_a_vertebra_is_rejected_by_its_place() -> None:
    levels = ("T11", "T12", "L1", "L2", "L3")
    centres = np.insert(spine(levels), 3, [0.0, 0.0, -76.0], axis=0)
    evidence = np.insert(says(levels, p=0.8), 3, says(["L1"], p=0.4)[0], axis=0)
    calls = decode(centres, evidence, 0.6)
    assert sum(not call.is_vertebra for call in calls) == 1
    assert not (calls[2].is_vertebra and calls[3].is_vertebra), "18 mm apart"


def test_hips_beside_the_spine_are_rejected_and_do_not_turn_it() -> None:
    levels = ("L3", "L4", "L5")
    hips = np.array([[90.0, 5.0, -120.0], [-90.0, 5.0, -121.0]])
    evidence = np.vstack([says(levels), says(["none", "none"], p=0.7)])
    assert names(decode(np.vstack([spine(levels), hips]), evidence)) == [*levels, "none", "none"]


@pytest.mark.parametrize("distance_mm", [0.0, 3.0, 7.5])
def test_two_centres_in_one_place_are_not_two_vertebrae(distance_mm: float) -> None:
    centres = [[0.0, 0.0, 0.0], [0.0, 0.0, -distance_mm]]
    marginals = level_marginals(centres, [0.9, 0.6], says(["L2", "L3"], p=0.95))
    assert marginals.none.sum() >= 1.0 - 1e-9


def test_a_gap_skips_a_level() -> None:
    levels = list(USUAL[9:17])
    centres, evidence = spine(levels), says(levels, p=0.5)
    seen = [0, 1, 2, 4, 5, 6, 7]
    blind = evidence[seen].copy()
    blind[3:] = says(levels[4:], p=0.35)
    assert names(decode(centres[seen], blind)) == [levels[i] for i in seen]
    closed = spine([levels[i] for i in range(7)])
    assert names(decode(closed, evidence[seen])) != [levels[i] for i in seen], "without a gap nothing is skipped"


def variant(kind: str) -> list[str]:
    levels = list(USUAL[12:])
    if kind == "last rib at T11":
        levels.remove("T12")
    if kind == "T13":
        levels.insert(levels.index("L1"), "T13")
    if kind == "four lumbar":
        levels.remove("L5")
    if kind == "six lumbar":
        levels.append("L6")
    return levels


@pytest.mark.parametrize("kind", ["last rib at T11", "T13", "four lumbar", "six lumbar"])
def test_variants_are_told_when_the_network_sees_them(kind: str) -> None:
    levels = variant(kind)
    assert names(decode(spine(levels), says(levels, p=0.9))) == levels


def test_a_variant_needs_more_than_one_crops_word() -> None:
    evidence = says(USUAL[12:], p=0.8)
    evidence[USUAL[12:].index("L1")] = says(["T13"], p=0.6)[0]
    assert names(decode(spine(USUAL[12:]), evidence)) == list(USUAL[12:])


def test_nothing_is_guessed_from_flat_evidence() -> None:
    centres = spine(USUAL[10:15])
    calls = decode(centres, np.full((5, len(LEVEL_NAMES)), 1 / len(LEVEL_NAMES)))
    assert names(calls) == [None] * 5
    assert all(call.confidence < 0.5 for call in calls)


def test_a_single_vertebra_is_named_or_not_by_its_own_evidence() -> None:
    centre = [[0.0, 0.0, 0.0]]
    assert names(decode(centre, says(["C2"], p=0.98))) == ["C2"]
    assert names(decode(centre, says(["T6"], p=0.4))) == [None]
    assert names(decode(centre, says(["none"], p=0.97), 1.0)) == ["none"]


def test_a_vertebra_that_is_likelier_cervical_than_not_is_in_the_neck() -> None:
    between = [0.5 * (says(pair[:1]) + says(pair[1:]))[0] for pair in (("C5", "C6"), ("C7", "T1"), ("T5", "T6"))]
    for evidence, cervical in zip(between, (1.0, 0.5, 0.0), strict=True):
        (call,) = decode([[0.0, 0.0, 0.0]], evidence[None])
        assert call.level is None
        assert call.cervical == pytest.approx(cervical, abs=0.25)
        if cervical != 0.5:
            assert in_neck([call]) == (cervical == 1.0,)


def test_what_lies_above_a_cervical_vertebra_is_in_the_neck() -> None:
    unsure, c6 = LevelCall(None, 0.3, True, 0.2), LevelCall("C6", 0.9, True, 1.0)
    assert in_neck([unsure, c6, unsure]) == (True, True, False)
    assert in_neck([LevelCall(None, 0.3, True, 0.5), unsure, None]) == (True, False, False)
    assert in_neck([unsure, LevelCall(None, 0.3, True, 0.6), unsure]) == (True, True, False)


def test_the_share_of_the_neck_is_that_of_the_marginals() -> None:
    levels = ["C5", "C6", "C7", "T1", "T2"]
    centres, evidence = spine(levels), says(levels, p=0.3)
    marginals = level_marginals(centres, [0.9] * 5, evidence)
    neck = marginals.levels[:, :7].sum(axis=1) / (1.0 - marginals.none)
    assert [call.cervical for call in decode(centres, evidence)] == pytest.approx(list(neck), abs=1e-9)


def test_no_centres_no_calls() -> None:
    assert decode_levels(np.empty((0, 3)), [], np.empty((0, 27))) == ()


def test_a_lower_confidence_makes_a_centre_easier_to_reject() -> None:
    evidence = says(["none"], p=0.6)
    none = [level_marginals([[0, 0, 0]], [confidence], evidence).none[0] for confidence in (0.5, 0.7, 1.0)]
    assert none == sorted(none, reverse=True)
    assert none[0] > none[-1]


@pytest.mark.parametrize("tilt_deg", [0, 20, 40])
def test_a_tilted_spine_is_the_same_spine(tilt_deg: float) -> None:
    levels = USUAL[14:22]
    tilt = np.deg2rad(tilt_deg)
    calls = decode(spine(levels, direction=(np.sin(tilt), 0.0, -np.cos(tilt))), says(levels))
    straight = decode(spine(levels), says(levels))
    assert names(calls) == list(levels)
    assert [c.confidence for c in calls] == pytest.approx([c.confidence for c in straight], abs=1e-6)


def test_arguments_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="2 centres, 1 confidences"):
        decode_levels(spine(["L1", "L2"]), [0.9], says(["L1", "L2"]))
    with pytest.raises(ValueError, match=r"at least 0\.5"):
        decode_levels(spine(["L1", "L2"]), [0.9] * 2, says(["L1", "L2"]), min_confidence=0.4)


# The network's crops.

SPEC = LevelNetSpec("levelnet.onnx", 4.0, (8, 6, 6), IntensityWindow(0.0, 1000.0), LEVEL_NAMES, 0.5)


class FakeSession:
    """Sure of the level whose index is the middle's value in fortieths; keeps the crops."""

    info = EngineInfo("fake", "1", "fp32", "CPU", "test")
    output_names = ("level",)

    def __init__(self, spoil=lambda level: level) -> None:
        self.crops: list[np.ndarray] = []
        self.spoil = spoil

    def __call__(self, image):
        assert image.dtype == np.float32
        assert image.flags.c_contiguous
        assert image.shape[1:] == (1, *SPEC.crop_zyx)
        self.crops += list(image[:, 0])
        level = np.zeros((len(image), len(LEVEL_NAMES)), np.float32)
        middle = np.rint(40 * image[:, 0, 3:5, 2:4, 2:4].mean(axis=(1, 2, 3))).astype(int)
        level[np.arange(len(image)), middle] = 1.0
        return (self.spoil(level),)

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def ramp(shape=(90, 60, 60), spacing=(1.0, 1.0, 2.0)) -> Volume:
    """HU that grow linearly with the height in the patient: 2 HU per mm from 100."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = (40.0, 30.0, -50.0)
    grid = Grid(shape, affine)
    z_mm = grid.to_ras_mm(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))[..., 2]
    return Volume((100 + 2 * (z_mm + 50)).astype(np.float32), grid, "ramp")


def test_crops_hold_the_scan_around_each_centre_to_half_a_voxel() -> None:
    volume, session = ramp(), FakeSession()
    centres = np.array([[8.0, 1.0, 70.3], [5.0, -2.0, 41.0], [12.0, 3.0, 10.0]])
    level_evidence(volume, centres, SPEC, session)
    for crop, centre in zip(session.crops, centres, strict=True):
        expected = (100 + 2 * (centre[2] + 50)) / 1000
        assert crop.mean() == pytest.approx(expected, abs=2 * 2.0 / 1000 + 1e-4)
        np.testing.assert_allclose(np.diff(crop, axis=0), 2 * 4 / 1000, atol=1e-5)


def test_the_batch_size_changes_nothing_and_progress_is_told() -> None:
    volume, told = ramp(), []
    centres = np.array([[8.0, 1.0, z] for z in (100.0, 70.0, 40.0, 10.0, -20.0)])
    one = level_evidence(volume, centres, SPEC, FakeSession(), batch=1)
    many = level_evidence(volume, centres, SPEC, FakeSession(), batch=3, progress=lambda *step: told.append(step))
    np.testing.assert_array_equal(one, many)
    assert one.shape == (5, 27)
    assert told == [(3, 5), (5, 5)]
    assert (np.diff(one.argmax(axis=1)) < 0).all()


def test_beyond_the_scan_is_air() -> None:
    session = FakeSession()
    level_evidence(ramp(), [[8.0, 1.0, 128.0]], SPEC, session)
    assert (session.crops[0][-2:] == 0).all()
    assert (session.crops[0][:3] > 0).all()


def test_no_centres_are_not_run() -> None:
    session = FakeSession()
    assert level_evidence(ramp(), np.empty((0, 3)), SPEC, session).shape == (0, 27)
    assert session.crops == []


def test_outputs_that_are_not_as_promised_are_refused() -> None:
    with pytest.raises(EngineError, match="promises level"):
        level_evidence(ramp(), [[0.0, 0.0, 0.0]], SPEC, FakeSession(lambda level: level[:, :26]))
    with pytest.raises(EngineError, match="not finite"):
        level_evidence(ramp(), [[0.0, 0.0, 0.0]], SPEC, FakeSession(lambda level: level * np.nan))
