"""``python -m train.evaluate``: the whole pipeline on held-out phantoms or on scans in VerSe's layout."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from runtime.errors import VertscanError
from runtime.pipeline import Analysis, Pipeline
from runtime.readers import read_scan
from runtime.volume import Volume
from train.label_maps import read_labels, sample_nearest
from train.metrics import confusion_matrix, dice, f1_scores, match_centres
from train.phantom import make_scan
from train.verse import LEVELS, find_cases, read_centroids, read_grades

HELD_OUT_SEED = 2**31
"""Training draws its phantoms' seeds below this; evaluation from here on."""
MATCH_MM = 10.0
Item = TypeVar("Item")
Made = TypeVar("Made")
REGIONS = {"cervical": "C", "thoracic": "T", "lumbar": "L", "overall": "CTL"}


@dataclass(frozen=True, eq=False)
class TrueVertebra:
    """What is known of one vertebra; ``grade`` and ``heights_mm`` (3,) are None where they aren't known."""

    label: int
    centre_ras_mm: np.ndarray
    grade: int | None
    heights_mm: tuple[float, float, float] | None


@dataclass(frozen=True, eq=False)
class TrueScan:
    """A scan with its truth; ``mask`` (z, y, x) uint8 with VerSe labels, or None."""

    volume: Volume
    vertebrae: tuple[TrueVertebra, ...]
    mask: np.ndarray | None


@dataclass(frozen=True)
class FoundVertebra:
    """A true vertebra and what the pipeline made of it; everything but region and grade is None when it was missed."""

    region: str
    true_grade: int | None
    error_mm: float | None = None
    dice: float | None = None
    grade: int | None = None
    height_error_mm: float | None = None


@dataclass(frozen=True)
class ScanResult:
    """One evaluated scan."""

    name: str
    vertebrae: tuple[FoundVertebra, ...]
    false_positives: int
    seconds: float


def phantom_scans(count: int, *, first_seed: int = HELD_OUT_SEED) -> Iterator[TrueScan]:
    """Phantoms that no training run draws, all variations on."""
    for scan in made_ahead(make_scan, range(first_seed, first_seed + count)):
        vertebrae = tuple(
            TrueVertebra(v.label, np.asarray(v.centre_ras_mm), v.grade, v.heights_mm) for v in scan.vertebrae
        )
        yield TrueScan(scan.volume, vertebrae, scan.mask)


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """``make`` of each item in turn, the next one being made in a thread while the last one is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def verse_scans(root: Path, grades: Path | None) -> Iterator[TrueScan]:
    """The scans under ``root``; those without a centroid file are left out."""
    known = read_grades(grades) if grades else {}
    for case in find_cases(root):
        if case.centroids is None:
            continue
        volume = read_scan(case.ct)
        of_scan = known.get(case.name, {})
        vertebrae = tuple(
            TrueVertebra(label, centre, of_scan.get(label), None)
            for label, centre in read_centroids(case.centroids, volume.grid).items()
        )
        mask = sample_nearest(*read_labels(case.mask), volume.grid) if case.mask else None
        yield TrueScan(volume, vertebrae, mask)


def evaluate_scan(pipeline: Pipeline, scan: TrueScan) -> ScanResult:
    """Run the pipeline on one scan and compare: centres one to one within 10 mm, masks and grades of the pairs."""
    start = time.perf_counter()
    analysis = pipeline.analyse(scan.volume)
    seconds = time.perf_counter() - start
    found = analysis.findings.vertebrae
    predicted, true = [v.centre_ras_mm for v in found], [v.centre_ras_mm for v in scan.vertebrae]
    pairs = {j: (i, d) for i, j, d in match_centres(predicted, true, limit_mm=MATCH_MM)}
    results = tuple(_compare(scan, analysis, j, pairs.get(j)) for j in range(len(scan.vertebrae)))
    return ScanResult(scan.volume.name, results, len(found) - len(pairs), seconds)


def _compare(scan: TrueScan, analysis: Analysis, j: int, pair: tuple[int, float] | None) -> FoundVertebra:
    true = scan.vertebrae[j]
    region = LEVELS[true.label][0]
    if pair is None:
        return FoundVertebra(region, true.grade)
    met = analysis.findings.vertebrae[pair[0]]
    overlap = None
    if scan.mask is not None:
        overlap = dice(analysis.labels == met.mask_label, scan.mask == true.label)
    height_error = None
    if met.heights_mm is not None and true.heights_mm is not None:
        heights = (met.heights_mm.anterior, met.heights_mm.middle, met.heights_mm.posterior)
        height_error = float(np.abs(np.subtract(heights, true.heights_mm)).mean())
    return FoundVertebra(region, true.grade, pair[1], overlap, met.grade, height_error)


def summarise(results: Sequence[ScanResult]) -> dict[str, Any]:
    """Figures over all scans, as plain JSON values; None where nothing could be measured."""
    vertebrae = [v for r in results for v in r.vertebrae]
    graded = [v for v in vertebrae if v.true_grade is not None and v.grade is not None and v.region != "C"]
    true, called = [v.true_grade for v in graded], [v.grade for v in graded]
    f1 = f1_scores(true, called, classes=4) if graded else np.full(4, np.nan)  # type: ignore[arg-type]
    fractured = f1_scores([int(t > 0) for t in true], [int(c > 0) for c in called], classes=2)  # type: ignore[operator]
    return {
        "scans": len(results),
        "localisation": {name: _localisation([v for v in vertebrae if v.region in regions])
                         for name, regions in REGIONS.items()},
        "false_positives_per_scan": _number(np.mean([r.false_positives for r in results])),
        "dice": {"overall": _mean(v.dice for v in vertebrae),
                 **{f"grade_{g}": _mean(v.dice for v in vertebrae if v.true_grade == g) for g in range(4)}},
        "grades": {"f1": [_number(x) for x in f1], "macro_f1": _number(np.nanmean(f1)) if graded else None,
                   "fracture_f1": _number(fractured[1]) if graded else None,
                   "confusion_rows_true": confusion_matrix(true, called, classes=4).tolist()},  # type: ignore[arg-type]
        "height_error_mm": _mean(v.height_error_mm for v in vertebrae),
        "median_seconds_per_scan": _number(np.median([r.seconds for r in results])),
    }  # fmt: skip


def _localisation(vertebrae: Sequence[FoundVertebra]) -> dict[str, Any]:
    errors = [v.error_mm for v in vertebrae if v.error_mm is not None]
    return {
        "vertebrae": len(vertebrae),
        "recall_10mm": _number(len(errors) / len(vertebrae)) if vertebrae else None,
        "error_mm_mean": _number(np.mean(errors)) if errors else None,
        "error_mm_sd": _number(np.std(errors)) if errors else None,
    }


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None and not np.isnan(v)]
    return _number(np.mean(known)) if known else None


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def as_table(summary: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| region | vertebrae | recall (10 mm) | error, mm (mean ± sd) |", "|---|---|---|---|"]
    for name, row in summary["localisation"].items():
        error = f"{row['error_mm_mean']} ± {row['error_mm_sd']}"
        lines.append(f"| {name} | {row['vertebrae']} | {row['recall_10mm']} | {error} |")
    grades = summary["grades"]
    lines += [
        "",
        f"false positives per scan: {summary['false_positives_per_scan']}",
        f"Dice: {summary['dice']}",
        f"grade F1 (0..3, thoracic and lumbar): {grades['f1']}, macro {grades['macro_f1']}, "
        f"fracture yes/no {grades['fracture_f1']}",
        "confusion (rows: true grade 0..3; columns: called 0..3):",
        *(f"  {row}" for row in grades["confusion_rows_true"]),
        f"height error: {summary['height_error_mm']} mm; {summary['median_seconds_per_scan']} s per scan (median)",
    ]
    return "\n".join(lines)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; met {number}")
    return number


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--phantoms", type=positive, metavar="N", help="N held-out phantoms (default 100)")
    what.add_argument("--data", type=Path, help="folder in VerSe's layout")
    parser.add_argument("--grades", type=Path, help="csv or json of Genant grades for --data")
    parser.add_argument("--bundle", type=Path, help="bundle to evaluate (default: the one that ships)")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("-o", "--out", type=Path, help="write the figures, and each scan's, as JSON")
    parser.add_argument("--quiet", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the table, and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        count = args.phantoms or 100
        scans = verse_scans(args.data, args.grades) if args.data else phantom_scans(count)
        with Pipeline.open(args.bundle, engine=args.engine, precision=args.precision) as pipeline:
            bar = tqdm(scans, total=None if args.data else count, disable=args.quiet, unit="scan")
            results = [evaluate_scan(pipeline, scan) for scan in bar]
    except VertscanError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return error.exit_status
    summary = summarise(results)
    print(as_table(summary))
    if args.out:
        temporary = args.out.with_name(f"{args.out.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"summary": summary, "scans": [asdict(r) for r in results]}, indent=1) + "\n")
        temporary.replace(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
