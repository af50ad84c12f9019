"""The bones around the spine: sacrum, pelvis, ribs and sternum, shoulders, skull. All in the body frame, mm."""

# ruff: noqa: RUF005 - lists that are added to arrays here are vectors
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from train.phantom.scene import SceneBuilder
from train.phantom.spine import VertebraShape, rotation
from train.phantom.tables import Tissue
from train.phantom.torso import Torso

Float64 = npt.NDArray[np.float64]
SIDES = (-1.0, 1.0)


def add_sacrum(
    s: SceneBuilder, lowest: VertebraShape, size: float, thin: float, rng: np.random.Generator
) -> tuple[int, Float64]:
    """S1 to S5 fused, and the coccyx; returns the frame of S1 and its origin in the body frame."""
    lean = float(np.rad2deg(np.arctan2(lowest.axes[1, 2], lowest.axes[2, 2])))
    tilt = float(np.clip(lean + rng.uniform(8, 20), 12, 58))
    top = lowest.origin_mm - lowest.axes[:, 2] * (0.5 * lowest.tallest_mm + 0.5 * lowest.disc_mm)
    axes = rotation(tilt, 0, 0)
    top = top - axes[:, 2] * 0.5 * lowest.disc_mm
    rows = [(25, 16, 29), (20, 12.5, 25), (16, 9.5, 20), (13.5, 8, 17), (11, 6, 15), (7, 4.5, 11), (5, 3.5, 9)]
    s.group(
        Tissue.ARCH_CORTEX,
        Tissue.SPONGY,
        shell_mm=rng.uniform(0.8, 1.5) * (1 - 0.3 * thin),
        blend_mm=4.0,
        shell_hu=-200 * thin - 120,
        core_hu=rng.normal(-25, 15),
    )
    own = rng.spawn(1)[0]
    rows = [rows[0], *(tuple(np.array(r) * own.uniform(0.88, 1.12, 3)) for r in rows[1:])]
    wide, tall = own.uniform(0.9, 1.12), own.uniform(0.92, 1.15)
    frame, first, centres, curve = -1, np.zeros(3), [], rng.uniform(0.6, 1.2)
    for n, (a, b, h) in enumerate(np.array(rows) * size):
        centre = top - axes[:, 2] * h / 2
        f = s.frame(axes, centre)
        if n == 0:
            frame, first = f, centre
        gap = 1.2 if n < 2 else 0.3
        s.body([a, b, 0.1, 1.0, h - gap, h - gap - 1, h - gap, 0.5, 1.2, 0.15], frame=f)
        if n < 4:
            k = size * (1 - 0.2 * n)
            for side in SIDES:
                reach = (54, 48, 40, 28)[n] * wide * size
                s.capsule(
                    (side * a * 0.7, -2, 2),
                    (side * reach, -10 * k, -4 * k),
                    13 * tall * k,
                    14 * tall * k,
                    frame=f,
                    x=(0, 1, 0),
                    scale=(0.8, 1.0),
                )
                s.capsule(
                    (side * a * 0.6, -b - 10 * k, 0),
                    (side * 3, -b - 15 * k, 0),
                    5.5 * k,
                    frame=f,
                    x=(0, 0, 1),
                    scale=(1.6, 0.6),
                )
                s.capsule((side * (a * 0.75 + 1), -6, 0), (side * (a * 0.75 + 1), -b - 12 * k, 0), 4.0, frame=f)
            s.capsule((0, -b - 14 * k, 4), (0, -b - 22 * k, -4), 5 * k, frame=f, scale=(0.6, 1.0))
        centres.append((centre, axes, a, b))
        top = centre - axes[:, 2] * h / 2
        axes = rotation(tilt + curve * (8, 4, -14, -38, -60, -75, -80)[n], 0, 0)
    for n in range(4):
        (c0, ax, a, b), (c1, _, _, _) = centres[n], centres[n + 1]
        for side in SIDES:
            middle = (c0 + c1) / 2 + ax[:, 0] * side * (a * 0.95 + 3)
            s.capsule(middle + ax[:, 1] * 14, middle - ax[:, 1] * 26, 4.6 - 0.5 * n, cut=True)
    canal = np.array([c - ax[:, 1] * (b + 5) for c, ax, _, b in centres[:4]])
    s.chain(canal, np.array([7.5, 6, 5, 3.5]), scale=(1.5, 0.9), cut=True)
    hu = own.uniform(-130, 0) * (0.5 + thin)
    s.group(Tissue.SPONGY, Tissue.SPONGY, shell_mm=4.0, shell_hu=0.5 * hu - 20, core_hu=hu - 20)
    for (centre, axes, a, _), reach in zip(centres[:2], (54, 48), strict=False):
        for side in SIDES:
            middle = centre + axes @ np.array([side * (0.45 * a + 0.5 * reach * wide * size), -7, -1])
            s.ellipsoid(middle, np.array([0.17 * reach * wide, 7.5, 9.0]) * size, z=axes[:, 2])
    return frame, first


def _side(points: npt.ArrayLike, side: float, size: float, origin: Float64) -> Float64:
    return np.asarray(points, float) * size * [side, 1, 1] + origin


def add_pelvis(s: SceneBuilder, origin: Float64, size: float, thin: float, rng: np.random.Generator) -> Float64:
    """Hip bones and proximal femora around S1's centre; returns the two hip joint centres (2, 3)."""
    hips = []
    width = rng.uniform(0.93, 1.07)
    own = rng.spawn(1)[0]
    density = own.normal(45, 55) - 120 * thin
    bulk, wall = own.uniform(0.85, 1.15, 2)
    gap = own.uniform(1.8, 3.5) * size
    for side in SIDES:

        def place(points: npt.ArrayLike, side: float = side) -> Float64:
            return _side(points, side * width, size, origin)

        hip = place([88, 18, -88])
        hips.append(hip)
        s.group(
            Tissue.ARCH_CORTEX,
            Tissue.SPONGY,
            shell_mm=rng.uniform(0.9, 1.7) * (1 - 0.3 * thin),
            blend_mm=5.0,
            shell_hu=-250 * thin - own.uniform(150, 400),
            core_hu=density + own.normal(0, 15),
        )
        _add_ilium(s, place, bulk * own.uniform(0.96, 1.04), size)
        k = wall * own.uniform(0.97, 1.03) * size
        s.ellipsoid(hip + np.array([-side * 3, 0, 1]) * size, np.array([31.0, 32.0, 31.0]) * size)
        posterior = place([[72, -26, -46], [77, -13, -76], [77, -13, -104], [70, -22, -128], [62, -25, -148]])
        s.chain(posterior, np.array([11, 14.5, 15.5, 14, 16]) * k)
        s.chain(place([[64, 22, -92], [72, 2, -112], [66, -16, -132]]), np.array([8, 12, 12]) * k)
        pubis = place([[98, 46, -54], [82, 44, -78], [62, 53, -89], [42, 62, -96], [17, 66, -108]])
        s.chain(pubis, np.array([9, 11.5, 9.5, 8, 11]) * k)
        s.chain(place([[13, 64, -118], [34, 40, -134], [56, -8, -150]]), np.array([9, 6.5, 9]) * k)
        socket = 24.0 * size + gap
        s.ellipsoid(hip, np.full(3, socket), cut=True)
        s.capsule(hip, hip + np.array([side * 42, 8, -20]), socket + 0.5, cut=True)
        s.capsule(place([46, 46, -114]), place([58, 12, -128]), 9 * size, cut=True)
        if own.random() < 0.45:
            hu = own.uniform(100, 450)
            s.group(Tissue.SPONGY, Tissue.SPONGY, shell_mm=3.0, shell_hu=0.5 * hu, core_hu=hu)
            s.ellipsoid(hip + np.array([0, 0, 29]) * size, np.array([16, 17, own.uniform(6, 11)]) * size)
            s.ellipsoid(hip, np.full(3, socket + 1.0), cut=True)
        _add_femur(s, hip, side, size, thin, rng)
    s.solid(Tissue.CARTILAGE)
    s.ellipsoid(origin + np.array([0, 66, -112]) * size, (4, 9, 16))
    return np.array(hips)


def _add_ilium(s: SceneBuilder, place: Callable[[npt.ArrayLike], Float64], bulk: float, size: float) -> None:
    """The wing, thick along its crest and at the sacroiliac joint, and the block it flares into above the hip joint."""
    crest = place([[44, -50, -22], [62, -46, 10], [92, -22, 34], [116, 6, 38], [128, 34, 22], [124, 60, -8]])
    base = place([[46, -30, -40], [60, -16, -34], [70, -2, -42], [78, 12, -46], [90, 30, -48], [108, 54, -40]])
    s.chain(crest, np.array([9, 8, 5.5, 6.5, 6, 6.5]) * bulk * size)
    s.chain(base, np.array([10, 10, 8, 6, 6, 6.5]) * bulk * size)
    for n in range(5):
        thickness = (13.0, 7.0, 4.0, 3.5, 4.5)[n] * bulk * size
        s.plate(np.array([crest[n], crest[n + 1], base[n]]), 1.4 * thickness)
        s.plate(np.array([crest[n + 1], base[n], base[n + 1]]), thickness)
    k = bulk * size
    s.capsule(place([99, 17, 4]), place([85, 17, -62]), 2.5 * k, 24 * k, x=(0, 1, 0), scale=(1.2, 1.0))
    s.capsule(place([102, 20, -12]), place([101, 19, -66]), 3 * k, 13 * k)
    s.capsule(place([93, 14, -8]), place([70, 14, -74]), 3 * k, 13 * k)
    s.capsule(place([64, -22, -26]), place([78, -2, -62]), 9 * k, 15 * k)
    s.capsule(place([116, 50, -22]), place([98, 36, -60]), 7 * k, 13 * k)
    s.capsule(place([118, 16, 30]), place([100, 20, -40]), 5 * k, 8 * k)


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


def rib_path(v: VertebraShape, side: float, torso: Torso, number: int) -> Float64:
    """Centre line (N, 3) of one rib from its head at the vertebra to its end, body frame."""
    a, b, h = v.half_width_mm, v.half_depth_mm, v.original_heights_mm[2]
    head = v.to_body_mm((side * (a * 0.8 + 3), -0.65 * b, 0.36 * h))
    neck = v.to_body_mm((side * (a + 16), -b - 14, 0.4 * h))
    size = torso.size
    drop = {1: 32, 2: 48, 3: 66, 4: 80, 5: 92, 6: 102, 7: 112, 8: 112, 9: 108, 10: 98, 11: 70, 12: 45}.get(
        number, 30
    ) * size
    sweep = {8: 2.35, 9: 2.2, 10: 1.95, 11: 1.25, 12: 0.75, 13: 0.4}.get(number, 2.5)
    turn = np.linspace(0.32, sweep, 13)
    share = (1 - np.cos(np.clip(turn / 2.6, 0, 1) * np.pi)) / 2
    z = neck[2] - 6 - drop * (0.25 * turn / 2.6 + 0.75 * share)
    cx, cy, rx, ry = torso.cage(z)
    arc = np.stack([cx + side * rx * np.sin(turn), cy - ry * np.cos(turn), z], 1)
    pull = np.exp(-np.arange(len(arc)) / 1.5)[:, None] * 0.3
    arc = arc * (1 - pull) + (neck + [side * 6, -2, -2]) * pull
    return np.vstack([head, neck, arc])


def add_ribs(s: SceneBuilder, shapes: list[VertebraShape], torso: Torso, thin: float, rng: np.random.Generator) -> None:
    """Ribs, costal cartilage and the sternum."""
    front: dict[tuple[int, float], Float64] = {}
    for v in (v for v in shapes if v.level[0] == "T"):
        number = int(v.level[1:])
        for side in SIDES:
            if number >= 12 and rng.random() < 0.1:
                continue
            path = rib_path(v, side, torso, number)
            front[number, side] = path[-1]
            s.group(
                Tissue.CORTEX,
                Tissue.MARROW,
                shell_mm=rng.uniform(0.8, 1.3) * (1 - 0.3 * thin),
                blend_mm=1.5,
                shell_hu=-150 * thin,
            )
            radii = np.r_[4.5, 4.0, np.full(len(path) - 2, 6.2 if number < 11 else 5.0)] * torso.size
            s.chain(path, radii, x=(0, 0, 1), scale=(1.0, 0.55) if number > 1 else (0.5, 1.0))
    _add_sternum(s, front, torso, rng)


def _add_sternum(
    s: SceneBuilder, front: dict[tuple[int, float], Float64], torso: Torso, rng: np.random.Generator
) -> None:
    top, bottom = torso.sternum_mm
    s.group(Tissue.CORTEX, Tissue.MARROW, shell_mm=0.9, blend_mm=1.5)
    for n in range(5):
        t0, t1 = n / 5, (n + 1) / 5
        p, q = top + (bottom - top) * t0, top + (bottom - top) * t1
        half = (22, 16, 17, 18, 12)[n] * torso.size
        s.box((p + q) / 2, (half, 5.5 * torso.size, float(np.linalg.norm(q - p)) / 2 - 0.7), 4.0, z=q - p)
    hu = rng.uniform(0, 250) if rng.random() < 0.4 else 0.0
    for (number, side), end in front.items():
        if number > 10:
            continue
        t = min((number - 1) / 6.2, 1.0)
        goal = top + (bottom - top) * t + np.array([side * 15 * torso.size, 0, 0])
        _, cy, _, ry = torso.cage(np.array([(end[2] + goal[2]) / 2 - 6]))
        middle = np.array(
            [
                (end[0] * 0.45 + goal[0] * 0.55),
                max(end[1], cy[0] + ry[0] * 0.93),
                (end[2] + goal[2]) / 2 - 8 * (number > 4),
            ]
        )
        s.group(Tissue.CARTILAGE, Tissue.CARTILAGE, core_hu=-20, shell_hu=hu, shell_mm=1.0, blend_mm=1.0)
        s.chain(np.array([end, middle, goal]), 6.0 * torso.size, x=(0, 0, 1), scale=(1.0, 0.7))


def add_shoulders(s: SceneBuilder, torso: Torso, thin: float, rng: np.random.Generator, *, arms_up: bool) -> None:
    """Clavicles, scapulae, humeri with their soft tissue, forearms left out."""
    top, _ = torso.sternum_mm
    k = torso.size
    cx, cy, rx, ry = (float(a[0]) for a in torso.cage(np.array([torso.shoulder_z - 60 * k])))
    for side in SIDES:
        lift = 35.0 * k if arms_up else 0.0
        joint = np.array(
            [cx + side * (rx + (22 if arms_up else 38) * k), cy - 0.25 * ry, torso.shoulder_z - 25 * k + lift]
        )
        hand = joint + np.array([side * 25, 10, 300]) * k if arms_up else joint + np.array([side * 45, 0, -300]) * k
        s.group(Tissue.FAT, Tissue.MUSCLE, shell_mm=8 + torso.fat_mm * 0.3, blend_mm=10)
        s.capsule(joint, hand, 48 * k + torso.fat_mm * 0.3, 36 * k + torso.fat_mm * 0.3)
        s.group(Tissue.CORTEX, Tissue.MARROW, shell_mm=1.4, blend_mm=4, shell_hu=-150 * thin)
        s.ellipsoid(joint, np.full(3, 23 * k))
        s.group(Tissue.CORTEX, Tissue.FAT, shell_mm=3.5, blend_mm=3)
        s.capsule(joint + (hand - joint) * 0.08, hand, 12 * k, 11 * k)
        if not arms_up:
            _add_hand(s, hand, side, torso)
        inner = np.array([cx + side * 0.62 * rx, cy - 0.98 * ry, torso.shoulder_z - 45 * k])
        lower = np.array([cx + side * 0.8 * rx, cy - 0.97 * ry, torso.shoulder_z - 150 * k])
        socket = joint + np.array([-side * 26, -4, 0]) * k
        s.group(Tissue.CORTEX, Tissue.MARROW, shell_mm=1.0, blend_mm=3, shell_hu=-150 * thin)
        s.plate(np.array([inner, lower, socket]), 3.5 * k)
        s.chain(np.array([lower, socket]), 5 * k)
        acromion = joint + np.array([side * 6, -14, 30]) * k
        s.chain(np.array([inner, (inner + acromion) / 2 + [0, -12, 8], acromion]), 5.5 * k)
        s.group(Tissue.CORTEX, Tissue.MARROW, shell_mm=1.6, blend_mm=2)
        start = top + np.array([side * 20 * k, 0, 4])
        s.chain(np.array([start, start * 0.6 + acromion * 0.4 + [0, 14, 6], acromion]), np.array([8, 6, 7]) * k)


def _add_hand(s: SceneBuilder, elbow: Float64, side: float, torso: Torso) -> None:
    """A forearm and hand beside the hip."""
    k = torso.size
    wrist = elbow + np.array([side * 6, 30, -230]) * k
    s.group(Tissue.FAT, Tissue.MUSCLE, shell_mm=4, blend_mm=6)
    s.capsule(elbow, wrist, 38 * k, 24 * k)
    s.capsule(wrist, wrist + np.array([0, 14, -110]) * k, 26 * k, 18 * k, scale=(0.7, 1.6))
    s.group(Tissue.CORTEX, Tissue.MARROW, shell_mm=2.0)
    for n in range(2):
        s.capsule(elbow + [0, 14 * n - 7, 0], wrist + [0, 22 * n - 11, 0], 8 * k, 8 * k)
    for n in range(5):
        s.capsule(wrist + [0, 9 * n - 18, -10], wrist + np.array([0, 16 * n - 24, -120]) * k, 5.5 * k, 4.5 * k)


def add_skull(s: SceneBuilder, atlas: VertebraShape, size: float) -> None:
    """Vault, base, face and mandible, crude: what a scan's upper edge shows above the atlas."""
    o = atlas.origin_mm
    s.group(Tissue.MUSCLE, Tissue.MUSCLE, blend_mm=25)
    s.ellipsoid(o + np.array([0, -5, 75]) * size, np.array([82, 104, 96]) * size)
    s.capsule(o + np.array([0, 25, 20]) * size, o + np.array([0, 55, -25]) * size, 58 * size, 40 * size)
    s.group(Tissue.CORTEX, Tissue.BRAIN, shell_mm=6)
    s.ellipsoid(o + np.array([0, -12, 82]) * size, np.array([72, 92, 78]) * size)
    s.solid(Tissue.GAS)
    for side in SIDES:
        s.ellipsoid(o + np.array([side * 22, 55, 25]) * size, np.array([13, 18, 18]) * size)
        s.capsule(o + np.array([side * 40, -18, 22]), o + np.array([side * 48, -20, 8]), 5)
    s.capsule(o + np.array([0, 22, 20]), o + np.array([0, 18, -40]), 8, scale=(1.6, 0.8))
    s.group(Tissue.CORTEX, Tissue.MARROW, shell_mm=2.5, blend_mm=3)
    for side in SIDES:
        s.chain(
            o + np.array([[side * 46, 12, 22], [side * 42, 18, -28], [side * 26, 62, -42], [0, 78, -44]]) * size,
            8 * size,
            scale=(0.6, 1.2),
        )
        s.ellipsoid(o + np.array([side * 17, -10, 13]) * size, np.array([9, 11, 7]) * size)
        s.capsule(o + np.array([side * 48, -22, 14]) * size, o + np.array([side * 50, -14, -8]) * size, 9, 5)
    s.chain(o + np.array([[-22, 50, -12], [0, 68, -12], [22, 50, -12]]) * size, 9 * size)
    s.capsule(o + np.array([0, -2, 14]), o + np.array([0, 40, 40]), 12, scale=(2.0, 0.6))
