"""Sampling of the spine: which vertebrae, their shapes, fractures and poses. Parameters only, no voxels.

Frames: the *body frame* is the upright patient's (right, anterior, superior), mm, with its origin at the middle of the
first sacral body; a vertebra's *local frame* has its origin at the reference middle of its body, axes right, anterior,
superior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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

LEAST_DISC_MM = 0.8
"""Bodies never come nearer, so that none is painted over its neighbour."""


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
        phase, half = self.waves * np.pi, 0.5 * self.cobb_deg * self.side
        drift = (np.cos(phase * self.apex) - np.cos(phase * (1 - self.apex))) / phase
        return half * (np.sin(phase * (fraction - self.apex)) - drift), half * np.cos(phase * (fraction - self.apex))


def _sample_posture(rng: np.random.Generator, config: PhantomConfig) -> _Posture:
    cobb = rng.uniform(*config.scoliosis_deg) if rng.random() < config.scoliosis_probability else rng.uniform(0, 5)
    return _Posture(
        rng.uniform(*config.size),
        rng.uniform(0.3, 1.3),
        rng.uniform(0.5, 1.5),
        rng.uniform(0.5, 1.35),
        cobb,
        rng.uniform(0.15, 0.75),
        rng.uniform(2.0, 3.4),
        rng.choice([-1.0, 1.0]),
        rng.uniform(*config.degeneration),
    )


@dataclass(frozen=True, eq=False)
class _Draft:
    """A vertebra before it has a place: its body's parameters and what is remembered of how they came about."""

    level: str
    grade: int
    form: str
    original: Float64
    body: list[float]
    disc_mm: float
    density: float

    @property
    def heights(self) -> Float64:
        return np.array(self.body[4:7])

    @property
    def collapse_deg(self) -> float:
        """Angle by which a fracture has closed the body anteriorly."""
        lost = (self.body[6] - self.body[4]) - (self.original[2] - self.original[0])
        return float(np.rad2deg(np.arctan2(lost, 2 * MEASURED_AT * self.body[1])))

    @property
    def rims_mm(self) -> tuple[float, float]:
        """Distance of the lower and the upper endplate from the local origin, mean of front and back."""
        missing = self.heights.max() - 0.5 * (self.body[4] + self.body[6])
        half, share = 0.5 * self.heights.max(), self.body[7]
        return float(half - (1 - share) * missing), float(half - share * missing)


def _draft(
    level: str, grade: int, posture: _Posture, width: float, config: PhantomConfig, rng: np.random.Generator
) -> _Draft:
    size = LEVEL_SIZES[level]
    form, losses = _losses(grade, rng, config)
    original = _heights(level, size.height_mm * posture.size * rng.uniform(0.97, 1.03), rng)
    bulge = (1 + 0.15 * losses.mean()) * width
    a, b = (half * bulge * rng.uniform(0.97, 1.03) for half in (size.width_mm / 2, size.depth_mm / 2))
    share = rng.uniform(0.35, 0.95) if grade else 0.5
    disc = size.disc_mm * posture.size * rng.uniform(0.85, 1.15)
    if level not in ("C1", "C2"):
        disc *= 1 - 0.7 * posture.degeneration * rng.random() ** 2
    waist, hollow, square = rng.uniform(0.06, 0.13), b * rng.uniform(0.03, 0.12), rng.uniform(0.1, 0.5)
    body = [a, b, waist, hollow, *(original * (1 - losses)), share, min(1.2, 0.07 * b), square]
    density = rng.normal(0, 10) + (rng.uniform(0, 90) if grade and rng.random() < 0.6 else 0.0)
    return _Draft(level, grade, form, original, [float(v) for v in body], float(disc), float(density))


def _sagittal_deg(drafts: list[_Draft], posture: _Posture, rng: np.random.Generator) -> Float64:
    """Forward lean of every vertebra: natural curves, plus what fractures add above them, balanced over the sacrum."""
    kyphosis, out = 0.0, []
    for d in drafts:
        out.append(posture.tilt_deg(d.level) + kyphosis + 0.5 * d.collapse_deg + rng.normal(0, 1))
        kyphosis = (kyphosis + d.collapse_deg) * 0.85 if d.level[0] != "C" else kyphosis * 0.6
    trunk = [n for n, d in enumerate(drafts) if d.level[0] != "C"]
    heights = np.array([drafts[n].heights.max() for n in trunk])
    drift = float((np.array(out)[trunk] * heights).sum() / heights.sum())
    return np.array(out) - (drift - rng.normal(2.0, 3.0))


def _with_block(drafts: list[_Draft], config: PhantomConfig, rng: np.random.Generator) -> list[_Draft]:
    """The drafts, now and then with one disc all but gone."""
    if rng.random() >= config.block_probability:
        return drafts
    n = int(rng.integers(1, len(drafts) - 2))
    block = replace(drafts[n], disc_mm=max(0.8, drafts[n].disc_mm * rng.uniform(0.08, 0.25)))
    return [*drafts[:n], block, *drafts[n + 1 :]]


def _slips(levels: list[str], config: PhantomConfig, rng: np.random.Generator) -> Float64:
    """By how far, mm, every vertebra stands before the one below it."""
    out = np.zeros(len(levels))
    if rng.random() < config.slip_probability:
        n = int(rng.integers(3))
        out[n] = rng.uniform(-0.08, 0.3) * LEVEL_SIZES[levels[n]].depth_mm
    return out


def _clearance(lower: VertebraShape, d: _Draft, axes: Float64, origin: Float64) -> float:
    """Least distance, mm, between the lower vertebra's upper endplate and five points of the draft's lower one."""
    a, b, tallest, share = d.body[0], d.body[1], d.heights.max(), d.body[7]
    v = np.array([0.9, 0.0, 0.0, 0.0, -0.9])
    u = np.array([0.0, 0.9, 0.0, -0.9, 0.0])
    straight = 0.5 * (d.body[4] + d.body[6]) + (d.body[4] - d.body[6]) * v / (2 * MEASURED_AT)
    foot = -0.5 * tallest + (1 - share) * (tallest - straight)
    points = (np.stack([u * a, v * b, foot], 1) @ axes.T + origin - lower.origin_mm) @ lower.axes
    depth = np.clip(points[:, 1] / lower.half_depth_mm, -0.9, 0.9)
    front, _, back = lower.heights_mm
    height = 0.5 * (front + back) + (front - back) * depth / (2 * MEASURED_AT)
    plate = 0.5 * lower.tallest_mm - lower.top_share * (lower.tallest_mm - height)
    return float((points[:, 2] - plate).min())


def sample_spine(rng: np.random.Generator, config: PhantomConfig) -> tuple[list[VertebraShape], float, float]:
    """Vertebrae caudal to cranial, then the patient's size factor and degeneration (0..1)."""
    posture = _sample_posture(rng, config)
    levels = sample_levels(rng, config)
    grades = _sample_grades(levels, rng, config)
    width = posture.size * rng.uniform(0.96, 1.14)
    patient_density = rng.normal(0, 12)
    drafts = [_draft(n, g, posture, width, config, rng) for n, g in zip(levels, grades, strict=True)]
    drafts, slips_mm = _with_block(drafts, config, rng.spawn(1)[0]), _slips(levels, config, rng.spawn(1)[0])
    top = np.array([0.0, 2.0, 14.0]) * posture.size
    shapes: list[VertebraShape] = []
    for i, (d, sagittal) in enumerate(zip(drafts, _sagittal_deg(drafts, posture, rng), strict=True)):
        lean, twist = posture.lean_deg(i / len(levels))
        axes = rotation(sagittal, lean, twist + rng.normal(0, 1))
        up, (low, high) = axes[:, 2], d.rims_mm
        below = shapes[-1].axes[:, 2] if shapes else np.array([0.0, 0.6, 0.8])
        top = top + (below + up) / np.linalg.norm(below + up) * d.disc_mm
        origin = top + up * low + axes[:, 1] * slips_mm[i]
        if d.level == "C1":
            origin = origin + axes[:, 1] * 9.0 * posture.size
        if shapes:
            origin = origin + up * max(LEAST_DISC_MM - _clearance(shapes[-1], d, axes, origin), 0.0)
        top = origin + up * high
        a, b, waist, hollow, anterior, middle, posterior, share, edge, square = d.body
        shapes.append(
            VertebraShape(
                d.level,
                LABEL_OF_LEVEL[d.level],
                a,
                b,
                waist,
                hollow,
                edge,
                square,
                (float(d.original[0]), float(d.original[1]), float(d.original[2])),
                (anterior, middle, posterior),
                share,
                d.grade,
                d.form,
                d.disc_mm,
                axes,
                origin,
                _centroid(d.body),
                patient_density + d.density,
            )
        )
    return shapes, posture.size, posture.degeneration
