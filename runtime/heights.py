"""Anterior, middle and posterior height of a vertebral body, from the endplates of its mask.

In the body's own axes (:mod:`runtime.vertebral_body`) every column of the mask that runs superiorly has a lower and an
upper end, told below the voxel where the mask's share crosses one half. Over the central quarter of the width the
median of both is taken at each depth, which leaves two curves: the endplates in the midline. The body's depth is that
of its section halfway between them, where osteophytes, which grow from the rims, do not reach. The heights are the
distances of the curves at 0.78 of half this depth in front and 0.84 behind, and in the middle, each the median over a
tenth of the depth. (The middle one is taken where, within a quarter of the half depth, the body is most depressed below
the line from front to back, and moved along this line to the middle.) Towards the anterior rim an endplate is held to
1 mm above the parabola through its inner two thirds, so that osteophytes and bridges in the midline add no height.

A body's waist is about 5 % narrower than its endplates and its posterior wall is hollow, so these are the phantom's
measuring points (:class:`train.phantom.PhantomVertebra`: 0.75 of the endplates' half depth). They lie inside the rims
on which a radiologist would put the corner points of a vertebra, where the endplates are up to 1 mm further apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.body_grid import BODY_GRID_MM, INSIDE, Float32, Float64
from runtime.vertebral_body import Body

ANTERIOR_AT, POSTERIOR_AT = 0.78, -0.84
"""Where the anterior and posterior heights are taken, as a fraction of the half depth at mid height."""
_MIDDLE_AT = (-0.24, -0.12, 0.0, 0.12, 0.24)
"""The middle height is taken where, of these places, the body is most depressed below the line from front to back:
that is not always its very middle."""
_WINDOW_HALF_DEPTH = 0.12
_BAND_HALF_WIDTH = 0.25
_SMALLEST_BAND_MM = 3.0
_INNER_HALF_DEPTH = 0.65
_SPUR_MM = 1.0
"""How far an endplate near its rim may rise above the curve of its inner part."""
_LEAST_SHARE = 0.1
"""Of a body's largest height, what the smallest must come to: below, no endplates were found, however it is crushed."""


@dataclass(frozen=True)
class BodyHeights:
    """Heights of a vertebral body, mm."""

    anterior_mm: float
    middle_mm: float
    posterior_mm: float

    def as_array(self) -> Float64:
        """(3,) anterior, middle, posterior, mm."""
        return np.array([self.anterior_mm, self.middle_mm, self.posterior_mm])


Segment = tuple[tuple[float, float, float], tuple[float, float, float]]
"""A lower and an upper end point, RAS+ mm."""


@dataclass(frozen=True)
class HeightEnds:
    """The end points of a body's heights in its midline, RAS+ mm; each pair lies as far apart as its height.

    The middle height is one that was moved to the middle of the body (see above), so its ends may lie off the
    endplates by as much as it was moved.
    """

    anterior: Segment
    middle: Segment
    posterior: Segment


@dataclass(frozen=True)
class BodySize:
    """Heights and their end points, and the depth and width of the body halfway between its endplates, mm."""

    heights: BodyHeights
    ends: HeightEnds
    depth_mm: float
    width_mm: float


def measure_body(body: Body, *, reach: float = 1.0) -> BodySize | None:
    """The heights and size of one body; None where its mask is none of a body: fewer than 8 mm deep, or endplates that
    all but meet or cross.

    Args:
        body: along its own axes.
        reach: how far towards the rims the anterior and posterior heights are taken, as a share of the usual places:
            below 1 for masks whose rims are rounded off, such as a network's.
    """
    share = body.share
    low, high = _ends(share)
    if not np.isfinite(low).any():
        return None
    middle_x, half_width = _midline(share, low, high)
    band = max(_SMALLEST_BAND_MM, _BAND_HALF_WIDTH * half_width)
    columns = np.abs(np.arange(share.shape[2]) - middle_x) <= band
    bottom, top = _median_over(low[:, columns]), _median_over(high[:, columns])
    depth = _depth(share[:, :, columns], bottom, top)
    if depth is None or depth[1] - depth[0] < 8.0 / BODY_GRID_MM:
        return None
    centre, half = 0.5 * (depth[0] + depth[1]), 0.5 * (depth[1] - depth[0])
    at_y: Float64 = (np.arange(len(top), dtype=np.float64) - centre) / half
    upper, lower = _without_spurs(top, at_y), -_without_spurs(-bottom, at_y)
    values = _three_heights(np.asarray(upper - lower), centre, half, reach)
    if not np.isfinite(values).all() or min(values) < _LEAST_SHARE * max(values):
        return None
    heights = BodyHeights(*(float(v) * BODY_GRID_MM for v in values))
    ends = _ends_ras_mm(body, 0.5 * (upper + lower), values, middle_x, (centre, half, reach))
    return BodySize(heights, ends, 2.0 * half * BODY_GRID_MM, 2.0 * half_width * BODY_GRID_MM)


def _ends_ras_mm(
    body: Body, between: Float64, values: Sequence[float], middle_x: float, depth: tuple[float, float, float]
) -> HeightEnds:
    """Where the three heights lie.

    Args:
        body: on its grid.
        between: (y,) z index halfway between the endplates.
        values: the heights, voxels.
        middle_x: x index of the midline.
        depth: y index of the body's middle, its half depth in voxels, and the reach towards the rims.
    """
    centre, half, reach = depth
    segments = []
    for value, at in zip(values, (reach * ANTERIOR_AT, 0.0, reach * POSTERIOR_AT), strict=True):
        y = centre + at * half
        z = _height_near(between, y, _WINDOW_HALF_DEPTH * half)
        index_zyx = [[z - 0.5 * value, y, middle_x], [z + 0.5 * value, y, middle_x]]
        first, second = (tuple(map(float, point)) for point in body.grid.to_ras_mm(index_zyx))
        segments.append(((first[0], first[1], first[2]), (second[0], second[1], second[2])))
    return HeightEnds(*segments)


def _ends(share: Float32) -> tuple[Float64, Float64]:
    """(y, x) lower and upper end of every column in z indices, below the voxel; NaN for empty columns.

    Holes inside a column, such as those of the basal vein, do not end it.
    """
    inside = share > INSIDE
    count = share.shape[0]
    first, last = inside.argmax(axis=0), count - 1 - inside[::-1].argmax(axis=0)
    y, x = np.indices(first.shape)

    def crossing(at: np.ndarray, step: int) -> Float64:
        beyond = np.clip(at + step, 0, count - 1)
        here, there = share[at, y, x].astype(np.float64), share[beyond, y, x].astype(np.float64)
        part = np.clip((here - INSIDE) / np.maximum(here - there, 1e-6), 0.0, 1.0)
        return np.where(inside.any(axis=0), at + step * part, np.nan)

    return crossing(first, -1), crossing(last, 1)


def _median_over(values: Float64) -> Float64:
    """(y,) median over x of the columns there are; NaN where less than half of them are there."""
    known = np.isfinite(values).sum(axis=1)
    enough = (known > 0) & (known * 2 >= values.shape[1])
    out = np.full(len(values), np.nan)
    if enough.any():
        rows, count = np.sort(values[enough], axis=1), known[enough]  # what is not there comes last
        row = np.arange(len(rows))
        out[enough] = 0.5 * (rows[row, (count - 1) // 2] + rows[row, count // 2])
    return out


def _midline(share: Float32, low: Float64, high: Float64) -> tuple[float, float]:
    """x index of the body's middle and its half width, both in voxels, from its section at mid height."""
    between = 0.5 * (low + high)
    level = int(np.rint(np.median(between[np.isfinite(between)])))
    section = share[np.clip(level, 0, len(share) - 1)] > INSIDE
    rows = np.flatnonzero(section.any(axis=1))
    ahead = section[rows[len(rows) // 3] : rows[-1] + 1] if len(rows) else section
    ahead = ahead[ahead.any(axis=1)]
    left = ahead.argmax(axis=1)
    right = ahead.shape[1] - 1 - ahead[:, ::-1].argmax(axis=1)
    if not len(ahead):
        return 0.5 * (share.shape[2] - 1), 0.0
    return float(np.median(0.5 * (left + right))), float(np.percentile(0.5 * (right - left + 1), 75))


def _depth(columns: Float32, bottom: Float64, top: Float64) -> tuple[float, float] | None:
    """First and last y index (of the surface, below the voxel) of the section halfway between the endplates."""
    y = np.flatnonzero(np.isfinite(bottom) & np.isfinite(top))
    if len(y) < 4:
        return None
    core = y[len(y) // 5 : len(y) - len(y) // 5]
    slope, offset = np.polyfit(core, 0.5 * (bottom + top)[core], 1)
    z = np.clip(offset + slope * np.arange(columns.shape[1]), 0, len(columns) - 1.001)
    lower = z.astype(int)
    part = (z - lower)[:, None]
    rows = np.arange(columns.shape[1])
    section = np.median((1 - part) * columns[lower, rows] + part * columns[lower + 1, rows], axis=1)
    inside = np.flatnonzero(section > INSIDE)
    if not len(inside):
        return None
    first, last = int(inside[0]), int(inside[-1])
    return _edge(section, first, -1), _edge(section, last, 1)


def _edge(section: Float64, at: int, step: int) -> float:
    beyond = at + step
    if not 0 <= beyond < len(section):
        return float(at)
    here, there = float(section[at]), float(section[beyond])
    return at + step * (here - INSIDE) / max(here - there, 1e-6)


def _without_spurs(rise: Float64, at_y: Float64) -> Float64:
    """An endplate's outward profile (y,), held in its anterior half to 1 mm above the parabola of its inner part.

    Osteophytes and bridges stand on the anterior rim and rise further; a depressed rim, which is a fracture, stays as
    it is. ``at_y`` is the place of each sample, -1 at the posterior and 1 at the anterior wall.
    """
    inner = (np.abs(at_y) <= _INNER_HALF_DEPTH) & np.isfinite(rise)
    if inner.sum() < 5:
        return rise
    limit = np.polyval(np.polyfit(at_y[inner], rise[inner], 2), at_y) + _SPUR_MM
    return np.where(at_y > 0.0, np.minimum(rise, limit), rise)


def _three_heights(height: Float64, centre: float, half: float, towards_rim: float) -> tuple[float, float, float]:
    """Anterior, middle and posterior height of the profile (y,), voxels."""
    front, back = towards_rim * ANTERIOR_AT, towards_rim * POSTERIOR_AT
    window = _WINDOW_HALF_DEPTH * half
    anterior, posterior = (_height_near(height, centre + at * half, window) for at in (front, back))
    slope = (anterior - posterior) / (front - back)
    middle = min(_height_near(height, centre + at * half, window) - slope * at for at in _MIDDLE_AT)
    return anterior, middle, posterior


def _height_near(height: Float64, at: float, reach: float) -> float:
    """Median height within ``reach`` of the y index ``at`` (at least the nearest three columns)."""
    y = np.arange(len(height))
    near = height[np.abs(y - at) <= max(reach, 1.01)]
    near = near[np.isfinite(near)]
    return float(np.median(near)) if len(near) else float("nan")
