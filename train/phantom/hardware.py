"""Implants: screws and rods, cement, hip prostheses, sternal wires. Body frame, mm."""

# ruff: noqa: RUF005 - lists that are added to arrays here are vectors
from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from train.phantom.config import PhantomConfig
from train.phantom.scene import SceneBuilder
from train.phantom.spine import VertebraShape
from train.phantom.tables import Tissue
from train.phantom.torso import Torso
from train.phantom.vertebra import arch_size

Float64 = npt.NDArray[np.float64]
SIDES = (-1.0, 1.0)


def add_hardware(
    s: SceneBuilder,
    shapes: list[VertebraShape],
    torso: Torso,
    hips: Float64,
    config: PhantomConfig,
    rng: np.random.Generator,
) -> Float64:
    """Adds implants by chance; returns points (N, 3) of metal, from which streaks start."""
    points: list[Float64] = []
    lower = [v for v in shapes if v.level[0] != "C"]
    own = rng.spawn(1)[0]
    if rng.random() < config.cement_probability:
        for v in lower:
            if rng.random() < (0.8 if v.grade else 0.05):
                s.solid(Tissue.CEMENT, blend_mm=3)
                for _ in range(4):
                    at = rng.uniform(-0.4, 0.4, 3) * [v.half_width_mm, v.half_depth_mm, v.heights_mm[1]]
                    s.ellipsoid(v.to_body_mm(at + v.centroid_mm), rng.uniform(3, 8, 3))
                if own.random() < config.cement_leak_probability:
                    _add_leak(s, v, own)
    if rng.random() < config.screw_probability:
        first, count = int(rng.integers(len(lower))), int(rng.integers(2, 7))
        chosen = lower[first : first + count]
        points += _add_screws(s, chosen, rng)
        if own.random() < config.cage_probability:
            _add_cages(s, chosen, own)
    for hip in hips:
        if rng.random() < config.hip_prosthesis_probability:
            side = np.sign(hip[0])
            s.solid(Tissue.METAL)
            s.ellipsoid(hip, (17, 17, 17))
            s.capsule(hip, hip + [side * 40, -4, -30], 8, 9)
            s.capsule(hip + [side * 40, -4, -30], hip + [side * 36, 0, -160], 9, 5)
            points += [hip, hip + [side * 38, -4, -50]]
        elif own.random() < config.hip_nail_probability:
            points += _add_nail(s, hip, own)
    if rng.random() < config.wires_probability:
        s.solid(Tissue.METAL, hu=-1500)
        top, bottom = torso.sternum_mm
        for share in np.linspace(0.1, 0.9, 6):
            c = top + (bottom - top) * share + [0, 1, 0]
            turn = np.linspace(0, 2 * np.pi, 9)
            s.chain(np.stack([c[0] + 17 * np.cos(turn), c[1] + 8 * np.sin(turn), c[2] + 3 * np.sin(turn)], 1), 0.7)
    return np.array(points).reshape(-1, 3)


def _add_nail(s: SceneBuilder, hip: Float64, rng: np.random.Generator) -> list[Float64]:
    """A lag screw through the femoral neck with a nail in the shaft or a plate beside it."""
    side, plate = np.sign(hip[0]), rng.random() < 0.5
    outer = hip + np.array([side * 50, -4, -50])
    s.solid(Tissue.METAL)
    s.capsule(hip + np.array([side * 2, 0, 4]), outer, 5.0, 5.5)
    top = outer + np.array([-side * (0 if plate else 14), 0, 8 if plate else 48])
    s.capsule(top, outer + np.array([-side * (2 if plate else 14), 4, -130]), 4.0 if plate else 6.5)
    return [hip + np.array([side * 20, -2, -14]), outer]


def _add_leak(s: SceneBuilder, v: VertebraShape, rng: np.random.Generator) -> None:
    """Cement where it shouldn't be: in a disc, in a vein before the body, or along the canal's front."""
    b, h = v.half_depth_mm, v.tallest_mm
    place = rng.integers(3)
    if place == 0:
        end = rng.choice(SIDES)
        s.ellipsoid(
            v.to_body_mm((rng.uniform(-6, 6), rng.uniform(-5, 5), end * (0.5 * h + 2))),
            rng.uniform([4, 4, 1.5], [11, 9, 3]),
        )
    else:
        y = (b + 2) if place == 1 else (-b - 1.5)
        z = rng.uniform(-0.4, 0.4, 2) * h
        s.capsule(
            v.to_body_mm((rng.uniform(-8, 8), y, z[0])), v.to_body_mm((rng.uniform(-8, 8), y, z[1] + 6)), 1.8, 1.0
        )


def _add_cages(s: SceneBuilder, chosen: list[VertebraShape], rng: np.random.Generator) -> None:
    """In the discs between fixed vertebrae: a plastic box with bone and metal marks, or one of titanium."""
    titanium = rng.random() < 0.4
    for lower, upper in pairwise(chosen):
        middle = 0.5 * (lower.to_body_mm(lower.centroid_mm) + upper.to_body_mm(upper.centroid_mm))
        axis, x = upper.origin_mm - lower.origin_mm, lower.axes[:, 0]
        half = np.array([rng.uniform(7, 13), rng.uniform(8, 12), max(0.5 * upper.disc_mm + 0.8, 2.0)])
        if titanium:
            s.group(Tissue.METAL, Tissue.SPONGY, shell_mm=1.5, shell_hu=-2500.0)
        else:
            s.group(Tissue.ORAL_CONTRAST, Tissue.SPONGY, shell_mm=3.0, shell_hu=-rng.uniform(50, 150))
        s.box(middle, half, 1.0, z=axis, x=x)
        s.solid(Tissue.METAL)
        for u, v in ((-1, -1), (1, -1), (0, 1)):
            at = middle + lower.axes @ np.array([0.8 * u * half[0], 0.8 * v * half[1], 0])
            s.ellipsoid(at, (0.7, 0.7, half[2]))


def _add_screws(s: SceneBuilder, chosen: list[VertebraShape], rng: np.random.Generator) -> list[Float64]:
    points: list[Float64] = []
    heads: dict[float, list[Float64]] = {-1.0: [], 1.0: []}
    s.solid(Tissue.METAL)
    for v in chosen:
        k, h = arch_size(v), v.original_heights_mm[2]
        for side in SIDES:
            if rng.random() < 0.05:
                continue
            x = side * (k.canal_half_width + k.pedicle_width)
            head = v.to_body_mm((x * 1.25, k.lamina_y - 8, 0.25 * h))
            tip = v.to_body_mm((x * 0.7, 0.35 * v.half_depth_mm, 0.12 * h))
            s.capsule(head, tip, 3.0, 2.0)
            s.capsule(head - [0, 3, 0], head + [0, 4, 0], 6.0)
            heads[side].append(head - [0, 4, 0])
            points += [head, (head + tip) / 2]
    for line in heads.values():
        if len(line) > 1:
            s.chain(np.array(line), 2.8)
    return points
