"""What age does to the joints of the spine: osteophytes, bridges, Schmorl's nodes, and look-alikes of fractures.

New bone that is joined to a vertebra belongs to its mask, a bridge to either vertebra up to the middle of the disc;
none of it belongs to the body's mask, so that true heights never change. Ossified ligaments belong to no vertebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from train.phantom.config import PhantomConfig
from train.phantom.scene import SceneBuilder
from train.phantom.spine import VertebraShape
from train.phantom.tables import Tissue

Float64 = npt.NDArray[np.float64]
SIDES = (-1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Strut:
    """Part of a bony bridge: a polyline (N, 3) in the body frame and its radii (N,), mm."""

    points: Float64
    radii: Float64


def rim_mm(v: VertebraShape, end: float, turn: float, out: float = 1.0) -> Float64:
    """(3,) body frame: the body's rim at its upper (``end`` 1) or lower (-1) endplate; ``turn`` rad from the front."""
    anterior, _, posterior = v.heights_mm
    depth = out * v.half_depth_mm * np.cos(turn)
    height = 0.5 * (anterior + posterior) + 0.5 * (anterior - posterior) * np.clip(np.cos(turn) / 0.75, -1, 1)
    share = v.top_share if end > 0 else 1 - v.top_share
    z = end * (0.5 * v.tallest_mm - share * (v.tallest_mm - height))
    return v.to_body_mm((out * v.half_width_mm * np.sin(turn), depth, z))


def _bridge(
    lower: VertebraShape, upper: VertebraShape, turn: float, radius: float, bulge: float
) -> tuple[Strut, Strut]:
    """The two halves of a bridge over one disc, that of the lower vertebra first."""
    foot, head = rim_mm(lower, 1.0, turn, 0.96), rim_mm(upper, -1.0, turn, 0.96)
    outwards = rim_mm(lower, 1.0, turn, 1.0 + bulge / lower.half_depth_mm) - foot
    top = foot + outwards * 0.6 + 0.28 * (head - foot)
    middle = 0.5 * (foot + head) + outwards
    under = head + outwards * 0.6 - 0.28 * (head - foot)
    radii = np.array([1.3, 1.0, 0.9]) * radius
    return Strut(np.array([foot, top, middle]), radii), Strut(np.array([head, under, middle]), radii)


def sample_bridges(
    shapes: list[VertebraShape], degeneration: float, config: PhantomConfig, rng: np.random.Generator
) -> dict[int, list[Strut]]:
    """Bridges by VerSe label: single ones, a long thick run along the front (DISH), thin ones all round (Bekhterev)."""
    struts: dict[int, list[Strut]] = {v.label: [] for v in shapes}
    dish, thin = rng.random() < config.dish_probability, rng.random() < config.bamboo_probability
    first, count = int(rng.integers(0, len(shapes) - 4)), int(rng.integers(4, 12))
    side, bulk = (1.0 if rng.random() < 0.8 else -1.0), rng.uniform(2.0, 4.5)
    for n, (lower, upper) in enumerate(pairwise(shapes)):
        if upper.level in ("C1", "C2"):
            continue
        turns: list[tuple[float, float, float]] = []
        small = 0.5 if upper.level[0] == "C" else 1.0
        if dish and first <= n < first + count:
            middle = 0.0 if lower.level[0] != "T" else side * rng.uniform(0.2, 0.9)
            turns += [(middle + d, small * bulk * rng.uniform(0.6, 1.2), rng.uniform(1, 6)) for d in (-0.35, 0.0, 0.35)]
        if thin and rng.random() < 0.85:
            turns += [(t, rng.uniform(0.8, 1.4), rng.uniform(0.3, 1.2)) for t in np.linspace(-1.8, 1.8, 7)]
        if rng.random() < config.bridge_probability * 2 * degeneration:
            turns += [(rng.uniform(-1.7, 1.7), small * rng.uniform(1.5, 3.5), rng.uniform(1, 7))]
        for turn, radius, bulge in turns:
            below, above = _bridge(lower, upper, turn, radius, bulge * small)
            struts[lower.label].append(below)
            struts[upper.label].append(above)
    return struts


def add_bridges(s: SceneBuilder, struts: list[Strut]) -> None:
    """Adds a vertebra's own halves to its group."""
    for strut in struts:
        s.chain(strut.points, strut.radii)


def add_ossified_ligament(
    s: SceneBuilder, shapes: list[VertebraShape], config: PhantomConfig, rng: np.random.Generator
) -> None:
    """Now and then the posterior longitudinal ligament of some neighbours, ossified, in front of the canal."""
    if rng.random() >= config.ossified_ligament_probability:
        return
    cervical = [n for n, v in enumerate(shapes) if v.level[0] == "C" and v.level != "C1"]
    first = int(rng.choice(cervical)) if rng.random() < 0.7 else int(rng.integers(len(shapes) - 2))
    part = shapes[first : first + int(rng.integers(2, 6))]
    points = [v.to_body_mm((0, -v.half_depth_mm - 0.5, share * v.tallest_mm)) for v in part for share in (-0.5, 0.5)]
    s.group(Tissue.CORTEX, Tissue.CORTEX, shell_hu=-rng.uniform(0, 400), core_hu=-rng.uniform(0, 400))
    s.chain(np.array(points), rng.uniform(1.5, 3.0), scale=(2.2, 1.0))


def add_degeneration(s: SceneBuilder, v: VertebraShape, f: int, degeneration: float, rng: np.random.Generator) -> None:
    """Osteophytes at the rims and Schmorl's nodes away from the midline, where the heights are measured."""
    a, b = v.half_width_mm, v.half_depth_mm
    ha, _, hp = v.heights_mm
    for end in (-1.0, 1.0):
        share = v.top_share if end > 0 else 1 - v.top_share
        if rng.random() < 0.75 * degeneration:
            turn = rng.uniform(-1.2, 1.2)
            rim = end * (0.5 * v.tallest_mm - share * (v.tallest_mm - ha))
            at = np.array([0.96 * a * np.sin(turn), 0.94 * b * np.cos(turn), rim - end * 2])
            out = np.array([np.sin(turn), np.cos(turn), 0]) * rng.uniform(1.5, 6) * degeneration
            s.capsule(
                at, at + out + [0, 0, end * rng.uniform(-1, 3.5) * degeneration], 2.4, 1.1, frame=f, scale=(2.2, 1.0)
            )
        if rng.random() < 0.3 * degeneration and v.level[0] != "C":
            x = rng.choice(SIDES) * rng.uniform(0.3, 0.55) * a
            rim = end * (0.5 * v.tallest_mm - share * (v.tallest_mm - 0.5 * (ha + hp)))
            s.ellipsoid((x, rng.uniform(-0.3, 0.3) * b, rim), rng.uniform([2, 2, 1.5], [5, 5, 4]), frame=f, cut=True)
    _add_mimics(s, v, f, rng)
    _add_ridges(s, v, f, degeneration, rng.spawn(1)[0])


def _add_ridges(s: SceneBuilder, v: VertebraShape, f: int, degeneration: float, rng: np.random.Generator) -> None:
    """Osteophytes that run along the rim, as they do where degeneration is advanced."""
    small = 0.6 if v.level[0] == "C" else 1.0
    for end in (-1.0, 1.0):
        if rng.random() >= 0.6 * (degeneration - 0.3) or v.level == "C1":
            continue
        start = rng.uniform(-1.7, 1.0)
        turns = start + np.linspace(0, rng.uniform(0.4, 1.8), 4)
        reach = small * degeneration * rng.uniform(0.5, 4.0, 4)
        points = []
        for turn, out in zip(turns, reach, strict=True):
            at = (rim_mm(v, end, float(turn), 0.97) - v.origin_mm) @ v.axes
            points.append(at + np.array([np.sin(turn) * out, np.cos(turn) * out, end * rng.uniform(-2.0, 1.0)]))
        s.chain(np.array(points), rng.uniform(1.1, 2.4, 4) * small, frame=f)


def _add_mimics(s: SceneBuilder, v: VertebraShape, f: int, rng: np.random.Generator) -> None:
    """Endplates that look broken and are not: limbus corners and Cupid's bows (they leave the midline alone)."""
    a, b = v.half_width_mm, v.half_depth_mm
    if rng.random() < 0.04 and v.level[0] != "C":
        rim = 0.5 * v.tallest_mm - v.top_share * (v.tallest_mm - v.heights_mm[0])
        s.capsule(
            (-0.5 * a, 0.78 * b, rim),
            (0.5 * a, 1.0 * b, rim - 5),
            1.1,
            frame=f,
            x=(1, 0, 0),
            scale=(4.0, 1.0),
            cut=True,
        )
    if rng.random() < 0.12 and v.level[0] == "L":
        floor = -(0.5 * v.tallest_mm - (1 - v.top_share) * (v.tallest_mm - v.heights_mm[2]))
        for side in SIDES:
            s.ellipsoid((side * 0.42 * a, -0.4 * b, floor), (0.3 * a, 0.35 * b, 3.0), frame=f, cut=True)
