"""The memory command: the whole way of a large scan, each run in a fresh process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.processes import run_python
from benchmarks.report import Report, Table, number
from benchmarks.scans import Shape, enlarged_scan, save

DEFAULT_ZYX = (1000, 512, 512)
SPACING_MM = 1.0


def memory(
    scans: Sequence[Path], shape_zyx: Shape, repeats: int, *, bundle: Path | None, engine: str, threads: int
) -> Report:
    """Peak memory and time of each scan; without any, of an enlarged phantom of ``shape_zyx`` voxels of 1 mm."""
    figures: list[Figure] = []
    rows: list[tuple[str, ...]] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = [] if scans else [save(enlarged_scan(shape_zyx, spacing_mm=SPACING_MM), Path(folder) / "large.nii.gz")]
        for scan in (*scans, *made):
            runs = [in_fresh_process(scan, bundle=bundle, engine=engine, threads=threads) for _ in range(repeats)]
            peak = Figure(scan.name, "peak memory", "MiB", tuple(run["peak_memory_mib"] for run in runs))
            total = Figure(scan.name, "total", "s", tuple(run["runs"][0]["stages_s"]["total"] for run in runs))
            figures += [peak, total]
            details[scan.name] = runs[-1]
            found = str(runs[-1]["runs"][0]["vertebrae"])
            rows.append((scan.name, number(peak.median / 1024), number(total.median), found))
    return Report(
        figures=tuple(figures),
        tables=(Table("each in a fresh process", ("", "peak GiB", "total s", "vertebrae"), tuple(rows)),),
        settings={
            "scans": [scan.name for scan in scans],
            "shape_zyx": None if scans else list(shape_zyx),
            "engines": sorted({one["engine"] for one in details.values()}),
        },
        details=details,
    )


def in_fresh_process(
    scan: Path,
    *,
    bundle: Path | None,
    engine: str,
    threads: int,
    runs: int = 1,
    exhaustive: bool = False,
    **environment: str,
) -> dict[str, Any]:
    """What ``benchmarks.one_scan`` says."""
    options = ["--engine", engine, "--threads", str(threads), "--runs", str(runs)]
    options += [] if bundle is None else ["--bundle", str(bundle)]
    options += ["--exhaustive"] if exhaustive else []
    said = run_python(["-m", "benchmarks.one_scan", str(scan), *options], environment=environment)
    result: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return result
