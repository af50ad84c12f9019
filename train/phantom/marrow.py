"""The spongy bone of the bodies: what is denser or more lucent than its surroundings, and what fractures leave there.

Everything here lies inside the body and changes HU alone, never a mask or a height.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.phantom.config import PhantomConfig
from train.phantom.scene import SceneBuilder
from train.phantom.spine import VertebraShape
from train.phantom.tables import Tissue

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BoneHealth:
    """A patient's spongy bone.

    Args:
        degeneration: 0..1; patchiness_hu: amplitude of broad unevenness.
        metastases: mean number per vertebra; blastic: the share of them that is dense.
        banded: dense bands below every endplate (renal disease).
        irradiated: labels of neighbours whose marrow has turned to fat.
    """

    degeneration: float
    patchiness_hu: float
    metastases: float
    blastic: float
    banded: bool
    irradiated: frozenset[int]


def sample_bone_health(
    shapes: list[VertebraShape], degeneration: float, config: PhantomConfig, rng: np.random.Generator
) -> BoneHealth:
    """Draws a patient's."""
    ill = rng.random() < config.metastases_probability
    first, count = int(rng.integers(len(shapes))), int(rng.integers(2, 7))
    irradiated = (
        [v.label for v in shapes[first : first + count]] if rng.random() < config.irradiated_probability else []
    )
    return BoneHealth(
        degeneration,
        float(rng.uniform(0, 90) if rng.random() < 0.6 else 0.0),
        float(rng.uniform(0.3, 3.0)) * ill,
        float(rng.choice([0.0, 0.5, 1.0])),
        bool(rng.random() < config.banded_probability),
        frozenset(irradiated),
    )


def add_marrow(
    s: SceneBuilder, v: VertebraShape, f: int, health: BoneHealth, config: PhantomConfig, rng: np.random.Generator
) -> None:
    """Paints the inside of one body over its plain spongy bone."""
    _add_whole(s, v, f, health, config, rng)
    _add_patches(s, v, f, health, rng)
    _add_endplates(s, v, f, health, config, rng)
    _add_fracture_marks(s, v, f, rng)
    if v.level == "C1":
        return
    if rng.random() < config.haemangioma_probability:
        _add_haemangioma(s, v, f, rng)
    if rng.random() < config.bone_island_probability:
        s.solid(Tissue.SPONGY, hu=rng.uniform(250, 900), blend_mm=1.0)
        _blob(s, v, f, rng.uniform(0.08, 0.2), rng)
    for _ in range(rng.poisson(health.metastases) if health.metastases else 0):
        dense = rng.random() < health.blastic
        s.solid(Tissue.SPONGY if dense else Tissue.MUSCLE, hu=rng.uniform(150, 700) if dense else 0.0, blend_mm=2.0)
        _blob(s, v, f, rng.uniform(0.15, 0.5), rng)


def _blob(s: SceneBuilder, v: VertebraShape, f: int, share: float, rng: np.random.Generator) -> None:
    """An ellipsoid of about ``share`` of the body's half sizes somewhere inside it."""
    half = np.array([v.half_width_mm, v.half_depth_mm, 0.5 * min(v.heights_mm)])
    radii = np.minimum(share * half * rng.uniform(0.7, 1.3, 3), 0.7 * half)
    direction = rng.normal(size=3)
    at = direction / np.linalg.norm(direction) * (0.85 * half - radii) * rng.uniform(0, 0.9)
    s.ellipsoid(v.centroid_mm + at, radii, frame=f)


def _add_whole(
    s: SceneBuilder, v: VertebraShape, f: int, health: BoneHealth, config: PhantomConfig, rng: np.random.Generator
) -> None:
    """Ivory vertebrae and irradiated ones."""
    hu = rng.uniform(250, 700) if rng.random() < config.ivory_probability else 0.0
    hu -= rng.uniform(40, 110) if v.label in health.irradiated else 0.0
    if hu and v.level != "C1":
        s.solid(Tissue.SPONGY, hu=v.density + hu)
        s.body(v.body_params(shrink_mm=0.8), frame=f)


def _add_patches(s: SceneBuilder, v: VertebraShape, f: int, health: BoneHealth, rng: np.random.Generator) -> None:
    """Broad unevenness, and the channel of the basal vein."""
    a, b = v.half_width_mm, v.half_depth_mm
    if health.patchiness_hu and v.level != "C1":
        for _ in range(2):
            s.solid(Tissue.SPONGY, hu=v.density + rng.normal(0, health.patchiness_hu))
            _blob(s, v, f, rng.uniform(0.25, 0.55), rng)
    s.solid(Tissue.SPONGY, hu=v.density - rng.uniform(30, 120))
    s.capsule((0, -0.8 * b, 0), (0, -0.25 * b, 0), 2.6, 1.0, frame=f, scale=(1.6, 0.8))
    if v.grade and rng.random() < 0.6:
        s.solid(Tissue.SPONGY, hu=v.density + rng.uniform(40, 260))
        low = v.centroid_mm + np.array([0, rng.uniform(-0.1, 0.3) * b, 0.15 * min(v.heights_mm)])
        s.ellipsoid(low, (0.75 * a, 0.55 * b, rng.uniform(0.08, 0.2) * min(v.heights_mm)), frame=f)


def _add_endplates(
    s: SceneBuilder, v: VertebraShape, f: int, health: BoneHealth, config: PhantomConfig, rng: np.random.Generator
) -> None:
    """Sclerosis below an endplate, over all of it or towards one side, straight-edged as a slice off the body."""
    if v.level == "C1":
        return
    for end in (-1.0, 1.0):
        if not health.banded and rng.random() >= config.endplate_sclerosis_probability * 2 * health.degeneration:
            continue
        depth = rng.uniform(0.12, 0.32) * min(v.heights_mm)
        s.solid(Tissue.SPONGY, hu=v.density + rng.uniform(80, 500), blend_mm=1.5)
        s.body(v.body_params(shrink_mm=0.6), frame=f)
        lean = 0.0 if health.banded else rng.uniform(-0.25, 0.25)
        reach = v.tallest_mm + v.half_depth_mm
        middle = np.array([0.0, 0.0, end * (0.5 * v.tallest_mm - depth - reach)])
        s.box(
            middle,
            (2 * v.half_width_mm, 3 * v.half_depth_mm, reach),
            z=(lean, rng.uniform(-0.2, 0.2), 1.0),
            frame=f,
            cut=True,
        )


def _add_fracture_marks(s: SceneBuilder, v: VertebraShape, f: int, rng: np.random.Generator) -> None:
    """In some fractured bodies a dense line below the broken endplate, or a cleft with gas or fluid."""
    if not v.grade:
        return
    a, b, low = v.half_width_mm, v.half_depth_mm, min(v.heights_mm)
    if rng.random() < 0.3:
        s.solid(Tissue.SPONGY, hu=v.density + rng.uniform(150, 500))
        at = v.centroid_mm + np.array([0, rng.uniform(-0.1, 0.2) * b, rng.uniform(-0.1, 0.3) * low])
        s.ellipsoid(at, (0.85 * a, 0.7 * b, rng.uniform(0.6, 1.5)), frame=f, z=(rng.uniform(-0.2, 0.2), 0.1, 1))
    if v.grade > 1 and rng.random() < 0.12:
        s.solid(Tissue.GAS if rng.random() < 0.6 else Tissue.CSF)
        at = v.centroid_mm + np.array([0, 0.3 * b, 0.1 * low])
        s.ellipsoid(at, (rng.uniform(0.3, 0.6) * a, 0.4 * b, rng.uniform(0.06, 0.14) * low), frame=f)


def _add_haemangioma(s: SceneBuilder, v: VertebraShape, f: int, rng: np.random.Generator) -> None:
    """Fatty marrow with a few thick vertical trabeculae."""
    half = np.array([v.half_width_mm, v.half_depth_mm, 0.5 * min(v.heights_mm)])
    middle = v.centroid_mm + half * rng.uniform(-0.3, 0.3, 3) * [1, 1, 0.2]
    radii = half * rng.uniform([0.25, 0.3, 0.6], [0.55, 0.55, 0.8])
    s.solid(Tissue.FAT, hu=rng.uniform(20, 140), blend_mm=2.0)
    s.ellipsoid(middle, radii, frame=f)
    s.solid(Tissue.SPONGY, hu=rng.uniform(100, 450))
    for _ in range(int(rng.integers(5, 14))):
        x, y = rng.uniform(-0.65, 0.65, 2) * radii[:2]
        reach = 0.75 * radii[2]
        foot = middle + np.array([x, y, -reach])
        s.capsule(foot, foot + np.array([0, 0, 2 * reach]), rng.uniform(0.4, 0.9), frame=f)
