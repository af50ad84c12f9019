"""From a network's heatmap and offsets to vertebral centres: votes, density peaks, and their refinement.

The method is Algorithms 1 and 2 (appendix A.1) of the thesis VertFault (Edinburgh, 2024), whose peak search is a
variant of clustering by fast search of density peaks (Rodriguez and Laio 2014). Values are expected to be finite: the
sliding window refuses others. Thresholds are compared as float32, like the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def vote_map(heatmap: np.ndarray, offsets: np.ndarray, *, threshold: float) -> np.ndarray:
    """Algorithm 1: every foreground voxel votes for where its offset points, with its heatmap value as weight.

    A vote goes to the voxel whose centre is nearest, halves up (``floor(v + 0.5)``, in float64); one that lands outside
    the volume is dropped. The thesis tests the unrounded place instead, which differs for half a voxel at the borders.
    Votes are summed in scan order in float32: the same input gives the same bits.

    Args:
        heatmap: (z, y, x) float32, 0..1.
        offsets: (3, z, y, x) float32, voxels in z, y, x order.
        threshold: H_t; foreground is what exceeds it.

    Returns:
        (z, y, x) float32; all zero without foreground.

    Raises:
        ValueError: the shapes don't belong together.
    """
    from runtime.kernels.voting import cast_votes, voxels_above

    if heatmap.ndim != 3 or offsets.shape != (3, *heatmap.shape):
        raise ValueError(f"Offsets of shape {offsets.shape} don't belong to a heatmap of shape {heatmap.shape}.")
    heatmap = _ready(heatmap)
    votes = np.zeros(heatmap.shape, np.float32)
    cast_votes(heatmap, _ready(offsets), voxels_above(heatmap, np.float32(threshold)), votes)
    return votes


def density_peaks(vote_map: np.ndarray, *, threshold: float, separation_voxels: float) -> np.ndarray:
    """Algorithm 2: voxels above the threshold that nothing within the separation exceeds, one for each plateau.

    A voxel is a peak when its value is above ``threshold``, no voxel of its 3x3x3 neighbourhood (at borders, of what
    there is of it) is higher, and every strictly higher voxel lies further away than ``separation_voxels``. Peaks of
    one value that voxels of that value join (26-neighbourhood) are one plateau; of them the one nearest to their mean
    stays, ties to the first in scan order. Equal maxima that aren't joined all stay, however near.

    The thesis looks for higher voxels everywhere; within the separation is enough, so the cost is one pass over the
    volume and some work at each voxel above the threshold.

    Args:
        vote_map: (z, y, x) float32; votes, or for variant H the heatmap itself.
        threshold: eta.
        separation_voxels: lambda.

    Returns:
        (n, 3) int64, z, y, x, in scan order.
    """
    from runtime.kernels.voting import one_per_plateau

    peaks = peaks_with_plateaus(vote_map, threshold=threshold, separation_voxels=separation_voxels)
    if len(peaks) < 2:
        return peaks
    chosen = one_per_plateau(_ready(vote_map), peaks, np.zeros(vote_map.shape, np.uint8))
    return chosen[np.lexsort(chosen.T[::-1])]


def peaks_with_plateaus(vote_map: np.ndarray, *, threshold: float, separation_voxels: float) -> np.ndarray:
    """Algorithm 2 to the letter: as ``density_peaks``, but with every voxel of a plateau that meets its conditions."""
    from runtime.kernels.voting import literal_peaks, voxels_above

    density = _ready(vote_map)
    candidates = voxels_above(density, np.float32(threshold))
    reach = whole_voxels(separation_voxels, max(density.shape))
    return literal_peaks(density, candidates, float(separation_voxels), reach)


def refine_peaks(vote_map: np.ndarray, peaks: np.ndarray, *, radius_voxels: float) -> np.ndarray:
    """Centres between voxels: the mean of the votes within the radius of each peak, weighted by their strength.

    Each voxel's votes count for the nearest peak alone (of equally near ones the first in the list), so neighbours
    don't pull at each other.

    Args:
        vote_map: (z, y, x) float32, not negative.
        peaks: (n, 3) int64, z, y, x.
        radius_voxels: 0 returns the peaks as they are.

    Returns:
        (n, 3) float64, z, y, x; integers are voxel centres.
    """
    return _gathered(vote_map, vote_map, peaks, radius_voxels).means_zyx


def peak_support(
    vote_map: np.ndarray, heatmap: np.ndarray, peaks: np.ndarray, *, radius_voxels: float
) -> tuple[np.ndarray, np.ndarray]:
    """How much speaks for each peak, from the voxels within the radius that are nearer to it than to any other.

    Args:
        vote_map: (z, y, x) float32, not negative.
        heatmap: (z, y, x) float32, 0..1.
        peaks: (n, 3) int64, z, y, x.
        radius_voxels: how far a peak's own voxels may lie.

    Returns:
        Confidence (n,) float64 in 0..1: the highest heatmap value among those voxels, which the network was trained to
        make 1 at a vertebra's centre; and the votes (n,) float64: the sum of the vote map over them.
    """
    gathered = _gathered(vote_map, heatmap, peaks, radius_voxels)
    return np.clip(gathered.maxima, 0.0, 1.0), gathered.sums


@dataclass(frozen=True)
class _Gathered:
    means_zyx: np.ndarray
    sums: np.ndarray
    maxima: np.ndarray


def _gathered(density: np.ndarray, heatmap: np.ndarray, peaks: np.ndarray, radius: float) -> _Gathered:
    from runtime.kernels.voting import gather

    result = _Gathered(np.empty((len(peaks), 3)), np.empty(len(peaks)), np.empty(len(peaks)))
    reach = whole_voxels(radius, max(density.shape))
    places = np.ascontiguousarray(peaks, dtype=np.int64)
    args = (places, float(radius), reach, result.means_zyx, result.sums, result.maxima)
    gather(_ready(density), _ready(heatmap), *args)
    return result


def whole_voxels(distance: float, longest: int) -> int:
    """Whole voxels within a distance, and no more than the ``longest`` axis of a volume has.

    Raises:
        ValueError: the distance is NaN.
    """
    if math.isnan(distance):
        raise ValueError("A distance in voxels cannot be NaN.")
    return int(min(max(distance, 0.0), longest))


def _ready(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)
