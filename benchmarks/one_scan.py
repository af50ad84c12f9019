"""One scan in a fresh process: ``python -m benchmarks.one_scan SCAN`` prints its stages and peak memory as JSON.

What ``runtime.infer`` does, without torch in the process, on as many threads as asked for, and as often as asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_scan", description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--exhaustive", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print one JSON document, and return 0."""
    begun_s = time.perf_counter()
    args = build_parser().parse_args(argv)
    from runtime.kernels.threads import limit_threads

    if args.threads is not None:
        limit_threads(args.threads)
    from benchmarks.timed_writing import timed_writing
    from runtime.memory import keep_freed_memory, peak_memory_mb
    from runtime.pipeline import Pipeline
    from runtime.progress import NoProgress

    if args.runs > 1:
        keep_freed_memory()  # as the command does for several scans
    imported_s = time.perf_counter()
    runs: list[dict[str, Any]] = []
    with Pipeline.open(args.bundle, engine=args.engine, threads=args.threads, exhaustive=args.exhaustive) as pipeline:
        opened_s = time.perf_counter()
        for _ in range(args.runs):
            with tempfile.TemporaryDirectory() as folder:
                analysis = pipeline.analyse(args.scan)
                findings, stages_s = timed_writing(analysis, Path(folder), progress=NoProgress())
            runs.append({
                "stages_s": stages_s,
                "vertebrae": len(findings.vertebrae),
                "centres_ras_mm": [vertebra.centre_ras_mm for vertebra in findings.vertebrae],
                "windows": asdict(analysis.windows),
            })  # fmt: skip
    print(
        json.dumps({
            "import_s": imported_s - begun_s,
            "open_s": opened_s - imported_s,
            "runs": runs,
            "peak_memory_mib": peak_memory_mb(),
            "engine": f"{findings.engine.name} {findings.engine.precision}",
        })
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
