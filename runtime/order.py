"""Along the spine: which of several points is the more cranial one, also where the spine is tilted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

NEIGHBOURS_MM = (8.0, 60.0)
"""Pairs of points this far apart can be neighbours on a spine, or next but one."""
STEEPEST = 1.0
"""Tilts beyond 45 degrees are not believed: such points are not on one spine."""


@dataclass(frozen=True, eq=False)
class SpineAxis:
    """The direction of a spine as a whole.

    Args:
        direction_ras: (3,) unit vector, RAS+ (x, y, z), towards the head.
    """

    direction_ras: Float64

    def along_mm(self, points_ras_mm: npt.ArrayLike) -> Float64:
        """(n,) position of (n, 3) points along the axis, growing towards the head."""
        along: Float64 = np.asarray(points_ras_mm, np.float64) @ self.direction_ras
        return along


def spine_axis(points_ras_mm: npt.ArrayLike) -> SpineAxis:
    """The axis of the spine whose centres are (n, 3) points, in any order, RAS+ mm; some may be false.

    It is the median, over pairs of points near each other, of how far one goes to the right and to the front per
    millimetre upwards: false centres at both hips or on a rib don't turn it. Straight up for fewer than two points.
    """
    points = np.asarray(points_ras_mm, np.float64).reshape(-1, 3)
    first, second = np.triu_indices(len(points), 1)
    between = points[second] - points[first]
    distance_mm = np.linalg.norm(between, axis=1)
    rise_mm = np.abs(between[:, 2])
    near = (distance_mm >= NEIGHBOURS_MM[0]) & (distance_mm <= NEIGHBOURS_MM[1]) & (rise_mm >= 0.5 * distance_mm)
    slopes = np.median(between[near, :2] / between[near, 2:], axis=0) if near.any() else np.zeros(2)
    direction = np.array([*np.clip(slopes, -STEEPEST, STEEPEST), 1.0])
    return SpineAxis(direction / np.linalg.norm(direction))


def cranial_to_caudal(points_ras_mm: npt.ArrayLike) -> tuple[int, ...]:
    """The indices of (n, 3) points, RAS+ mm, in their order along the spine from the head downwards."""
    points = np.asarray(points_ras_mm, np.float64).reshape(-1, 3)
    along_mm = spine_axis(points).along_mm(points)
    return tuple(int(i) for i in np.argsort(-along_mm, kind="stable"))
