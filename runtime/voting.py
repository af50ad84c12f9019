"""From a network's heatmap and offsets to vertebral centres: votes, density peaks, and their refinement.

The method is Algorithms 1 and 2 (appendix A.1) of the thesis VertFault (Edinburgh, 2024), whose peak search is a
variant of clustering by fast search of density peaks (Rodriguez and Laio 2014). Values are expected to be finite: the
sliding window refuses others. Thresholds are compared as float32, like the values.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from runtime.kernels.threads import ranges_in_threads
from runtime.sparse_volume import SparseVolume, no_bricks

Density = np.ndarray | SparseVolume
"""(z, y, x) float32: votes as ``vote_map`` gives them, or, for variant H, the heatmap itself."""
_VOXELS, _BRICKS = 2**22, 256
"""What a thread is given at least; for less, threads cost more than they save."""


def vote_map(heatmap: np.ndarray, offsets: np.ndarray, *, threshold: float) -> SparseVolume:
    """Algorithm 1: every foreground voxel votes for where its offset points, with its heatmap value as weight.

    A vote goes to the voxel whose centre is nearest, halves up (``floor(v + 0.5)``, in float64); one that lands outside
    the volume is dropped. The thesis tests the unrounded place instead, which differs for half a voxel at the borders.
    Votes are summed in scan order in float32: the same input gives the same bits.

    Args:
        heatmap: (z, y, x) float32, 0..1.
        offsets: (3, z, y, x) float32, voxels in z, y, x order.
        threshold: H_t; foreground is what exceeds it.

    Returns:
        Of the heatmap's shape, holding the bricks that votes fell into: memory is that of the foreground.

    Raises:
        ValueError: the shapes don't belong together.
    """
    if heatmap.ndim != 3 or offsets.shape != (3, *heatmap.shape):
        raise ValueError(f"Offsets of shape {offsets.shape} don't belong to a heatmap of shape {heatmap.shape}.")
    ballots = Ballots(_shape(heatmap), threshold=threshold)
    ballots.add(0, heatmap, offsets)
    return ballots.vote_map()


class Ballots:
    """The votes of a volume whose heatmap and offsets come slab by slab; see ``vote_map``.

    Args:
        shape_zyx: of the whole volume, voxels.
        threshold: H_t.
    """

    def __init__(self, shape_zyx: tuple[int, int, int], *, threshold: float) -> None:
        self._shape, self._threshold = shape_zyx, threshold
        self._weights: list[npt.NDArray[np.float32]] = []
        self._targets: list[npt.NDArray[np.int64]] = []

    def add(self, first: int, heatmap: np.ndarray, offsets: np.ndarray) -> None:
        """Take the votes of the planes from ``first`` on: heatmap (z, y, x), offsets (3, z, y, x). From low z to high.

        The order counts: votes are summed in the order in which they come.
        """
        from runtime.kernels.voting import vote_targets

        flat = _ready(heatmap).reshape(-1)
        foreground = _voxels_above(flat, self._threshold)
        targets = np.empty_like(foreground)
        if foreground.size:
            vote_targets(np.asarray(offsets, np.float32), foreground, first, self._shape[0], targets)
        self._weights.append(flat[foreground])
        self._targets.append(targets)

    def vote_map(self) -> SparseVolume:
        """The sum of all votes taken so far."""
        from runtime.kernels.voting import cast_votes, mark_bricks

        weights = np.concatenate([np.empty(0, np.float32), *self._weights])
        targets = np.concatenate([np.empty(0, np.int64), *self._targets])
        index = no_bricks(self._shape)
        mark_bricks(targets, self._shape, index)
        votes = SparseVolume.of_marked(self._shape, index)
        cast_votes(weights, targets, self._shape, votes.index, votes.bricks)
        return votes


def density_peaks(vote_map: Density, *, threshold: float, separation_voxels: float) -> npt.NDArray[np.int64]:
    """Algorithm 2: voxels above the threshold that nothing within the separation exceeds, one for each plateau.

    A voxel is a peak when its value is above ``threshold``, no voxel of its 3x3x3 neighbourhood (at borders, of what
    there is of it) is higher, and every strictly higher voxel lies further away than ``separation_voxels``. Peaks of
    one value that voxels of that value join (26-neighbourhood) are one plateau; of them the one nearest to their mean
    stays, ties to the first in scan order. Equal maxima that aren't joined all stay, however near.

    The thesis looks for higher voxels everywhere; within the separation is enough, so the cost is some work at each
    voxel above the threshold, after one pass over the volume where it isn't sparse.

    Args:
        vote_map: votes, or for variant H the heatmap itself.
        threshold: eta.
        separation_voxels: lambda.

    Returns:
        (n, 3) int64, z, y, x, in scan order.
    """
    from runtime.kernels.voting import one_per_plateau

    density = _candidates(vote_map, threshold)
    peaks = _literal_peaks(density, threshold, separation_voxels)
    if len(peaks) < 2:
        return peaks
    return _in_scan_order(
        one_per_plateau(density.index, density.bricks, peaks, np.zeros(density.bricks.shape, np.uint8))
    )


def peaks_with_plateaus(vote_map: Density, *, threshold: float, separation_voxels: float) -> npt.NDArray[np.int64]:
    """Algorithm 2 to the letter: as ``density_peaks``, but with every voxel of a plateau that meets its conditions."""
    return _literal_peaks(_candidates(vote_map, threshold), threshold, separation_voxels)


def refine_peaks(vote_map: Density, peaks: np.ndarray, *, radius_voxels: float) -> np.ndarray:
    """Centres between voxels: the mean of the votes within the radius of each peak, weighted by their strength.

    Each voxel's votes count for the nearest peak alone (of equally near ones the first in the list), so neighbours
    don't pull at each other.

    Args:
        vote_map: not negative.
        peaks: (n, 3) int64, z, y, x.
        radius_voxels: 0 returns the peaks as they are.

    Returns:
        (n, 3) float64, z, y, x; integers are voxel centres.
    """
    return _weighed(vote_map, peaks, radius_voxels)[0]


def peak_support(
    vote_map: Density, heatmap: np.ndarray, peaks: np.ndarray, *, radius_voxels: float
) -> tuple[np.ndarray, np.ndarray]:
    """How much speaks for each peak, from the voxels within the radius that are nearer to it than to any other.

    Args:
        vote_map: not negative.
        heatmap: (z, y, x) float32, 0..1.
        peaks: (n, 3) int64, z, y, x.
        radius_voxels: how far a peak's own voxels may lie.

    Returns:
        Confidence (n,) float64 in 0..1: the highest heatmap value among those voxels, which the network was trained to
        make 1 at a vertebra's centre; and the votes (n,) float64: the sum of the vote map over them.
    """
    from runtime.kernels.voting import highest_around

    maxima, places = np.empty(len(peaks)), np.ascontiguousarray(peaks, dtype=np.int64)
    reach = whole_voxels(radius_voxels, max(heatmap.shape))
    highest_around(_ready(heatmap), places, float(radius_voxels), reach, maxima)
    return np.clip(maxima, 0.0, 1.0), _weighed(vote_map, peaks, radius_voxels)[1]


def _weighed(density: Density, peaks: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Means (n, 3) z, y, x and sums (n,) of the votes within the radius that are a peak's own."""
    from runtime.kernels.voting import fill_bricks, mark_around, weigh_around

    shape = density.shape_zyx if isinstance(density, SparseVolume) else _shape(density)
    reach = whole_voxels(radius, max(shape))
    places = np.ascontiguousarray(peaks, dtype=np.int64)
    if not isinstance(density, SparseVolume):
        index = no_bricks(shape)
        mark_around(places, reach, shape, index)
        whole, density = _ready(density), SparseVolume.of_marked(shape, index)
        fill_bricks(whole, density.corners_zyx, density.bricks, np.float32(0))
    means, sums = np.empty((len(peaks), 3)), np.empty(len(peaks))
    weigh_around(density.index, density.bricks, shape, places, float(radius), reach, means, sums)
    return means, sums


def _candidates(density: Density, threshold: float) -> SparseVolume:
    """Bricks that hold all voxels above the threshold; what they hold out of the volume doesn't exceed it."""
    from runtime.kernels.voting import fill_bricks, mark_bricks

    if isinstance(density, SparseVolume):
        if threshold >= 0:
            return density
        density = density.dense()
    whole, shape = _ready(density), _shape(density)
    index = no_bricks(shape)
    mark_bricks(_voxels_above(whole.reshape(-1), threshold), shape, index)
    found = SparseVolume.of_marked(shape, index)
    fill_bricks(whole, found.corners_zyx, found.bricks, np.float32(-np.inf))
    return found


def _literal_peaks(density: SparseVolume, threshold: float, separation_voxels: float) -> npt.NDArray[np.int64]:
    from runtime.kernels.voting import literal_peaks

    reach = whole_voxels(separation_voxels, max(density.shape_zyx))
    where = (density.index, density.corners_zyx, density.bricks)
    parts = ranges_in_threads(
        lambda first, last: literal_peaks(*where, np.float32(threshold), float(separation_voxels), reach, first, last),
        len(density.bricks),
        least=_BRICKS,
    )
    return _in_scan_order(np.concatenate(parts))


def _in_scan_order(places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return places[np.lexsort(places.T[::-1])]


def _voxels_above(flat: np.ndarray, threshold: float) -> npt.NDArray[np.int64]:
    """The indices at which a flat volume exceeds the threshold, in their order."""
    from runtime.kernels.voting import voxels_above

    level = np.float32(threshold)
    parts = ranges_in_threads(lambda first, last: voxels_above(flat, level, first, last), flat.size, least=_VOXELS)
    return np.concatenate(parts)


def _shape(volume: np.ndarray) -> tuple[int, int, int]:
    z, y, x = volume.shape
    return z, y, x


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
