"""How much height a vertebra has lost: measured against its own shape and against its unfractured neighbours.

The normal shape of a vertebra of each level is known up to the patient's size: ``_NORMAL`` holds heights and ratios of
adults, rounded to what published morphometry agrees on (heights grow from 16 mm at T1 to 28 mm at L3; anterior to
posterior 0.95 in the thoracic spine, 0.93 at T12, equal at L2 and L3, 1.18 at L5). What a patient's vertebrae would
measure unfractured is that shape times a size that changes slowly along the spine. Size and change are those under
which the measured heights are most likely, when each of them is either normal within some per cent or reduced by a
fracture, anything from 12 to 75 %. So reduced vertebrae do not pull the expectation down, even where they are many, and
the unreduced heights of a vertebra, such as the posterior one of a wedge, speak for it. Each vertebra then has a small
deviation of its own, found in the same way. Loss is ``1 - measured / expected``, HealthiVert's relative height loss
(Zhang 2024) with this expectation in place of a synthesised vertebra.

Where levels are unknown, every run of consecutive levels is tried and the expectations are averaged by how likely the
heights are under each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.anatomy import LEVELS, is_cervical
from runtime.heights import BodyHeights

Float64 = npt.NDArray[np.float64]

GRADE_FROM = (0.20, 0.25, 0.40)
"""Relative loss from which a vertebra is of Genant grade 1, 2 and 3 (Genant 1993)."""
WEDGE, BICONCAVE, CRUSH = "wedge", "biconcave", "crush"
CRUSH_SHARE = 0.6
"""A posterior loss of this share of the greatest one makes a crush of what would be a wedge or biconcave."""
SHAPE_FROM = 0.12
"""No shape where no height has lost this much: healthy vertebrae lose up to that by their own form and by what is
measured wrongly (docs/decisions/0006), so which loss is the greatest is chance. Genant's grade 1 starts at 20 %."""

_NORMAL: dict[str, tuple[float, float, float]] = {
    "T1": (16.0, 0.95, 0.93),
    "T2": (17.0, 0.95, 0.93),
    "T3": (17.6, 0.95, 0.93),
    "T4": (18.0, 0.95, 0.93),
    "T5": (18.5, 0.95, 0.93),
    "T6": (19.0, 0.95, 0.93),
    "T7": (19.5, 0.94, 0.92),
    "T8": (20.0, 0.94, 0.92),
    "T9": (20.7, 0.95, 0.92),
    "T10": (21.6, 0.95, 0.92),
    "T11": (22.8, 0.94, 0.92),
    "T12": (24.4, 0.93, 0.92),
    "T13": (25.2, 0.94, 0.92),
    "L1": (26.0, 0.95, 0.93),
    "L2": (27.0, 0.99, 0.94),
    "L3": (28.0, 1.01, 0.95),
    "L4": (28.0, 1.05, 0.97),
    "L5": (28.0, 1.18, 1.03),
    "L6": (27.5, 1.18, 1.03),
}
"""Mean of anterior and posterior height in mm, anterior to posterior, middle to posterior."""
_GRADED = tuple(level for level in LEVELS if level in _NORMAL)
_USUAL = tuple(level for level in _GRADED if level not in ("T13", "L6"))

_SIZES = np.log(np.arange(0.70, 1.36, 0.02))
_CHANGES = np.linspace(-0.010, 0.010, 9)
"""Change of log size per level."""
_OWN = np.linspace(-0.12, 0.12, 13)
_SIZE_SPREAD, _CHANGE_SPREAD, _OWN_SPREAD = 0.12, 0.005, 0.01
_ABOVE, _BELOW = 0.02, 0.06
"""Spread of a normal height around what the vertebra once had: with age all lose some, none gains."""
_FRACTURED, _LEAST_LOSS, _MOST_LOSS = 0.15, 0.12, 0.75
_OUTLIER = 1e-3


@dataclass(frozen=True)
class MeasuredFracture:
    """Height loss of one vertebra.

    Args:
        height_loss: the greatest relative loss of the three, 0..1.
        grade: Genant 0..3.
        shape: ``"wedge"``, ``"biconcave"`` or ``"crush"``; None for grade 0.
        losses: relative loss of the anterior, middle and posterior height; negative where it is more than expected.
        expected: what the heights would be without a fracture.
    """

    height_loss: float
    grade: int
    shape: str | None
    losses: tuple[float, float, float]
    expected: BodyHeights


def grade_of(height_loss: float) -> int:
    """Genant's grade for a relative height loss (0..1)."""
    return int(np.searchsorted(GRADE_FROM, height_loss, side="right"))


def shape_of(losses: Sequence[float]) -> str | None:
    """Genant's shape for the relative losses of the anterior, middle and posterior height; None where all are slight.

    Slight is below ``SHAPE_FROM``.
    """
    anterior, middle, posterior = losses
    if max(losses) < SHAPE_FROM:
        return None
    if posterior >= CRUSH_SHARE * max(anterior, middle):
        return CRUSH
    return WEDGE if anterior >= middle else BICONCAVE


def measure_loss(
    heights: Sequence[BodyHeights | None], levels: Sequence[str | None], *, in_neck: Sequence[bool] | None = None
) -> tuple[MeasuredFracture | None, ...]:
    """Height loss of every vertebra of one spine.

    Args:
        heights: cranial to caudal; None where they could not be measured.
        levels: ``"C1"``..``"L6"`` or None for each. Where one is None, it is inferred from the nearest known one by
            counting; where all are, from the heights.
        in_neck: True for each that is taken for a cervical one although its level is not known; None where there are
            no such.

    Returns:
        One entry per vertebra; None for those without heights and for cervical ones, for which neither Genant's
        method nor the table of normal shapes is made.

    Raises:
        ValueError: the sequences differ in length.
    """
    if len(heights) != len(levels):
        raise ValueError(f"{len(heights)} heights do not go with {len(levels)} levels.")
    if in_neck is not None and len(in_neck) != len(levels):
        raise ValueError(f"{len(in_neck)} entries of in_neck do not go with {len(levels)} levels.")
    neck = [is_cervical(level) or (in_neck is not None and in_neck[n]) for n, level in enumerate(levels)]
    measured = {n: h for n, h in enumerate(heights) if h is not None and not neck[n]}
    out: list[MeasuredFracture | None] = [None] * len(heights)
    if measured:
        above, mm = neck.index(False), np.array([h.as_array() for h in measured.values()])
        expected_mm = _expected_mm(mm, list(measured), levels, above=above)
        for (n, h), expected in zip(measured.items(), expected_mm, strict=True):
            out[n] = _judged(h, expected)
    return tuple(out)


def _judged(heights: BodyHeights, expected_mm: Float64) -> MeasuredFracture:
    losses = 1.0 - heights.as_array() / expected_mm
    anterior, middle, posterior = (float(v) for v in losses)
    loss = float(np.clip(losses.max(), 0.0, 1.0))
    grade = grade_of(loss)
    shape = shape_of((anterior, middle, posterior)) if grade else None
    return MeasuredFracture(loss, grade, shape, (anterior, middle, posterior), BodyHeights(*map(float, expected_mm)))


def _expected_mm(measured_mm: Float64, places: list[int], levels: Sequence[str | None], *, above: int) -> Float64:
    """(n, 3) heights without fractures, averaged over the possible levels by the evidence for each."""
    fits = [_fit(np.log(measured_mm), [names[n] for n in places]) for names in _possible_levels(levels, above=above)]
    evidence = np.array([fit[0] for fit in fits])
    weights = np.exp(evidence - evidence.max())
    mean = sum(w * expected for w, (_, expected) in zip(weights / weights.sum(), fits, strict=True))
    return np.exp(np.asarray(mean))


def _possible_levels(levels: Sequence[str | None], *, above: int) -> list[list[str]]:
    """The names that the vertebrae can have, T1 to L6: one list where a level is known, else one per first level.

    The first level is that of the trunk's uppermost vertebra, ``above`` of which lie in the neck.
    """
    known = [n for n, level in enumerate(levels) if level in _NORMAL or is_cervical(level)]
    if not known:
        spare = len(_USUAL) - (len(levels) - above)
        return [_named(first - above, levels) for first in range(min(0, spare), max(0, spare) + 1)]
    names: list[str] = []
    for n, level in enumerate(levels):
        nearest = min(known, key=lambda k: (abs(k - n), k))
        names.append(level if level in _NORMAL else _counted(levels[nearest], n - nearest))
    return [names]


def _named(first: int, levels: Sequence[str | None]) -> list[str]:
    return [_USUAL[min(max(first + n, 0), len(_USUAL) - 1)] for n in range(len(levels))]


def _counted(level: str | None, below: int) -> str:
    """The level ``below`` steps under another one, held between T1 and L5."""
    column = [name for name in LEVELS if name not in ("T13", "L6")]
    start = {"T13": "T12", "L6": "L5"}.get(str(level), str(level))
    if start != level and below < 0:
        below += 1  # what lies above these two is the very one that stands for them
    place = column.index(start) + below - column.index("T1")
    return _USUAL[min(max(place, 0), len(_USUAL) - 1)]


def _fit(logs: Float64, names: list[str]) -> tuple[float, Float64]:
    """Log evidence for these levels, and the expected (n, 3) log heights.

    Sums over all sizes of the patient (axis 0), changes of size along the spine (1) and own deviations (3) of every
    vertebra (2).
    """
    base = np.log([_normal_mm(name) for name in names])
    place = np.array([_GRADED.index(name) for name in names], np.float64)
    size = _SIZES[:, None, None] + _CHANGES[None, :, None] * (place - place.mean())
    own_log, own_prior = _OWN, -0.5 * (_OWN / _OWN_SPREAD) ** 2
    residual = (logs - base)[None, None, :, None, :] - (size[..., None] + own_log)[..., None]
    each = _log_likelihood(residual).sum(axis=-1) + own_prior - np.log(np.exp(own_prior).sum())
    top = each.max(axis=-1, keepdims=True)
    weight = np.exp(each - top)
    per_vertebra = np.log(weight.sum(axis=-1)) + top[..., 0]
    own = (weight * own_log).sum(axis=-1) / weight.sum(axis=-1)
    prior = -0.5 * (_SIZES[:, None] / _SIZE_SPREAD) ** 2 - 0.5 * (_CHANGES[None, :] / _CHANGE_SPREAD) ** 2
    joint = per_vertebra.sum(axis=-1) + prior
    share = np.exp(joint - joint.max())
    mean = ((size + own) * share[..., None]).sum(axis=(0, 1)) / share.sum()
    return float(np.log(share.sum()) + joint.max()), base + mean[:, None]


def _log_likelihood(residual: Float64) -> Float64:
    """Log density of a height's log deviation: normal, or reduced by a fracture, or a gross error."""
    spread = np.where(residual > 0, _ABOVE, _BELOW)
    normal = np.exp(-0.5 * (residual / spread) ** 2) / (0.5 * (_ABOVE + _BELOW) * np.sqrt(2 * np.pi))
    low, high = np.log1p(-_MOST_LOSS), np.log1p(-_LEAST_LOSS)
    reduced = ((residual > low) & (residual < high)) / (high - low)
    return np.asarray(np.log((1 - _FRACTURED) * normal + _FRACTURED * reduced + _OUTLIER))


def _normal_mm(level: str) -> tuple[float, float, float]:
    """Anterior, middle and posterior height of an adult of usual size."""
    mean, anterior, middle = _NORMAL[level]
    posterior = 2.0 * mean / (1.0 + anterior)
    return anterior * posterior, middle * posterior, posterior
