"""``python -m benchmarks kernels|memory|startup``: what a stage costs, beside a peer measured in the same run.

Every case prints a table, and one JSON document last. Ratios are what to quote: machines differ and are noisy.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import kernels, memory, startup
from runtime.errors import VertscanError

CASES = {"kernels": kernels, "memory": memory, "startup": startup}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument(
        "--shape", default=None, help="z,y,x voxels (default: 333,120,120 for kernels, 1000,512,512 for memory)"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bundle", type=Path, help="default: the one that ships")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    args = build_parser().parse_args(argv)
    shape = tuple(int(n) for n in args.shape.split(",")) if args.shape else None
    try:
        figures = CASES[args.case](shape, args.repeats, args.bundle)
    except VertscanError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return error.exit_status
    for name, value in figures.items():
        print(f"{name:32s} {value}")
    machine = {"machine": platform.machine(), "processor": platform.processor(), "python": platform.python_version()}
    print(json.dumps({"case": args.case, **machine, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
