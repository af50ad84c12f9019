"""The compiled loops against slow NumPy twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from runtime.kernels.sampling import (
    average_slab,
    highest_of_rows,
    paste_slab,
    paste_slab_aligned,
    sample_slab,
    sample_slab_aligned,
)
from runtime.kernels.threads import each_in_threads, run_slabs
from runtime.looks import mean_of_interleaved


def interpolate_twin(source: np.ndarray, point: np.ndarray) -> float:
    """Trilinear value at one (z, y, x), as a sum over the eight corners."""
    clamped = np.clip(point, 0, np.array(source.shape) - 1)
    low = np.floor(clamped).astype(int)
    share = clamped - low
    total = 0.0
    for corner in np.ndindex(2, 2, 2):
        index = np.minimum(low + corner, np.array(source.shape) - 1)
        total += float(source[tuple(index)]) * np.prod(np.where(np.array(corner) == 1, share, 1 - share))
    return total


def sample_twin(source, matrix, low, high, fill, shape) -> np.ndarray:
    out = np.empty(shape, np.float32)
    for index in np.ndindex(*shape):
        point = matrix @ [*index, 1]
        inside = (point >= low).all() and (point <= high).all()
        out[index] = interpolate_twin(source, point) if inside else fill
    return out


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_sample_slab_equals_its_twin(dtype):
    rng = np.random.default_rng(1)
    source = (rng.normal(size=(5, 1, 7)) * 1000).astype(dtype)
    matrix = np.hstack([rng.normal(size=(3, 3)) * 0.4, [[2.0], [0.0], [3.0]]])
    low, high = np.full(3, -0.5), np.array(source.shape) - 0.5
    out = np.empty((6, 5, 4), np.float32)
    run_slabs(lambda a, b: sample_slab(source, matrix, low, high, np.float32(-9), out, a, b), 6)
    twin = sample_twin(source, matrix, low, high, -9, out.shape)
    assert 0 < np.count_nonzero(twin == -9) < twin.size
    np.testing.assert_allclose(out, twin, rtol=1e-4, atol=2e-2)


def aligned(draw: st.DrawFn) -> np.ndarray:
    """A matrix whose axes are each by themselves, as for scans along the patient's axes."""
    steps = [draw(st.floats(0.3, 3.0)) * draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    shifts = draw(st.tuples(*[st.floats(-4, 8)] * 3) | st.tuples(*[st.integers(-2, 6)] * 3))
    return np.hstack([np.diag(steps), np.array(shifts, np.float64)[:, None]])


shapes_zyx = st.tuples(*[st.integers(1, 9)] * 3)


@given(st.data(), shapes_zyx, shapes_zyx, st.sampled_from([np.int16, np.float32]), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_sampling_along_the_axes_is_the_same_to_the_bit(data, shape, target, dtype, seed):
    source = np.random.default_rng(seed).uniform(-1000, 2000, shape).astype(dtype)
    matrix = aligned(data.draw)
    low, high = np.full(3, -0.5), np.array(shape) - 0.5
    general, quick = np.empty(target, np.float32), np.empty(target, np.float32)
    sample_slab(source, matrix, low, high, np.float32(-9), general, 0, target[0])
    sample_slab_aligned(source, matrix, low, high, np.float32(-9), quick, 0, target[0])
    np.testing.assert_array_equal(quick, general)


@given(st.data(), shapes_zyx, shapes_zyx, st.sampled_from([0.2, 0.5, 1.0]), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_pasting_along_the_axes_is_the_same_to_the_bit(data, shape, target, threshold, is_flat, seed):
    """A map that is just the threshold everywhere, too: what is passed over must not be what would reach it."""
    rng = np.random.default_rng(seed)
    level = np.float32(threshold)
    probability = np.full(shape, level) if is_flat else rng.random(shape, dtype=np.float32)
    matrix = aligned(data.draw)
    labels = rng.integers(0, 3, target).astype(np.uint8)
    confidence = np.where(labels > 0, rng.integers(0, 65536, target), 0).astype(np.uint16)
    general, quick = (labels.copy(), confidence.copy()), (labels.copy(), confidence.copy())
    highest = highest_of_rows(probability)
    np.testing.assert_array_equal(highest, probability.max(axis=2))
    paste_slab(probability, matrix, np.uint8(7), level, *general, 0, target[0])
    paste_slab_aligned(probability, highest, matrix, np.uint8(7), level, *quick, 0, target[0])
    for one, other in zip(quick, general, strict=True):
        np.testing.assert_array_equal(one, other)


def test_average_slab_equals_its_twin():
    rng = np.random.default_rng(2)
    source = rng.integers(-1000, 1000, (9, 8, 10)).astype(np.int16)
    axes, dense = [], []
    for size, cells in zip(source.shape, (3, 2, 4), strict=True):
        starts = np.sort(rng.integers(0, size - 3, cells))
        counts = rng.integers(1, 4, cells)
        weights = rng.random((cells, 3)).astype(np.float32)
        axes += [starts, counts, weights]
        rows = np.zeros((cells, size))
        for cell in range(cells):
            rows[cell, starts[cell] : starts[cell] + counts[cell]] = weights[cell, : counts[cell]]
        dense.append(rows)
    out = np.empty((3, 2, 4), np.float32)
    run_slabs(lambda a, b: average_slab(source, *axes, out, a, b), 3)
    np.testing.assert_allclose(out, np.einsum("az,by,cx,zyx->abc", *dense, source), rtol=1e-4, atol=1e-2)


def test_paste_slab_equals_its_twin():
    rng = np.random.default_rng(3)
    probability = rng.random((4, 5, 6), dtype=np.float32)
    matrix = np.hstack([np.diag([0.5, 0.7, 0.6]) + rng.normal(size=(3, 3)) * 0.05, [[-1.0], [0.1], [0.0]]])
    labels = rng.integers(0, 3, (9, 8, 10)).astype(np.uint8)
    confidence = np.where(labels > 0, rng.integers(0, 65536, labels.shape), 0).astype(np.uint16)
    twin = labels.copy()
    for index in np.ndindex(*labels.shape):
        point = matrix @ [*index, 1]
        if (point < -0.5).any() or (point > np.array(probability.shape) - 0.5).any():
            continue
        value = interpolate_twin(probability, point)
        if value >= 0.5 and (labels[index] == 0 or round(value * 65535) > confidence[index]):
            twin[index] = 7
    run_slabs(lambda a, b: paste_slab(probability, matrix, 7, np.float32(0.5), labels, confidence, a, b), 9)
    assert np.count_nonzero(twin == 7) > 20
    np.testing.assert_array_equal(labels, twin)


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_slabs_cover_everything_once(count):
    seen = np.zeros(count, int)

    def work(first: int, last: int) -> None:
        seen[first:last] += 1

    run_slabs(work, count)
    assert (seen == 1).all()


def test_an_error_in_a_slab_reaches_the_caller():
    def work(first: int, last: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_slabs(work, 8)


@pytest.mark.parametrize("voxels_each", [1, 1000, 2**16, 2**20])
@pytest.mark.parametrize("count", [0, 1, 3, 65, 500])
def test_slabs_cover_all_once_however_small_the_items(count, voxels_each):
    seen = np.zeros(count, int)
    ranges = []

    def work(first: int, last: int) -> None:
        ranges.append(last - first)
        seen[first:last] += 1

    run_slabs(work, count, voxels_each=voxels_each)
    assert (seen == 1).all()
    assert len(ranges) == 1 or min(ranges) * voxels_each >= 2**16


def test_each_item_is_worked_on_in_order_and_errors_come_through():
    assert each_in_threads(lambda i: i * i, list(range(37))) == [i * i for i in range(37)]
    assert each_in_threads(lambda i: i, []) == []
    with pytest.raises(ZeroDivisionError):
        each_in_threads(lambda i: 1 // (i - 20), list(range(37)))


@given(st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 2**16))
@settings(deadline=None, max_examples=25)
def test_interleaved_volumes_are_those_of_scipy_at_half_the_spacing(shape, seed):
    rng = np.random.default_rng(seed)
    first, second = (rng.uniform(0, 1, shape).astype(np.float32) for _ in range(2))
    at = np.indices([2 * n for n in shape]) / 2
    expected = sum(
        ndimage.map_coordinates(volume, at - moved, order=1, mode="nearest", output=np.float64)
        for volume, moved in ((first, 0.0), (second, 0.5))
    )
    np.testing.assert_allclose(mean_of_interleaved(first, second), expected / 2, atol=1e-6)
