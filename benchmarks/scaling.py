"""The scaling command: does the cost grow with the spine, or with the scan? Ten sizes, each in a fresh process."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure
from benchmarks.memory import in_fresh_process
from benchmarks.report import Report, Table, number
from benchmarks.scans import Shape, enlarged_scan, save

SPACING_MM = 1.0
LENGTHS_MM, WIDTH_MM = (150, 250, 350, 450, 550), 240
"""Scans that grow along the spine, at one width and depth."""
WIDTHS_MM, LENGTH_MM = (160, 240, 320, 400, 500), 350
"""Scans that grow around a spine of one length."""
BY_LENGTH, BY_WIDTH = "spine grows", "field of view grows"


@dataclass(frozen=True)
class Size:
    """One scan of a series: its name, voxels and what of it grows, mm."""

    series: str
    shape_zyx: Shape
    grown_mm: int

    @property
    def litres(self) -> float:
        """Of the scan."""
        return float(np.prod(self.shape_zyx)) * SPACING_MM**3 / 1e6

    @property
    def name(self) -> str:
        """Sizes in mm."""
        z, y, x = (round(n * SPACING_MM) for n in self.shape_zyx)
        return f"{z} x {y} x {x} mm"


def sizes(*, scale: float = 1.0) -> tuple[Size, ...]:
    """Ten sizes, all lengths times ``scale``."""

    def shape(z_mm: float, y_mm: float, x_mm: float) -> Shape:
        z, y, x = (max(8, round(scale * mm / SPACING_MM)) for mm in (z_mm, y_mm, x_mm))
        return z, y, x

    along = [Size(BY_LENGTH, shape(mm, WIDTH_MM, WIDTH_MM), round(scale * mm)) for mm in LENGTHS_MM]
    around = [Size(BY_WIDTH, shape(LENGTH_MM, mm, mm), round(scale * mm)) for mm in WIDTHS_MM]
    return *along, *around


def scaling(repeats: int, *, bundle: Path | None, engine: str, threads: int, scale: float = 1.0) -> Report:
    """Time and peak memory of ten sizes of one patient's spine.

    Args:
        repeats: fresh processes for each size; the scan is run twice in each and the second, warm run counts.
        bundle: None for the one that ships.
        engine: name of the engine table, or auto.
        threads: on the processor.
        scale: on all lengths.
    """
    figures: list[Figure] = []
    rows: list[tuple[str, ...]] = []
    details: list[dict[str, Any]] = []
    for size in sizes(scale=scale):
        with tempfile.TemporaryDirectory() as folder:
            path = save(enlarged_scan(size.shape_zyx, spacing_mm=SPACING_MM), Path(folder) / "scan.nii.gz")
            runs = [
                in_fresh_process(path, bundle=bundle, engine=engine, threads=threads, runs=2) for _ in range(repeats)
            ]
        group = f"{size.series}: {size.name}"
        times = Figure(group, "second scan", "s", tuple(run["runs"][-1]["stages_s"]["total"] for run in runs))
        peak = Figure(group, "peak memory", "MiB", tuple(run["peak_memory_mib"] for run in runs))
        figures += [times, peak]
        found = runs[-1]["runs"][-1]
        details.append({
            "series": size.series, "shape_zyx": list(size.shape_zyx), "grown_mm": size.grown_mm,
            "litres": size.litres, "vertebrae": found["vertebrae"], "seconds": times.median,
            "peak_memory_mib": peak.median, "stages_s": found["stages_s"],
        })  # fmt: skip
        cells = (number(size.litres), str(found["vertebrae"]), number(times.median), number(peak.median / 1024))
        rows.append((group, *cells))
    slopes = _slopes(details)
    return Report(
        figures=tuple(figures),
        tables=(Table("ten sizes, the second scan of a process", ("", "litres", "vertebrae", "s", "peak GiB"),
                      tuple(rows)),),
        settings={"scale": scale, "spacing_mm": SPACING_MM, "engine": engine},
        details={"sizes": details, "slopes": slopes},
        notes=tuple(_said(series, slope) for series, slope in slopes.items()),
    )  # fmt: skip


def _slopes(details: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Least squares within each series: seconds and MiB for each further litre, and how well a line describes them."""
    slopes = {}
    for series in (BY_LENGTH, BY_WIDTH):
        rows = [row for row in details if row["series"] == series]
        litres, seconds, memory = (np.array([row[k] for row in rows]) for k in ("litres", "seconds", "peak_memory_mib"))
        slope, start = np.polyfit(litres, seconds, 1)
        left = seconds - (start + slope * litres)
        spread = ((seconds - seconds.mean()) ** 2).sum()
        slopes[series] = {
            "s_per_litre": float(slope),
            "mib_per_litre": float(np.polyfit(litres, memory, 1)[0]),
            "r_squared": float(1 - (left**2).sum() / spread) if spread > 0 else 1.0,
        }
    return slopes


def _said(series: str, slope: dict[str, float]) -> str:
    return (
        f"{series}: {number(slope['s_per_litre'])} s and {number(slope['mib_per_litre'])} MiB for each further litre "
        f"(a line explains {100 * slope['r_squared']:.0f} % of the seconds)"
    )
