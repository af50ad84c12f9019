"""Masks, heights, and whether probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.evaluation.grades import GRADES, graded_vertebrae
from train.evaluation.records import Comparison, MaskAgreement, ScanRecord
from train.metrics import ReliabilityBin, calibration_error, reliability


@dataclass(frozen=True)
class MaskFigures:
    """Means over found vertebrae that have a true mask (see MaskAgreement); nan where there are none."""

    vertebrae: int
    accuracy: float
    precision: float
    recall: float
    dice: float
    dice_sd: float
    hausdorff_mm: float


@dataclass(frozen=True)
class MaskSummary:
    """Masks of all vertebrae and by true grade 0..3 (thoracic and lumbar ones).

    ``dice_misses_as_zero``: mean over all true vertebrae of scans with a true mask, those not found counting 0.
    """

    overall: MaskFigures
    by_grade: tuple[MaskFigures, ...]
    dice_misses_as_zero: float


def summarise_masks(records: Sequence[ScanRecord], comparisons: Sequence[Comparison]) -> MaskSummary:
    """Masks of one way of finding vertebrae, over all scans; ``comparisons[i]`` is that of ``records[i]``."""
    vertebrae = [v for c in comparisons for v in c.vertebrae]
    measured = [v for r, c in zip(records, comparisons, strict=True) if r.has_mask for v in c.vertebrae]
    return MaskSummary(
        _masks([v.mask for v in vertebrae if v.mask is not None]),
        tuple(
            _masks([v.mask for v in vertebrae if v.mask is not None and v.grade == grade and v.region != "C"])
            for grade in range(GRADES)
        ),
        _mean([v.dice or 0.0 for v in measured]),
    )


def _masks(masks: Sequence[MaskAgreement]) -> MaskFigures:
    dices = [m.dice for m in masks if m.dice is not None]
    return MaskFigures(
        len(masks),
        _mean([m.accuracy for m in masks]),
        _mean([m.precision for m in masks]),
        _mean([m.recall for m in masks]),
        _mean(dices),
        float(np.std(dices)) if dices else float("nan"),
        _mean([m.hausdorff_mm for m in masks]),
    )


@dataclass(frozen=True)
class HeightFigures:
    """One position's height: how far off on average, and in which direction (found minus true), mm."""

    mean_absolute_error_mm: float
    bias_mm: float


@dataclass(frozen=True)
class HeightSummary:
    """Heights of found vertebrae whose true heights are known; the loss is a fraction of the original height."""

    vertebrae: int
    anterior: HeightFigures
    middle: HeightFigures
    posterior: HeightFigures
    mean_absolute_error_mm: float
    loss_mean_absolute_error: float


def summarise_heights(comparisons: Sequence[Comparison]) -> HeightSummary:
    """Heights of one way of finding vertebrae, over all scans; cervical vertebrae are left out, as with grades."""
    vertebrae = [v for c in comparisons for v in c.vertebrae if v.region != "C"]
    errors = np.array([v.height_errors_mm for v in vertebrae if v.height_errors_mm is not None]).reshape(-1, 3)
    anterior, middle, posterior = (HeightFigures(_mean(np.abs(e)), _mean(e)) for e in errors.T)
    losses = [abs(v.height_loss_error) for v in vertebrae if v.height_loss_error is not None]
    absolute = _mean(np.abs(errors).ravel())
    return HeightSummary(len(errors), anterior, middle, posterior, absolute, _mean(losses))


@dataclass(frozen=True)
class Calibration:
    """Whether a probability of p is right in a share p of cases: expected calibration error, and the bins behind it."""

    count: int
    expected_calibration_error: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class CalibrationSummary:
    """Calibration of the called grade's probability, of a fracture's (grade 2 or more), and of the confidence.

    The confidence is held against whether the centre belongs to a true vertebra.
    """

    grade: Calibration
    fracture: Calibration
    confidence: Calibration


def summarise_calibration(records: Sequence[ScanRecord], comparisons: Sequence[Comparison]) -> CalibrationSummary:
    """Calibration of one way of finding and grading; ``comparisons[i]`` is that of ``records[i]``."""
    graded = graded_vertebrae([r.patient for r in records], comparisons)
    centres = [centre for c in comparisons for centre in c.centres]
    return CalibrationSummary(
        _calibration(
            [max(v.probabilities) for v in graded], [int(np.argmax(v.probabilities)) == v.true for v in graded]
        ),
        _calibration([v.score(2) for v in graded], [v.true >= 2 for v in graded]),
        _calibration([c.confidence for c in centres], [not c.is_false for c in centres]),
    )


def _calibration(probabilities: Sequence[float], right: Sequence[bool]) -> Calibration:
    bins = reliability(np.clip(probabilities, 0.0, 1.0), right)
    return Calibration(len(right), calibration_error(bins), bins)


def _mean(values: Sequence[float | None] | np.ndarray) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else float("nan")
