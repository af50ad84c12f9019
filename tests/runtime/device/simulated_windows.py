"""The sliding window on the GPU is the processor's, bit for bit; see test_in_simulator.py."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import windows as host
from runtime.bundle import IntensityWindow
from runtime.device import windows as device
from runtime.device.stream import Stream
from runtime.errors import EngineError
from runtime.intensity import normalise
from tests.runtime.device.fake_session import FakeDeviceSession
from tests.runtime.test_windows import by_position, identity, overlaps

INTENSITY = IntensityWindow(-800.0, 1300.0)
sizes = st.tuples(*[st.integers(1, 7)] * 3)
windows = st.tuples(*[st.integers(1, 5)] * 3)
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def hu_of(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1500, 2000, shape).astype(np.float32)


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def on_gpu(hu, plan, session, **options):
    with Stream() as on, on.active():
        heatmap, offsets = device.sliding_windows(on.upload(hu), plan, session, INTENSITY, on, **options)
        return on.download(heatmap), None if offsets is None else on.download(offsets)


def on_host(hu, plan, session, **options):
    return host.sliding_windows(normalise(hu, INTENSITY), plan, session, batch=session.max_batch, **options)


@given(sizes, windows, overlaps, st.integers(0, 99))
@few
def test_windows_that_reach_a_threshold(shape, window, overlap, seed):
    hu, plan = hu_of(shape, seed), host.plan_windows(shape, window, overlap)
    for threshold in (1500.0, float(hu.max()), 3000.0):
        with Stream() as on, on.active():
            found = device.windows_reaching(on.upload(hu), plan, threshold, on)
        same(found, host.windows_reaching(hu, plan, threshold))


@given(sizes, windows, st.floats(0, 0.6), st.integers(1, 4), st.integers(0, 99))
@few
def test_blended_outputs(shape, window, overlap, batch, seed):
    hu, plan = hu_of(shape, seed), host.plan_windows(shape, window, overlap)
    keep = np.random.default_rng(seed).uniform(size=len(plan.starts_zyx)) < 0.8
    keep[0] = True
    session = FakeDeviceSession(by_position, window, max_batch=batch)
    found = on_gpu(hu, plan, session, keep=keep)
    for one, other in zip(found, on_host(hu, plan, session, keep=keep), strict=True):
        same(one, other)
    assert sum(session.batches) == keep.sum()


def test_progress_is_told_after_each_batch():
    steps = []
    session = FakeDeviceSession(identity, (3, 3, 3), max_batch=2)
    plan = host.plan_windows((3, 3, 11), (3, 3, 3), 0.0)
    on_gpu(hu_of((3, 3, 11)), plan, session, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(2, 4), (4, 4)]


def test_nothing_to_run_gives_an_empty_heatmap():
    session = FakeDeviceSession(identity, (3, 3, 3))
    heatmap, offsets = on_gpu(hu_of((3, 3, 3)), host.plan_windows((3, 3, 3), (3, 3, 3), 0), session, keep=[False])
    assert not heatmap.any()
    assert heatmap.shape == (3, 3, 3)
    assert offsets is None
    assert session.batches == []


def test_a_heatmap_alone_has_no_offsets():
    session = FakeDeviceSession(lambda image: (image.copy(),), (3, 3, 3), names=("heatmap",))
    hu, plan = hu_of((4, 4, 4)), host.plan_windows((4, 4, 4), (3, 3, 3), 0.5)
    heatmap, offsets = on_gpu(hu, plan, session)
    same(heatmap, on_host(hu, plan, session)[0])
    assert offsets is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("where", "name"), [(0, "heatmap"), (1, "offsets")])
def test_values_that_are_not_finite_are_an_engine_error(bad, where, name):
    def network(image):
        outputs = identity(image)
        outputs[where][-1, -1, 1, 2, 0] = bad
        return outputs

    plan = host.plan_windows((4, 4, 4), (3, 3, 3), 0.5)
    with pytest.raises(EngineError, match=f"{name} holds NaN or infinity"):
        on_gpu(hu_of((4, 4, 4)), plan, FakeDeviceSession(network, (3, 3, 3)))


@pytest.mark.parametrize(
    "network",
    [
        lambda image: (image[..., :-1].copy(), np.repeat(image, 3, 1)),
        lambda image: (np.repeat(image, 2, 1), np.repeat(image, 3, 1)),
        lambda image: (image, np.repeat(image, 3, 1)[:, :, 1:].copy()),
        lambda image: (np.repeat(image, 2, 0), np.repeat(image, 3, 1)),
    ],
    ids=["size", "channels", "offset size", "batch"],
)
def test_outputs_of_another_shape_are_an_engine_error(network):
    plan = host.plan_windows((4, 4, 4), (3, 3, 3), 0.5)
    with pytest.raises(EngineError, match="The network's"):
        on_gpu(hu_of((4, 4, 4)), plan, FakeDeviceSession(network, (3, 3, 3)))


def test_a_network_of_another_window_or_without_heatmap_is_refused():
    plan = host.plan_windows((4, 4, 4), (3, 3, 3), 0.5)
    with pytest.raises(EngineError, match=r"windows are \(3, 3, 4\), not \(3, 3, 3\)"):
        on_gpu(hu_of((4, 4, 4)), plan, FakeDeviceSession(identity, (3, 3, 4)))
    with pytest.raises(EngineError, match="met mask"):
        on_gpu(hu_of((4, 4, 4)), plan, FakeDeviceSession(identity, (3, 3, 3), names=("mask",)))
