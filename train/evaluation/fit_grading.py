"""Fitting the constants of ``runtime.grading`` to evaluated scans whose true grades and heights are known.

For a given blur of the measured loss (its bias and spread) the model is a multinomial logistic regression with five
coefficients, a convex problem that Newton's method solves. The blur is tried on a grid. Heights are fitted apart, each
position by the least mean absolute error. How good the result is on other scans is told by cross-validation over
patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.grading import GRADES, GradingSpec, grade_probabilities, loss_masses, reported_heights
from runtime.height_loss import grade_of
from runtime.heights import BodyHeights
from train.evaluation.records import ScanRecord
from train.metrics import auroc, confusion_matrix, f1_of

Float64 = npt.NDArray[np.float64]

BIASES = (-0.03, 0.0, 0.03, 0.06, 0.09)
SPREADS = (0.02, 0.04, 0.07, 0.11)
SPREADS_PER_MM = (0.0, 0.02, 0.035, 0.05)
RIDGE = 0.5
"""Pulls the network's power towards 1, the measured one's and the prior towards 0, as much as half a vertebra would."""
FEWEST = 40
_STEPS, _SMALL = 30, 1e-6
NEUTRAL = GradingSpec(
    network_weight=1.0,
    measured_weight=0.0,
    prior=(0.0, 0.0, 0.0, 0.0),
    loss_bias=0.0,
    loss_sd=0.05,
    loss_sd_per_mm=0.0,
    reach=0.9,
    height_shares=(0.0, 0.0, 0.0),
    height_offsets_mm=(0.0, 0.0, 0.0),
)
"""The network alone; where a fit begins."""


@dataclass(frozen=True)
class Sample:
    """One vertebra whose true grade is known.

    Args:
        patient: whom it belongs to.
        grade: true, 0..3.
        network: its probabilities of grades 0..3.
        loss: measured, or None.
        voxel_mm: the scan's largest voxel side.
        true_heights: or None.
        network_heights: or None.
        measured_heights: or None.
    """

    patient: str
    grade: int
    network: tuple[float, ...]
    loss: float | None
    voxel_mm: float
    true_heights: BodyHeights | None = None
    network_heights: BodyHeights | None = None
    measured_heights: BodyHeights | None = None


@dataclass(frozen=True)
class FitFigures:
    """How good one way of grading is on scans that it was not fitted to.

    Args:
        f1: of grades 0..3.
        macro_f1: their mean.
        auroc: fracture (grade 2 or more) or not.
        log_loss: mean negative log probability of the true grade; nan for the measurement, which has none.
        heights_mm: mean absolute error.
    """

    f1: tuple[float, ...]
    macro_f1: float
    auroc: float
    log_loss: float
    heights_mm: float


@dataclass(frozen=True)
class Fit:
    """The constants fitted to all samples, and what cross-validation says of them."""

    spec: GradingSpec
    vertebrae: int
    patients: int
    by_grade: tuple[int, ...]
    combined: FitFigures
    network: FitFigures
    measured: FitFigures


def samples_of(records: Sequence[ScanRecord]) -> list[Sample]:
    """The thoracic and lumbar vertebrae that were found, with a true grade and what both witnesses say."""
    return [
        Sample(
            record.patient,
            v.grade,
            v.network.probabilities,
            None if v.measured is None else v.measured.height_loss,
            record.voxel_mm,
            _heights(v.heights_mm),
            _heights(v.network.heights_mm),
            None if v.measured is None else _heights(v.measured.heights_mm),
        )
        for record in records
        for v in record.vertebrae
        if v.region != "C" and v.grade is not None and v.network is not None and v.network.probabilities is not None
    ]


def _heights(values_mm: tuple[float, ...] | None) -> BodyHeights | None:
    return None if values_mm is None else BodyHeights(*values_mm)


def fit_grading(samples: Sequence[Sample], *, reach: float, folds: int = 8) -> Fit:
    """The constants for these samples, and their figures by cross-validation over patients.

    Raises:
        InputError: there are too few samples, or a grade is missing among them.
    """
    counts = np.bincount([s.grade for s in samples], minlength=GRADES)
    if len(samples) < FEWEST or counts.min() < 2 or len({s.patient for s in samples}) < 2 * folds:
        raise InputError(
            f"Constants cannot be fitted to {len(samples)} vertebrae of {len({s.patient for s in samples})} scans with "
            f"{', '.join(map(str, counts))} of grades 0 to 3; evaluate more scans."
        )
    fitted = [fit_constants(rest, reach=reach) for _, rest in _folds(samples, folds)]
    held = [group for group, _ in _folds(samples, folds)]
    pairs = [(s, spec) for group, spec in zip(held, fitted, strict=True) for s in group]
    return Fit(
        fit_constants(samples, reach=reach),
        len(samples),
        len({s.patient for s in samples}),
        tuple(int(n) for n in counts),
        _figures(pairs),
        _figures([(s, NEUTRAL) for s in samples]),
        _measured_figures(samples),
    )


def _folds(samples: Sequence[Sample], count: int) -> Iterator[tuple[list[Sample], list[Sample]]]:
    """Held-out and remaining samples, patients dealt out in a fixed random order."""
    patients = sorted({s.patient for s in samples})
    order = np.random.default_rng(0).permutation(len(patients))
    fold = {patients[n]: k % count for k, n in enumerate(order)}
    for k in range(count):
        yield [s for s in samples if fold[s.patient] == k], [s for s in samples if fold[s.patient] != k]


def fit_constants(samples: Sequence[Sample], *, reach: float) -> GradingSpec:
    """The constants under which the true grades are likeliest, with those of the heights."""
    best: tuple[float, GradingSpec] | None = None
    for bias, spread, per_mm in product(BIASES, SPREADS, SPREADS_PER_MM):
        spec = replace(NEUTRAL, reach=reach, loss_bias=bias, loss_sd=spread, loss_sd_per_mm=per_mm)
        cost, spec = _powers(samples, spec)
        if best is None or cost < best[0]:
            best = cost, spec
    assert best is not None
    shares, offsets_mm = zip(*(_height_mixture(samples, position) for position in range(3)), strict=True)
    return replace(best[1], height_shares=shares, height_offsets_mm=offsets_mm)


def _powers(samples: Sequence[Sample], spec: GradingSpec) -> tuple[float, GradingSpec]:
    """Cost and constants of the best powers and prior for a given blur, by Newton's method."""
    features = np.zeros((len(samples), GRADES, 2 + GRADES - 1))
    features[:, 1:, 2:] = np.eye(GRADES - 1)
    for row, sample in zip(features, samples, strict=True):
        row[:, 0] = np.log(np.maximum(sample.network, _SMALL))
        if sample.loss is not None:
            row[:, 1] = np.log(np.maximum(loss_masses(sample.loss, voxel_mm=sample.voxel_mm, spec=spec), 1e-300))
    grades = np.array([s.grade for s in samples])
    towards = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    weights, cost = _newton(features, grades, towards)
    heard = weights[:2] >= 0
    if not heard.all():
        features[:, :, :2] *= heard
        weights, cost = _newton(features, grades, towards)
    powers = np.maximum(weights[:2], 0.0) * heard  # of a column of zeros the ridge alone makes a weight
    prior = tuple(round(float(w), 4) for w in (0.0, *weights[2:]))
    return cost, replace(
        spec,
        network_weight=round(float(powers[0]), 4),
        measured_weight=round(float(powers[1]), 4),
        prior=(prior[0], prior[1], prior[2], prior[3]),
    )


def _newton(features: Float64, grades: npt.NDArray[np.int64], towards: Float64) -> tuple[Float64, float]:
    """The weights (k,) that minimise the penalised negative log likelihood of ``grades``, and its value.

    ``features`` is (n, 4, k): the log odds of each grade are these times the weights.
    """
    weights, chosen = towards.copy(), features[np.arange(len(grades)), grades]

    def cost_at(w: Float64) -> float:
        scores = features @ w
        top = scores.max(axis=1)
        logs = chosen @ w - top - np.log(np.exp(scores - top[:, None]).sum(axis=1))
        return float(-logs.sum() + 0.5 * RIDGE * ((w - towards) ** 2).sum())

    cost = cost_at(weights)
    for _ in range(_STEPS):
        scores = features @ weights
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        mean = np.einsum("ng,ngk->nk", shares, features)
        slope = (mean - chosen).sum(axis=0) + RIDGE * (weights - towards)
        second = np.einsum("ng,ngk,ngl->kl", shares, features, features) - mean.T @ mean + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(second, slope)
        while (reached := cost_at(weights - step)) > cost and np.abs(step).max() > _SMALL:
            step = step / 2
        weights, cost = weights - step, reached
        if np.abs(step).max() < _SMALL:
            break
    return weights, cost


def _height_mixture(samples: Sequence[Sample], position: int) -> tuple[float, float]:
    """Weight of the measured height at one position, and what is to be added, mm, for the least mean absolute error."""
    known = [
        (s.true_heights.as_array(), s.measured_heights.as_array(), s.network_heights.as_array())
        for s in samples
        if s.true_heights is not None and s.measured_heights is not None and s.network_heights is not None
    ]
    if not known:
        return 0.5, 0.0
    true, measured, network = np.array(known)[:, :, position].T
    best = min(
        (float(np.abs(rest - np.median(rest)).mean()), share, float(np.median(rest)))
        for share in np.arange(0.0, 1.01, 0.05)
        for rest in [true - share * measured - (1 - share) * network]
    )
    return round(float(best[1]), 2), round(best[2], 3)


def _figures(pairs: Sequence[tuple[Sample, GradingSpec]]) -> FitFigures:
    """Figures of samples under constants that were not fitted to them."""
    table = np.array([grade_probabilities(s.network, s.loss, voxel_mm=s.voxel_mm, spec=spec) for s, spec in pairs])
    grades = np.array([s.grade for s, _ in pairs])
    f1 = f1_of(confusion_matrix(list(grades), list(table.argmax(axis=1)), classes=GRADES))
    heights = [(s, reported_heights(s.measured_heights, s.network_heights, spec)) for s, spec in pairs]
    return FitFigures(
        tuple(float(f) for f in f1),
        float(np.nanmean(f1)),
        auroc(grades >= 2, table[:, 2:].sum(axis=1)),
        float(-np.log(np.maximum(table[np.arange(len(grades)), grades], _SMALL)).mean()),
        _height_error_mm(heights),
    )


def _measured_figures(samples: Sequence[Sample]) -> FitFigures:
    """Figures of the measured loss alone, graded by Genant's limits."""
    known = [(s, s.loss) for s in samples if s.loss is not None]
    grades = [s.grade for s, _ in known]
    f1 = f1_of(confusion_matrix(grades, [grade_of(loss) for _, loss in known], classes=GRADES))
    return FitFigures(
        tuple(float(f) for f in f1),
        float(np.nanmean(f1)),
        auroc([g >= 2 for g in grades], [loss for _, loss in known]),
        float("nan"),
        _height_error_mm([(s, s.measured_heights) for s in samples]),
    )


def _height_error_mm(heights: Sequence[tuple[Sample, BodyHeights | None]]) -> float:
    errors = [
        np.abs(said.as_array() - s.true_heights.as_array())
        for s, said in heights
        if said is not None and s.true_heights is not None
    ]
    return float(np.mean(errors)) if errors else float("nan")
