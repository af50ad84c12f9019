"""The discs: narrow or full, with gas, calcified, bulging. Unlabelled, and painted before the vertebrae."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from train.phantom.config import PhantomConfig
from train.phantom.scene import SceneBuilder
from train.phantom.spine import VertebraShape
from train.phantom.tables import LEVEL_SIZES, Tissue

Float64 = npt.NDArray[np.float64]


def add_discs(
    s: SceneBuilder,
    shapes: list[VertebraShape],
    *,
    degeneration: float,
    config: PhantomConfig,
    rng: np.random.Generator,
    own: np.random.Generator,
) -> None:
    """Discs between neighbouring bodies; narrow ones often hold gas. ``own`` draws what ``rng`` didn't always draw."""
    for lower, upper in pairwise(shapes):
        if upper.level == "C1":
            continue
        a, b = lower.to_body_mm(lower.centroid_mm), upper.to_body_mm(upper.centroid_mm)
        axis, x = b - a, lower.axes[:, 0] + upper.axes[:, 0]
        half_x = 0.475 * (lower.half_width_mm + upper.half_width_mm)
        half_y = 0.475 * (lower.half_depth_mm + upper.half_depth_mm)
        half_z = float(np.linalg.norm(axis)) * 0.4
        bulge = own.uniform(0.97, 1.04 + 0.06 * degeneration)
        s.solid(Tissue.DISC, hu=own.normal(0, 8))
        s.box(
            (a + b) / 2,
            (half_x * bulge, half_y * bulge, half_z),
            min(half_x, half_y) * 0.8 if half_z > half_y else half_z * 0.9,
            z=axis,
            x=x,
        )
        narrow = upper.disc_mm < 0.6 * LEVEL_SIZES[upper.level].disc_mm
        chance = config.disc_gas_probability * degeneration * (3.0 if narrow else 1.0)
        size = (half_x, half_y, 0.5 * upper.disc_mm)
        middle = 0.5 * (lower.to_body_mm(_plate(lower, 1.0)) + upper.to_body_mm(_plate(upper, -1.0)))
        if rng.random() < chance and upper.level[0] != "C":
            _add_gas(s, middle, size, axis, x, own)
        elif own.random() < config.disc_calcified_probability:
            s.solid(Tissue.PLAQUE, hu=-own.uniform(100, 450), blend_mm=1.0)
            s.ellipsoid(middle, np.array(size) * own.uniform([0.2, 0.2, 0.4], [0.7, 0.7, 0.9]), z=axis, x=x)


def _plate(v: VertebraShape, end: float) -> Float64:
    """Local middle of an endplate."""
    share = v.top_share if end > 0 else 1 - v.top_share
    return np.array([0.0, 0.0, end * (0.5 * v.tallest_mm - share * (v.tallest_mm - v.heights_mm[1]))])


def _add_gas(
    s: SceneBuilder,
    middle: Float64,
    size: tuple[float, float, float],
    axis: Float64,
    x: Float64,
    rng: np.random.Generator,
) -> None:
    """One or two flat bubbles, not quite as dark as air where they are thin."""
    half_x, half_y, half_z = size
    s.solid(Tissue.GAS, hu=rng.uniform(0, 500))
    for _ in range(int(rng.integers(1, 3))):
        radii = (
            half_x * rng.uniform(0.2, 0.75),
            half_y * rng.uniform(0.2, 0.7),
            max(half_z * rng.uniform(0.4, 0.9), 0.8),
        )
        s.ellipsoid(middle + rng.uniform(-0.25, 0.25, 3) * [half_x, half_y, 0.2], radii, z=axis, x=x)


def add_last_disc(s: SceneBuilder, lowest: VertebraShape, sacral_mm: Float64, size: float) -> None:
    """The lumbosacral disc, between the lowest vertebra and the first sacral body's middle."""
    a, axis = lowest.to_body_mm(lowest.centroid_mm), sacral_mm - lowest.to_body_mm(lowest.centroid_mm)
    reach = float(np.linalg.norm(axis))
    start = a + axis * (0.5 * lowest.heights_mm[1] / reach)
    end = sacral_mm - axis * (13 * size / reach)
    s.solid(Tissue.DISC)
    s.box(
        (start + end) / 2,
        (0.9 * lowest.half_width_mm, 0.9 * lowest.half_depth_mm, 0.14 * reach + 2),
        4.0,
        z=axis,
        x=lowest.axes[:, 0],
    )
