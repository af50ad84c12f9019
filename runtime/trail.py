"""Following heat from window to window: where it is, and which windows count there."""

from __future__ import annotations

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
        highest = _by_cell(np.pad(heatmap[window], ends)).max(axis=(1, 3, 5))
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
        total = np.zeros(len(points))
        for i in np.flatnonzero(self._keep):
            total += self._weights(int(i), points)
        for i in np.flatnonzero(self._keep):
            count[i] = np.any(self._weights(int(i), points) > self._share * total)
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
            weights = [self._weights(int(i), place[None])[0] for i in here]
            if max(weights) > 0:
                pending[here[np.argmax(weights)]] = True
        return pending

    def _weights(self, window: int, points: Points) -> npt.NDArray[np.float64]:
        """A window's weight in the blend at voxels (n, 3); 0 outside of it."""
        weights = np.ones(len(points))
        for axis, (profile, start) in enumerate(zip(self._profiles, self._plan.starts_zyx[window], strict=True)):
            places = points[:, axis] - start
            inside = (places >= 0) & (places < profile.size)
            weights *= np.where(inside, profile[np.where(inside, places, 0)], 0)
        return weights

    def _middles(self, cells: npt.NDArray[np.intp]) -> Points:
        return np.minimum(cells * CELL + CELL // 2, np.array(self._plan.shape_zyx) - 1).astype(np.int64)


def _by_cell(block: np.ndarray) -> np.ndarray:
    z, y, x = (n // CELL for n in block.shape)
    return block.reshape(z, CELL, y, CELL, x, CELL)
