"""The bones around the upper spine: ribs and sternum, shoulders, skull. All in the body frame, mm."""

# ruff: noqa: RUF005 - lists that are added to arrays here are vectors
from __future__ import annotations

import numpy as np
import numpy.typing as npt

from train.phantom.scene import SceneBuilder
from train.phantom.spine import VertebraShape
from train.phantom.tables import Tissue
from train.phantom.torso import Torso

Float64 = npt.NDArray[np.float64]
SIDES = (-1.0, 1.0)


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
    own = rng.spawn(1)[0]
    for v in (v for v in shapes if v.level[0] == "T"):
        number = int(v.level[1:])
        for side in SIDES:
            if number >= 12 and rng.random() < 0.1:
                continue
            path = rib_path(v, side, torso, number)
            if number >= 12:
                path = path[: int(own.integers(4, len(path) + 1))]
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
    _add_sternum(s, front, torso, rng, apart_mm=float(own.choice([-1.0, 0.2, 0.7, 1.5])))


def _add_sternum(
    s: SceneBuilder, front: dict[tuple[int, float], Float64], torso: Torso, rng: np.random.Generator, *, apart_mm: float
) -> None:
    """``apart_mm`` is half the gap between the pieces of its body, which are fused where it is negative."""
    top, bottom = torso.sternum_mm
    s.group(Tissue.CORTEX, Tissue.MARROW, shell_mm=0.9, blend_mm=1.5)
    for n in range(5):
        t0, t1 = n / 5, (n + 1) / 5
        p, q = top + (bottom - top) * t0, top + (bottom - top) * t1
        half = (22, 16, 17, 18, 12)[n] * torso.size
        s.box(
            (p + q) / 2,
            (half, 5.5 * torso.size, float(np.linalg.norm(q - p)) / 2 - (apart_mm if n else 0.7)),
            4.0,
            z=q - p,
        )
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


def add_neck(s: SceneBuilder, torso: Torso, rng: np.random.Generator) -> None:
    """Hyoid, thyroid cartilage (often calcified) and the thyroid gland, which iodine makes bright."""
    k = torso.size
    hyoid = torso.spine_at(torso.z_of["C3"] - 8) + np.array([0, 26, 0]) * k
    turn = np.linspace(-1.25, 1.25, 7)
    arch = np.stack([20 * np.sin(turn), 24 * np.cos(turn), 4 * np.abs(turn)], 1) * k
    s.group(Tissue.CORTEX, Tissue.MARROW, shell_mm=0.8)
    s.chain(hyoid + arch, 2.6 * k)
    calcified = rng.uniform(0, 500) if rng.random() < 0.6 else 0.0
    top = torso.spine_at(torso.z_of["C5"] + 6) + np.array([0, 26, 0]) * k
    s.group(Tissue.CARTILAGE, Tissue.CARTILAGE, shell_mm=0.9, shell_hu=calcified, core_hu=0.3 * calcified)
    for side in SIDES:
        corners = np.array([[side * 1, 18, 4], [side * 19, -4, 10], [side * 15, -2, -18]]) * k
        s.plate(top + corners, 2.8)
        s.plate(top + np.array([[side * 1, 18, 4], [side * 2, 16, -16], [side * 15, -2, -18]]) * k, 2.8)
    s.solid(Tissue.SPLEEN, hu=rng.uniform(10, 90), blend_mm=3)
    for side in SIDES:
        lobe = torso.spine_at(torso.z_of["C7"] + 6) + np.array([side * 18, 28, 0]) * k
        s.ellipsoid(lobe, np.array([9, 10, 22]) * k * rng.uniform(0.7, 1.4))
