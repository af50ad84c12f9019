"""Turns vertebra shapes into primitives: bodies, arches with their processes, and the spinal canal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.phantom.config import PhantomConfig
from train.phantom.degeneration import Strut, add_bridges, add_degeneration, sample_bridges
from train.phantom.marrow import BoneHealth, add_marrow, sample_bone_health
from train.phantom.scene import SceneBuilder
from train.phantom.spine import VertebraShape
from train.phantom.tables import Tissue

Float64 = npt.NDArray[np.float64]
SIDES = (-1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Condition:
    """What all vertebrae of a patient share.

    Args:
        thin: 0..1, thins and dulls the cortex.
        health: the spongy bone; bridges: their halves by VerSe label.
        lowest: label of the lowest vertebra; joined_sides: those on which it has joined the sacrum (-1 left, 1 right).
    """

    thin: float
    health: BoneHealth
    bridges: dict[int, list[Strut]]
    lowest: int
    joined_sides: tuple[float, ...]


def sample_condition(
    shapes: list[VertebraShape], thin: float, degeneration: float, config: PhantomConfig, rng: np.random.Generator
) -> Condition:
    """Draws a patient's."""
    joined: tuple[float, ...] = ()
    if rng.random() < config.sacralised_probability:
        joined = ((-1.0,), (1.0,), SIDES)[rng.integers(3)]
    health = sample_bone_health(shapes, degeneration, config, rng)
    bridges = sample_bridges(shapes, degeneration, config, rng)
    return Condition(thin, health, bridges, shapes[0].label, joined)


@dataclass(frozen=True)
class ArchSize:
    """Sizes of the posterior elements of one vertebra, mm (local frame)."""

    canal_half_width: float
    canal_radius: float
    back: float
    pedicle_width: float
    pedicle_height: float
    lamina_height: float

    @property
    def canal_y(self) -> float:
        """Local y of the canal's middle."""
        return self.back - self.canal_radius + 0.5

    @property
    def lamina_y(self) -> float:
        """Local y at which the laminae meet."""
        return self.back - 2 * self.canal_radius - 1.5


def arch_size(shape: VertebraShape) -> ArchSize:
    """The posterior elements that go with a body; ``back`` is the local y of the body's posterior wall."""
    region, b = shape.level[0], shape.half_depth_mm
    height = shape.original_heights_mm[2]
    scale = shape.half_depth_mm / {"C": 7.7, "T": 13.0, "L": 17.0}[region]
    scale = 0.5 + 0.5 * scale
    back = -b + shape.hollow_mm * 0.7
    if region == "L":
        number = int(shape.level[1])
        return ArchSize(
            (9.5 + number) * scale, 8.0 * scale, back, (3.0 + 0.8 * number) * scale, 0.29 * height, 0.34 * height
        )
    if region == "T":
        return ArchSize(8.2 * scale, 7.6 * scale, back, 2.7 * scale, 0.32 * height, 0.46 * height)
    return ArchSize(11.5 * scale, 7.2 * scale, back, 2.6 * scale, 0.3 * height, 0.4 * height)


def _lumbar(s: SceneBuilder, f: int, v: VertebraShape, k: ArchSize, rng: np.random.Generator) -> None:
    h, w, p = v.original_heights_mm[2], k.canal_half_width, k.pedicle_width
    span, droop = v.half_width_mm + rng.uniform(14, 24), rng.uniform(-0.05, 0.15)
    s.capsule(
        (0, k.lamina_y + 2, -0.18 * h),
        (0, k.lamina_y - rng.uniform(24, 31), -0.42 * h),
        0.3 * h,
        0.36 * h,
        frame=f,
        x=(0, 0, 1),
        scale=(1.0, rng.uniform(0.3, 0.5)),
    )
    for side in SIDES:
        s.capsule(
            (side * (w + p), k.back - 3, 0.2 * h),
            (side * span, k.back - 9, (0.2 + droop) * h),
            0.17 * h,
            0.12 * h,
            frame=f,
            x=(0, 0, 1),
            scale=(1.0, 0.6),
        )
        gap, bulk = v.disc_mm * 0.5 + 3.0, 0.9 + 0.08 * int(v.level[1]) * rng.uniform(0.8, 1.2)
        s.capsule(
            (side * (w + p + 1), k.canal_y - 3, 0.15 * h),
            (side * (w + p + 2.5), k.canal_y - 5.5, 0.5 * h + gap),
            6.4 * bulk,
            5.8 * bulk,
            frame=f,
            x=(0.7 * side, -0.7, 0),
            scale=(0.75, 1.15),
        )
        s.capsule(
            (side * (w + 1), k.lamina_y + 1, -0.1 * h),
            (side * (w + 1.5), k.lamina_y + 0.5, -0.5 * h - gap - 2),
            6.2 * bulk,
            5.4 * bulk,
            frame=f,
            x=(0.7 * side, -0.7, 0),
            scale=(0.8, 1.1),
        )


def _thoracic(s: SceneBuilder, f: int, v: VertebraShape, k: ArchSize, rng: np.random.Generator) -> None:
    h, w, p = v.original_heights_mm[2], k.canal_half_width, k.pedicle_width
    number = int(v.level[1:])
    late = max(number - 9, 0) / 3.0
    drop, reach = (1.25 if 4 <= number <= 9 else 0.75) * (1 - 0.6 * late), 27 + 3 * late
    s.capsule(
        (0, k.lamina_y + 2, -0.1 * h),
        (0, k.lamina_y - reach * rng.uniform(0.85, 1.1), -(0.1 + drop) * h),
        0.25 * h,
        0.2 * h,
        frame=f,
        x=(0, 0, 1),
        scale=(1.0, 0.42),
    )
    out, back = (30 - 0.9 * number) * (1 - 0.45 * late), 15 - 6 * late
    for side in SIDES:
        s.capsule(
            (side * (w + p), k.canal_y - 1, 0.18 * h),
            (side * (w * 0.5 + out), k.canal_y - 3 - back, 0.25 * h),
            5.0,
            4.4,
            frame=f,
            scale=(1.0, 0.85),
        )
        s.capsule(
            (side * (w + 1.5), k.canal_y - 3.5, 0.1 * h),
            (side * (w + 1.5), k.canal_y - 4.5, 0.52 * h + 4.5),
            4.4,
            3.6,
            frame=f,
            scale=(1.0, 0.6),
        )
        s.capsule(
            (side * w, k.lamina_y - 0.5, -0.1 * h),
            (side * w, k.lamina_y - 0.5, -0.5 * h - 6.0),
            4.6,
            3.8,
            frame=f,
            scale=(1.0, 0.6),
        )


def _cervical(s: SceneBuilder, f: int, v: VertebraShape, k: ArchSize, rng: np.random.Generator) -> None:
    h, w = v.original_heights_mm[2], k.canal_half_width
    a, number = v.half_width_mm, int(v.level[1])
    long = {2: 20.0, 6: 20.0, 7: 30.0}.get(number, 14.0) * rng.uniform(0.85, 1.15)
    s.capsule(
        (0, k.lamina_y + 1, -0.1 * h),
        (0, k.lamina_y - long, -0.45 * h),
        0.25 * h,
        0.32 * h,
        frame=f,
        x=(0, 0, 1),
        scale=(1.0, 0.6),
    )
    for side in SIDES:
        if number not in (2, 7):
            s.capsule(
                (side * 2, k.lamina_y - long * 0.7, -0.4 * h),
                (side * 5, k.lamina_y - long, -0.5 * h),
                2.6,
                2.0,
                frame=f,
            )
        s.capsule((side * (a - 1), 0, 0), (side * (a + 12), -3, -0.05 * h), 4.6, 3.6, frame=f, scale=(1.1, 0.8))
        s.capsule(
            (side * (w + 5), k.canal_y - 1, -0.62 * h), (side * (w + 5), k.canal_y + 1.0, 0.55 * h), 5.2, 4.8, frame=f
        )
        s.capsule(
            (side * (a * 0.85), 1, 0.3 * h), (side * (a * 0.95), -1, 0.68 * h), 2.6, 1.6, frame=f, scale=(1.0, 1.4)
        )
        s.capsule((side * (a + 4.5), 0, -h), (side * (a + 4.5), 0, h), 2.7, frame=f, cut=True)
    if number == 2:
        s.capsule((0, 0, 0.3 * h), (0, 1, h * 0.5 + 16.5), 6.0, 4.6, frame=f)
        for side in SIDES:
            s.ellipsoid((side * 13, -1, 0.45 * h), (8.5, 8, 5), frame=f)


def _atlas(s: SceneBuilder, f: int, v: VertebraShape) -> None:
    """C1: a ring whose front middle is the body; the ring's plane is the local xy plane, 38 mm deep."""
    t = np.linspace(-0.94 * np.pi, -0.06 * np.pi, 12)
    scale = v.half_width_mm / 11.5
    s.chain(
        np.stack([scale * 22 * np.cos(t), -14 * scale + scale * 25 * np.sin(t), -1 + 0 * t], 1),
        3.8,
        frame=f,
        scale=(1.0, 1.2),
    )
    for side in SIDES:
        s.capsule((side * 9, -0.5, 0), (side * scale * 18, -9, 0), 4.2, 6, frame=f)
        s.ellipsoid((side * scale * 17.5, -12, 0), (7.5, 10, 8.5), frame=f)
        s.capsule((side * scale * 20, -13, -1), (side * scale * 37, -14, -1), 5, 4, frame=f, scale=(1.0, 0.8))
        s.capsule((side * scale * 28.5, -13, -12), (side * scale * 28.5, -13, 12), 2.8, frame=f, cut=True)


def add_vertebra(
    s: SceneBuilder, v: VertebraShape, condition: Condition, config: PhantomConfig, rng: np.random.Generator
) -> int:
    """Adds one whole vertebra as one group, then what its marrow holds; returns its frame."""
    f, thin = s.frame(v.axes, v.origin_mm), condition.thin
    shell = rng.uniform(0.45, 0.95) * (1 - 0.45 * thin)
    s.group(
        Tissue.ARCH_CORTEX,
        Tissue.SPONGY,
        shell_mm=rng.uniform(0.8, 2.0) * (1 - 0.4 * thin),
        body_shell_mm=shell,
        label=v.label,
        blend_mm=1.6,
        core_hu=v.density,
        shell_hu=-200 * thin,
    )
    s.body(v.body_params(), frame=f)
    if v.level == "C1":
        _atlas(s, f, v)
        return f
    k = arch_size(v)
    h, w, p = v.original_heights_mm[2], k.canal_half_width, k.pedicle_width
    for side in SIDES:
        low = 0.2 if v.level[0] != "C" else 0.05
        s.capsule(
            (side * min(w + p, 0.8 * v.half_width_mm), k.back + 4, low * h),
            (side * (w + p), k.canal_y - 2, low * h),
            k.pedicle_height,
            frame=f,
            x=(0, 0, 1),
            scale=(1.0, p / k.pedicle_height),
        )
        s.capsule(
            (side * (w + p * 0.7), k.canal_y - 3, 0.05 * h),
            (0, k.lamina_y - 1, -0.15 * h),
            k.lamina_height,
            k.lamina_height * 0.9,
            frame=f,
            x=(0, 0, 1),
            scale=(1.0, 3.0 / k.lamina_height),
        )
    {"L": _lumbar, "T": _thoracic, "C": _cervical}[v.level[0]](s, f, v, k, rng)
    low, high = -0.5 * h - 3, 0.5 * h + 3
    s.capsule(
        (0, k.canal_y, low),
        (0, k.canal_y, high),
        k.canal_radius,
        frame=f,
        scale=(k.canal_half_width / k.canal_radius, 1.0),
        cut=True,
    )
    own = rng.spawn(1)[0]
    add_degeneration(s, v, f, condition.health.degeneration, rng)
    add_bridges(s, condition.bridges[v.label])
    _add_broken_walls(s, v, f, own)
    if v.label == condition.lowest:
        _add_joined_wings(s, v, f, k, condition.joined_sides, own)
    add_marrow(s, v, f, condition.health, config, own)
    return f


def _add_broken_walls(s: SceneBuilder, v: VertebraShape, f: int, rng: np.random.Generator) -> None:
    """In some fractures the back wall bulges into the canal or the front wall has a step (mask, not body)."""
    a, b = v.half_width_mm, v.half_depth_mm
    if v.grade > 1 and rng.random() < 0.3:
        z = v.top_share * 0.25 * v.heights_mm[2]
        size = (rng.uniform(0.3, 0.6) * a, rng.uniform(2.0, 4.5), rng.uniform(0.18, 0.35) * v.heights_mm[2])
        s.ellipsoid((rng.uniform(-0.2, 0.2) * a, -b + v.hollow_mm, z), size, frame=f)
    if v.grade and rng.random() < 0.25:
        z = rng.uniform(-0.1, 0.3) * v.heights_mm[0]
        turn = np.linspace(-0.9, 0.9, 4)
        rim = np.stack([0.93 * a * np.sin(turn), 0.93 * b * np.cos(turn), np.full(4, z)], 1)
        s.chain(rim, rng.uniform(1.2, 2.2), frame=f)


def _add_joined_wings(
    s: SceneBuilder, v: VertebraShape, f: int, k: ArchSize, sides: tuple[float, ...], rng: np.random.Generator
) -> None:
    """Transverse processes of a sacralised vertebra, broad and down to the sacrum's wings."""
    h, scale = v.original_heights_mm[2], v.half_width_mm / 25.0
    for side in sides:
        start = (side * (k.canal_half_width + k.pedicle_width), k.back - 1, 0.0)
        end = (side * rng.uniform(40, 50) * scale, k.back - 5, -0.5 * h - rng.uniform(2, 7))
        s.capsule(start, end, 8.5 * scale, rng.uniform(10, 13) * scale, frame=f, x=(0, 1, 0), scale=(0.75, 1.0))


def add_canal(s: SceneBuilder, shapes: list[VertebraShape]) -> None:
    """Fat-lined dural sac and cord from the sacrum to the skull (painted before the vertebrae)."""
    points, radii, ends = [], [], []
    for v in shapes:
        y = -16.0 * v.half_width_mm / 11.5 if v.level == "C1" else arch_size(v).canal_y
        points.append(v.to_body_mm((0.0, y, 0.0)))
        radii.append(12.0 if v.level == "C1" else arch_size(v).canal_radius)
        ends.append({"L": 0.0, "T": 3.8, "C": 4.8}[v.level[0]] if v.level != "L1" else 3.0)
    line, r, cord = np.array(points), np.array(radii), np.array(ends)
    line = np.vstack([line[0] + [0, -8, -28], line, line[-1] + [0, 2, 22]])
    r, cord = np.r_[r[0], r, r[-1]], np.r_[0, cord, cord[-1]]
    s.solid(Tissue.FAT, hu=40)
    s.chain(line, r + 1.0, scale=(1.25, 1.0))
    s.solid(Tissue.CSF)
    s.chain(line, r * 0.82, scale=(1.2, 0.95))
    s.solid(Tissue.CORD)
    keep = cord > 0
    s.chain(line[keep], cord[keep], scale=(1.25, 0.9))
