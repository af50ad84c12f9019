"""Hip bones and thigh bones, in the body frame, mm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from train.phantom.scene import SceneBuilder
from train.phantom.spine import rotation
from train.phantom.tables import Tissue

Float64 = npt.NDArray[np.float64]
SIDES = (-1.0, 1.0)


_WING: tuple[tuple[tuple[float, float, float, float], ...], ...] = (
    ((132, 46, 34, 5.0), (132, 60, 18, 5.2), (130, 74, 0, 5.5), (126, 83, -15, 6.0), (119, 85, -30, 5.5)),
    ((123, 26, 43, 5.5), (117, 32, 20, 3.2), (114, 41, 0, 3.4), (111, 48, -15, 4.2), (105, 55, -30, 6.5)),
    ((109, 8, 42, 5.5), (99, 10, 20, 3.0), (97, 14, 0, 3.4), (96, 22, -15, 5.0), (89, 28, -30, 9.0)),
    ((93, -10, 36, 5.5), (84, -6, 18, 4.5), (82, -2, 0, 7.0), (78, 4, -15, 10.0), (71, 8, -30, 11.5)),
    ((79, -27, 26, 6.0), (73, -25, 12, 8.0), (70, -21, 0, 10.0), (66, -18, -14, 10.0), (59, -15, -29, 8.5)),
    ((69, -44, 14, 6.0), (66, -46, 6, 8.0), (63, -46, -4, 9.5), (57, -43, -17, 8.0), (51, -37, -30, 6.0)),
)
"""Columns of the iliac wing from its front edge to the sacrum: x, y, z and half thickness from the crest down, mm."""
_NECK: tuple[tuple[tuple[float, float, float, float], ...], ...] = (
    ((119, 85, -30, 5.5), (110, 70, -45, 6.0), (106, 62, -62, 8.0)),
    ((105, 55, -30, 6.5), (98, 47, -45, 9.5), (95, 42, -64, 14.0)),
    ((89, 28, -30, 9.0), (87, 24, -45, 10.5), (86, 22, -64, 15.0)),
    ((71, 8, -30, 11.5), (76, 7, -46, 8.0), (80, 4, -64, 9.5)),
)
"""The same between the wing and the block above the hip joint."""
_WIDE_MM = 21.0
_JOINT = 3
"""The columns from this one on touch the sacrum."""


def _placer(side: float, size: float, origin: Float64, tilt_deg: float) -> Callable[[npt.ArrayLike], Float64]:
    """Maps points of the right hip bone's tables into the body frame, turned by ``tilt_deg`` about S1."""
    turn = rotation(tilt_deg, 0, 0)

    def place(points: npt.ArrayLike) -> Float64:
        return (np.asarray(points, float) * size * [side, 1, 1]) @ turn.T + origin

    return place


def add_pelvis(s: SceneBuilder, origin: Float64, size: float, thin: float, rng: np.random.Generator) -> Float64:
    """Hip bones and proximal femora around S1's centre; returns the two hip joint centres (2, 3)."""
    hips = []
    width = rng.uniform(0.93, 1.07)
    own = rng.spawn(1)[0]
    density = own.normal(45, 55) - 120 * thin
    bulk, wall = own.uniform(0.85, 1.15, 2)
    gap, tilt = own.uniform(1.8, 3.5) * size, own.uniform(-12, 12)
    joint = own.uniform(1.2, 3.2)
    for side in SIDES:
        place = _placer(side * width, size, origin, tilt)
        hip = place([93, 30, -85])
        hips.append(hip)
        s.solid(Tissue.MUSCLE, blend_mm=5.0)
        _add_wing(s, place, _WING[_JOINT:], bulk, size, coat_mm=joint)
        s.group(
            Tissue.ARCH_CORTEX,
            Tissue.SPONGY,
            shell_mm=rng.uniform(0.9, 1.7) * (1 - 0.3 * thin),
            blend_mm=5.0,
            shell_hu=-250 * thin - own.uniform(150, 400),
            core_hu=density + own.normal(0, 15),
        )
        _add_wing(s, place, _WING + _NECK, bulk * own.uniform(0.96, 1.04), size)
        _add_columns(s, place, hip, side, wall * own.uniform(0.97, 1.03) * size, size)
        socket = 24.0 * size + gap
        s.ellipsoid(hip, np.full(3, socket), cut=True)
        s.capsule(hip, hip + np.array([side * 42, 8, -20]), socket + 0.5, cut=True)
        s.capsule(place([50, 58, -110]), place([62, 24, -124]), 9 * size, cut=True)
        _add_roof(s, hip, socket, size, density, own)
        _add_femur(s, hip, side, size, thin, rng)
    s.solid(Tissue.CARTILAGE)
    s.ellipsoid(_placer(1.0, size, origin, tilt)([0, 78, -109]), np.array([4, 9, 16]) * size)
    return np.array(hips)


def _add_columns(
    s: SceneBuilder, place: Callable[[npt.ArrayLike], Float64], hip: Float64, side: float, k: float, size: float
) -> None:
    """Socket, posterior column with the ischium, pubis with its two rami."""
    s.ellipsoid(hip + np.array([-side * 3, 0, 1]) * size, np.array([31.0, 32.0, 31.0]) * size)
    posterior = place([[77, 2, -50], [80, -1, -73], [81, -1, -101], [74, -10, -125], [66, -13, -145]])
    s.chain(posterior, np.array([9, 13.0, 15.5, 14, 16]) * k)
    s.chain(place([[68, 34, -89], [76, 14, -109], [70, -4, -129]]), np.array([8, 12, 12]) * k)
    pubis = place([[102, 58, -56], [86, 56, -75], [66, 65, -86], [44, 74, -93], [17, 78, -105]])
    s.chain(pubis, np.array([9, 11.5, 9.5, 8, 11]) * k)
    s.chain(place([[13, 76, -115], [36, 52, -131], [60, 4, -147]]), np.array([9, 6.5, 9]) * k)


def _add_wing(
    s: SceneBuilder,
    place: Callable[[npt.ArrayLike], Float64],
    columns: tuple[tuple[tuple[float, float, float, float], ...], ...],
    bulk: float,
    size: float,
    *,
    coat_mm: float = 0.0,
) -> None:
    """The wing as flat columns that overlap; ``coat_mm`` thickens it."""
    tables = [np.array(column) for column in columns]
    spots = [place(table[:, :3]) for table in tables]
    for n, (spot, table) in enumerate(zip(spots, tables, strict=True)):
        beside = spots[n - 1] if n and len(spots[n - 1]) == len(spot) else spots[n + 1]
        radii = table[:, 3] * bulk * size + coat_mm
        for k in range(len(spot) - 1):
            wide = max(_WIDE_MM * size / (0.5 * float(radii[k] + radii[k + 1])), 1.0)
            start, end = float(radii[k]), float(radii[k + 1])
            s.capsule(spot[k], spot[k + 1], start, end, x=beside[k] - spot[k], scale=(wide, 1.0))


def _add_roof(
    s: SceneBuilder, hip: Float64, socket: float, size: float, density: float, rng: np.random.Generator
) -> None:
    """Dense bone over the joint, a sickle or a fan, and uneven density in the block above it."""
    if rng.random() < 0.6:
        hu = rng.uniform(80, 450)
        s.group(Tissue.SPONGY, Tissue.SPONGY, shell_mm=3.0, shell_hu=0.5 * hu + density, core_hu=hu + density)
        s.ellipsoid(hip + np.array([0, 0, 29]) * size, np.array([16, 17, rng.uniform(5, 16)]) * size)
        s.ellipsoid(hip, np.full(3, socket + 1.0), cut=True)
    uneven = rng.uniform(0, 260) if rng.random() < 0.6 else 0.0
    for _ in range(int(rng.integers(3, 9)) if uneven else 0):
        s.solid(Tissue.SPONGY, hu=density + rng.normal(0, uneven), blend_mm=2.0)
        at = hip + rng.uniform([-11, -13, 32], [9, 13, 58]) * size
        s.ellipsoid(at, rng.uniform(2.0, 7.0, 3), z=rng.normal(size=3))


def _add_femur(s: SceneBuilder, hip: Float64, side: float, size: float, thin: float, rng: np.random.Generator) -> None:
    own = rng.spawn(1)[0]
    flip = np.array([side, 1, 1]) * size
    s.group(
        Tissue.CORTEX,
        Tissue.MARROW,
        shell_mm=own.uniform(0.9, 1.7) * (1 - 0.3 * thin),
        blend_mm=5.0,
        core_hu=rng.uniform(0, 120) - 60 * thin,
        shell_hu=-200 * thin - own.uniform(50, 300),
    )
    turn, k = own.uniform(-4, 10), own.uniform(0.9, 1.12) * size
    tip = hip + np.array([46, turn - 18, -18]) * flip
    root = hip + np.array([37, turn - 10, -42]) * flip
    start = hip + np.array([35, turn - 6, -84]) * flip
    s.ellipsoid(hip, np.full(3, 24.0 * size))
    s.capsule(hip + np.array([8, 0, -5]) * flip, root, 15.5 * k, 18 * k, scale=(0.95, 0.9))
    s.ellipsoid(tip + np.array([0, 0, -8]) * size, np.array([14, 18, 23]) * k)
    s.capsule(root, start, 19 * k, 15.5 * size)
    s.ellipsoid(hip + np.array([22, turn - 22, -66]) * flip, np.array([9, 9, 12]) * k)
    hu = own.uniform(60, 330) - 60 * thin
    s.group(Tissue.SPONGY, Tissue.SPONGY, shell_mm=4.0, shell_hu=0.45 * hu, core_hu=hu, blend_mm=4.0)
    s.capsule(hip + np.array([-3, 0, 12]) * flip, hip + np.array([12, -2, -20]) * flip, 10 * k, 6 * k)
    s.ellipsoid(hip, np.full(3, own.uniform(9, 15) * size))
    s.solid(Tissue.FAT, hu=own.uniform(0, 130) * (1 - thin), blend_mm=4.0)
    s.ellipsoid(tip + np.array([0, 0, -10]) * size, np.array([9, 12, 17]) * k)
    s.group(Tissue.CORTEX, Tissue.FAT, shell_mm=own.uniform(3.5, 6.0) * (1 - 0.3 * thin), blend_mm=5.0)
    s.capsule(start, hip + np.array([32, 4, -330]) * flip, 15.5 * size, 13 * size)
