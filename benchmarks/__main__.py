"""``python -m benchmarks kernels|latency|memory|startup``: what a stage costs, beside a peer measured in the same run.

Every case prints a table, and one JSON document last. Ratios are what to quote: machines differ and are noisy.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import kernels, memory, startup
from runtime.console import INTERRUPTED, complain
from runtime.errors import VertscanError
from runtime.extras import stop_without

CASES = {"kernels": kernels, "memory": memory, "startup": startup}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("case", choices=sorted([*CASES, "latency"]))
    parser.add_argument(
        "--shape",
        default=None,
        help="z,y,x voxels (default: 333,120,120 for kernels, 1000,512,512 for memory, 150,145,170 for latency)",
    )
    parser.add_argument("--repeats", metavar="N", type=_from_one, default=7, help="measured runs (default: 7)")
    parser.add_argument("--bundle", type=Path, help="default: the one that ships")
    only = parser.add_argument_group("latency alone")
    only.add_argument("--engine", metavar="NAME", action="append", default=[], help="only this one; may be repeated")
    only.add_argument("--device", metavar="N", type=int, default=0, help="which GPU (default: 0)")
    only.add_argument("--threads", metavar="N", type=_from_one, help="on the processor (default: all)")
    only.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes to start")
    only.add_argument("--no-scan", action="store_true", help="windows and crops alone, no whole scans")
    return parser


def _from_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"should be a whole number from 1 on, met {text}")
    return int(text)


def _latency(args: argparse.Namespace, shape: tuple[int, ...] | None) -> dict[str, Any]:
    try:
        from benchmarks.latency import latency
    except ModuleNotFoundError as error:
        stop_without("export", error)
    return latency(
        shape,
        args.repeats,
        args.bundle,
        engines=args.engine,
        device=args.device,
        threads=args.threads,
        compiled=not args.no_compile,
        with_scan=not args.no_scan,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    args = build_parser().parse_args(argv)
    shape = tuple(int(n) for n in args.shape.split(",")) if args.shape else None
    try:
        latency = args.case == "latency"
        figures = _latency(args, shape) if latency else CASES[args.case](shape, args.repeats, args.bundle)
    except VertscanError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    if "contenders" in figures:
        from benchmarks.latency import latency_table

        print(latency_table(figures))
    else:
        print("\n".join(f"{name:32s} {value}" for name, value in figures.items()))
    machine = {"machine": platform.machine(), "processor": platform.processor(), "python": platform.python_version()}
    print(json.dumps({"case": args.case, **machine, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
