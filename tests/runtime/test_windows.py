import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bundle import IntensityWindow
from runtime.engines.base import EngineInfo
from runtime.errors import EngineError
from runtime.intensity import normalise
from runtime.windows import AIR, importance_profiles, plan_windows, sliding_windows, window_slabs, windows_reaching

sizes = st.tuples(*[st.integers(1, 40)] * 3)
windows = st.tuples(*[st.integers(1, 17)] * 3)
overlaps = st.floats(0, 0.9)


class FakeSession:
    """A network made of a function of the batch."""

    info = EngineInfo("fake", "1", "fp32", "CPU", "test")

    def __init__(self, network, names=("heatmap", "offsets")):
        self.network, self.output_names, self.batches = network, names, []

    def __call__(self, image):
        self.batches.append(image.shape[0])
        return self.network(image)

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def identity(image):
    return image.copy(), np.concatenate([image, 2 * image, -image], axis=1)


def image_of(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@given(sizes, windows, overlaps)
@settings(max_examples=300, deadline=None)
def test_every_voxel_is_covered_by_windows_that_stay_inside(shape, window, overlap):
    plan = plan_windows(shape, window, overlap)
    covered = np.zeros(shape, bool)
    for start in plan.starts_zyx:
        covered[plan.inside(start)] = True
        for s, w, n in zip(start, window, shape, strict=True):
            assert (s >= 0 and s + w <= n) if n >= w else (s <= 0 and s + w >= n)
    assert covered.all()
    assert len(set(plan.starts_zyx)) == len(plan.starts_zyx)
    assert plan.padded_zyx == tuple(map(max, shape, window))


@given(st.integers(1, 300), st.integers(1, 64), overlaps)
@settings(max_examples=300, deadline=None)
def test_neighbours_share_at_least_the_overlap_and_no_window_is_needless(size, window, overlap):
    starts = [start[2] for start in plan_windows((1, 1, size), (1, 1, window), overlap).starts_zyx]
    steps = np.diff(starts)
    longest = max(1, int(np.floor(window * (1 - overlap) + 1e-9)))
    assert (steps >= 1).all()
    assert (steps <= longest).all()
    if len(starts) > 1:
        assert (len(starts) - 2) * longest < size - window


def test_a_small_volume_lies_in_the_middle_of_its_window_in_air():
    seen = []
    session = FakeSession(lambda image: (seen.append(image.copy()), identity(image))[1])
    image = np.full((2, 5, 3), 0.5, np.float32)
    sliding_windows(image, plan_windows((2, 5, 3), (4, 5, 8), 0.5), session)
    expected = np.full((4, 5, 8), AIR, np.float32)
    expected[1:3, :, 2:5] = 0.5
    np.testing.assert_array_equal(seen[0][0, 0], expected)


@pytest.mark.parametrize(("shape", "window", "overlap"), [((0, 3, 3), (2, 2, 2), 0.5), ((3, 3, 3), (2, 2, 2), 1.0)])
def test_what_cannot_be_planned_is_refused(shape, window, overlap):
    with pytest.raises(ValueError, match="can be planned"):
        plan_windows(shape, window, overlap)


@pytest.mark.parametrize("size", [1, 2, 5, 32, 96, 128])
def test_importance_is_symmetric_highest_in_the_middle_and_never_zero(size):
    profile = importance_profiles((size, size, size))[0].astype(np.float64)
    np.testing.assert_allclose(profile, profile[::-1])
    assert profile.argmax() == (size - 1) // 2
    assert np.float32(profile.min()) ** 3 > np.finfo(np.float32).tiny


@given(sizes, windows, overlaps, st.floats(-300, 300, width=32))
@settings(max_examples=60, deadline=None)
def test_a_constant_network_gives_that_constant_everywhere(shape, window, overlap, value):
    session = FakeSession(lambda image: (np.full_like(image, value), np.full_like(np.repeat(image, 3, 1), value)))
    heatmap, offsets = sliding_windows(image_of(shape), plan_windows(shape, window, overlap), session, batch=3)
    np.testing.assert_allclose(heatmap, np.full(shape, value), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(offsets, np.full((3, *shape), value), rtol=1e-5, atol=1e-6)


@given(sizes, windows, overlaps)
@settings(max_examples=60, deadline=None)
def test_the_identity_network_reproduces_the_image(shape, window, overlap):
    image = image_of(shape)
    heatmap, offsets = sliding_windows(image, plan_windows(shape, window, overlap), FakeSession(identity), batch=2)
    rounding = 64 * np.finfo(np.float32).eps  # up to 64 windows are summed in single precision
    np.testing.assert_allclose(heatmap, image, atol=rounding)
    np.testing.assert_allclose(offsets, np.stack([image, 2 * image, -image]), atol=2 * rounding)
    assert heatmap.dtype == offsets.dtype == np.float32


def by_position(image):
    """A network whose output depends on the place in the window, so that blending has something to do."""
    z, y, x = np.meshgrid(*[np.linspace(0, 1, n) for n in image.shape[2:]], indexing="ij")
    ramp = (z + 2 * y + 3 * x).astype(np.float32)
    return image * ramp, np.concatenate([image + ramp, image - ramp, image * ramp], axis=1)


def blended_slowly(image, plan, network):
    """The definition: the weighted mean over the windows that see a voxel, in float64."""
    wz, wy, wx = (profile.astype(np.float64) for profile in importance_profiles(plan.window_zyx))
    total, weights = np.zeros((4, *image.shape)), np.zeros(image.shape)
    margin = [(w, w) for w in plan.window_zyx]
    padded = np.pad(image, margin, constant_values=AIR)
    for start in plan.starts_zyx:
        block = padded[tuple(slice(s + w, s + 2 * w) for s, w in zip(start, plan.window_zyx, strict=True))]
        output = np.concatenate(network(block[None, None]), axis=1)[0]
        for index in itertools.product(*map(range, plan.window_zyx)):
            place = tuple(np.add(index, start))
            if all(0 <= p < n for p, n in zip(place, image.shape, strict=True)):
                weight = wz[index[0]] * wy[index[1]] * wx[index[2]]
                total[(slice(None), *place)] += weight * output[(slice(None), *index)]
                weights[place] += weight
    return total / weights


def test_blending_is_the_weighted_mean():
    image = image_of((7, 4, 11))
    plan = plan_windows(image.shape, (4, 6, 5), 0.4)
    heatmap, offsets = sliding_windows(image, plan, FakeSession(by_position), batch=4)
    expected = blended_slowly(image, plan, by_position)
    np.testing.assert_allclose(heatmap, expected[0], atol=2e-6)
    np.testing.assert_allclose(offsets, expected[1:], atol=2e-6)


@pytest.mark.parametrize("session", [identity, lambda image: (image.copy(),)])
def test_windows_are_added_alike_by_one_thread_and_by_many(session, monkeypatch):
    image = image_of((40, 20, 33))
    plan = plan_windows(image.shape, (17, 9, 12), 0.4)
    names = ("heatmap", "offsets")[: len(session(image[None, None]))]
    added = []
    for worth_a_thread in (2**40, 1):
        monkeypatch.setattr("runtime.kernels.threads._WORTH_A_THREAD", worth_a_thread)
        added.append(sliding_windows(image, plan, FakeSession(session, names)))
    for one, many in zip(*added, strict=True):
        np.testing.assert_array_equal(one, many)
    assert added[0][0].any()


def test_the_order_of_windows_does_not_matter():
    image = image_of((20, 17, 23))
    plan = plan_windows(image.shape, (8, 8, 8), 0.5)
    turned = type(plan)(plan.shape_zyx, plan.window_zyx, plan.starts_zyx[::-1])
    one = sliding_windows(image, plan, FakeSession(by_position))
    other = sliding_windows(image, turned, FakeSession(by_position))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_batches_equal_singles_and_are_never_larger_than_asked():
    image = image_of((20, 17, 23))
    plan = plan_windows(image.shape, (8, 8, 8), 0.5)
    single = sliding_windows(image, plan, FakeSession(by_position))
    session = FakeSession(by_position)
    batched = sliding_windows(image, plan, session, batch=7)
    for a, b in zip(single, batched, strict=True):
        np.testing.assert_array_equal(a, b)
    assert sum(session.batches) == len(plan.starts_zyx)
    assert set(session.batches[:-1]) == {7}


def test_skipped_windows_are_not_run_and_leave_zeros():
    image = image_of((8, 8, 24))
    plan = plan_windows(image.shape, (8, 8, 8), 0.0)
    session, steps = FakeSession(by_position), []
    keep = np.array([False, True, False])
    heatmap, offsets = sliding_windows(
        image, plan, session, keep=keep, progress=lambda done, total: steps.append((done, total))
    )
    assert session.batches == [1]
    assert steps == [(1, 1)]
    assert heatmap[:, :, 8:16].any()
    for skipped in (slice(0, 8), slice(16, 24)):
        assert not heatmap[:, :, skipped].any()
        assert not offsets[..., skipped].any()


def test_nothing_to_run_gives_an_empty_heatmap():
    session = FakeSession(by_position)
    heatmap, _ = sliding_windows(image_of((4, 4, 4)), plan_windows((4, 4, 4), (8, 8, 8), 0.5), session, keep=[False])
    assert heatmap.shape == (4, 4, 4)
    assert not heatmap.any()
    assert not session.batches


def test_windows_reaching_looks_at_the_part_of_the_volume_a_window_sees():
    hu = np.full((4, 4, 24), -1000, np.float32)
    hu[1, 1, 9] = 150
    plan = plan_windows(hu.shape, (8, 8, 8), 0.0)
    assert windows_reaching(hu, plan, 150).tolist() == [False, True, False]
    assert windows_reaching(hu, plan, 151).tolist() == [False, False, False]


def test_a_heatmap_alone_has_no_offset_channels():
    image = image_of((6, 6, 6))
    session = FakeSession(lambda block: (block.copy(),), names=("heatmap",))
    heatmap, offsets = sliding_windows(image, plan_windows(image.shape, (4, 4, 4), 0.5), session)
    np.testing.assert_allclose(heatmap, image, atol=1e-6)
    assert offsets.shape == (0, 6, 6, 6)


@pytest.mark.parametrize(
    "network",
    [
        lambda image: (image[..., :-1].copy(), np.repeat(image, 3, 1)),
        lambda image: (np.repeat(image, 2, 1), np.repeat(image, 3, 1)),
        lambda image: (image, np.repeat(image, 3, 1)[:, :, 1:].copy()),
        lambda image: (image[:0], np.repeat(image, 3, 1)),
        lambda image: (image.astype(np.float64), np.repeat(image, 3, 1)),
    ],
    ids=["size", "channels", "offset size", "batch", "dtype"],
)
def test_outputs_of_another_shape_are_an_engine_error(network):
    plan = plan_windows((6, 6, 6), (4, 4, 4), 0.5)
    with pytest.raises(EngineError, match="for an image"):
        sliding_windows(image_of((6, 6, 6)), plan, FakeSession(network))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_values_that_are_not_finite_are_an_engine_error(bad, where):
    def network(image):
        outputs = identity(image)
        outputs[where][0, -1, 1, 2, 3] = bad
        return outputs

    plan = plan_windows((6, 6, 6), (4, 4, 4), 0.5)
    with pytest.raises(EngineError, match="NaN or infinity"):
        sliding_windows(image_of((6, 6, 6)), plan, FakeSession(network))


def test_a_network_without_heatmap_is_refused():
    with pytest.raises(EngineError, match="met mask"):
        sliding_windows(
            image_of((4, 4, 4)), plan_windows((4, 4, 4), (4, 4, 4), 0), FakeSession(identity, names=("mask",))
        )


def blended_at_once(image, plan, network, keep):
    """Weighted sums over the whole volume, window after window in single precision, divided in the end."""
    wz, wy, wx = importance_profiles(plan.window_zyx)
    total, weight = np.zeros((4, *image.shape), np.float32), np.zeros(image.shape, np.float32)
    padded = np.pad(image, [(w, w) for w in plan.window_zyx], constant_values=AIR)
    for start in itertools.compress(plan.starts_zyx, keep):
        block = padded[tuple(slice(s + w, s + 2 * w) for s, w in zip(start, plan.window_zyx, strict=True))]
        output = np.concatenate(network(block[None, None]), axis=1)[0]
        seen = plan.inside(start)
        z, y, x = here = tuple(slice(p.start - s, p.stop - s) for p, s in zip(seen, start, strict=True))
        profile = (wz[z, None, None] * wy[None, y, None]) * wx[None, None, x]
        total[(slice(None), *seen)] += profile * output[(slice(None), *here)]
        weight[seen] += profile
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


@pytest.mark.parametrize("seed", range(40))
def test_slabs_together_are_the_whole_volume_blended_at_once(seed):
    rng = np.random.default_rng(seed)
    shape, window = (tuple(int(n) for n in rng.integers(*span, 3)) for span in ((1, 40), (1, 14)))
    plan = plan_windows(shape, window, rng.uniform(0, 0.8))
    keep = rng.uniform(size=len(plan.starts_zyx)) < rng.choice([0.2, 0.7, 1.0])
    image = image_of(shape, seed)
    expected = blended_at_once(image, plan, by_position, keep)
    found, covered = np.zeros((4, *shape), np.float32), np.zeros(shape[0], int)
    for slab in window_slabs(image, plan, FakeSession(by_position), batch=int(rng.integers(1, 5)), keep=keep):
        assert len(slab.heatmap) <= window[0], "memory should be that of one window's depth"
        found[0, slab.planes], found[1:, slab.planes] = slab.heatmap, slab.offsets
        covered[slab.planes] += 1
    assert covered.max() <= 1
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
    heatmap, offsets = sliding_windows(image, plan, FakeSession(by_position), keep=keep)
    np.testing.assert_array_equal(heatmap, found[0])
    np.testing.assert_array_equal(offsets if len(offsets) else np.zeros_like(found[1:]), found[1:])


def test_windows_are_normalised_one_by_one_as_the_volume_is():
    hu = np.random.default_rng(3).uniform(-1500, 2000, (20, 9, 8)).astype(np.float32)
    plan, intensity = plan_windows(hu.shape, (8, 12, 6), 0.5), IntensityWindow(-400, 1000)
    whole = sliding_windows(normalise(hu, intensity), plan, FakeSession(by_position))
    each = sliding_windows(hu, plan, FakeSession(by_position), intensity=intensity)
    for one, other in zip(whole, each, strict=True):
        np.testing.assert_array_equal(one, other)
