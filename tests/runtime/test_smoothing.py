"""Recursive smoothing against a Gaussian that is written out, and against the library whose filter it is."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from runtime.smoothing import gaussian_smoothed


@pytest.mark.parametrize("sigma", [0.6, 1.5, 4.0])
@pytest.mark.parametrize("shape", [(12, 17, 9), (4, 30, 5)])
def test_it_is_the_filter_of_the_library_but_for_rounding(shape, sigma):
    volume = np.random.default_rng(1).random(shape).astype(np.float32)
    expected = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(volume), sigma))
    np.testing.assert_allclose(gaussian_smoothed(volume, sigma_voxels=sigma), expected, atol=3e-7)


def test_a_point_becomes_a_gaussian_of_the_same_sum():
    volume = np.zeros((31, 33, 35), np.float32)
    volume[15, 16, 17] = 1.0
    smooth = gaussian_smoothed(volume, sigma_voxels=2.0)
    z, y, x = np.indices(volume.shape) - np.array([15, 16, 17])[:, None, None, None]
    gaussian = np.exp(-(z**2 + y**2 + x**2) / (2 * 2.0**2)) / (2.0 * np.sqrt(2 * np.pi)) ** 3
    assert smooth.sum() == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose(smooth, gaussian, atol=0.01 * gaussian.max())


def test_a_constant_stays_and_axes_are_alike():
    np.testing.assert_allclose(gaussian_smoothed(np.full((5, 6, 7), 3.0, np.float32), sigma_voxels=1.5), 3.0, rtol=1e-6)
    volume = np.random.default_rng(2).random((9, 10, 11)).astype(np.float32)
    before = volume.copy()
    smooth = gaussian_smoothed(volume, sigma_voxels=1.2)
    np.testing.assert_array_equal(volume, before)
    for axes in ((2, 0, 1), (1, 2, 0), (0, 2, 1)):
        turned = gaussian_smoothed(volume.transpose(axes), sigma_voxels=1.2)
        np.testing.assert_allclose(turned, smooth.transpose(axes), atol=3e-7)
