"""The cohort command: phantoms on a Ray cluster of two nodes with one worker killed, beside the same one by one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.local_cluster import ENVIRONMENT, two_nodes
from benchmarks.processes import ChildError
from benchmarks.report import Report, Table, number
from benchmarks.scans import FIRST_SEED, Shape, phantom_scan, save
from runtime.output import FINDINGS_FILE, MASK_FILE

SHAPE_ZYX, SPACING_MM = (64, 60, 60), 2.0
KILL_AFTER = 0.25
"""A worker is killed when this part of the scans is done."""
_POLL_S = 0.05


@dataclass(frozen=True)
class Kill:
    """A worker that was killed: its process, and when, in seconds since 1970."""

    pid: int
    at_s: float


@dataclass(frozen=True)
class Loss:
    """What a kill cost, s.

    Args:
        attempt_s: age of the attempt that was lost.
        replaced_s: from the kill until another worker in that place began a scan: the death is noticed, a process is
            started and the networks are opened. None where no scan was left for it.
        begun_again_s: from the kill until the same scan was begun again, behind those that waited already.
    """

    attempt_s: float
    replaced_s: float | None
    begun_again_s: float


def cohort(
    count: int, shape_zyx: Shape, spacing_mm: float, *, bundle: Path | None, engine: str, threads: int, folder: Path
) -> Report:
    """Run ``count`` phantoms one by one, and as a cohort on two nodes that share the same threads; compare them.

    Raises:
        ChildError: a run failed, results are missing or differ, no worker could be killed, or the killed worker
            cost other than one more run of its scan.
    """
    scans = folder / "scans"
    scans.mkdir()
    names = [f"phantom{i:03d}" for i in range(count)]
    for i, name in enumerate(names):
        save(phantom_scan(shape_zyx, spacing_mm=spacing_mm, seed=FIRST_SEED + i), scans / f"{name}.nii.gz")
    (scans / "scans.csv").write_text("\n".join(["scan", *(f"{name}.nii.gz" for name in names)]) + "\n")
    options = ["--engine", engine, *([] if bundle is None else ["--bundle", str(bundle.absolute())])]
    alone, together = folder / "alone", folder / "together"
    share = max(1, threads // 2)
    alone_s, _ = _timed(["-m", "runtime.infer", str(scans), "-o", str(alone), *options], cores=share)
    with two_nodes(cpus=share) as address:
        command = ["-m", "runtime.cohort", str(scans / "scans.csv"), "-o", str(together), "--address", address]
        command += ["--cpus-per-worker", str(share), *options]
        together_s, kill = _timed(command, kill_in=together, count=count)
    runs = [json.loads(line) for line in (together / "runs.jsonl").read_text().splitlines()]
    if kill is None:
        raise ChildError("All scans were done before a worker could be killed; give more of them with --scans.")
    lost = checked(names, runs, kill, alone, together)
    return _report(names, runs, lost, loss(runs, lost, kill), alone_s, together_s, {
        "scans": count, "shape_zyx": list(shape_zyx), "spacing_mm": spacing_mm, "engine": engine,
    })  # fmt: skip


def _timed(
    arguments: Sequence[str], *, cores: int = 0, kill_in: Path | None = None, count: int = 0
) -> tuple[float, Kill | None]:
    """Seconds of a command, in whose results ``kill_in`` shows when to kill a worker, and that kill.

    With ``cores`` it has so many, as a worker has: the networks' last digits change with the number of their threads.
    """
    start_s = time.perf_counter()
    own = sorted(os.sched_getaffinity(0))[:cores] if cores else []
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        preexec_fn=(lambda: os.sched_setaffinity(0, own)) if own else None,
    ) as process:  # fmt: skip
        kill = None if kill_in is None else _kill_a_worker(process, kill_in / "runs.jsonl", count)
        _, err = process.communicate()
    if process.returncode:
        raise ChildError(f"{arguments[1]} ended with status {process.returncode}: {err.strip().splitlines()[-1:]}")
    return time.perf_counter() - start_s, kill


def _kill_a_worker(process: subprocess.Popen[str], journal: Path, count: int) -> Kill | None:
    """SIGKILL for the worker that ended the last run, in the middle of its next one; None where all ended before."""
    while process.poll() is None:
        lines = journal.read_text().splitlines() if journal.exists() else []
        if len(lines) >= max(1, round(KILL_AFTER * count)):
            last = json.loads(lines[-1])
            time.sleep(last["seconds"] / 2)
            kill = Kill(last["pid"], time.time())
            os.kill(kill.pid, signal.SIGKILL)
            return kill
        time.sleep(_POLL_S)
    return None


def loss(runs: Sequence[dict[str, Any]], lost: dict[str, Any], kill: Kill) -> Loss:
    """What the kill cost, by the journal's times.

    Args:
        runs: all lines of the journal.
        lost: that of the run that the killed worker had.
        kill: the kill.
    """
    in_its_place = [run for run in runs if run["node"] == lost["node"] and run["pid"] != kill.pid]
    replaced_s = min((_began_s(run) - kill.at_s for run in in_its_place), default=None)
    again = next(run for run in runs if run["id"] == lost["id"] and run is not lost)
    return Loss(kill.at_s - _began_s(lost), replaced_s, _began_s(again) - kill.at_s)


def _began_s(run: dict[str, Any]) -> float:
    """When a run of the journal was begun, s since 1970."""
    return datetime.fromisoformat(run["ended"]).timestamp() - float(run["seconds"])


def checked(
    names: Sequence[str], runs: Sequence[dict[str, Any]], kill: Kill, alone: Path, together: Path
) -> dict[str, Any]:
    """The one run that was lost, once all else is as it should be.

    Raises:
        ChildError: it is not; says what.
    """
    done = Counter(run["id"].partition(".")[0] for run in runs if run["status"] == "done")
    if done != dict.fromkeys(names, 1):
        raise ChildError(f"Each scan should be done once; met {done}.")
    lost = [run for run in runs if run["status"] != "done"]
    if [(run["kind"], run["pid"]) for run in lost] != [("worker lost", kill.pid)]:
        raise ChildError(f"One run should be lost, that of the killed worker {kill.pid}; met {lost}.")
    with (together / "failed.csv").open(newline="") as file:
        if failed := list(csv.DictReader(file)):
            raise ChildError(f"No scan should fail; met {failed}.")
    for name in names:
        one, other = alone / f"{name}.vertebrae", together / f"{name}.vertebrae"
        same_mask = (one / MASK_FILE).read_bytes() == (other / MASK_FILE).read_bytes()
        if not same_mask or _without_timings(one) != _without_timings(other):
            raise ChildError(f"The results of {name} differ from those it has alone.")
    return lost[0]


def _without_timings(folder: Path) -> dict[str, Any]:
    findings = json.loads((folder / FINDINGS_FILE).read_text())
    return {key: value for key, value in findings.items() if key not in ("timings_s", "peak_memory_mb")}


def _report(
    names: Sequence[str], runs: Sequence[dict[str, Any]], lost: dict[str, Any], cost: Loss, alone_s: float,
    together_s: float, settings: dict[str, Any],
) -> Report:  # fmt: skip
    seconds = tuple(run["seconds"] for run in runs if run["status"] == "done")
    per_node = Counter(run["node"][:8] for run in runs if run["status"] == "done")
    of_kill = (
        ("age of the lost attempt", cost.attempt_s),
        ("until the next scan of a worker in that place", cost.replaced_s),
        ("until the same scan is begun again", cost.begun_again_s),
    )
    figures = (
        Figure("whole cohort", "one by one", "s", (alone_s,)),
        Figure("whole cohort", "two nodes, a worker killed", "s", (together_s,)),
        Figure("one scan", "on its worker", "s", seconds),
        *(Figure("the kill", name, "s", (cost_s,)) for name, cost_s in of_kill if cost_s is not None),
    )
    replaced = "no scan was left for a worker in its place"
    if cost.replaced_s is not None:
        replaced = f"a worker in its place began its first scan {cost.replaced_s:.1f} s after the kill"
    rows = tuple((figure.group, figure.name, number(figure.median)) for figure in figures)
    return Report(
        figures=figures,
        tables=(Table(f"{len(names)} phantoms", ("", "", "s"), rows, left=2),),
        settings=settings,
        ratios=(Figure("time", "one by one / two nodes", "x", (alone_s / together_s,), more_is_better=True),),
        details={"scans_by_node": dict(per_node), "runs": len(runs), "lost": lost, "cost_of_the_kill_s": asdict(cost)},
        notes=(
            f"All {len(names)} scans have the findings and masks that they have one by one, byte for byte but for "
            "times and memory. Each was done once.",
            f"The attempt that was lost with the killed worker was {cost.attempt_s:.1f} s old, and {replaced}; the "
            f"same scan was begun again after {cost.begun_again_s:.1f} s, behind those that waited.",
            f"Scans by node: {', '.join(map(str, per_node.values()))}.",
            f"One by one takes {alone_s / together_s:.2f} times as long, start of both included.",
        ),
    )
