"""``python -m runtime.series PATH``: the CT series in a DICOM folder, zip or DICOMDIR, and which would be run on.

Exit status: 0 a series would be chosen, 2 none would, or the path can't be used; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.console import say, status_after
from runtime.errors import InputError
from runtime.readers import list_series
from runtime.readers.dicom import SeriesList, patients
from runtime.readers.dicom_choice import Verdict, extent_mm, plane_of, thickness_mm
from runtime.readers.options import ReadOptions
from runtime.scan_list import ListedScan, list_scans


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m runtime.series``."""
    parser = argparse.ArgumentParser(
        prog="vertscan-series",
        description="Lists the CT series in a DICOM folder, zip or DICOMDIR: which one would be run on, and why the "
        "others would not. Pixels are not read.",
        epilog="Exit status: 0 a series would be chosen, 2 none would, or the path can't be used, 130 interrupted.",
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="a DICOM folder, zip, DICOMDIR or enhanced file")
    add_reading_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    return parser


def add_reading_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options that say how DICOM is to be read."""
    parser.add_argument("--series", metavar="UID", help="the DICOM series to run on (default: chosen by rules)")
    parser.add_argument(
        "--accept-gaps",
        action="store_true",
        help="read a DICOM series though slices are missing, damaged or there twice; the findings warn of it",
    )


def reading_options(arguments: argparse.Namespace) -> ReadOptions:
    """What these options say."""
    return ReadOptions(series_uid=arguments.series, accept_gaps=arguments.accept_gaps)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; argparse itself exits with 2 on wrong usage."""
    arguments = build_parser().parse_args(argv)
    try:
        scans, _ = list_scans([arguments.path])
        if len(scans) > 1:
            raise InputError(f"{arguments.path} holds {len(scans)} scans: {_some(scans)}. Name one of them.")
        listed = list_series(scans[0].path, reading_options(arguments))
        say(json.dumps(as_json(listed), indent=2, allow_nan=False) if arguments.json else table(listed))
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  users get a message, never a trace
        return status_after(error, interrupted="interrupted", out_of_memory="out of memory; close other programs")
    return 0 if any(verdict.chosen for verdict in listed.verdicts) else InputError.exit_status


def _some(scans: Sequence[ListedScan]) -> str:
    return ", ".join(str(scan.path) for scan in scans[:5]) + (", ..." if len(scans) > 5 else "")


def as_json(listed: SeriesList) -> dict[str, Any]:
    """What is there, as JSON: CT series (best first), other series, other files by kind, files that can't be read."""
    return {
        "path": str(listed.files.root),
        "patients": len(patients(listed)),
        "series": [_entry(verdict) for verdict in listed.verdicts],
        "other_series": [
            {
                "series_uid": other.series_uid,
                "series_number": other.series_number,
                "kinds": list(other.kinds),
                "files": other.files,
                "reason": other.reason,
            }
            for other in listed.headers.other_series()
        ],
        "other_files": dict(sorted(Counter(other.kind for other in listed.headers.others).items())),
        "not_dicom": listed.headers.no_dicom,
        "unreadable": {source: str(error) for source, error in sorted(listed.headers.broken.items())},
        "missing": list(listed.files.missing),
    }


def _entry(verdict: Verdict) -> dict[str, Any]:
    one, stack = verdict.candidate, verdict.candidate.stack
    first = one.frames[0] if one.frames else None
    return {
        "series_uid": one.series_uid,
        "series_number": one.series_number,
        "part": list(one.part),
        "description": one.description,
        "image_type": list(one.image_type),
        "kernel": one.kernel,
        "files": len(one.files),
        "slices": len(one.frames),
        "rows": first.rows if first else None,
        "columns": first.columns if first else None,
        "orientation": plane_of(one),
        "step_mm": None if stack is None else round(stack.step_mm, 3),
        "thickness_mm": thickness_mm(one),
        "extent_mm": round(extent_mm(one), 1),
        "tilt_degrees": None if stack is None else round(stack.tilt_degrees, 2),
        "repairs": [] if stack is None else list(stack.repairs),
        "notes": [] if stack is None else list(stack.notes),
        "chosen": verdict.chosen,
        "points": verdict.points,
        "costs": verdict.costs,
        "reason": verdict.reason,
        "set_apart": one.set_apart,
    }


def table(listed: SeriesList) -> str:
    """The same as lines a person can read."""
    lines = []
    for verdict in listed.verdicts:
        entry = _entry(verdict)
        mark = "->" if verdict.chosen else "  "
        number = entry["series_number"] or "-"
        part = f"/{entry['part'][0]}" if entry["part"][1] > 1 else ""
        step = "-" if entry["step_mm"] is None else f"{entry['step_mm']:.2f} mm"
        thick = "-" if entry["thickness_mm"] is None else f"{entry['thickness_mm']:.2f} mm"
        size = "-" if entry["rows"] is None else f"{entry['columns']}x{entry['rows']}"
        points = "-" if verdict.points is None else f"{verdict.points:.1f}"
        lines.append(
            f"{mark} {number + part:<8} {entry['slices']:>5} x {size:<9} {step:>9} {thick:>9} "
            f"{entry['orientation'] or '-':<9} {entry['kernel'] or '-':<10} {points:>6}  {entry['description']}"
        )
        lines.append(f"     {entry['series_uid'] or 'no UID'}{' ' + entry['set_apart'] if entry['set_apart'] else ''}")
        lines.append(f"     {'chosen: ' if verdict.chosen else 'not chosen: '}{verdict.reason}")
        lines += [f"     note: {note}" for note in entry["notes"]]
    head = (
        f"   {'series':<8} {'slices':>5}   {'size':<9} {'step':>9} {'thick':>9} {'plane':<9} {'kernel':<10} "
        f"{'points':>6}  what"
    )
    rest = [f"not chosen: {other.label}: {other.reason}" for other in listed.headers.other_series()]
    others = f"other files: {listed.headers.met()}" if listed.headers.others or listed.headers.no_dicom else ""
    broken = [f"unreadable: {error}" for _, error in sorted(listed.headers.broken.items())]
    missing = [f"named by the DICOMDIR and not there: {name}" for name in listed.files.missing]
    count = len(patients(listed))
    mixed = [f"of {count} patients: refused unless one series is named with --series"] if count > 1 else []
    told = [*(lines or ["   no CT series"]), *rest, *([others] if others else [])]
    return "\n".join([head, *mixed, *told, *broken, *missing])


if __name__ == "__main__":
    sys.exit(main())
