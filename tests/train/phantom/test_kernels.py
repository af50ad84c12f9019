from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runtime.volume import Grid
from tests.train.phantom.helpers import centre_of, clean_appearance
from train.phantom import imaging, kernels, render, sample_anatomy
from train.phantom.scene import BODY, BOX, CAPSULE, ELLIPSOID, PLATE

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-20, 20, (300, 3))
NO_TABLE = np.ones((2, 5))


def _distances(kind: int, *q: float) -> np.ndarray:
    params = np.array([*q, *([0.0] * (10 - len(q)))])
    return np.array([kernels._distance(kind, *point, params, NO_TABLE) for point in POINTS])


def test_a_sphere_is_exact_however_it_is_made() -> None:
    truth = np.linalg.norm(POINTS, axis=1) - 9.0
    np.testing.assert_allclose(_distances(ELLIPSOID, 9, 9, 9), truth, atol=1e-9)
    np.testing.assert_allclose(_distances(CAPSULE, 0, 9, 9, 1, 1), truth, atol=1e-9)
    np.testing.assert_allclose(_distances(BOX, 9, 9, 9, 9), truth, atol=1e-9)


def test_a_capsule_is_the_distance_to_its_segment() -> None:
    nearest = POINTS * [0, 0, 1]
    nearest[:, 2] = np.clip(nearest[:, 2], -6, 6)
    truth = np.linalg.norm(POINTS - nearest, axis=1) - 3
    np.testing.assert_allclose(_distances(CAPSULE, 6, 3, 3, 1, 1), truth, atol=1e-9)


def test_a_plate_is_the_distance_to_its_triangle() -> None:
    corners = np.array([[0.0, 0, 0], [12, 3, -2], [4, 10, 6]])
    s, t = np.meshgrid(np.linspace(0, 1, 201), np.linspace(0, 1, 201))
    s, t = s[s + t <= 1.0000001], t[s + t <= 1.0000001]
    samples = corners[0] + s[:, None] * (corners[1] - corners[0]) + t[:, None] * (corners[2] - corners[0])
    truth = np.array([np.linalg.norm(samples - p, axis=1).min() for p in POINTS[:120]]) - 1.5
    np.testing.assert_allclose(_distances(PLATE, *corners.ravel(), 1.5)[:120], truth, atol=0.05)


@pytest.mark.parametrize("heights", [(20.0, 20.0, 20.0), (12.0, 16.0, 20.0), (19.0, 10.0, 18.0), (9.0, 9.0, 10.0)])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_body_has_its_three_heights(heights: tuple[float, float, float], share: float) -> None:
    params = np.array([20, 15, 0.1, 1.5, *heights, share, 1.0, 0.3])
    along = np.arange(-15, 15, 0.01)
    for v, height in zip((0.75, 0.0, -0.75), heights, strict=True):
        inside = sum(kernels._distance(BODY, 0.0, v * 15, z, params, NO_TABLE) < 0 for z in along)
        assert inside * 0.01 == pytest.approx(height, abs=0.05)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("width", [1.0, 1.7, 4.2])
def test_convolution_is_numpys(axis: int, width: float) -> None:
    source = RNG.normal(size=(9, 8, 7)).astype(np.float32)
    kernel, out = imaging._box(width), np.empty((9, 8, 7), np.float32)
    kernels.convolve(source, kernel, axis, out)
    half = len(kernel) // 2
    padded = np.pad(source, [(half, half) if n == axis else (0, 0) for n in range(3)], mode="edge")
    twin = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    np.testing.assert_allclose(out, twin, atol=1e-5)
    assert kernel.sum() == pytest.approx(1)


def test_texture_is_bounded_varied_and_fixed_in_the_patient() -> None:
    frame = np.array([[1.5, 0, 0, -40], [0, 1.5, 0, 7], [0, 0, 1.5, -300]])
    whole, part = np.empty((20, 18, 16), np.float32), np.empty((6, 5, 4), np.float32)
    kernels.value_noise(frame, whole.shape, 6.0, 5, whole)
    moved = frame.copy()
    moved[:, 3] += 1.5 * np.array([3, 4, 5])
    kernels.value_noise(moved, part.shape, 6.0, 5, part)
    np.testing.assert_allclose(part, whole[5:11, 4:9, 3:7], atol=1e-4)
    assert np.abs(whole).max() <= 1
    assert whole.std() > 0.2
    assert abs(whole.mean()) < 0.15


def test_thick_voxels_are_the_mean_of_thin_ones() -> None:
    anatomy = sample_anatomy(8)
    appearance = replace(clean_appearance(), blur_mm=0.0, sharpen=0.0, slice_mm=0.5)
    centre = centre_of(anatomy, "T10")
    thin, thick = np.eye(4), np.diag([1.0, 1.0, 5.0, 1.0])
    thin[:3, 3] = centre - [20, 20, 17]
    thick[:3, 3] = centre - [20, 20, 15]
    fine = render(anatomy, Grid((35, 40, 40), thin), appearance, np.random.default_rng(0))
    coarse = render(anatomy, Grid((7, 40, 40), thick), appearance, np.random.default_rng(0))
    mean = fine.volume.array.reshape(7, 5, 40, 40).mean(axis=1)
    unclipped = np.abs(mean - coarse.volume.array)
    assert np.quantile(unclipped, 0.99) < 1.0
    np.testing.assert_array_equal(coarse.mask, fine.mask[2::5])
