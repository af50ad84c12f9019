"""The compiled loops that find endplates against slow NumPy twins."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.kernels.endplates import axis_between_endplates, surface_normals

SHARPNESS = np.array([4, 4, 4, 10, 10, 10])


def smooth_shape(seed: int, shape=(14, 16, 12)) -> np.ndarray:
    """A tilted, rounded block that reaches the grid's faces here and there, plus a little noise."""
    rng = np.random.default_rng(seed)
    points = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    tilt, _ = np.linalg.qr(np.eye(3) + 0.2 * rng.normal(size=(3, 3)))
    tilt *= np.sign(np.diag(tilt))
    depth = (np.abs(points @ tilt) / [3.5, 7.0, 5.0]).max(axis=-1)
    return (1 / (1 + np.exp(8 * (depth - 1))) + 0.01 * rng.random(shape)).astype(np.float32)


def normals_twin(share: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    gradient = np.stack(np.gradient(share)[::-1], axis=-1).reshape(-1, 3)
    size = np.linalg.norm(gradient, axis=1)
    keep = size > least
    return -gradient[keep] / size[keep, None], size[keep]


def axis_twin(normals: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    ends = [np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])]
    for power in SHARPNESS:
        axis = (ends[0] - ends[1]) / np.linalg.norm(ends[0] - ends[1])
        means = [(sizes * np.clip(sign * (normals @ axis), 0.0, None) ** power) @ normals for sign in (1.0, -1.0)]
        ends = [mean / np.linalg.norm(mean) for mean in means]
    return (ends[0] - ends[1]) / np.linalg.norm(ends[0] - ends[1])


@pytest.mark.parametrize("shape", [(14, 16, 12), (2, 2, 2), (5, 2, 9)])
def test_normals_equal_their_twin(shape):
    share = np.random.default_rng(4).random(shape).astype(np.float32)
    normals, sizes = surface_normals(share, np.float32(0.3))
    expected, expected_sizes = normals_twin(share, 0.3)
    assert 0 < len(sizes) <= share.size
    np.testing.assert_array_equal(sizes, expected_sizes)
    np.testing.assert_array_equal(normals, expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_axis_equals_its_twin_and_is_that_of_the_block(seed):
    normals, sizes = surface_normals(smooth_shape(seed), np.float32(0.05))
    axis = axis_between_endplates(normals, sizes, SHARPNESS)
    np.testing.assert_allclose(axis, axis_twin(normals, sizes), atol=1e-12)
    assert np.linalg.norm(axis) == pytest.approx(1.0)
    assert axis[2] > 0.8
