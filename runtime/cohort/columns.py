"""The columns of the tables of results, by name, and how their values come from findings. Names are a contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from runtime.findings import Findings

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


def _at(path: str) -> Callable[[Any], Any]:
    """The value at names with dots between, and numbers for places in tuples; None where one on the way is None."""
    return lambda row: reduce(_step, path.split("."), row)


def _step(value: Any, name: str) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return value[name]
    return value[int(name)] if name.isdecimal() else getattr(value, name)


Columns = Mapping[str, tuple[str, Callable[[Any], Any]]]
"""Of each column by its name: the kind of its values, and what takes one from what the row is of."""


def _heights(prefix: str, path: str) -> Columns:
    return {f"{prefix}{name}_mm": (NUMBER, _at(f"{path}.{name}")) for name in ("anterior", "middle", "posterior")}


def _probabilities(prefix: str, path: str) -> Columns:
    return {f"{prefix}probability_{grade}": (NUMBER, _at(f"{path}.{grade}")) for grade in range(GRADES)}


VERTEBRA_COLUMNS: Columns = {
    "vertebra": (WHOLE, _at("index")),
    "level": (TEXT, _at("level")),
    "level_confidence": (NUMBER, _at("level_confidence")),
    **{f"centre_{axis}_mm": (NUMBER, _at(f"centre_ras_mm.{i}")) for i, axis in enumerate("ras")},
    "confidence": (NUMBER, _at("confidence")),
    "complete": (TRUTH, _at("complete")),
    "grade": (WHOLE, _at("grade")),
    **_probabilities("grade_", "grade_probabilities"),
    "grade_from": (TEXT, _at("grade_from")),
    "grades_differ": (TRUTH, _at("grades_differ")),
    "no_grade_reason": (TEXT, _at("no_grade_reason")),
    "shape": (TEXT, _at("shape")),
    **_heights("height_", "heights_mm"),
    **_heights("expected_height_", "expected_heights_mm"),
    "height_loss": (NUMBER, _at("height_loss")),
    "network_grade": (WHOLE, _at("network.grade")),
    **_probabilities("network_grade_", "network.grade_probabilities"),
    **_heights("network_height_", "network.heights_mm"),
    "network_height_loss": (NUMBER, _at("network.height_loss")),
    "measured_grade": (WHOLE, _at("measured.grade")),
    **_heights("measured_height_", "measured.heights_mm"),
    "measured_height_loss": (NUMBER, _at("measured.height_loss")),
    "volume_ml": (NUMBER, _at("volume_ml")),
    "mean_hu": (NUMBER, _at("mean_hu")),
    "trabecular_hu": (NUMBER, _at("trabecular_hu")),
    "mask_label": (WHOLE, _at("mask_label")),
}
"""Of ``vertebrae.parquet``, after those of the list, from a ``Vertebra``. As in ``findings.json``."""


def _vertebrae(row: ScanRow) -> int | None:
    return None if row.findings is None else len(row.findings.vertebrae)


def _worst_grade(row: ScanRow) -> int | None:
    vertebrae = () if row.findings is None else row.findings.vertebrae
    return max((v.grade for v in vertebrae if v.grade is not None), default=None)


SCAN_COLUMNS: Columns = {
    "status": (TEXT, _at("status")),
    "failure": (TEXT, _at("failure")),
    "reason": (TEXT, _at("reason")),
    "vertebrae": (WHOLE, _vertebrae),
    "worst_grade": (WHOLE, _worst_grade),
    "warnings": (TEXTS, _at("findings.warnings")),
    "runs": (WHOLE, _at("runs")),
    "seconds": (NUMBER, _at("seconds")),
    "analysis_s": (NUMBER, _at("findings.timings_s.total")),
    "peak_memory_mb": (NUMBER, _at("findings.peak_memory_mb")),
    "host": (TEXT, _at("host")),
    "node": (TEXT, _at("node")),
    "results": (TEXT, _at("results")),
    "scan_name": (TEXT, _at("findings.scan.name")),
    "scan_sha256": (TEXT, _at("findings.scan.sha256")),
    "orientation": (TEXT, _at("findings.scan.orientation")),
    **{f"voxels_{axis}": (WHOLE, _at(f"findings.scan.shape_zyx.{2 - i}")) for i, axis in enumerate("xyz")},
    **{f"spacing_{axis}_mm": (NUMBER, _at(f"findings.scan.spacing_mm.{i}")) for i, axis in enumerate("xyz")},
    "bundle_name": (TEXT, _at("findings.bundle.name")),
    "bundle_version": (TEXT, _at("findings.bundle.version")),
    "bundle_sha256": (TEXT, _at("findings.bundle.sha256")),
    "engine": (TEXT, _at("findings.engine.name")),
    "engine_version": (TEXT, _at("findings.engine.version")),
    "precision": (TEXT, _at("findings.engine.precision")),
    "device": (TEXT, _at("findings.engine.device")),
}
"""Of ``scans.parquet``, after those of the list, from a ``ScanRow``."""

FAILED_COLUMNS = ("failure", "reason", "runs", "host", "node")
"""Of ``failed.csv``, after those of the list; as in the table of scans."""
RESERVED = frozenset({*VERTEBRA_COLUMNS, *SCAN_COLUMNS})
"""Names that columns of the list may not have."""
