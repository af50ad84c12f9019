"""Votes, peaks and centres of the CUDA kernels are the processor's, bit for bit; see test_in_simulator.py."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import voting as host
from runtime.device import voting as device
from runtime.device.kernels import voting as kernels
from runtime.device.kernels.jit import SIMULATED
from runtime.device.kernels.voting import NOWHERE
from runtime.device.stream import Stream
from runtime.engines.cuda_probe import find_gpu
from tests.runtime.test_voting import KINDS, separations, shapes, sparse, thresholds, votes_to_cast

assert SIMULATED or find_gpu(), "NUMBA_ENABLE_CUDASIM=1 is to be set before Numba is imported"
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def votes_of(heatmap, offsets, threshold):
    with Stream() as on, on.active():
        return on.download(device.vote_map(on.upload(heatmap), on.upload(offsets), on, threshold=threshold))


def peaks_of(density, threshold, separation):
    with Stream() as on, on.active():
        return device.density_peaks(on.upload(density), on, threshold=threshold, separation_voxels=separation)


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@given(shapes, st.sampled_from([0.0, 0.5, 0.7, 1.0]), st.integers(0, 2**32 - 1))
@few
def test_votes(shape, threshold, seed):
    heatmap, offsets = votes_to_cast(shape, seed)
    same(votes_of(heatmap, offsets, threshold), host.vote_map(heatmap, offsets, threshold=threshold).dense())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_peaks(kind):
    @given(kind, thresholds, separations)
    @few
    def check(density, threshold, separation):
        expected = host.density_peaks(density, threshold=threshold, separation_voxels=separation)
        same(peaks_of(density, threshold, separation), expected)

    check()


@given(sparse, st.sampled_from([0.0, 1.0, 1.5, 3.3, 20.0]), separations, st.integers(0, 99))
@few
def test_refined_peaks_and_their_support(density, radius, separation, seed):
    heatmap = np.random.default_rng(seed).uniform(0, 1.2, density.shape).astype(np.float32)
    peaks = host.density_peaks(density, threshold=0.1, separation_voxels=separation)
    with Stream() as on, on.active():
        votes, heat = on.upload(density), on.upload(heatmap)
        same(
            device.refine_peaks(votes, peaks, on, radius_voxels=radius),
            host.refine_peaks(density, peaks, radius_voxels=radius),
        )
        found = device.peak_support(votes, heat, peaks, on, radius_voxels=radius)
    for one, other in zip(found, host.peak_support(density, heatmap, peaks, radius_voxels=radius), strict=True):
        same(one, other)


def test_a_voxel_as_near_to_two_peaks_counts_for_the_first():
    votes = np.zeros((1, 1, 7), np.float32)
    votes[0, 0, [1, 3, 5]] = 5, 2, 5
    peaks = np.array([[0, 0, 1], [0, 0, 5]])
    expected = host.peak_support(votes, votes, peaks, radius_voxels=2.0)[1]
    assert expected.tolist() == [7, 5]
    with Stream() as on, on.active():
        there = on.upload(votes)
        same(device.peak_support(there, there, peaks, on, radius_voxels=2.0)[1], expected)


def test_a_vote_map_like_a_spine():
    """Votes of many voxels on the same places: their sums depend on the order in the last bits."""
    rng = np.random.default_rng(0)
    shape = (26, 9, 8)
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    truth = np.array([[4, 4, 3], [13, 4, 4], [21, 5, 4]])
    far = np.stack([t[:, None, None, None] - np.stack([z, y, x]) for t in truth])
    nearest = (far**2).sum(1).argmin(0)
    offsets = np.take_along_axis(far, nearest[None, None], 0)[0]
    heatmap = np.exp(-(offsets**2).sum(0) / 18).astype(np.float32)
    offsets = (offsets + rng.normal(0, 0.6, offsets.shape)).astype(np.float32)
    expected = host.vote_map(heatmap, offsets, threshold=0.6).dense()
    found = votes_of(heatmap, offsets, 0.6)
    same(found, expected)
    same(votes_of(heatmap, offsets, 0.6), found)
    turned = host.vote_map(heatmap[::-1, ::-1, ::-1], -offsets[:, ::-1, ::-1, ::-1], threshold=0.6).dense()
    assert (turned[::-1, ::-1, ::-1] != expected).any(), "these sums should depend on their order"
    peaks = peaks_of(found, 0.1, 5.0)
    same(peaks, host.density_peaks(expected, threshold=0.1, separation_voxels=5.0))
    assert len(peaks) >= 3


def test_more_than_a_chunk_and_the_ends_of_a_volume():
    heatmap = np.zeros((3, 200, 5), np.float32)
    for end in [(0, 0, 0), (1, 4, 3), (1, 4, 4), (2, 199, 4)]:
        heatmap[end] = 0.9
    with Stream() as on, on.active():
        found = on.download(device.voxels_above(on.upload(heatmap.ravel()), 0.7, on))
    same(found, np.flatnonzero(heatmap > np.float32(0.7)))
    same(peaks_of(heatmap, 0.7, 5.0), host.density_peaks(heatmap, threshold=0.7, separation_voxels=5.0))


def test_a_long_winding_plateau_gives_one_peak():
    density = np.zeros((1, 9, 15), np.float32)
    density[0, ::2] = 1
    density[0, 1::4, -1] = density[0, 3::4, 0] = 1
    assert len(host.peaks_with_plateaus(density, threshold=0.1, separation_voxels=3.0)) > 70
    same(peaks_of(density, 0.1, 3.0), host.density_peaks(density, threshold=0.1, separation_voxels=3.0))


@pytest.mark.skipif(not SIMULATED, reason="looks into a function that is Python in the simulator alone")
def test_a_join_that_another_thread_forestalls_is_made_good(monkeypatch):
    parents = np.arange(4)

    def atomic_min(values, i, value):
        if parents[3] == 3:
            parents[3] = 2  # another thread joins 3 and 2 between this thread's reading and its writing
        met, values[i] = int(values[i]), min(values[i], value)
        return met

    monkeypatch.setattr(kernels, "cuda", SimpleNamespace(atomic=SimpleNamespace(min=atomic_min)))
    kernels._join(parents, 3, 1)
    assert [int(kernels._root(parents, i)) for i in range(4)] == [0, 1, 1, 1]


def test_no_foreground_gives_no_votes_and_no_peaks():
    heatmap = np.full((4, 3, 2), 0.7, np.float32)
    votes = votes_of(heatmap, np.zeros((3, 4, 3, 2), np.float32), 0.7)
    same(votes, np.zeros((4, 3, 2), np.float32))
    peaks = peaks_of(votes, 0.1, 5.0)
    assert peaks.shape == (0, 3)
    with Stream() as on, on.active():
        assert device.refine_peaks(on.upload(votes), peaks, on, radius_voxels=3.0).shape == (0, 3)


def test_votes_that_all_leave_the_volume_are_dropped():
    heatmap = np.ones((2, 2, 2), np.float32)
    offsets = np.full((3, 2, 2, 2), 1e30, np.float32)
    same(votes_of(heatmap, offsets, 0.5), np.zeros((2, 2, 2), np.float32))
    assert int(NOWHERE) == 2**63 - 1


def test_a_distance_that_is_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        peaks_of(np.zeros((2, 2, 2), np.float32), 0.1, math.nan)
