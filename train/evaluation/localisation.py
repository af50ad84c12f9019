"""Are the vertebrae found: recall, errors, false centres, VerSe's rates, and levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.evaluation.records import Comparison, ScanRecord, VertebraRecord


@dataclass(frozen=True)
class RegionFigures:
    """Localisation in one region of the spine; nan where nothing was measured.

    Args:
        vertebrae: true ones.
        recall_10mm: share with a centre of their own within 10 mm.
        error_mm_mean: of those found.
        error_mm_sd: of those found.
        detection_rate: VerSe's, without looking at levels.
        identification_rate: VerSe's: the right level, nearest, and nearer than 20 mm.
        nearest_mm_mean: the thesis's error: of every predicted centre to the nearest true one, misses not counted.
        nearest_mm_sd: of the same.
    """

    vertebrae: int
    recall_10mm: float
    error_mm_mean: float
    error_mm_sd: float
    detection_rate: float
    identification_rate: float
    nearest_mm_mean: float
    nearest_mm_sd: float


@dataclass(frozen=True)
class LocalisationSummary:
    """Localisation over all scans.

    Args:
        cervical: C1 to C7.
        thoracic: T1 to T13.
        lumbar: L1 to L6.
        overall: all of them.
        false_positives_per_scan: centres that belong to no true vertebra.
        cut_per_scan: centres in vertebrae whose own centre the scan does not show: neither found nor false.
    """

    cervical: RegionFigures
    thoracic: RegionFigures
    lumbar: RegionFigures
    overall: RegionFigures
    false_positives_per_scan: float
    cut_per_scan: float


def summarise_localisation(comparisons: Sequence[Comparison]) -> LocalisationSummary:
    """Figures of one way of finding vertebrae over all scans."""
    cervical, thoracic, lumbar, overall = (_region(comparisons, letters) for letters in ("C", "T", "L", "CTL"))
    false_positives = _mean([c.false_positives for c in comparisons])
    cut = _mean([sum(centre.cut_level is not None for centre in c.centres) for c in comparisons])
    return LocalisationSummary(cervical, thoracic, lumbar, overall, false_positives, cut)


def _region(comparisons: Sequence[Comparison], letters: str) -> RegionFigures:
    vertebrae = [v for c in comparisons for v in c.vertebrae if v.region in letters]
    errors = [v.error_mm for v in vertebrae if v.error_mm is not None]
    nearest = [
        centre.nearest_mm
        for c in comparisons
        for centre in c.centres
        if centre.nearest_mm is not None and centre.nearest_level is not None and centre.nearest_level[0] in letters
    ]
    return RegionFigures(
        len(vertebrae),
        _mean([v.found for v in vertebrae]),
        _mean(errors),
        float(np.std(errors)) if errors else float("nan"),
        _mean([v.detected for v in vertebrae]),
        _mean([v.identified for v in vertebrae]),
        _mean(nearest),
        float(np.std(nearest)) if nearest else float("nan"),
    )


@dataclass(frozen=True)
class LevelFigures:
    """Levels of found vertebrae: how many are right, wrong, or not given; nan where none was found."""

    vertebrae: int
    right: int
    wrong: int
    null: int
    share_right: float
    share_right_where_given: float


@dataclass(frozen=True)
class LevelSummary:
    """Levels in all scans, and in those that show a junction where counting can start."""

    all_scans: LevelFigures
    junction_scans: LevelFigures


def summarise_levels(records: Sequence[ScanRecord]) -> LevelSummary:
    """How many of the found vertebrae bear their right level."""
    every = [v for r in records for v in r.vertebrae if v.found]
    at_junctions = [v for r in records if r.shows_junction for v in r.vertebrae if v.found]
    return LevelSummary(_levels(every), _levels(at_junctions))


def _levels(found: Sequence[VertebraRecord]) -> LevelFigures:
    right = sum(v.found_level == v.level for v in found)
    null = sum(v.found_level is None for v in found)
    given = len(found) - null
    return LevelFigures(
        len(found),
        right,
        given - right,
        null,
        right / len(found) if found else float("nan"),
        right / given if given else float("nan"),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
