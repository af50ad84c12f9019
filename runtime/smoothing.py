"""Smoothing volumes with a Gaussian, at a cost that does not depend on its width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Weights:
    """Of the recursions up and down; see ``runtime.kernels.smoothing.filter_rows``."""

    ahead: Float64
    back: Float64
    feed: Float64


def gaussian_smoothed(volume: Float32, *, sigma_voxels: float) -> Float32:
    """A volume smoothed along its three axes: (z, y, x) float32.

    Deriche's recursive approximation of fourth order, as ITK's ``SmoothingRecursiveGaussianImageFilter`` has it and
    equal to that but for rounding; beyond the volume its outer voxels go on. The sum of a kernel is 1.

    Args:
        volume: (z, y, x) float32.
        sigma_voxels: standard deviation, from about a half voxel.

    Raises:
        ValueError: the volume is empty.
    """
    if not volume.size:
        raise ValueError(f"An empty volume {volume.shape} can't be smoothed.")
    from runtime.kernels.smoothing import filter_rows

    weights = _weights(sigma_voxels)
    out = np.ascontiguousarray(volume, np.float32)
    depth, rows, columns = out.shape
    spare = np.empty_like(out)
    flat = (1, depth, rows * columns)
    filter_rows(out.reshape(flat), weights.ahead, weights.back, weights.feed, spare.reshape(flat))
    turned = np.ascontiguousarray(spare.transpose(0, 2, 1))
    smooth = np.empty_like(turned)
    filter_rows(turned, weights.ahead, weights.back, weights.feed, smooth)
    out = np.ascontiguousarray(smooth.transpose(0, 2, 1))
    filter_rows(out, weights.ahead, weights.back, weights.feed, spare)
    return spare


def _weights(sigma: float) -> _Weights:
    """Deriche's fit of a Gaussian by two damped cosines, R. Deriche, INRIA report 1893 (1993), made to sum to 1."""
    a1, b1, w1, l1 = 1.3530, 1.8151, 0.6681 / sigma, -1.3932 / sigma
    a2, b2, w2, l2 = -0.3531, 0.0902, 2.0787 / sigma, -1.3732 / sigma
    sin1, sin2, cos1, cos2, exp1, exp2 = np.sin(w1), np.sin(w2), np.cos(w1), np.cos(w2), np.exp(l1), np.exp(l2)
    ahead = np.array(
        [
            a1 + a2,
            exp2 * (b2 * sin2 - (a2 + 2 * a1) * cos2) + exp1 * (b1 * sin1 - (a1 + 2 * a2) * cos1),
            2 * exp1 * exp2 * ((a1 + a2) * cos2 * cos1 - b1 * cos2 * sin1 - b2 * cos1 * sin2)
            + a2 * exp1 * exp1
            + a1 * exp2 * exp2,
            exp2 * exp1 * exp1 * (b2 * sin2 - a2 * cos2) + exp1 * exp2 * exp2 * (b1 * sin1 - a1 * cos1),
        ]
    )
    feed = np.array(
        [
            -2 * (exp2 * cos2 + exp1 * cos1),
            4 * cos2 * cos1 * exp1 * exp2 + exp1 * exp1 + exp2 * exp2,
            -2 * cos1 * exp1 * exp2 * exp2 - 2 * cos2 * exp2 * exp1 * exp1,
            exp1 * exp1 * exp2 * exp2,
        ]
    )
    ahead /= 2 * ahead.sum() / (1 + feed.sum()) - ahead[0]
    back = np.append(ahead[1:], 0.0) - feed * ahead[0]
    return _Weights(ahead, back, feed)
