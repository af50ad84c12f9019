import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.voting import Ballots, density_peaks, peak_support, peaks_with_plateaus, refine_peaks, vote_map

shapes = st.tuples(*[st.integers(1, 6)] * 3)
separations = st.one_of(st.sampled_from([0.0, 1.0, math.sqrt(2), math.sqrt(3), 2.0, 2.5, 5.0, 1e9]), st.floats(0, 9))


# The slow twins: the pseudocode word for word.


def algorithm_1(heatmap, offsets, threshold):
    votes = np.zeros_like(heatmap)
    for z, y, x in itertools.product(*map(range, heatmap.shape)):
        if heatmap[z, y, x] > np.float32(threshold):
            place = [math.floor(p + float(o) + 0.5) for p, o in zip((z, y, x), offsets[:, z, y, x], strict=True)]
            if all(0 <= p < n for p, n in zip(place, heatmap.shape, strict=True)):
                votes[tuple(place)] += heatmap[z, y, x]
    return votes


def algorithm_2(votes, threshold, separation):
    peaks = []
    for z, y, x in itertools.product(*map(range, votes.shape)):
        if votes[z, y, x] > np.float32(threshold):
            around = votes[max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            if votes[z, y, x] == around.max():
                higher = np.argwhere(votes > votes[z, y, x])
                if len(higher) == 0:
                    peaks.append((z, y, x))
                    continue
                distances = np.linalg.norm(higher - (z, y, x), axis=1)
                if distances.min() > separation:
                    peaks.append((z, y, x))
    return peaks


def plateaus(votes, peaks):
    """The peaks, grouped by whether voxels of their own value join them; groups and members in scan order."""
    left, groups = list(peaks), []
    while left:
        reached, frontier = {left[0]}, [left[0]]
        while frontier:
            here = frontier.pop()
            for step in itertools.product((-1, 0, 1), repeat=3):
                there = tuple(int(a + b) for a, b in zip(here, step, strict=True))
                inside = all(0 <= p < n for p, n in zip(there, votes.shape, strict=True))
                if inside and there not in reached and votes[there] == votes[here]:
                    reached.add(there)
                    frontier.append(there)
        groups.append([peak for peak in left if peak in reached])
        left = [peak for peak in left if peak not in reached]
    return groups


def representative(group):
    n, total = len(group), np.sum(group, axis=0)
    return min(
        group, key=lambda voxel: (sum((n * int(v) - int(t)) ** 2 for v, t in zip(voxel, total, strict=True)), voxel)
    )


def volumes(elements):
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements))


tied = volumes(st.sampled_from([np.float32(v) for v in (0, 0.1, 0.5, 1)]))
integers = volumes(st.integers(0, 12).map(np.float32))
smooth = volumes(st.floats(0, 2, width=32))
flat = shapes.flatmap(lambda shape: st.floats(0, 1, width=32).map(lambda v: np.full(shape, v, np.float32)))
sparse = volumes(st.one_of(st.just(np.float32(0)), st.just(np.float32(0)), st.floats(0, 2, width=32)))
thresholds = st.sampled_from([0.0, 0.1, 0.5, 0.7, 3.0])


def votes_to_cast(shape, seed):
    """A heatmap with values that lie on thresholds, and offsets that end between voxels, far out or anywhere."""
    rng = np.random.default_rng(seed)
    heatmap = rng.choice([0, 0.5, 0.7, 1, rng.uniform(), rng.uniform()], shape).astype(np.float32)
    halves = rng.integers(-9, 10, (3, *shape)) / 2
    offsets = np.where(rng.uniform(size=halves.shape) < 0.5, halves, rng.normal(0, 3, halves.shape)).astype(np.float32)
    offsets[rng.uniform(size=offsets.shape) < 0.02] = rng.choice([1e30, -1e30])
    return heatmap, offsets


KINDS = {"ties": tied, "integers": integers, "smooth": smooth, "flat": flat, "sparse": sparse}


def check_peaks(votes, threshold, separation):
    literal = algorithm_2(votes, threshold, separation)
    found = peaks_with_plateaus(votes, threshold=threshold, separation_voxels=separation)
    assert [tuple(peak) for peak in found.tolist()] == literal
    single = density_peaks(votes, threshold=threshold, separation_voxels=separation)
    assert single.dtype == np.int64
    assert single.shape[1:] == (3,)
    expected = sorted(representative(group) for group in plateaus(votes, literal))
    assert [tuple(peak) for peak in single.tolist()] == expected


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_peaks_are_those_of_the_pseudocode(kind):
    @given(kind, thresholds, separations)
    @settings(max_examples=400, deadline=None)
    def check(votes, threshold, separation):
        check_peaks(votes, threshold, separation)

    check()


@pytest.mark.parametrize("seed", range(40))
def test_peaks_of_larger_random_volumes_are_those_of_the_pseudocode(seed):
    rng = np.random.default_rng(seed)
    votes = np.zeros((9, 13, 17), np.float32)
    places = tuple(rng.integers(0, n, 60) for n in votes.shape)
    np.add.at(votes, places, np.float32(1) if seed % 2 else rng.uniform(0.7, 1, 60).astype(np.float32))
    check_peaks(votes, 0.1, 5.0)


@given(shapes, st.sampled_from([0.0, 0.5, 0.7, 1.0]), st.integers(0, 2**32 - 1))
@settings(max_examples=500, deadline=None)
def test_votes_are_those_of_the_pseudocode_bit_for_bit(shape, threshold, seed):
    heatmap, offsets = votes_to_cast(shape, seed)
    votes = vote_map(heatmap, offsets, threshold=threshold).dense()
    assert votes.dtype == np.float32
    np.testing.assert_array_equal(votes, algorithm_1(heatmap, offsets, threshold))


def test_the_example_of_the_thesis():
    heatmap, offsets = np.zeros((3, 3, 3), np.float32), np.zeros((3, 3, 3, 3), np.float32)
    heatmap[0, 0, 1] = 0.8
    offsets[:, 0, 0, 1] = 0, 1, 1
    votes = vote_map(heatmap, offsets, threshold=0.7).dense()
    assert votes[0, 1, 2] == np.float32(0.8)
    assert votes.sum() == np.float32(0.8)


def test_the_foreground_is_found_at_the_ends_of_a_large_volume():
    heatmap = np.zeros((3, 700, 5), np.float32)
    ends = [(0, 0, 0), (1, 409, 3), (1, 409, 4), (2, 699, 4)]
    for end in ends:
        heatmap[end] = 0.9
    votes = vote_map(heatmap, np.zeros((3, *heatmap.shape), np.float32), threshold=0.7).dense()
    np.testing.assert_array_equal(votes, heatmap)
    peaks = density_peaks(heatmap, threshold=0.7, separation_voxels=5.0)
    assert peaks.tolist() == [[0, 0, 0], [1, 409, 3], [2, 699, 4]]


def test_more_foreground_than_the_first_buffers_hold():
    rng = np.random.default_rng(0)
    heatmap = rng.uniform(0, 1, (20, 21, 22)).astype(np.float32)
    offsets = rng.normal(0, 3, (3, 20, 21, 22)).astype(np.float32)
    np.testing.assert_array_equal(vote_map(heatmap, offsets, threshold=0.1).dense(), algorithm_1(heatmap, offsets, 0.1))
    ones = np.ones((20, 21, 22), np.float32)
    assert density_peaks(ones, threshold=0.1, separation_voxels=5.0).tolist() == [[9, 10, 10]]


def test_votes_repeat_bit_for_bit():
    rng = np.random.default_rng(1)
    heatmap = rng.uniform(0, 1, (20, 20, 20)).astype(np.float32)
    offsets = rng.normal(0, 8, (3, 20, 20, 20)).astype(np.float32)
    votes = [vote_map(heatmap, offsets, threshold=0.1).dense().tobytes() for _ in range(3)]
    assert len(set(votes)) == 1


def test_no_foreground_gives_no_votes_and_no_peaks():
    heatmap = np.full((4, 4, 4), 0.7, np.float32)
    votes = vote_map(heatmap, np.zeros((3, 4, 4, 4), np.float32), threshold=0.7)
    assert not votes.dense().any()
    peaks = density_peaks(votes, threshold=0.1, separation_voxels=5.0)
    assert peaks.shape == (0, 3)
    assert refine_peaks(votes, peaks, radius_voxels=3).shape == (0, 3)
    confidence, strength = peak_support(votes, heatmap, peaks, radius_voxels=3)
    assert confidence.shape == strength.shape == (0,)


def test_arrays_of_any_layout_are_read():
    rng = np.random.default_rng(2)
    heatmap = np.asfortranarray(rng.uniform(0, 1, (5, 6, 7)).astype(np.float32))
    offsets = rng.normal(0, 1, (3, 10, 6, 7)).astype(np.float32)[:, ::2]
    votes = vote_map(heatmap, offsets, threshold=0.5).dense()
    np.testing.assert_array_equal(votes, algorithm_1(heatmap, offsets, 0.5))


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4, 4, 4), (3, 4, 4, 5)])
def test_offsets_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="belong"):
        vote_map(np.zeros((4, 4, 4), np.float32), np.zeros(shape, np.float32), threshold=0.7)


def test_two_equal_maxima_that_are_not_joined_both_stay():
    votes = np.zeros((1, 1, 5), np.float32)
    votes[0, 0, 1] = votes[0, 0, 3] = 2
    assert density_peaks(votes, threshold=0.1, separation_voxels=5.0).tolist() == [[0, 0, 1], [0, 0, 3]]


def test_a_peak_exactly_at_the_separation_from_a_higher_one_is_dropped():
    votes = np.zeros((1, 1, 12), np.float32)
    votes[0, 0, 0], votes[0, 0, 5], votes[0, 0, 11] = 3, 2, 1
    assert density_peaks(votes, threshold=0.1, separation_voxels=5.0).tolist() == [[0, 0, 0], [0, 0, 11]]
    assert len(density_peaks(votes, threshold=0.1, separation_voxels=4.99)) == 3


def test_a_plateau_joined_only_by_voxels_that_are_no_peaks_gives_one_peak():
    votes = np.ones((1, 1, 9), np.float32)
    votes = np.concatenate([votes, np.zeros_like(votes), np.zeros_like(votes)], axis=1)
    votes[0, 2, 4] = 5  # two rows away: only the middle of the plateau has a higher voxel within 2.5
    assert len(peaks_with_plateaus(votes, threshold=0.1, separation_voxels=2.5)) == 7
    assert density_peaks(votes, threshold=0.1, separation_voxels=2.5).tolist() == [[0, 0, 2], [0, 2, 4]]


def refined_slowly(votes, peaks, radius):
    means = []
    for own, peak in enumerate(peaks):
        weights, places = [], []
        for place in itertools.product(*map(range, votes.shape)):
            squared = ((np.array(place) - peaks) ** 2).sum(axis=1)
            if squared[own] <= radius**2 and squared.argmin() == own:
                weights.append(float(votes[place]))
                places.append(place)
        means.append(np.average(places, axis=0, weights=weights) if sum(weights) else peak)
    return np.array(means, dtype=float).reshape(-1, 3)


@given(sparse, st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.3, 20.0]), separations)
@settings(max_examples=150, deadline=None)
def test_refinement_is_the_mean_of_the_peaks_own_votes(votes, radius, separation):
    peaks = density_peaks(votes, threshold=0.1, separation_voxels=separation)
    refined = refine_peaks(votes, peaks, radius_voxels=radius)
    assert refined.dtype == np.float64
    np.testing.assert_allclose(refined, refined_slowly(votes, peaks, radius), atol=1e-9)


def test_refining_with_radius_zero_returns_the_peaks():
    votes = np.random.default_rng(0).uniform(0, 1, (6, 6, 6)).astype(np.float32)
    peaks = density_peaks(votes, threshold=0.1, separation_voxels=2.0)
    np.testing.assert_array_equal(refine_peaks(votes, peaks, radius_voxels=0), peaks)


def test_neighbours_do_not_pull_at_each_other():
    votes = np.zeros((1, 1, 12), np.float32)
    votes[0, 0, 2], votes[0, 0, 9], votes[0, 0, 10] = 4, 6, 3
    peaks = density_peaks(votes, threshold=0.1, separation_voxels=5.0)
    refined = refine_peaks(votes, peaks, radius_voxels=20)
    np.testing.assert_allclose(refined, [[0, 0, 2], [0, 0, 28 / 3]], atol=1e-12)


def test_votes_between_voxels_are_recovered_by_refinement():
    z, y, x = np.meshgrid(*[np.arange(20.0)] * 3, indexing="ij")
    truth = np.array([9.3, 10.7, 8.45])
    offsets = truth[:, None, None, None] - np.stack([z, y, x])
    heatmap = np.exp(-(offsets**2).sum(0) / 18).astype(np.float32)
    noisy = (offsets + np.random.default_rng(0).normal(0, 0.6, offsets.shape)).astype(np.float32)
    votes = vote_map(heatmap, noisy, threshold=0.7)
    refined = refine_peaks(votes, density_peaks(votes, threshold=0.1, separation_voxels=5.0), radius_voxels=4)
    assert refined.shape == (1, 3)
    assert np.linalg.norm(refined[0] - truth) < 0.25


def test_support_is_the_best_heatmap_value_and_the_sum_of_votes_of_a_peaks_own_voxels():
    votes, heatmap = np.zeros((1, 1, 12), np.float32), np.zeros((1, 1, 12), np.float32)
    votes[0, 0, 2], votes[0, 0, 3], votes[0, 0, 10] = 4, 1, 6
    heatmap[0, 0, [1, 2, 5, 7, 11]] = 0.75, 0.9, 0.8, 0.95, 1.5
    confidence, strength = peak_support(votes, heatmap, np.array([[0, 0, 2], [0, 0, 10]]), radius_voxels=5)
    np.testing.assert_allclose(confidence, [0.9, 1.0], atol=1e-6)
    np.testing.assert_allclose(strength, [5, 6])


def test_a_distance_that_is_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        density_peaks(np.zeros((2, 2, 2), np.float32), threshold=0.1, separation_voxels=math.nan)


def cast(volume):
    """The volume as a vote map: each voxel that isn't 0 votes for itself."""
    return vote_map(volume, np.zeros((3, *volume.shape), np.float32), threshold=0.0)


@pytest.mark.parametrize("seed", range(60))
def test_a_sparse_vote_map_says_what_the_whole_volume_says(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 28, 3))
    volume = np.zeros(shape, np.float32)
    places = tuple(rng.integers(0, n, 40) for n in shape)
    volume[places] = rng.integers(1, 6, 40) if seed % 2 else rng.uniform(0.1, 3, 40)
    votes = cast(volume)
    np.testing.assert_array_equal(votes.dense(), volume)
    for threshold in (-0.5, 0.0, 0.5, 2.0):
        for separation in (0.0, 1.0, 2.5, 9.5, 1e9):
            settings_ = {"threshold": threshold, "separation_voxels": separation}
            peaks = density_peaks(volume, **settings_)
            np.testing.assert_array_equal(density_peaks(votes, **settings_), peaks)
            np.testing.assert_array_equal(
                peaks_with_plateaus(votes, **settings_), peaks_with_plateaus(volume, **settings_)
            )
    check_peaks(volume, -0.5, 2.5)
    heatmap = rng.uniform(0, 1, shape).astype(np.float32)
    for radius in (0.0, 2.5, 11.0):
        refined = refine_peaks(volume, peaks, radius_voxels=radius)
        np.testing.assert_array_equal(refine_peaks(votes, peaks, radius_voxels=radius), refined)
        found = peak_support(votes, heatmap, peaks, radius_voxels=radius)
        np.testing.assert_array_equal(found, peak_support(volume, heatmap, peaks, radius_voxels=radius))


def test_a_volume_of_several_threads_gives_what_one_gives(monkeypatch):
    rng = np.random.default_rng(5)
    heatmap = np.zeros((60, 210, 205), np.float32)
    places = tuple(rng.integers(0, n, 30_000) for n in heatmap.shape)
    heatmap[places] = rng.uniform(0.2, 1, 30_000)
    offsets = rng.normal(0, 3, (3, *heatmap.shape)).astype(np.float32)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", threads)
        votes = vote_map(heatmap, offsets, threshold=0.4)
        found.append((votes.dense(), density_peaks(votes, threshold=0.1, separation_voxels=5.0)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    z, y, x = (axis.astype(np.int64) for axis in np.nonzero(heatmap > np.float32(0.4)))
    targets = np.floor(np.stack([z, y, x]) + offsets[:, z, y, x].astype(np.float64) + 0.5).astype(int)
    inside = ((targets >= 0) & (targets < np.array(heatmap.shape)[:, None])).all(axis=0)
    expected = np.zeros(heatmap.shape, np.float32)
    np.add.at(expected, tuple(targets[:, inside]), heatmap[z, y, x][inside])
    np.testing.assert_array_equal(found[0][0], expected)


def test_memory_is_that_of_the_foreground_wherever_votes_fall():
    heatmap = np.zeros((180, 190, 200), np.float32)
    heatmap[0, 0, 0] = heatmap[-1, -1, -1] = heatmap[90, 90, 90] = 1
    votes = cast(heatmap)
    assert votes.bricks.nbytes + votes.index.nbytes < heatmap.nbytes / 100
    assert np.count_nonzero(votes.dense()) == 3


@given(shapes, st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_votes_that_come_slab_by_slab_are_those_that_come_at_once(shape, depth, seed):
    heatmap, offsets = votes_to_cast(shape, seed)
    ballots = Ballots(shape, threshold=0.5)
    for first in range(0, shape[0], depth):
        planes = slice(first, first + depth)
        ballots.add(first, heatmap[planes], offsets[:, planes])
    np.testing.assert_array_equal(ballots.vote_map().dense(), algorithm_1(heatmap, offsets, 0.5))
