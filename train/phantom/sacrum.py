"""Sacrum and coccyx: fused bodies that taper backwards, wings up to the hip bones, canal, remnants of discs.

Never labelled: for a network that looks for vertebrae all of it is background, and S1 the likeliest mistake.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from train.phantom.config import PhantomConfig
from train.phantom.scene import SceneBuilder
from train.phantom.spine import VertebraShape, rotation
from train.phantom.tables import Tissue

Float64 = npt.NDArray[np.float64]
SIDES = (-1.0, 1.0)
_SEGMENTS = ((25, 16, 30), (20, 11.5, 26), (16, 9, 21), (13.5, 7, 18), (11, 5.5, 15), (7, 4.5, 11), (5, 3.5, 9))
"""Half width, half depth and height, mm, of S1 to S5 and two pieces of coccyx."""
_BEND_DEG = ((4, 16), (2, 12), (-14, 4), (-32, -8), (-60, -25), (-30, 0))
"""By how much each segment leans further back than the one above it (negative: forwards)."""
_WING = ((57, 16.0), (53, 15.0), (44, 12.0), (30, 9.0))
"""Reach from the midline and radius, mm, of the lateral mass of S1 to S4."""


@dataclass(frozen=True, eq=False)
class Segment:
    """One sacral or coccygeal segment: axes (3, 3) and middle in the body frame, half width, half depth, height."""

    axes: Float64
    centre: Float64
    half_width: float
    half_depth: float
    height: float

    def at(self, x: float, y: float, z: float) -> Float64:
        """A local point (mm) in the body frame."""
        return self.centre + self.axes @ np.array([x, y, z])


def _segments(lowest: VertebraShape, size: float, rng: np.random.Generator) -> list[Segment]:
    """Poses of all segments under the lowest vertebra; their front walls form one smooth curve."""
    lean = float(np.rad2deg(np.arctan2(lowest.axes[1, 2], lowest.axes[2, 2])))
    tilt = float(np.clip(lean + rng.uniform(8, 26), 14, 64))
    axes = rotation(tilt, 0, 0)
    top = lowest.origin_mm - lowest.axes[:, 2] * (0.5 * lowest.tallest_mm + 0.5 * lowest.disc_mm)
    top = top - axes[:, 2] * 0.5 * lowest.disc_mm
    sizes = np.array(_SEGMENTS, float) * size
    sizes[1:] *= rng.uniform(0.88, 1.12, (len(sizes) - 1, 3))
    out = []
    for n, (a, b, h) in enumerate(sizes):
        out.append(Segment(axes, top - axes[:, 2] * h / 2, float(a), float(b), float(h)))
        if n + 1 < len(sizes):
            top = out[-1].at(0, 0.85 * (b - sizes[n + 1][1]), -h / 2)
            tilt += rng.uniform(*_BEND_DEG[n])
            axes = rotation(tilt, 0, 0)
    return out


def add_sacrum(
    s: SceneBuilder, lowest: VertebraShape, size: float, thin: float, config: PhantomConfig, rng: np.random.Generator
) -> Float64:
    """Adds S1 to S5 and the coccyx; returns (3,) the middle of S1 in the body frame."""
    segments = _segments(lowest, size, rng)
    core = rng.normal(-25, 15)
    s.group(
        Tissue.ARCH_CORTEX,
        Tissue.SPONGY,
        shell_mm=rng.uniform(0.8, 1.5) * (1 - 0.3 * thin),
        blend_mm=4.0,
        shell_hu=-200 * thin - 120,
        core_hu=core,
    )
    _add_bodies(s, segments, rng)
    wide, tall = rng.uniform(0.94, 1.12), rng.uniform(0.92, 1.15)
    _add_wings(s, segments, wide * size, tall * size)
    _add_back_wall(s, segments[:4], size)
    for upper, lower in pairwise(segments[:5]):
        for side in SIDES:
            hole = (upper.centre + lower.centre) / 2 + upper.axes[:, 0] * side * (upper.half_width * 0.95 + 3)
            radius = 0.18 * upper.height
            s.capsule(hole + upper.axes[:, 1] * 14, hole - upper.axes[:, 1] * 28, radius, cut=True)
    _add_canal(s, segments[:4], size)
    _add_marrow(s, segments, wide * size, thin, rng)
    _add_junctions(s, segments, size, config, rng)
    return segments[0].centre


def _add_bodies(s: SceneBuilder, segments: list[Segment], rng: np.random.Generator) -> None:
    first = segments[0]
    h, back = first.height, rng.uniform(0.8, 0.95)
    f = s.frame(first.axes, first.centre)
    s.body([first.half_width, first.half_depth, 0.04, 0.5, h, h - 1.0, h * back, 0.1, 1.5, 0.2], frame=f)
    for above, part in pairwise(segments):
        cap = 2.0
        upper = min(above.half_depth, 1.12 * part.half_depth)
        s.capsule(
            part.at(0, 0.85 * (upper - part.half_depth) * -0.5, part.height / 2 - 0.6),
            part.at(0, 0, -part.height / 2 + 0.6),
            cap * upper / part.half_depth,
            cap * 0.95,
            x=part.axes[:, 0],
            scale=(part.half_width / cap, part.half_depth / cap),
        )


def _add_wings(s: SceneBuilder, segments: list[Segment], wide: float, tall: float) -> None:
    """Transverse parts of S1 to S4 and the lateral masses in which they fuse."""
    for side in SIDES:
        ends, radii = [], []
        for part, (reach, radius) in zip(segments, _WING, strict=False):
            r, out = radius * tall, reach * wide
            end = part.at(side * (out - 0.5 * r), -0.75 * r, -0.1 * r)
            start = part.at(side * part.half_width * 0.6, -0.15 * part.half_depth, 1)
            s.capsule(start, end, 0.8 * r, r, x=part.axes[:, 1], scale=(0.95, 1.0))
            ends.append(end)
            radii.append(0.85 * r)
        s.chain(np.array(ends), radii, x=segments[0].axes[:, 1])


def _add_back_wall(s: SceneBuilder, segments: list[Segment], size: float) -> None:
    """Fused laminae behind the canal, with the median crest and the pillars that carry them."""
    wall = np.array([p.at(0, -p.half_depth - (13 - 1.5 * n) * size, 0) for n, p in enumerate(segments)])
    wall = np.vstack([wall[0] + segments[0].axes[:, 2] * 9 * size, wall])
    s.chain(wall, np.array([4.2, 4.2, 3.8, 3.4, 3.0]) * size, scale=(3.0, 1.0))
    for n, p in enumerate(segments):
        k = size * (1 - 0.2 * n)
        b = p.half_depth
        s.capsule(p.at(0, -b - 14 * k, 3), p.at(0, -b - 21 * k, -3), 5 * k, frame=0, x=p.axes[:, 0], scale=(0.6, 1.3))
        for side in SIDES:
            x = side * (p.half_width * 0.75 + 1)
            s.capsule(p.at(x, -0.4 * b, 0), p.at(x, -b - 11 * k, 0), 4.5)


def _add_canal(s: SceneBuilder, segments: list[Segment], size: float) -> None:
    first = segments[0]
    line = [first.at(0, -first.half_depth - 7 * size, 0.8 * first.height)]
    line += [p.at(0, -p.half_depth - (5.5 - n) * size, 0) for n, p in enumerate(segments)]
    s.chain(np.array(line), np.array([8.0, 7.0, 5.5, 4.2, 3.0]) * size, scale=(1.5, 0.85), cut=True)


def _add_marrow(s: SceneBuilder, segments: list[Segment], size: float, thin: float, rng: np.random.Generator) -> None:
    """Fatty marrow in the lateral masses of S1 and S2."""
    hu = rng.uniform(-130, 0) * (0.5 + thin)
    s.group(Tissue.SPONGY, Tissue.SPONGY, shell_mm=4.0, shell_hu=0.5 * hu - 20, core_hu=hu - 20)
    for part, (reach, _) in zip(segments[:2], _WING, strict=False):
        for side in SIDES:
            middle = part.at(side * (0.45 * part.half_width + 0.48 * reach * size), -0.6 * part.half_depth, -1)
            s.ellipsoid(middle, np.array([0.16 * reach, 7.5, 9.0]) * size, z=part.axes[:, 2])


def _add_junctions(
    s: SceneBuilder, segments: list[Segment], size: float, config: PhantomConfig, rng: np.random.Generator
) -> None:
    """Between the segments: what remains of a disc between its two dense endplates, a dense line, or nothing."""
    lumbarised = rng.random() < config.lumbarised_probability
    for n, (upper, lower) in enumerate(pairwise(segments[:5])):
        middle = (upper.at(0, 0, -upper.height / 2) + lower.at(0, 0, lower.height / 2)) / 2
        a, b = 0.5 * (upper.half_width + lower.half_width), 0.5 * (upper.half_depth + lower.half_depth)
        axis, x, fate = upper.axes[:, 2] + lower.axes[:, 2], upper.axes[:, 0], rng.random()
        if (lumbarised and n == 0) or fate < config.sacral_disc_probability * (1 - 0.2 * n):
            half = rng.uniform(1.6, 2.6) * size if lumbarised and n == 0 else rng.uniform(0.5, 1.8) * size
            share = rng.uniform(0.85, 1.0) if lumbarised and n == 0 else rng.uniform(0.5, 0.95)
            shell = rng.uniform(0.8, 1.4)
            s.group(Tissue.CORTEX, Tissue.DISC, shell_mm=shell, shell_hu=-rng.uniform(100, 450))
            s.box(middle, (share * a, share * b, half + shell), 0.9 * (half + shell), z=axis, x=x)
        elif fate < 0.85:
            s.solid(Tissue.SPONGY, hu=rng.uniform(60, 420))
            s.box(middle, (0.8 * a, rng.uniform(0.5, 0.9) * b, rng.uniform(0.5, 1.1)), 0.45, z=axis, x=x)
