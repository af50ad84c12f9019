"""The columns of the tables of results, by name, and how their values come from findings. Names are a contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.findings import Findings, Heights, Vertebra

TABLE_VERSION = 1
"""Stands in the metadata of both tables; grows when a column changes its name or meaning."""
GRADES = 4

TEXT, TEXTS, WHOLE, NUMBER, TRUTH = "text", "texts", "whole", "number", "truth"
"""Kinds of values; any may be missing."""


@dataclass(frozen=True)
class ScanRow:
    """What the table of scans says of one beside its findings.

    Args:
        status: ``"done"``, ``"failed"`` or ``"waiting"``.
        failure: kind of the failure, or None.
        reason: of the failure in words, or None.
        runs: of this scan that have ended so far, in all runs of the cohort.
        seconds: that the last run took on its worker, or None where it isn't known.
        host: where it ran, or None.
        node: the cluster's name for that node, or None.
        results: folder of its results, in the output folder.
        findings: or None where it isn't done.
    """

    status: str
    failure: str | None
    reason: str | None
    runs: int
    seconds: float | None
    host: str | None
    node: str | None
    results: str
    findings: Findings | None


def _axis(number: int) -> Callable[[Vertebra], float]:
    return lambda vertebra: vertebra.centre_ras_mm[number]


def _probability(of: Callable[[Vertebra], Any], grade: int) -> Callable[[Vertebra], float | None]:
    def value(vertebra: Vertebra) -> float | None:
        opinion = of(vertebra)
        known = None if opinion is None else opinion.grade_probabilities
        return None if known is None else known[grade]

    return value


def _height(of: Callable[[Vertebra], Heights | None], name: str) -> Callable[[Vertebra], float | None]:
    def value(vertebra: Vertebra) -> float | None:
        heights = of(vertebra)
        return None if heights is None else getattr(heights, name)

    return value


def _of_network(name: str) -> Callable[[Vertebra], Any]:
    return lambda vertebra: None if vertebra.network is None else getattr(vertebra.network, name)


def _of_measured(name: str) -> Callable[[Vertebra], Any]:
    return lambda vertebra: None if vertebra.measured is None else getattr(vertebra.measured, name)


def _heights(prefix: str, of: Callable[[Vertebra], Heights | None]) -> dict[str, tuple[str, Callable[[Vertebra], Any]]]:
    return {f"{prefix}{name}_mm": (NUMBER, _height(of, name)) for name in ("anterior", "middle", "posterior")}


def _field(name: str) -> Callable[[Vertebra], Any]:
    return lambda vertebra: getattr(vertebra, name)


def _probabilities(prefix: str, of: Callable[[Vertebra], Any]) -> dict[str, tuple[str, Callable[[Vertebra], Any]]]:
    return {f"{prefix}probability_{grade}": (NUMBER, _probability(of, grade)) for grade in range(GRADES)}


VERTEBRA_COLUMNS: Mapping[str, tuple[str, Callable[[Vertebra], Any]]] = {
    "vertebra": (WHOLE, _field("index")),
    "level": (TEXT, _field("level")),
    "level_confidence": (NUMBER, _field("level_confidence")),
    "centre_r_mm": (NUMBER, _axis(0)),
    "centre_a_mm": (NUMBER, _axis(1)),
    "centre_s_mm": (NUMBER, _axis(2)),
    "confidence": (NUMBER, _field("confidence")),
    "complete": (TRUTH, _field("complete")),
    "grade": (WHOLE, _field("grade")),
    **_probabilities("grade_", lambda vertebra: vertebra),
    "grade_from": (TEXT, _field("grade_from")),
    "grades_differ": (TRUTH, _field("grades_differ")),
    "no_grade_reason": (TEXT, _field("no_grade_reason")),
    "shape": (TEXT, _field("shape")),
    **_heights("height_", _field("heights_mm")),
    **_heights("expected_height_", _field("expected_heights_mm")),
    "height_loss": (NUMBER, _field("height_loss")),
    "network_grade": (WHOLE, _of_network("grade")),
    **_probabilities("network_grade_", _field("network")),
    **_heights("network_height_", _of_network("heights_mm")),
    "network_height_loss": (NUMBER, _of_network("height_loss")),
    "measured_grade": (WHOLE, _of_measured("grade")),
    **_heights("measured_height_", _of_measured("heights_mm")),
    "measured_height_loss": (NUMBER, _of_measured("height_loss")),
    "volume_ml": (NUMBER, _field("volume_ml")),
    "mean_hu": (NUMBER, _field("mean_hu")),
    "trabecular_hu": (NUMBER, _field("trabecular_hu")),
    "mask_label": (WHOLE, _field("mask_label")),
}
"""Of ``vertebrae.parquet``, after those of the list: kind, and the value of a vertebra. As in ``findings.json``."""


def _found(value: Callable[[Findings], Any]) -> Callable[[ScanRow], Any]:
    return lambda row: None if row.findings is None else value(row.findings)


def _worst(findings: Findings) -> int | None:
    return max((v.grade for v in findings.vertebrae if v.grade is not None), default=None)


SCAN_COLUMNS: Mapping[str, tuple[str, Callable[[ScanRow], Any]]] = {
    "status": (TEXT, lambda row: row.status),
    "failure": (TEXT, lambda row: row.failure),
    "reason": (TEXT, lambda row: row.reason),
    "vertebrae": (WHOLE, _found(lambda findings: len(findings.vertebrae))),
    "worst_grade": (WHOLE, _found(_worst)),
    "warnings": (TEXTS, _found(lambda findings: list(findings.warnings))),
    "runs": (WHOLE, lambda row: row.runs),
    "seconds": (NUMBER, lambda row: row.seconds),
    "analysis_s": (NUMBER, _found(lambda findings: findings.timings_s["total"])),
    "peak_memory_mb": (NUMBER, _found(lambda findings: findings.peak_memory_mb)),
    "host": (TEXT, lambda row: row.host),
    "node": (TEXT, lambda row: row.node),
    "results": (TEXT, lambda row: row.results),
    "scan_name": (TEXT, _found(lambda findings: findings.scan.name)),
    "scan_sha256": (TEXT, _found(lambda findings: findings.scan.sha256)),
    "orientation": (TEXT, _found(lambda findings: findings.scan.orientation)),
    **{
        f"voxels_{axis}": (WHOLE, _found(lambda findings, i=i: findings.scan.shape_zyx[2 - i]))  # type: ignore[misc]
        for i, axis in enumerate("xyz")
    },
    **{
        f"spacing_{axis}_mm": (NUMBER, _found(lambda findings, i=i: findings.scan.spacing_mm[i]))  # type: ignore[misc]
        for i, axis in enumerate("xyz")
    },
    "bundle_name": (TEXT, _found(lambda findings: findings.bundle.name)),
    "bundle_version": (TEXT, _found(lambda findings: findings.bundle.version)),
    "bundle_sha256": (TEXT, _found(lambda findings: findings.bundle.sha256)),
    "engine": (TEXT, _found(lambda findings: findings.engine.name)),
    "engine_version": (TEXT, _found(lambda findings: findings.engine.version)),
    "precision": (TEXT, _found(lambda findings: findings.engine.precision)),
    "device": (TEXT, _found(lambda findings: findings.engine.device)),
}
"""Of ``scans.parquet``, after those of the list: kind, and the value of a scan."""

FAILED_COLUMNS = ("failure", "reason", "runs", "host", "node")
"""Of ``failed.csv``, after those of the list; as in the table of scans."""
RESERVED = frozenset({*VERTEBRA_COLUMNS, *SCAN_COLUMNS})
"""Names that columns of the list may not have."""
