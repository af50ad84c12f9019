"""Sampling of the spine: which vertebrae, their shapes, fractures and poses. Parameters only, no voxels.

Frames: the *body frame* is the upright patient's (right, anterior, superior), mm, with its origin at the middle of the
first sacral body; a vertebra's *local frame* has its origin at the reference middle of its body, axes right, anterior,
superior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.phantom.config import PhantomConfig
from train.phantom.tables import FRACTURE_WEIGHT, LABEL_OF_LEVEL, LEVEL_SIZES

Float64 = npt.NDArray[np.float64]
GRADE_BANDS: dict[int, tuple[float, float]] = {0: (0.0, 0.18), 1: (0.20, 0.25), 2: (0.25, 0.40), 3: (0.40, 0.75)}
"""Relative height loss per Genant grade, as drawn; grade 0 is natural variation."""
SHAPES = ("wedge", "biconcave", "crush")
MEASURED_AT = 0.75
"""Anterior and posterior heights are measured in the midline at this fraction of the half depth from the centre."""


@dataclass(frozen=True, eq=False)
class VertebraShape:
    """One vertebra's shape and pose.

    Args:
        level, label: name and VerSe label.
        half_width_mm, half_depth_mm, waist, hollow_mm, edge_mm, square: the body, see ``kernels._body``.
        original_heights_mm, heights_mm: anterior, middle, posterior, before and after a fracture.
        top_share: share of the lost height that the superior endplate gives up.
        grade, form: Genant grade and shape ("none" for grade 0).
        disc_mm: height of the disc below.
        axes: (3, 3), columns are the local axes in the body frame; origin_mm: (3,) body frame.
        centroid_mm: (3,) centroid of the deformed body in the local frame.
        density: extra HU of the spongy bone.
    """

    level: str
    label: int
    half_width_mm: float
    half_depth_mm: float
    waist: float
    hollow_mm: float
    edge_mm: float
    square: float
    original_heights_mm: tuple[float, float, float]
    heights_mm: tuple[float, float, float]
    top_share: float
    grade: int
    form: str
    disc_mm: float
    axes: Float64
    origin_mm: Float64
    centroid_mm: Float64
    density: float

    @property
    def tallest_mm(self) -> float:
        """The greatest of the three heights; the local frame's origin is in its middle."""
        return max(self.heights_mm)

    @property
    def height_loss(self) -> float:
        """Greatest relative loss of height."""
        return max(1.0 - now / before for now, before in zip(self.heights_mm, self.original_heights_mm, strict=True))

    def body_params(self, *, shrink_mm: float = 0.0) -> list[float]:
        """The parameters of ``kernels._body``; ``shrink_mm`` makes a smaller solid inside."""
        heights = [max(h - 2 * shrink_mm, 1.0) for h in self.heights_mm]
        a, b = self.half_width_mm - shrink_mm, self.half_depth_mm - shrink_mm
        return [a, b, self.waist, self.hollow_mm, *heights, self.top_share, self.edge_mm, self.square]

    def to_body_mm(self, local_mm: npt.ArrayLike) -> Float64:
        """Local points (..., 3) in the body frame."""
        return np.asarray(local_mm, float) @ self.axes.T + self.origin_mm


def rotation(x_deg: float, y_deg: float, z_deg: float) -> Float64:
    """Rotation matrix Rz @ Ry @ Rx; positive ``x_deg`` leans the superior axis anteriorly."""
    a, b, c = np.deg2rad([-x_deg, y_deg, z_deg])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


def sample_levels(rng: np.random.Generator, config: PhantomConfig) -> list[str]:
    """Level names, caudal to cranial."""
    thoracic, lumbar = 12, 5
    if rng.random() < config.count_variant_probability:
        thoracic, lumbar = [(12, 6), (12, 6), (13, 5), (11, 5), (12, 4)][rng.integers(5)]
    levels = [f"C{i}" for i in range(1, 8)] + [f"T{i}" for i in range(1, thoracic + 1)]
    return (levels + [f"L{i}" for i in range(1, lumbar + 1)])[::-1]


def _sample_grades(levels: list[str], rng: np.random.Generator, config: PhantomConfig) -> list[int]:
    grades = [0] * len(levels)
    if rng.random() < config.spared_probability:
        return grades
    weight = np.array([FRACTURE_WEIGHT.get(level, 0.0) for level in levels])
    proneness = rng.gamma(2.0, 0.5)
    chance = np.clip(config.fracture_probability * weight / weight[weight > 0].mean() * proneness, 0, 0.8)
    shares = np.asarray(config.grade_weights) / sum(config.grade_weights)
    for i, p in enumerate(chance):
        if rng.random() < p * (1.6 if i and grades[i - 1] else 1.0):
            grades[i] = 1 + int(rng.choice(3, p=shares))
    return grades


def _losses(grade: int, rng: np.random.Generator, config: PhantomConfig) -> tuple[str, Float64]:
    """Shape name and relative losses (anterior, middle, posterior)."""
    low, high = GRADE_BANDS[grade]
    if grade == 0:
        loss = np.clip(np.abs(rng.normal(0, [0.045, 0.035, 0.025])), 0, high - 0.01)
        if rng.random() < 0.12:
            loss[rng.integers(2)] = rng.uniform(0.08, 0.16)
        return "none", loss
    worst = rng.uniform(low + 0.002, high - 0.002)
    form = SHAPES[rng.choice(3, p=np.asarray(config.shape_weights) / sum(config.shape_weights))]
    if form == "wedge":
        share = np.array([1.0, rng.uniform(0.35, 0.8), rng.uniform(0, 0.25)])
    elif form == "biconcave":
        share = np.array([rng.uniform(0.1, 0.55), 1.0, rng.uniform(0, 0.4)])
    else:
        share = np.array([rng.uniform(0.7, 1.0), rng.uniform(0.8, 1.0), 1.0])
    return form, worst * share


def _heights(level: str, height_mm: float, rng: np.random.Generator) -> Float64:
    """Natural anterior, middle, posterior heights: slightly concave endplates, kyphotic or lordotic wedging."""
    wedge = {"T": 0.03, "C": 0.0}.get(level[0], {"L1": 0.03, "L4": -0.03, "L5": -0.09, "L6": -0.09}.get(level, 0.0))
    wedge += rng.normal(0, 0.012)
    dip = rng.uniform(0.02, 0.1)
    return height_mm * np.array([1 - wedge, 1 - dip, 1 + wedge])


def _centroid(params: list[float]) -> Float64:
    """Centroid (3,) of the body in its local frame, by quadrature over the analytic cross-sections."""
    a, b, waist, hollow, *heights, share, _, square = params
    tallest = max(heights)
    ys = np.linspace(-1, 1, 25)[:, None, None] * b
    xs = np.linspace(0, 1, 13)[None, :, None] * a
    w = np.linspace(-1, 1, 9)[None, None, :]
    dent = hollow * np.clip(-2 * ys / b, 0, 1) / (1 + (xs / (0.5 * a)) ** 2) ** 2
    v = np.clip(ys / b, -0.9, 0.9)
    straight = 0.5 * (heights[0] + heights[2]) + (heights[0] - heights[2]) * v / (2 * MEASURED_AT)
    dip = (heights[1] - 0.5 * (heights[0] + heights[2])) * np.clip(1 - (v / MEASURED_AT) ** 2, 0, None)
    height = straight + np.maximum(dip, -0.9 * straight) * np.clip(1 - (xs / a) ** 2, 0, None)
    top = tallest / 2 - share * (tallest - height)
    z = top - height / 2 + w * height / 2
    shrink = 1 - waist * (1 - np.clip(np.abs(2 * z) / tallest, 0, 1) ** 2)
    u2, v2 = (xs / (a * shrink)) ** 2, ((ys - dent) / (b * (0.5 + 0.5 * shrink))) ** 2
    f = (1 - square) * np.sqrt(u2 + v2) + square * (u2**2 + v2**2) ** 0.25
    weight = (f < 1) * height * np.where(np.abs(w) == 1, 0.5, 1.0) * np.where(xs == 0, 0.5, 1.0)
    total = weight.sum()
    return np.array([0.0, (weight * ys).sum() / total, (weight * z).sum() / total])


@dataclass(frozen=True)
class _Posture:
    """How the whole spine bends."""

    size: float
    cervical: float
    thoracic: float
    lumbar: float
    cobb_deg: float
    apex: float
    waves: float
    side: float
    degeneration: float

    def tilt_deg(self, level: str) -> float:
        scale = {"C": self.cervical, "T": self.thoracic, "L": self.lumbar}[level[0]]
        return LEVEL_SIZES[level].tilt_deg * scale

    def lean_deg(self, fraction: float) -> tuple[float, float]:
        """Coronal lean and axial rotation at ``fraction`` (0 sacrum .. 1 atlas)."""
        phase = self.waves * np.pi * (fraction - self.apex)
        return 0.5 * self.cobb_deg * self.side * np.sin(phase), 0.5 * self.cobb_deg * self.side * np.cos(phase)


def _sample_posture(rng: np.random.Generator, config: PhantomConfig) -> _Posture:
    cobb = rng.uniform(*config.scoliosis_deg) if rng.random() < config.scoliosis_probability else rng.uniform(0, 5)
    return _Posture(
        rng.uniform(*config.size), rng.uniform(0.3, 1.3), rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.35), cobb,
        rng.uniform(0.15, 0.75), rng.uniform(1.5, 3.0), rng.choice([-1.0, 1.0]), rng.uniform(*config.degeneration),
    )  # fmt: skip


def sample_spine(rng: np.random.Generator, config: PhantomConfig) -> tuple[list[VertebraShape], float, float]:
    """Vertebrae caudal to cranial, then the patient's size factor and degeneration (0..1)."""
    posture = _sample_posture(rng, config)
    levels = sample_levels(rng, config)
    grades = _sample_grades(levels, rng, config)
    width = posture.size * rng.uniform(0.93, 1.07)
    patient_density = rng.normal(0, 12)
    top, kyphosis = np.array([0.0, 2.0, 14.0]) * posture.size, 0.0
    shapes: list[VertebraShape] = []
    for i, (level, grade) in enumerate(zip(levels, grades, strict=True)):
        size = LEVEL_SIZES[level]
        form, losses = _losses(grade, rng, config)
        original = _heights(level, size.height_mm * posture.size * rng.uniform(0.97, 1.03), rng)
        heights = original * (1 - losses)
        a, b = size.width_mm / 2 * width * rng.uniform(0.97, 1.03), size.depth_mm / 2 * width * rng.uniform(0.97, 1.03)
        a, b = a * (1 + 0.15 * losses.mean()), b * (1 + 0.15 * losses.mean())
        share = rng.uniform(0.35, 0.95) if grade else 0.5
        disc = size.disc_mm * posture.size * rng.uniform(0.85, 1.15)
        disc *= 1 - 0.7 * posture.degeneration * rng.random() ** 2 if level not in ("C1", "C2") else 1.0
        wedge_deg = float(np.rad2deg(np.arctan2((heights[2] - heights[0]) - (original[2] - original[0]), 1.5 * b)))
        lean, twist = posture.lean_deg(i / len(levels))
        half = 0.5 * wedge_deg
        axes = rotation(posture.tilt_deg(level) + kyphosis + half + rng.normal(0, 1), lean, twist + rng.normal(0, 1))
        kyphosis = (kyphosis + wedge_deg) * 0.85 if level[0] != "C" else kyphosis * 0.6
        rim = 0.5 * max(heights) - np.array([1 - share, share]) * (max(heights) - 0.5 * (heights[0] + heights[2]))
        up = axes[:, 2]
        if shapes:
            middle = shapes[-1].axes[:, 2] + up
            top = top + middle / np.linalg.norm(middle) * disc
        else:
            top = top + (up + [0, 0.6, 0.8]) / 2 * disc
        origin = top + up * rim[0]
        if level == "C1":
            origin = origin + axes[:, 1] * 9.0 * posture.size
        top = origin + up * rim[1]
        body = [a, b, rng.uniform(0.06, 0.13), b * rng.uniform(0.03, 0.12), *heights, share, min(1.2, 0.07 * b), rng.uniform(0.1, 0.5)]
        shapes.append(
            VertebraShape(
                level, LABEL_OF_LEVEL[level], a, b, body[2], body[3], body[8], body[9],
                (float(original[0]), float(original[1]), float(original[2])),
                (float(heights[0]), float(heights[1]), float(heights[2])),
                share, grade, form, disc, axes, origin, _centroid([float(v) for v in body]),
                patient_density + rng.normal(0, 10) + (rng.uniform(0, 90) if grade and rng.random() < 0.6 else 0.0),
            )  # fmt: skip
        )
    return shapes, posture.size, posture.degeneration
