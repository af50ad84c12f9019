"""Soft tissue: skin to bowel, lungs and vessels, as primitives in the body frame (mm)."""

# ruff: noqa: RUF005 - lists that are added to arrays here are vectors
from __future__ import annotations

import numpy as np
import numpy.typing as npt

from train.phantom.config import PhantomConfig
from train.phantom.scene import SceneBuilder, Vector
from train.phantom.tables import Tissue
from train.phantom.torso import Torso

Float64 = npt.NDArray[np.float64]
SIDES = (-1.0, 1.0)


def add_envelope(s: SceneBuilder, t: Torso, hips: Float64, config: PhantomConfig, rng: np.random.Generator) -> None:
    """Skin, fat and muscle of trunk and thighs; ``rng`` draws the breasts alone."""
    k = t.size
    legs = [(h + [0, -5, -10], h + [(-1 if h[0] > 0 else 1) * 5, -5, -380 * k]) for h in hips]
    s.group(Tissue.SKIN, Tissue.FAT, shell_mm=1.8, blend_mm=25)
    s.tube(t.z_mm, t.skin)
    for a, b in legs:
        s.capsule(a, b, 88 * k + t.fat_mm * 0.8, 62 * k + t.fat_mm * 0.5)
    breasts = _breasts(t, config, rng)
    for middle, radii in breasts:
        s.ellipsoid(middle, radii)
    s.solid(Tissue.MUSCLE, blend_mm=10)
    s.tube((t.z_mm[0] + 30, t.z_mm[1]), _rows(t, t.wall, (t.z_mm[0] + 30, t.z_mm[1])))
    for a, b in legs:
        s.capsule(a, b, 76 * k, 56 * k)
    s.solid(Tissue.FAT, blend_mm=6)
    for side in SIDES:
        s.capsule(
            hips[0] * [0, 1, 1] + [side * 62 * k, 62 * k, 10],
            hips[0] * [0, 1, 1] + [side * 70 * k, 60 * k, -120],
            12,
            16,
        )
    s.capsule((0, t.spine_at(-80)[1] - 60 * k, -70), (0, t.spine_at(-80)[1] - 20 * k, -300), 10, 22, scale=(0.7, 1.0))
    if breasts:
        silicone = rng.random() < config.implant_probability
        s.solid(Tissue.MUSCLE, hu=60 if silicone else -rng.uniform(20, 90), blend_mm=6)
        for middle, radii in breasts:
            s.ellipsoid(middle + [0, 0.15 * radii[1], 0], radii * (0.75 if silicone else rng.uniform(0.3, 0.65)))


def _breasts(t: Torso, config: PhantomConfig, rng: np.random.Generator) -> list[tuple[Float64, Float64]]:
    """Middles and radii, mm; flat and to the sides, as in someone who lies on her back. None by chance."""
    if rng.random() >= config.breast_probability:
        return []
    z = t.z_of["T7"] + rng.uniform(-15, 25)
    row = int(np.argmin(np.abs(t.rows_z - z)))
    cx, cy, rx, ry = t.skin[row, :4]
    radii = np.array([60, rng.uniform(25, 55), 62]) * t.size * rng.uniform(0.75, 1.2)
    return [(np.array([cx + side * 0.5 * rx, cy + 0.84 * ry, z]), radii) for side in SIDES]


def add_tube(s: SceneBuilder, t: Torso, config: PhantomConfig, rng: np.random.Generator) -> None:
    """Now and then a dense tube down the gullet into the stomach."""
    if rng.random() >= config.tube_probability:
        return
    names = ("C3", "C6", "T2", "T5", "T8", "T10")
    line = [
        t.spine_at(t.z_of[n]) + np.array([rng.uniform(-6, 6), (22 if n[0] == "C" else 30) * t.size, 0]) for n in names
    ]
    line.append(line[-1] + np.array([-35, 25, -45]) * t.size)
    s.group(Tissue.METAL, Tissue.GAS, shell_mm=1.2, shell_hu=-rng.uniform(2800, 4000))
    s.chain(np.array(line), rng.uniform(1.8, 3.5))


def add_back(s: SceneBuilder, t: Torso, rng: np.random.Generator) -> None:
    """Fat planes between the muscles of the back, and fatty streaks in them."""
    k = t.size
    z = np.arange(-30.0, t.z_of["T2"], 45.0)
    spine = np.array([t.spine_at(h) for h in z])
    s.solid(Tissue.FAT)
    s.chain(spine + [0, -58 * k, 0], 4.5, scale=(0.5, 1.6))
    for side in SIDES:
        s.chain(spine + [side * 46 * k, -30 * k, 0], rng.uniform(2, 6), scale=(2.0, 0.5))
        s.chain(spine + [side * rng.uniform(8, 14), -46 * k, 0], rng.uniform(1.0, 4.0))
        for _ in range(9):
            at = t.spine_at(rng.uniform(-130 * k, t.z_of["T4"])) + np.array([side * rng.uniform(15, 110), -45, 0]) * k
            along = np.array([side * rng.uniform(-0.2, 1), rng.uniform(-0.3, 0.3), rng.uniform(0.3, 1)]) * 25 * k
            s.capsule(at - along, at + along, rng.uniform(4, 12), 2.0, scale=(1.0, 0.15))
    lower = spine[spine[:, 2] < t.z_of["L2"]]
    s.chain(lower + [0, -60 * k, 0], 8, scale=(1.4, 0.8))
    _add_marbling(s, t, rng.spawn(1)[0])


def _add_marbling(s: SceneBuilder, t: Torso, rng: np.random.Generator) -> None:
    """Sheets of fat along the fibres of the muscles of back and buttocks: few in the young, many in the old."""
    k = t.size
    for _ in range(int(rng.integers(0, 26))):
        side, z = rng.choice(SIDES), rng.uniform(-40 * k, t.z_of["T6"])
        at = t.spine_at(z) + np.array([side * rng.uniform(10, 50), -rng.uniform(36, 58), 0]) * k
        along = np.array([side * rng.uniform(-6, 6), rng.uniform(-5, 5), rng.uniform(12, 40)]) * k
        s.capsule(at - along, at + along, rng.uniform(3, 9), 1.5, scale=(1.0, rng.uniform(0.12, 0.3)))


def add_fat_planes(s: SceneBuilder, t: Torso, hips: Float64, rng: np.random.Generator) -> None:
    """Fat between the muscles of buttocks, hips and neck, which would else be one grey mass around the bones."""
    k = t.size
    s.solid(Tissue.FAT, hu=rng.uniform(0, 60))
    for hip in hips:
        side = np.sign(hip[0])
        for _ in range(int(rng.integers(4, 13))):
            turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(36, 72) * k
            at = hip + np.array([far * np.cos(turn), far * np.sin(turn), rng.uniform(-70, 50) * k])
            along = np.array([rng.normal(0, 6), rng.normal(0, 6), rng.uniform(15, 45) * k])
            tangent = (-np.sin(turn + rng.normal(0, 0.5)), np.cos(turn), 0.0)
            _sheet(s, at, along, tangent, rng.uniform(6, 18), rng.uniform(0.8, 2.5))
        for _ in range(int(rng.integers(2, 10))):
            at = (
                hip * [1.1, 1, 1]
                + np.array([side * rng.uniform(-35, 30), -rng.uniform(35, 75), rng.uniform(-50, 90)]) * k
            )
            along = np.array([side * 28, 18, -30]) * k * rng.uniform(0.5, 1.3)
            _sheet(s, at, along, np.cross(along, [side * 0.5, -1.0, 0.0]), rng.uniform(5, 16), rng.uniform(0.8, 2.2))
    for _ in range(int(rng.integers(8, 26))):
        turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(26, 48) * k
        z = rng.uniform(t.z_of["T1"], t.z_of["C2"])
        at = t.spine_at(z) + np.array([far * np.cos(turn), far * np.sin(turn), 0])
        along = np.array([rng.normal(0, 4), rng.normal(0, 4), rng.uniform(8, 25) * k])
        _sheet(s, at, along, (-np.sin(turn), np.cos(turn), 0.0), rng.uniform(4, 14), rng.uniform(0.6, 1.8))


def _sheet(s: SceneBuilder, at: Float64, along: Float64, across: Vector, width: float, thickness: float) -> None:
    """A thin sheet around ``at``: half length ``along``, half width towards ``across``."""
    s.capsule(at - along, at + along, width, 0.5 * width, x=across, scale=(1.0, thickness / width))


def add_abdomen(s: SceneBuilder, t: Torso, rng: np.random.Generator, *, oral: bool) -> None:
    """Cavity with its fat, psoas, bowel, kidneys, liver, spleen, stomach, bladder."""
    k, z_of = t.size, t.z_of
    s.solid(Tissue.VISCERAL_FAT)
    s.tube((t.z_mm[0] + 40, t.dome_z + 10), _rows(t, t.cavity, (t.z_mm[0] + 40, t.dome_z + 10)))
    _add_bowel(s, t, rng, oral=oral)
    _add_upper(s, t, rng)
    s.solid(Tissue.MUSCLE, blend_mm=4)
    for side in SIDES:
        names = [("T12", 26, 6), ("L2", 36, 16), ("L4", 46, 22), ("S1", 62, 22), ("hip", 92, 16)]
        path = np.array(
            [t.spine_at(z_of[n]) + np.array([side * x * k, -4 + (x > 50) * 14 + (x > 90) * 14, 0]) for n, x, _ in names]
        )
        s.chain(path, np.array([r for _, _, r in names]) * k * rng.uniform(0.75, 1.15), scale=(0.85, 1.0))
        quad = np.array(
            [t.spine_at(z_of[n]) + [side * x * k, -20 * k, 0] for n, x in (("T12", 48), ("L3", 66), ("L5", 78))]
        )
        s.chain(quad, 15 * k, scale=(1.2, 0.7))
    for side in SIDES:
        middle = t.spine_at(z_of["L1"] - (10 if side > 0 else 0)) + np.array([side * 66, 6, rng.uniform(-15, 15)]) * k
        s.solid(Tissue.VISCERAL_FAT)
        s.ellipsoid(middle, np.array([34, 31, 62]) * k, z=(-side * 0.25, -0.15, 1))
        s.group(Tissue.KIDNEY, Tissue.KIDNEY, shell_mm=8, core_hu=rng.uniform(-8, 15))
        s.ellipsoid(middle, np.array([28, 26, 55]) * k * rng.uniform(0.85, 1.1), z=(-side * 0.25, -0.15, 1))
        s.solid(Tissue.VISCERAL_FAT)
        s.ellipsoid(middle + [-side * 14, 6, 0], (14, 9, 20))
    s.group(Tissue.BOWEL_WALL, Tissue.URINE, shell_mm=3)
    s.ellipsoid(t.spine_at(-95 * k) + np.array([0, 82, 0]) * k, np.array([45, 35, 32]) * rng.uniform(0.5, 1.2) * k)
    s.group(Tissue.MUSCLE, Tissue.FECES if rng.random() < 0.6 else Tissue.GAS, shell_mm=5, blend_mm=5)
    rectum = np.array([[14, 44, -18], [-4, 14, -45], [4, 0, -80], [0, 12, -120], [0, 22, -150]]) + rng.normal(
        0, 4, (5, 3)
    )
    s.chain(rectum * k + t.spine_at(-60 * k) * [0, 1, 0], rng.uniform(9, 19, 5) * k)


def _rows(t: Torso, table: Float64, z_mm: tuple[float, float]) -> Float64:
    """``table`` resampled to a part of its height."""
    z = np.linspace(*z_mm, len(table))
    return np.stack([np.interp(z, t.rows_z, column) for column in table.T], 1)


def _add_upper(s: SceneBuilder, t: Torso, rng: np.random.Generator) -> None:
    """Liver, spleen, stomach, pancreas (under the diaphragm)."""
    k, dome = t.size, t.dome_z
    cx, cy, rx, ry = (float(v[0]) for v in t.cage(np.array([dome - 50])))
    s.solid(Tissue.LIVER, blend_mm=25)
    s.ellipsoid((cx + 0.42 * rx, cy + 2, dome - 62 * k), (0.5 * rx, 0.84 * ry, 66 * k))
    s.ellipsoid((cx + 0.48 * rx, cy - 5, dome - 84 * k), (0.4 * rx, 0.6 * ry, 62 * k * rng.uniform(0.8, 1.15)))
    s.ellipsoid((cx - 0.05 * rx, cy + 0.4 * ry, dome - 45 * k), (0.45 * rx, 0.42 * ry, 38 * k))
    s.ellipsoid((cx + 0.55 * rx, cy - 0.3 * ry, dome - 75 * k), (0.34 * rx, 0.55 * ry, 58 * k))
    s.solid(Tissue.SPLEEN)
    s.ellipsoid(
        (cx - 0.66 * rx, cy - 0.42 * ry, dome - 62 * k),
        np.array([26, 44, 50]) * k * rng.uniform(0.7, 1.2),
        z=(0.3, -0.2, 1),
    )
    s.group(Tissue.BOWEL_WALL, Tissue.BOWEL_FLUID, shell_mm=4)
    stomach = np.array([cx - 0.4 * rx, cy + 0.25 * ry, dome - 45 * k])
    s.ellipsoid(stomach, np.array([42, 36, 46]) * k * rng.uniform(0.7, 1.1), z=(0.5, -0.3, 1))
    s.solid(Tissue.GAS)
    s.ellipsoid(stomach + [0, 16 * k, 6], np.array([28, 16, 28]) * rng.uniform(0.4, 1.1) * k)
    s.solid(Tissue.PANCREAS, blend_mm=4)
    p = t.spine_at(t.z_of["L1"]) + [0, 46 * k, 4]
    s.chain(np.array([p + [45 * k, 2, -18], p + [10, 6, 0], p + [-60 * k, -16, 16]]), np.array([16, 11, 9]) * k)


def _add_bowel(s: SceneBuilder, t: Torso, rng: np.random.Generator, *, oral: bool) -> None:
    """A colon around the small bowel's loops; contents are gas, fluid, stool or contrast."""
    k = t.size
    low, high = -70.0 * k, t.z_of["L1"]
    spine = t.spine_at((low + high) / 2)
    table = _rows(t, t.cavity, t.z_mm)
    for _ in range(rng.integers(22, 45)):
        z = rng.uniform(low, high)
        cx, cy, rx, ry, _ = (float(np.interp(z, t.rows_z, column)) for column in table.T)
        start = np.array([cx + rng.uniform(-0.7, 0.7) * rx, cy + rng.uniform(-0.1, 0.72) * ry, z])
        start[1] = max(start[1], spine[1] + 38 * k)
        path = start + np.cumsum(rng.normal(0, 1, (4, 3)) * [20, 8, 15], axis=0)
        path[:, 1] = np.clip(path[:, 1], spine[1] + 30 * k, cy + 0.8 * ry)
        path[:, 0] = np.clip(path[:, 0], cx - 0.8 * rx, cx + 0.8 * rx)
        contents = [Tissue.BOWEL_FLUID, Tissue.ORAL_CONTRAST if oral else Tissue.BOWEL_FLUID, Tissue.GAS]
        core = Tissue(int(rng.choice(contents, p=[0.55, 0.33, 0.12])))
        s.group(Tissue.BOWEL_WALL, core, shell_mm=2.5, blend_mm=2)
        s.chain(path, rng.uniform(8, 15, 4) * k)
    _add_mesentery(s, t, table, spine, rng)
    heights = np.linspace(low + 30, high - 10, 5)
    for side in SIDES:
        out = np.array([np.interp(heights, t.rows_z, column) for column in table.T])
        path = np.stack(
            [out[0] + side * 0.78 * out[2], out[1] + rng.uniform(-0.25, 0.1) * out[3] + rng.normal(0, 5, 5), heights], 1
        )
        core = Tissue.FECES if rng.random() < 0.6 else Tissue.GAS
        s.group(Tissue.BOWEL_WALL, core, shell_mm=2.5, blend_mm=4)
        s.chain(path, rng.uniform(16, 30, 5) * k)
    top = np.array(
        [
            [x * 0.7 * out[2][-1], out[1][-1] + out[3][-1] * 0.5, high + rng.uniform(-40, 10)]
            for x in (-1, -0.4, 0.2, 0.9)
        ]
    )
    s.group(Tissue.BOWEL_WALL, Tissue.GAS if rng.random() < 0.6 else Tissue.FECES, shell_mm=2.5, blend_mm=4)
    s.chain(top, rng.uniform(15, 28, 4) * k)


def _add_mesentery(s: SceneBuilder, t: Torso, table: Float64, spine: Float64, rng: np.random.Generator) -> None:
    """Small vessels through the fat from before the spine outwards."""
    s.solid(Tissue.VEIN)
    for _ in range(40):
        z = rng.uniform(-60 * t.size, t.z_of["L1"])
        cx, cy, rx, ry, _ = (float(np.interp(z, t.rows_z, column)) for column in table.T)
        root = t.spine_at(z) + [rng.uniform(-20, 20), 42 * t.size, rng.uniform(0, 40)]
        end = np.array([cx + rng.uniform(-0.8, 0.8) * rx, cy + rng.uniform(-0.2, 0.7) * ry, z - rng.uniform(0, 30)])
        s.capsule(root, end, rng.uniform(1.2, 3.2), 0.9)


def add_chest(s: SceneBuilder, t: Torso, rng: np.random.Generator) -> None:
    """Lungs under the rib cage around mediastinum and diaphragm, with vessels, trachea, heart."""
    k, dome = t.size, t.dome_z
    z_mm = (t.z_of["L1"] - 5, t.z_of["T1"] + 8)
    rows = _rows(t, t.cage_table, z_mm)
    cx, cy, rx, ry = (float(v[0]) for v in t.cage(np.array([dome - 20])))
    heart = np.array([cx - 22 * k, cy + 0.36 * ry, dome + 38 * k])
    s.solid(Tissue.LUNG, hu=rng.uniform(-40, 80))
    s.tube(z_mm, rows, inset_mm=7 * k)
    spine = np.array([t.spine_at(z) for z in np.linspace(*z_mm, 9)])
    s.chain(spine + [0, 4, 0], 25 * k, scale=(0.92, 1.0), cut=True)
    s.chain(spine[2:] + [0, 45 * k, 0], 26 * k, scale=(1.0, 1.6), cut=True)
    s.ellipsoid(heart, np.array([62, 48, 58]) * k, cut=True)
    s.ellipsoid((cx + 0.45 * rx, cy, dome - 110 * k), (0.62 * rx, 0.98 * ry, 110 * k), cut=True)
    s.ellipsoid((cx - 0.45 * rx, cy, dome - 118 * k), (0.62 * rx, 0.98 * ry, 110 * k), cut=True)
    s.ellipsoid((cx, cy + 0.2 * ry, dome - 120 * k), (0.7 * rx, 0.8 * ry, 112 * k), cut=True)
    s.solid(Tissue.VISCERAL_FAT)
    s.chain(spine[3:-1] + [0, 48 * k, 0], 20 * k, scale=(0.9, 1.5))
    s.ellipsoid(heart, np.array([56, 44, 54]) * k)
    _add_lung_vessels(s, t, heart, rng)
    s.group(Tissue.MUSCLE, Tissue.HEART, shell_mm=9)
    s.ellipsoid(heart + [-4, 0, -4], np.array([48, 37, 48]) * k, z=(0.4, -0.2, 1))
    s.group(Tissue.CARTILAGE, Tissue.GAS, shell_mm=1.8, shell_hu=-40)
    carina = t.spine_at(t.z_of["T5"]) + [0, 38 * k, 0]
    s.chain(
        np.array([t.spine_at(t.z_of["C5"]) + [0, 30 * k, 0], t.spine_at(t.z_of["T1"]) + [0, 32 * k, 0], carina]), 10 * k
    )
    for side in SIDES:
        s.capsule(carina, carina + np.array([side * 42, -4, -38]) * k, 8 * k, 6 * k)


def _add_lung_vessels(s: SceneBuilder, t: Torso, heart: Float64, rng: np.random.Generator) -> None:
    s.solid(Tissue.LUNG_VESSEL, blend_mm=1.0)
    for side in SIDES:
        root = t.spine_at(t.z_of["T6"]) + np.array([side * 30, 36, -8]) * t.size
        for _ in range(26):
            z = rng.uniform(t.dome_z - 10, t.z_of["T2"])
            cx, cy, rx, ry = (float(v[0]) for v in t.cage(np.array([z])))
            turn = rng.uniform(-1.2, 1.2)
            end = np.array([cx + side * 0.85 * rx * np.cos(turn), cy + 0.85 * ry * np.sin(turn), z])
            middle = root * 0.55 + end * 0.45 + rng.normal(0, 10, 3)
            s.capsule(root, middle, 4.5 * rng.uniform(0.6, 1.2), 2.4)
            s.capsule(middle, end, 2.4, 0.9)
            s.capsule(middle, end + rng.normal(0, 22, 3), 1.8, 0.7)


def add_vessels(s: SceneBuilder, t: Torso, rng: np.random.Generator) -> None:
    """Aorta with plaques, caval vein, iliac and neck vessels."""
    k = t.size
    levels = ["L4", "L2", "T12", "T9", "T7", "T5"]
    aside = [6, 8, 8, 22, 26, 24]
    line = np.array(
        [t.spine_at(t.z_of[n]) + [-x * k, (33 if x < 20 else 22) * k, 0] for n, x in zip(levels, aside, strict=True)]
    )
    arch = t.spine_at(t.z_of["T4"]) + np.array([[-18, 34, 6], [4, 62, 14], [14, 76, -20], [2, 72, -62]]) * k
    line = np.vstack([line, arch])
    s.solid(Tissue.ARTERY)
    s.chain(line, np.r_[np.linspace(8.5, 13, 6), 13, 13.5, 15, 16] * k * rng.uniform(0.9, 1.25))
    for side in SIDES:
        hip = np.array([side * 62 * k, t.spine_at(-90 * k)[1] + 75 * k, -90 * k])
        bend = np.array([side * 40 * k, t.spine_at(-30 * k)[1] + 45 * k, -40 * k])
        s.chain(np.array([line[0], bend, hip, hip + [0, 10, -80]]), np.array([7, 6, 5, 4.5]) * k)
        neck = t.spine_at(t.z_of["C4"]) + np.array([side * 30, 14, 0]) * k
        s.chain(
            np.array([arch[1] + [side * 6, 0, 0], t.spine_at(t.z_of["T1"]) + np.array([side * 24, 24, 0]) * k, neck]),
            4.5 * k,
        )
    s.solid(Tissue.VEIN)
    cava = np.array(
        [
            t.spine_at(t.z_of[n]) + np.array([x, y, 0]) * k
            for n, x, y in (("L4", 16, 34), ("L1", 20, 38), ("T10", 26, 46), ("T8", 24, 62))
        ]
    )
    s.chain(cava, 12 * k, scale=(1.1, 0.8))
    upper = np.array(
        [
            t.spine_at(t.z_of[n]) + np.array([x, y, 0]) * k
            for n, x, y in (("T6", 26, 66), ("T3", 24, 62), ("C4", 36, 18))
        ]
    )
    s.chain(upper, 8 * k)
    for side in SIDES:
        s.chain(
            np.array([cava[0], [side * 38 * k, cava[0][1] - 8, -35], [side * 58 * k, cava[0][1] + 20 * k, -100 * k]]),
            7 * k,
        )
    if rng.random() < 0.6:
        s.group(Tissue.PLAQUE, Tissue.PLAQUE)
        for _ in range(rng.integers(2, 22)):
            n = rng.integers(len(line) - 1)
            turn, at = rng.uniform(0, 2 * np.pi), rng.random()
            p = line[n] * at + line[n + 1] * (1 - at) + 11 * k * np.array([np.cos(turn), np.sin(turn), 0])
            s.ellipsoid(p, rng.uniform([1, 1, 1.5], [4, 2.2, 8]))


def add_surroundings(s: SceneBuilder, t: Torso, rng: np.random.Generator) -> None:
    """The table under the patient (painted first)."""
    back = float((t.skin[:, 1] - t.skin[:, 3]).min()) - rng.uniform(4, 30)
    length, curve = t.z_mm[1] - t.z_mm[0] + 700, rng.uniform(350, 900)
    middle = np.array([rng.uniform(-20, 20), back + curve, (t.z_mm[0] + t.z_mm[1]) / 2])
    if rng.random() < 0.12:
        return
    s.group(Tissue.TABLE, Tissue.FOAM, shell_mm=rng.uniform(1.5, 4))
    s.capsule(middle - [0, 0, length / 2], middle + [0, 0, length / 2], curve)
    s.ellipsoid(middle + [0, curve * 0.16, 0], (curve * 1.6, curve * 1.1, length * 4), cut=True)
