"""Following heat from window to window: where it is, and which windows count there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from runtime.windows import Start, WindowPlan, importance_profiles

CELL = 4
"""Voxels along each axis of the cells in which heat is followed."""

Points = npt.NDArray[np.int64]
Chosen = npt.NDArray[np.bool_]


class Trail:
    """The heat that windows have shown so far, in cells of 4 x 4 x 4 voxels.

    Args:
        plan: all windows of the volume.
        keep: bool, those that may be chosen.
        share: a window counts in a cell of 4 x 4 x 4 voxels when it would have more than this share of the blend at the
            middle of it; elsewhere in the cell one that does not count may have more.
    """

    def __init__(self, plan: WindowPlan, keep: Chosen, *, share: float) -> None:
        self._plan, self._keep, self._share = plan, keep, share
        self._profiles = importance_profiles(plan.window_zyx)
        shape = [-(-n // CELL) for n in plan.shape_zyx]
        self._heat, self._weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def add(self, start: Start, heatmap: np.ndarray) -> None:
        """Take what one window says, (z, y, x) float32: of each cell the highest value, weighed as in the blend."""
        seen = self._plan.inside(start)
        window = tuple(slice(part.start - first, part.stop - first) for part, first in zip(seen, start, strict=True))
        cells = tuple(slice(part.start // CELL, -(-part.stop // CELL)) for part in seen)
        ends = [(part.start % CELL, -part.stop % CELL) for part in seen]
        highest = _highest_by_cell(np.pad(heatmap[window], ends))
        z, y, x = (
            np.pad(profile[part], end).reshape(-1, CELL).mean(axis=1)
            for profile, part, end in zip(self._profiles, window, ends, strict=True)
        )
        weight = z[:, None, None] * y[:, None] * x
        self._heat[cells] += weight * highest
        self._weight[cells] += weight

    def hot(self, threshold: float) -> Points:
        """The middle voxels (n, 3) of the cells whose blended heat is above the threshold, in scan order."""
        return self._middles(np.argwhere(self._heat > np.float32(threshold) * self._weight))

    def windows_at(self, points: Points) -> Chosen:
        """Of the windows that may be chosen, those that count at one of the voxels (n, 3), bool."""
        count = np.zeros(len(self._keep), bool)
        total, weight_of = np.zeros(len(points)), self._weights_at(points)
        for i in np.flatnonzero(self._keep):
            total += weight_of(int(i))
        least = self._share * total
        for i in np.flatnonzero(self._keep):
            count[i] = np.any(weight_of(int(i)) > least)
        return count

    def beyond(self, hot: Points, chosen: Chosen) -> Chosen:
        """Windows for the heights at which none was chosen: where the heat nearest in height is, if they hold bone.

        Args:
            hot: (n, 3) voxels, at least one.
            chosen: bool, the windows that were run.

        Returns:
            bool, one window for each such height at most: the one with the greatest weight there.
        """
        starts = np.array(self._plan.starts_zyx)
        pending = np.zeros(len(self._keep), bool)
        for first in np.setdiff1d(starts[self._keep, 0], starts[chosen, 0]):
            middle = int(np.clip(first + self._plan.window_zyx[0] // 2, 0, self._plan.shape_zyx[0] - 1))
            place = hot[np.argmin(np.abs(hot[:, 0] - middle))].copy()
            place[0] = middle
            here = np.flatnonzero(self._keep & (starts[:, 0] == first))
            weight_of = self._weights_at(place[None])
            weights = [weight_of(int(i))[0] for i in here]
            if max(weights) > 0:
                pending[here[np.argmax(weights)]] = True
        return pending

    def _weights_at(self, points: Points) -> Callable[[int], npt.NDArray[np.float64]]:
        """What gives a window's weights (n,) in the blend at voxels (n, 3); 0 outside of it.

        Windows share their places along each axis with many others, so the weights along each are found once.
        """

        def along(axis: int, start: int) -> npt.NDArray[np.float64]:
            profile, places = self._profiles[axis], points[:, axis] - start
            inside = (places >= 0) & (places < profile.size)
            return np.where(inside, profile[np.where(inside, places, 0)], 0).astype(np.float64)

        starts = self._plan.starts_zyx
        tables = [{start: along(axis, start) for start in {one[axis] for one in starts}} for axis in range(3)]

        def weight_of(window: int) -> npt.NDArray[np.float64]:
            z, y, x = (table[start] for table, start in zip(tables, starts[window], strict=True))
            return np.asarray(z * y * x)

        return weight_of

    def _middles(self, cells: npt.NDArray[np.intp]) -> Points:
        return np.minimum(cells * CELL + CELL // 2, np.array(self._plan.shape_zyx) - 1).astype(np.int64)


def _highest_by_cell(block: np.ndarray) -> np.ndarray:
    """The highest value of each cell; axis by axis, the fastest last, which NumPy does in a tenth of the time."""
    z, y, x = (n // CELL for n in block.shape)
    by_plane = block.reshape(z, CELL, y * CELL * x * CELL).max(axis=1)
    by_row = by_plane.reshape(z, y, CELL, x * CELL).max(axis=2)
    return np.asarray(by_row.reshape(z, y, x, CELL).max(axis=3))
