"""Writing results, with all the seconds that it takes: the findings among them can't hold those of their own file."""

from __future__ import annotations

import time
from pathlib import Path

from runtime.findings import Findings
from runtime.output import Outputs, write_results
from runtime.pipeline import Analysis
from runtime.progress import Progress


def timed_writing(analysis: Analysis, folder: Path, *, progress: Progress) -> tuple[Findings, dict[str, float]]:
    """Write the results; the findings as written, and the seconds of every stage of the run and of its ``"total"``.

    ``"write"`` and ``"total"`` hold, beyond what the findings state, what came after they were stated: their own file,
    and bringing all onto the disk and to its name.
    """
    start_s = time.perf_counter()
    findings = write_results(analysis, folder, outputs=Outputs(), progress=progress)
    took_s = time.perf_counter() - start_s
    times = dict(findings.timings_s)
    after_s = max(0.0, took_s - (times["total"] - analysis.findings.timings_s["total"]))
    return findings, times | {"write": times["write"] + after_s, "total": times["total"] + after_s}
