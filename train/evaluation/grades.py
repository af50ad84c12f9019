"""Are grades right: per grade, as a scale, and as the question whether there is a fracture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.evaluation.records import Comparison, ScanRecord, VertebraRecord
from train.metrics import (
    auroc,
    auroc_interval,
    confusion_matrix,
    f1_of,
    precisions,
    quadratic_kappa,
    recalls,
)

GRADES = 4


@dataclass(frozen=True)
class GradeFigures:
    """One grade; nan where undefined: precision of a grade never called, recall of one never met.

    Args:
        grade: 0..3.
        support: true vertebrae of this grade that were found and graded.
        called: how many were called this grade.
        precision: of the calls.
        recall: of the support.
        f1: of both: of the vertebrae that were found and graded.
        found_share: of all true vertebrae of this grade, those that were found and graded: misses are not in the rest.
        recall_10mm: of all true vertebrae of this grade, those with a centre of their own within 10 mm.
        f1_with_missed: F1 with each vertebra that was not found as a false negative of its grade; those that were found
            and not graded are left out of it, as of ``f1``.
    """

    grade: int
    support: int
    called: int
    precision: float
    recall: float
    f1: float
    found_share: float
    recall_10mm: float
    f1_with_missed: float


@dataclass(frozen=True)
class Fracture:
    """Fracture or not, as called and as ranked by probability; nan where undefined.

    Args:
        at_least: a fracture is this grade or more.
        count: vertebrae or patients.
        fractured: how many of them are.
        sensitivity: of the calls.
        specificity: of the calls.
        precision: of the calls.
        f1: of the calls.
        auroc: of the probabilities.
        auroc_low: lower end of its 95 % interval, bootstrapped over patients.
        auroc_high: its upper end.
    """

    at_least: int
    count: int
    fractured: int
    sensitivity: float
    specificity: float
    precision: float
    f1: float
    auroc: float
    auroc_low: float
    auroc_high: float


@dataclass(frozen=True)
class GradeSummary:
    """Grades of thoracic and lumbar vertebrae (the cervical ones have none).

    Args:
        graded: found, with a true and a called grade.
        ungraded: found, with a true grade and none called: the scan's edge cuts their bodies.
        missed: with a true grade, not found.
        by_grade: figures of grades 0..3.
        macro_f1: mean F1 of the grades for which it is defined.
        quadratic_kappa: Cohen's, with quadratic weights.
        confusion_rows_true: rows the true grade, columns the called one.
        fracture_per_vertebra: grade 2 or more, and grade 1 or more.
        fracture_per_patient: likewise; a patient's probability is that of the likeliest vertebra, false ones included.
    """

    graded: int
    ungraded: int
    missed: int
    by_grade: tuple[GradeFigures, ...]
    macro_f1: float
    quadratic_kappa: float
    confusion_rows_true: tuple[tuple[int, ...], ...]
    fracture_per_vertebra: tuple[Fracture, ...]
    fracture_per_patient: tuple[Fracture, ...]


@dataclass(frozen=True)
class GradedVertebra:
    """A vertebra with a true grade, a called one, its probabilities and whose it is."""

    true: int
    called: int
    probabilities: tuple[float, ...]
    patient: str

    def score(self, at_least: int) -> float:
        """Probability of that grade or more."""
        return sum(self.probabilities[at_least:])


def graded_vertebrae(patients: Sequence[str], comparisons: Sequence[Comparison]) -> list[GradedVertebra]:
    """All thoracic and lumbar vertebrae with a true and a called grade; ``patients[i]`` is whom scan i shows."""
    return [
        GradedVertebra(v.grade, v.found_grade, v.probabilities, patient)
        for patient, comparison in zip(patients, comparisons, strict=True)
        for v in comparison.vertebrae
        if v.region != "C" and v.grade is not None and v.found_grade is not None and v.probabilities is not None
    ]


def summarise_grades(records: Sequence[ScanRecord], comparisons: Sequence[Comparison]) -> GradeSummary:
    """Figures of one way of grading; ``comparisons[i]`` is that of ``records[i]``."""
    patients = [record.patient for record in records]
    known = [v for c in comparisons for v in c.vertebrae if v.region != "C" and v.grade is not None]
    graded = graded_vertebrae(patients, comparisons)
    matrix = confusion_matrix([v.true for v in graded], [v.called for v in graded], classes=GRADES)
    f1 = f1_of(matrix)
    missed = sum(not v.found for v in known)
    return GradeSummary(
        len(graded),
        len(known) - missed - len(graded),
        missed,
        _by_grade(matrix, known),
        float(np.nanmean(f1)) if graded else float("nan"),
        quadratic_kappa(matrix),
        tuple(tuple(int(n) for n in row) for row in matrix),
        tuple(_per_vertebra(graded, at_least) for at_least in (2, 1)),
        tuple(_per_patient(patients, comparisons, at_least) for at_least in (2, 1)),
    )


def _by_grade(matrix: np.ndarray, known: Sequence[VertebraRecord]) -> tuple[GradeFigures, ...]:
    precision, recall, f1 = precisions(matrix), recalls(matrix), f1_of(matrix)
    rows = []
    for grade in range(GRADES):
        support, called = int(matrix[grade].sum()), int(matrix[:, grade].sum())
        found = [v.found for v in known if v.grade == grade]
        figures = (float(precision[grade]), float(recall[grade]), float(f1[grade]))
        shares = (_share(support, len(found)), _share(sum(found), len(found)))
        with_missed = _share(2 * int(matrix[grade, grade]), support + called + found.count(False))
        rows.append(GradeFigures(grade, support, called, *figures, *shares, with_missed))
    return tuple(rows)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _per_vertebra(graded: Sequence[GradedVertebra], at_least: int) -> Fracture:
    return _fracture(
        at_least,
        [v.true >= at_least for v in graded],
        [v.called >= at_least for v in graded],
        [v.score(at_least) for v in graded],
        [v.patient for v in graded],
    )


def _per_patient(patients: Sequence[str], comparisons: Sequence[Comparison], at_least: int) -> Fracture:
    """Patients with a known grade. A fracture that was missed counts; so does one seen where there is none."""
    fractured: dict[str, bool] = defaultdict(bool)
    scores: dict[str, float] = defaultdict(float)
    calls: dict[str, bool] = defaultdict(bool)
    for patient, comparison in zip(patients, comparisons, strict=True):
        for v in comparison.vertebrae:
            if v.region != "C" and v.grade is not None:
                fractured[patient] |= v.grade >= at_least
        for grade, probabilities in _reported(comparison):
            scores[patient] = max(scores[patient], sum(probabilities[at_least:]))
            calls[patient] |= grade >= at_least
    names = list(fractured)
    return _fracture(
        at_least, [fractured[n] for n in names], [calls[n] for n in names], [scores[n] for n in names], names
    )


def _reported(comparison: Comparison) -> list[tuple[int, tuple[float, ...]]]:
    """Grades and probabilities of all that was found, right or false, but for the true cervical vertebrae."""
    matched = [(v.found_grade, v.probabilities) for v in comparison.vertebrae if v.region != "C"]
    false = [(c.grade, c.probabilities) for c in comparison.centres if c.is_false]
    return [(grade, p) for grade, p in (*matched, *false) if grade is not None and p is not None]


def _fracture(
    at_least: int, true: Sequence[bool], called: Sequence[bool], scores: Sequence[float], patients: Sequence[str]
) -> Fracture:
    matrix = confusion_matrix([int(t) for t in true], [int(c) for c in called], classes=2)
    recall = recalls(matrix)
    return Fracture(
        at_least,
        len(true),
        sum(true),
        float(recall[1]),
        float(recall[0]),
        float(precisions(matrix)[1]),
        float(f1_of(matrix)[1]),
        auroc(true, scores),
        *auroc_interval(true, scores, patients),
    )
