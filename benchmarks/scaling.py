"""The scaling command: does the cost grow with the spine, or with the scan? Ten sizes, each in a fresh process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure
from benchmarks.memory import in_fresh_process
from benchmarks.report import Report, Table, number
from benchmarks.scans import Shape, enlarged_scan, save
from runtime.engines.parity import nearest_mm

SPACING_MM = 1.0
LENGTHS_MM, WIDTH_MM = (150, 250, 350, 450, 550), 400
"""Scans that grow along the spine, at one width and depth."""
WIDTHS_MM, LENGTH_MM = (160, 240, 320, 400, 500), 350
"""Scans that grow around a spine of one length."""
ALONG, EXHAUSTIVE = "", ", exhaustive"
"""What is added to a figure's name."""
SAME_MM = 1.5
"""Half a voxel of the default bundle's first network."""
_WINDOWS = ("windows", "exhaustive_windows")
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
    """Time, windows and peak memory of ten sizes of one patient's spine: along the spine, and exhaustive beside it.

    Args:
        repeats: fresh processes for each size and way, in turns; the scan is run twice in each and the second, warm run
            counts.
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
            runs: dict[str, list[dict[str, Any]]] = {ALONG: [], EXHAUSTIVE: []}
            for _ in range(repeats):
                for way, done in runs.items():
                    done.append(
                        in_fresh_process(
                            path, bundle=bundle, engine=engine, threads=threads, runs=2, exhaustive=way == EXHAUSTIVE
                        )
                    )
        group = f"{size.series}: {size.name}"
        made = _figures(group, runs)
        figures += made.values()
        along, every = (runs[way][-1]["runs"][-1] for way in (ALONG, EXHAUSTIVE))
        changed = centres_changed(along["centres_ras_mm"], every["centres_ras_mm"])
        details.append({
            "series": size.series, "shape_zyx": list(size.shape_zyx), "grown_mm": size.grown_mm,
            "litres": size.litres, "vertebrae": along["vertebrae"], "spine_mm": spine_mm(along["centres_ras_mm"]),
            "seconds": made["second scan"].median, "exhaustive_seconds": made["second scan, exhaustive"].median,
            "locate_ratio": made["locate, exhaustive"].median / max(made["locate"].median, 1e-9),
            "peak_memory_mib": made["peak memory"].median, "stages_s": along["stages_s"],
            "windows": along["windows"], "exhaustive_windows": every["windows"], "centres_changed": changed,
        })  # fmt: skip
        rows.append((group, *_cells(details[-1])))
    slopes = _slopes(details)
    columns = ("", "litres", "spine mm", "vertebrae", "windows", "exhaustive", "centres changed", "s", "exhaustive",
               "peak GiB")  # fmt: skip
    return Report(
        figures=tuple(figures),
        tables=(Table("ten sizes, the second scan of a process", columns, tuple(rows)),),
        settings={"scale": scale, "spacing_mm": SPACING_MM, "engine": engine},
        details={"sizes": details, "slopes": slopes},
        notes=tuple(_said(series, slope) for series, slope in slopes.items()),
    )


def _figures(group: str, runs: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Figure]:
    """By name: the seconds and the memory of both ways, and the windows, which have no noise."""
    made: dict[str, Figure] = {}
    for way, done in runs.items():
        last = [run["runs"][-1] for run in done]
        windows = last[-1]["windows"]
        for name, unit, values in (
            ("second scan", "s", [run["stages_s"]["total"] for run in last]),
            ("locate", "s", [run["stages_s"].get("locate", 0.0) for run in last]),
            ("peak memory", "MiB", [run["peak_memory_mib"] for run in done]),
        ):
            made[f"{name}{way}"] = Figure(group, f"{name}{way}", unit, tuple(values))
        count = float(windows["run"] + windows["scouted"])
        made[f"windows{way}"] = Figure(group, f"windows{way}", "", (count,), exact=True)
    return made


def _cells(size: Mapping[str, Any]) -> tuple[str, ...]:
    along, every = size["windows"], size["exhaustive_windows"]
    return (
        number(size["litres"]), number(size["spine_mm"]), str(size["vertebrae"]),
        f"{along['run']} + {along['scouted']}", str(every["run"]), str(size["centres_changed"]),
        number(size["seconds"]), number(size["exhaustive_seconds"]), number(size["peak_memory_mib"] / 1024),
    )  # fmt: skip


def spine_mm(centres_ras_mm: Sequence[Sequence[float]]) -> float:
    """Length of the line through centres in their order, mm."""
    steps = np.diff(np.array(centres_ras_mm, np.float64).reshape(-1, 3), axis=0)
    return float(np.linalg.norm(steps, axis=1).sum())


def centres_changed(some: Sequence[Sequence[float]], every: Sequence[Sequence[float]]) -> int:
    """How many centres of either list have none of the other within ``SAME_MM``."""
    return int((np.concatenate(nearest_mm(some, every)) > SAME_MM).sum())


def _slopes(details: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Least squares within each series: seconds and MiB for each further litre, and how well a line describes them."""
    slopes = {}
    for series in (BY_LENGTH, BY_WIDTH):
        rows = [row for row in details if row["series"] == series]
        litres, seconds, memory = (np.array([row[k] for row in rows]) for k in ("litres", "seconds", "peak_memory_mib"))
        windows = [np.array([row[way]["run"] + row[way]["scouted"] for row in rows]) for way in _WINDOWS]
        slope, start = np.polyfit(litres, seconds, 1)
        left = seconds - (start + slope * litres)
        spread = ((seconds - seconds.mean()) ** 2).sum()
        slopes[series] = {
            "s_per_litre": float(slope),
            "mib_per_litre": float(np.polyfit(litres, memory, 1)[0]),
            "windows_per_litre": float(np.polyfit(litres, windows[0], 1)[0]),
            "exhaustive_windows_per_litre": float(np.polyfit(litres, windows[1], 1)[0]),
            "r_squared": float(1 - (left**2).sum() / spread) if spread > 0 else 1.0,
        }
    return slopes


def _said(series: str, slope: dict[str, float]) -> str:
    return (
        f"{series}: {number(slope['s_per_litre'])} s and {number(slope['mib_per_litre'])} MiB for each further litre "
        f"(a line explains {100 * slope['r_squared']:.0f} % of the seconds), {number(slope['windows_per_litre'])} "
        f"windows along the spine and {number(slope['exhaustive_windows_per_litre'])} in the exhaustive pass"
    )
