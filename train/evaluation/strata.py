"""The figures of scans of each coarseness: what holds for thin slices need not hold for thick ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from train.evaluation.grades import summarise_grades
from train.evaluation.localisation import summarise_localisation
from train.evaluation.measures import summarise_heights, summarise_masks
from train.evaluation.records import ScanRecord

VOXEL_LIMITS_MM = (0.0, 1.5, 3.0, math.inf)
"""Largest edge of the scan's voxels: thin slices, middling ones, and those from which heights can't be told well."""


@dataclass(frozen=True)
class Stratum:
    """Scans whose largest voxel edge is above ``above_mm`` and at most ``up_to_mm`` (None: any above).

    Args:
        above_mm: see above.
        up_to_mm: see above.
        scans: how many.
        vertebrae: true ones.
        recall_10mm: share of them with a centre of their own within 10 mm.
        false_positives_per_scan: predicted centres that are no vertebra.
        dice: mean over found vertebrae.
        f1: of grades 0 to 3, of those found and graded.
        support: true vertebrae of grades 0 to 3 among the graded.
        heights_mm: mean absolute error.
    """

    above_mm: float
    up_to_mm: float | None
    scans: int
    vertebrae: int
    recall_10mm: float
    false_positives_per_scan: float
    dice: float
    f1: tuple[float, ...]
    support: tuple[int, ...]
    heights_mm: float


def by_voxel(records: Sequence[ScanRecord]) -> tuple[Stratum, ...]:
    """One stratum for each range of ``VOXEL_LIMITS_MM`` that has scans; records without a voxel size are in none."""
    strata = []
    for above, up_to in pairwise(VOXEL_LIMITS_MM):
        within = [r for r in records if above < r.voxel_mm <= up_to]
        if within:
            strata.append(_stratum(above, None if math.isinf(up_to) else up_to, within))
    return tuple(strata)


def _stratum(above_mm: float, up_to_mm: float | None, records: Sequence[ScanRecord]) -> Stratum:
    whole = [r.whole for r in records]
    localisation, grades = summarise_localisation(whole), summarise_grades(records, whole)
    return Stratum(
        above_mm,
        up_to_mm,
        len(records),
        localisation.overall.vertebrae,
        localisation.overall.recall_10mm,
        localisation.false_positives_per_scan,
        summarise_masks(records, whole).overall.dice,
        tuple(f.f1 for f in grades.by_grade),
        tuple(sum(row) for row in grades.confusion_rows_true),
        summarise_heights(whole).mean_absolute_error_mm,
    )
