"""The tables of a cohort: ``vertebrae.parquet``, ``scans.parquet`` and ``failed.csv``, always whole."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.cohort.columns import (
    FAILED_COLUMNS,
    NUMBER,
    SCAN_COLUMNS,
    TABLE_VERSION,
    TEXT,
    TEXTS,
    TRUTH,
    VERTEBRA_COLUMNS,
    WHOLE,
    ScanRow,
)
from runtime.cohort.scan_table import ID, SCAN, CohortScan, ScanTable
from runtime.cohort.work import FAILED
from runtime.errors import InputError
from runtime.findings import Findings
from runtime.version import software_version

VERTEBRAE_FILE, SCANS_FILE, FAILED_FILE = "vertebrae.parquet", "scans.parquet", "failed.csv"
WAITING = "waiting"
_TYPES = {TEXT: pa.string(), TEXTS: pa.list_(pa.string()), WHOLE: pa.int32(), NUMBER: pa.float64(), TRUTH: pa.bool_()}


class Tables:
    """Collects what is known of every scan, and writes it in the order of the list.

    Args:
        listed: the scans.
        output: folder that the tables go to.
    """

    def __init__(self, listed: ScanTable, output: Path) -> None:
        self._listed, self._output = listed, output
        columns = [(name, pa.string()) for name in (ID, SCAN, *listed.columns)]
        metadata = {"vertscan_table_version": str(TABLE_VERSION), "vertscan_version": software_version()}
        self._vertebrae_schema = _schema(columns, VERTEBRA_COLUMNS, metadata)
        self._scans_schema = _schema(columns, SCAN_COLUMNS, metadata)
        self._rows: list[dict[str, Any] | None] = [None] * len(listed.scans)
        self._vertebrae: list[pa.RecordBatch | None] = [None] * len(listed.scans)

    def knows(self, number: int) -> bool:
        """Whether anything was put of the scan with this number in the list."""
        return self._rows[number] is not None

    def put(self, number: int, row: ScanRow) -> None:
        """What is known of the scan with this number in the list."""
        scan = self._listed.scans[number]
        listed = _listed_values(scan, self._listed.columns)
        self._rows[number] = listed | {name: value(row) for name, (_, value) in SCAN_COLUMNS.items()}
        self._vertebrae[number] = None if row.findings is None else self._batch(listed, row.findings)

    def _batch(self, listed: dict[str, Any], findings: Findings) -> pa.RecordBatch:
        rows = [
            listed | {name: value(vertebra) for name, (_, value) in VERTEBRA_COLUMNS.items()}
            for vertebra in findings.vertebrae
        ]
        return pa.RecordBatch.from_pylist(rows, schema=self._vertebrae_schema)

    def write(self) -> None:
        """Replace the files by what is known now, each by one rename; scans that nothing is known of are waiting.

        Raises:
            InputError: they can't be written.
        """
        rows = [row or self._waiting(number) for number, row in enumerate(self._rows)]
        batches = [batch for batch in self._vertebrae if batch is not None]
        scans = pa.Table.from_pylist(rows, schema=self._scans_schema)
        vertebrae = pa.Table.from_batches(batches, schema=self._vertebrae_schema).combine_chunks()
        failed = [row for row in rows if row["status"] == FAILED]
        try:
            _replace(self._output / VERTEBRAE_FILE, lambda path: pq.write_table(vertebrae, path, compression="zstd"))
            _replace(self._output / SCANS_FILE, lambda path: pq.write_table(scans, path, compression="zstd"))
            _replace(self._output / FAILED_FILE, lambda path: self._write_failed(path, failed))
        except OSError as error:
            raise InputError(
                f"The tables can't be written to {self._output} ({error.strerror or error}); the scans' own folders "
                "are kept. Make room and run the same command again."
            ) from error

    def _waiting(self, number: int) -> dict[str, Any]:
        scan = self._listed.scans[number]
        row = ScanRow(WAITING, None, None, 0, None, None, None, where(scan, self._output), None)
        listed = _listed_values(scan, self._listed.columns)
        return listed | {name: value(row) for name, (_, value) in SCAN_COLUMNS.items()}

    def _write_failed(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        names = (ID, SCAN, *self._listed.columns, *FAILED_COLUMNS)
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
            lines.writeheader()
            lines.writerows(rows)


def where(scan: CohortScan, output: Path) -> str:
    """The folder of a scan's results as the tables name it: in the output folder, with forward slashes."""
    return scan.folder.relative_to(output.absolute()).as_posix()


def _schema(
    columns: Sequence[tuple[str, Any]], own: Mapping[str, tuple[str, Any]], metadata: Mapping[str, str]
) -> pa.Schema:
    return pa.schema([*columns, *((name, _TYPES[kind]) for name, (kind, _) in own.items())], metadata=dict(metadata))


def _listed_values(scan: CohortScan, columns: Sequence[str]) -> dict[str, Any]:
    others = {name: value or None for name, value in zip(columns, scan.others, strict=True)}
    return {ID: scan.id, SCAN: scan.scan, **others}


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a file beside ``path``, and put it there by one rename; only one run of a cohort is in the folder."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        write(fresh)
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
