"""The options of ``python -m runtime.cohort``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from runtime.argument_types import above_zero, whole_from_one, whole_from_zero
from runtime.infer_options import add_model_options, add_output_options
from runtime.version import software_version

# What takes time to import is imported inside the functions, where Ctrl-C ends it as it ends the rest.

_TIME_LIMIT_S = 14400
"""Far more than any scan takes on one core of an old processor."""


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m runtime.cohort``."""
    from runtime.engines import ENGINES, ONLY_BY_NAME

    parser = argparse.ArgumentParser(
        prog="vertscan-cohort",
        description="Runs the scans of a list over the machines of a Ray cluster, and collects what was found in "
        "tables. What complete results of an earlier run are there is left out, so the same command goes on where an "
        "earlier one was stopped or killed, and tries what failed again.",
        epilog="Exit status: 0 all done, 2 usage, list or a scan refused, 3 bundle or engine, 4 out of memory, "
        "5 workers of the cluster died or a scan took too long, 130 interrupted, 1 a defect of this software. Of "
        "several scans that fail, the first one's status is given.",
    )
    parser.add_argument(
        "list", metavar="SCANS.csv", type=Path, help="CSV with a column 'scan' (paths), perhaps 'id', and any others"
    )
    parser.add_argument(
        "-o", "--output-dir", metavar="DIR", type=Path, required=True,
        help="where the tables go, and a folder for each scan: on storage that all nodes share",
    )  # fmt: skip
    parser.add_argument(
        "--root", metavar="DIR", type=Path,
        help="the folder that all scans lie in; results go to the same subfolders of -o (default: the list's folder)",
    )  # fmt: skip
    _add_cluster_options(parser.add_argument_group("the cluster"))
    add_model_options(parser, engines=tuple(name for name in ENGINES if name not in ONLY_BY_NAME))
    parser.add_argument("--no-overview", action="store_true", help="do not draw overview.png")
    group = parser.add_argument_group("DICOM series, and results beside them")
    group.add_argument(
        "--accept-gaps", action="store_true", help="read DICOM series though slices are missing, damaged or doubled"
    )
    add_output_options(group)
    parser.add_argument("--quiet", action="store_true", help="no progress, warnings and errors only")
    parser.add_argument("--debug", action="store_true", help="show the trace of an internal error")
    parser.add_argument("--version", action="version", version=f"vertscan {software_version()}")
    return parser


def _add_cluster_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--address", metavar="WHERE",
        help="of a Ray cluster: auto (the one this machine is part of), HOST:PORT of its head, or ray://HOST:PORT "
        "(default: none; workers on this machine alone)",
    )  # fmt: skip
    group.add_argument(
        "--memory", metavar="GIB", type=above_zero,
        help="so much memory a worker may use; a scan that would need more fails before its voxels are read (default: "
        "no limit)",
    )  # fmt: skip
    group.add_argument("--workers", metavar="N", type=whole_from_one, help="at most so many (default: as many as fit)")
    group.add_argument(
        "--cpus-per-worker", metavar="N", type=whole_from_one,
        help="cores that a worker gets and keeps to (default: 4, or what there is for each GPU or on a smaller node)",
    )  # fmt: skip
    group.add_argument(
        "--gpus-per-worker", metavar="X", type=_share,
        help="GPUs that a worker gets; with 0.5 two share one, so that one reads while the other computes (default: 1 "
        "where the cluster has any, else 0)",
    )  # fmt: skip
    group.add_argument(
        "--retries", metavar="N", type=whole_from_zero, default=2,
        help="so often a scan is tried again whose worker died or ran out of memory (default: 2)",
    )  # fmt: skip
    group.add_argument(
        "--time-limit", metavar="SECONDS", type=whole_from_zero, default=_TIME_LIMIT_S,
        help="a scan that isn't done after so long is given up and its worker's process ended, so that others get "
        f"their turn (default: {_TIME_LIMIT_S}; 0: wait for ever)",
    )  # fmt: skip


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0.0 <= value < 1.0 or value.is_integer()) or value < 0:
        raise argparse.ArgumentTypeError(f"should be 0, a part of one such as 0.5, or a whole number, met {text}")
    return value
