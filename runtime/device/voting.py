"""From heatmap and offsets on the GPU to centres; the twin of ``runtime.voting``, with the same results to the bit.

Sums of floats depend on their order, so votes are not added as threads happen to come: they are sorted by where they
go and, within that, by where they come from, and one thread sums the votes of a voxel in that order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.device.stream import DeviceArray, Stream
from runtime.voting import whole_voxels

_CHUNK = 1024


def vote_map(heatmap: DeviceArray, offsets: DeviceArray, on: Stream, *, threshold: float) -> DeviceArray:
    """Algorithm 1: (z, y, x) float32; see ``runtime.voting.vote_map``.

    Args:
        heatmap: (z, y, x) float32.
        offsets: (3, z, y, x) float32.
        on: the GPU.
        threshold: H_t.
    """
    from runtime.device.kernels.voting import sum_votes, vote_keys

    flat = heatmap.ravel()
    votes = on.zeros(tuple(heatmap.shape), np.float32)
    foreground = voxels_above(flat, threshold, on)
    if foreground is not None:
        # The sort wants a power of two; the keys that fill it up come last.
        keys = on.empty((1 << int(foreground.size - 1).bit_length(),), np.int64)
        on.launch(vote_keys, keys.size, offsets, foreground, keys)
        _sort(keys, on)
        on.launch(sum_votes, keys.size, keys, flat, foreground, votes.ravel())
    return votes


def density_peaks(
    density: DeviceArray, on: Stream, *, threshold: float, separation_voxels: float
) -> npt.NDArray[np.int64]:
    """Algorithm 2: (n, 3) z, y, x, in scan order; see ``runtime.voting.density_peaks``."""
    from runtime.device.kernels.lists import take
    from runtime.device.kernels.voting import mark_peaks

    reach = whole_voxels(separation_voxels, max(density.shape))
    candidates = voxels_above(density.ravel(), threshold, on)
    if candidates is None:
        return np.empty((0, 3), np.int64)
    marks = on.empty((candidates.size,), np.float32)
    on.launch(mark_peaks, candidates.size, density, candidates, float(separation_voxels), max(reach, 1), marks)
    members = voxels_above(marks, 0.5, on)
    if members is None:  # there is always a highest voxel, but one of NaN
        return np.empty((0, 3), np.int64)
    voxels = on.empty((members.size,), np.int64)
    on.launch(take, members.size, candidates, members, voxels)
    peaks = np.stack(np.unravel_index(on.download(voxels), tuple(density.shape)), axis=1)
    if len(peaks) < 2:
        return peaks
    return _one_per_plateau(peaks, _plateaus(density, candidates, members, on))


def refine_peaks(density: DeviceArray, peaks: npt.NDArray[np.int64], on: Stream, *, radius_voxels: float) -> np.ndarray:
    """(n, 3) float64, z, y, x; see ``runtime.voting.refine_peaks``."""
    return _gathered(density, density, peaks, radius_voxels, on)[0]


def peak_support(
    density: DeviceArray, heatmap: DeviceArray, peaks: npt.NDArray[np.int64], on: Stream, *, radius_voxels: float
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and votes, (n,) float64 each; see ``runtime.voting.peak_support``."""
    _, sums, maxima = _gathered(density, heatmap, peaks, radius_voxels, on)
    return np.clip(maxima, 0.0, 1.0), sums


def voxels_above(values: DeviceArray, threshold: float, on: Stream) -> DeviceArray | None:
    """The indices (n,) int64 at which a flat float32 array exceeds the threshold, in their order; None for none."""
    from runtime.device.kernels.lists import count_above, list_above

    level = np.float32(threshold)
    counts_there = on.zeros((-(-values.size // _CHUNK),), np.int64)
    on.launch(count_above, values.size, values, level, _CHUNK, counts_there)
    counts = on.download(counts_there)
    if not counts.any():
        return None
    chunks = np.flatnonzero(counts).astype(np.int64)
    ends = np.cumsum(counts[chunks])
    found = on.empty((int(ends[-1]),), np.int64)
    places = on.upload(ends - counts[chunks])
    on.launch(list_above, chunks.size, values, level, _CHUNK, on.upload(chunks), places, found)
    return found


def _sort(keys: DeviceArray, on: Stream) -> None:
    from runtime.device.kernels.lists import sort_step

    span = 2
    while span <= keys.size:
        distance = span // 2
        while distance:
            on.launch(sort_step, keys.size, keys, distance, span)
            distance //= 2
        span *= 2


def _plateaus(density: DeviceArray, candidates: DeviceArray, members: DeviceArray, on: Stream) -> npt.NDArray[np.int64]:
    """For each of the candidates ``members`` a number of its plateau, equal where voxels of their value join them."""
    from runtime.device.kernels.lists import number
    from runtime.device.kernels.voting import find_roots, join_plateaus

    parents = on.empty((candidates.size,), np.int64)
    on.launch(number, parents.size, parents)
    on.launch(join_plateaus, candidates.size, density, candidates, parents)
    roots = on.empty((members.size,), np.int64)
    on.launch(find_roots, members.size, parents, members, roots)
    return on.download(roots)


def _one_per_plateau(peaks: npt.NDArray[np.int64], plateaus: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of the peaks of each plateau the one nearest to their mean, ties to the first; all in scan order."""
    _, group, counts = np.unique(plateaus, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), 3), np.int64)
    np.add.at(sums, group, peaks)
    # The number of peaks times the distance to their mean: whole numbers, so that ties are ties.
    far = ((counts[group][:, None] * peaks - sums[group]).astype(np.float64) ** 2).sum(axis=1)
    order = np.lexsort((far, group))
    firsts = np.unique(group[order], return_index=True)[1]
    return peaks[np.sort(order[firsts])]


def _gathered(
    density: DeviceArray, heatmap: DeviceArray, peaks: npt.NDArray[np.int64], radius: float, on: Stream
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means (n, 3), sums (n,) and highest heatmap values (n,) of the peaks' own voxels within the radius."""
    from runtime.device.kernels.voting import gather

    reach = whole_voxels(radius, max(density.shape))
    if not len(peaks):
        return np.empty((0, 3)), np.empty(0), np.empty(0)
    n = len(peaks)
    means, sums, maxima = on.empty((n, 3), np.float64), on.empty((n,), np.float64), on.empty((n,), np.float64)
    on.launch(gather, n, density, heatmap, on.upload(peaks), float(radius), reach, means, sums, maxima)
    return on.download(means), on.download(sums), on.download(maxima)
