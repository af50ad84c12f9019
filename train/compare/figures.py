"""How good predicted grades are in a population with given frequencies of the grades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.metrics import auroc, confusion_matrix, f1_of, precisions, recalls, reliability

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GradeFigures:
    """Of grades 0 to 3, at the population's frequencies; recalls don't depend on these. None where undefined.

    Args:
        precision, recall, f1: by grade.
        macro_f1: their mean.
        auroc: of fractures (grade 2 or 3), by the sum of their probabilities.
        log_loss: mean of -log of the true grade's probability, nats.
        calibration_error: expected calibration error of the called grade's probability, ten bins.
    """

    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    f1: tuple[float | None, ...]
    macro_f1: float
    auroc: float
    log_loss: float
    calibration_error: float


def grade_figures(probabilities: npt.ArrayLike, grades: npt.ArrayLike, frequencies: Sequence[float]) -> GradeFigures:
    """Figures of ``probabilities`` (n, 4) for crops of ``grades`` (n,), every grade among them.

    A crop of grade g counts frequencies[g] / (number of such crops), so a sample that has more of the rare grades
    than the population tells of the population, and with less noise than one drawn from it.
    """
    p, true = np.asarray(probabilities, float), np.asarray(grades, int)
    share = np.asarray(frequencies, float) / np.sum(frequencies)
    weight = (share / np.bincount(true, minlength=4))[true]
    called = p.argmax(axis=1)
    counts = confusion_matrix(true.tolist(), called.tolist(), classes=4)
    # The metrics count; so let there be about a million vertebrae of the population.
    population = np.round(counts / counts.sum(axis=1, keepdims=True) * share[:, None] * 1e6).astype(np.int64)
    f1 = f1_of(population)
    return GradeFigures(
        precision=_known(precisions(population)),
        recall=_known(recalls(counts)),
        f1=_known(f1),
        macro_f1=float(np.nanmean(f1)),
        auroc=_weighted_auroc(p[:, 2:].sum(axis=1), true, share),
        log_loss=float((weight * -np.log(np.maximum(p[np.arange(len(p)), true], 1e-7))).sum()),
        calibration_error=_calibration_error(p.max(axis=1), called == true, weight),
    )


def _known(values: Float64) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(v) else float(v) for v in values)


def _weighted_auroc(score: Float64, true: npt.NDArray[np.int_], share: Float64) -> float:
    """A fracture scores above a vertebra without: the mean over pairs of grades, as often as these pairs occur."""
    total = found = 0.0
    for fractured in (2, 3):
        for other in (0, 1):
            pair = (true == fractured) | (true == other)
            weight = share[fractured] * share[other]
            found += weight * auroc(true[pair] == fractured, score[pair])
            total += weight
    return float(found / total)


def _calibration_error(confidence: Float64, right: npt.NDArray[np.bool_], weight: Float64) -> float:
    """Expected calibration error of weighted predictions: of each bin's weighted means, by the bin's weight."""
    error = 0.0
    for part in reliability(confidence, right):
        members = (confidence > part.low) & (confidence <= part.high)
        error += abs(float((weight * (right - confidence))[members].sum()))
    return error / float(weight.sum())
