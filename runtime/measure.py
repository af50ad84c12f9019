"""``python -m runtime.measure``: heights, height loss and grade of every vertebra of a label map, without a network.

Exit status: 0 done, 2 usage or input refused, 4 out of memory, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.console import say, status_after

if TYPE_CHECKING:
    from runtime.mask_measurement import LabelledVertebra

# What takes time to import is imported inside ``main``, where Ctrl-C ends it as it ends the rest.


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m runtime.measure``."""
    from runtime.mask_measurement import SCHEMES

    parser = argparse.ArgumentParser(
        prog="vertscan-measure",
        description="Measures the vertebrae of a label map: heights of the bodies in mm, height loss, Genant grade and "
        "shape, volume, and with --scan the mean HU of the trabecular bone.",
        epilog="Exit status: 0 done, 2 usage or input refused, 4 out of memory, 130 interrupted.",
    )
    parser.add_argument("mask", metavar="MASK", type=Path, help="label map, .nii or .nii.gz: one label per vertebra")
    parser.add_argument("--scan", metavar="CT", type=Path, help="the CT, for the mean HU; its grid may differ")
    parser.add_argument(
        "--labels",
        choices=SCHEMES,
        default="auto",
        help="which levels the labels are: VerSe's (1-24, 28), TotalSegmentator's (27-50), or none that are known, as "
        "in this software's vertebrae.nii.gz (default: auto, told by the labels and their order)",
    )
    parser.add_argument(
        "--body-labels",
        metavar="N",
        type=int,
        nargs="+",
        default=(),
        help="labels of the vertebral body in the sub-region map (in --subregions; without it MASK is such a map, and "
        "each of its bodies counts as one vertebra of unknown level)",
    )
    parser.add_argument(
        "--subregions", metavar="FILE", type=Path, help="map of sub-regions on MASK's grid; needs --body-labels"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list with one entry per label, nothing else")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; argparse itself exits with 2 on wrong usage."""
    try:
        parser = build_parser()
        arguments = parser.parse_args(argv)
        if arguments.subregions is not None and not arguments.body_labels:
            parser.error("--subregions needs --body-labels: which of its labels are the vertebral body")
        _measure(arguments)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  users get a message, never a trace
        return status_after(
            error,
            interrupted="interrupted",
            out_of_memory="out of memory; close other programs, or crop the mask to the spine",
        )
    return 0


def _measure(arguments: argparse.Namespace) -> None:
    from runtime.label_map import is_own_mask, read_labels
    from runtime.mask_measurement import measure_label_map
    from runtime.readers import read_scan

    labels = read_labels(arguments.mask)
    # This software's own masks number the vertebrae from 1 wherever the scan begins: 1 is no C1 there.
    own = arguments.labels == "auto" and is_own_mask(arguments.mask)
    report = measure_label_map(
        labels,
        subregions=None if arguments.subregions is None else read_labels(arguments.subregions),
        body_labels=arguments.body_labels,
        scheme="none" if own else arguments.labels,
        scan=None if arguments.scan is None else read_scan(arguments.scan),
    )
    notes = (
        (*report.notes, "The mask is one of this software's: its labels are running numbers.") if own else report.notes
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.json:
        say(json.dumps([asdict(v) for v in report.vertebrae], indent=2, allow_nan=False))
    else:
        say(table(report.vertebrae))


def table(vertebrae: Sequence[LabelledVertebra]) -> str:
    """The measurements as lines a person can read."""
    head = f"{'label':>5}  {'level':<5}  {'ant/mid/post mm':<18} {'loss':>5}  {'grade':<16} {'ml':>6} {'HU':>6}"
    lines = [head]
    for v in vertebrae:
        heights, loss, grade = "-", "-", "-"
        if v.heights_mm is not None:
            heights = f"{v.heights_mm.anterior:.1f} {v.heights_mm.middle:.1f} {v.heights_mm.posterior:.1f}"
        if v.height_loss is not None and v.grade is not None:
            loss, grade = f"{100 * v.height_loss:.0f} %", f"{v.grade}" + (f" {v.shape}" if v.shape else "")
        hu = "-" if v.mean_hu is None else f"{v.mean_hu:.0f}"
        line = f"{v.label:>5}  {v.level or '-':<5}  {heights:<18} {loss:>5}  {grade:<16} {v.volume_ml:>6.1f} {hu:>6}"
        lines.append(line + (f"  {v.reason}" if v.reason else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
