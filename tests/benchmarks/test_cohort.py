"""What a killed worker cost is told by the journal's times, and one that lost more than its attempt is refused."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.cohort import Kill, checked, loss
from benchmarks.processes import ChildError
from runtime.output import FINDINGS_FILE, MASK_FILE

BEGAN_S = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
KILL = Kill(pid=1, at_s=BEGAN_S + 6)


def run_of(scan: str, node: str, pid: int, begun: float, seconds: float, **changed: str) -> dict:
    """A line of the journal, begun so many seconds after ``BEGAN_S``."""
    ended = datetime.fromtimestamp(BEGAN_S + begun + seconds, UTC).isoformat(timespec="milliseconds")
    return {"id": f"{scan}.nii.gz", "node": node, "pid": pid, "ended": ended, "seconds": seconds, "status": "done",
            "kind": "", **changed}  # fmt: skip


def journal() -> list[dict]:
    """Two nodes; worker 1 is killed 2 s after it began b, which is noticed at 7 s; worker 3 comes in its place."""
    return [
        run_of("a", "one", 1, 0, 4),
        run_of("c", "two", 2, 0, 5),
        run_of("b", "one", 1, 4, 3, status="failed", kind="worker lost"),
        run_of("d", "two", 2, 5, 10),
        run_of("e", "one", 3, 14, 3),
        run_of("b", "two", 2, 18, 4),
    ]


def results(folder: Path) -> tuple[Path, Path]:
    """Equal results of both ways."""
    for way in ("alone", "together"):
        for scan in "abcde":
            of_one = folder / way / f"{scan}.vertebrae"
            of_one.mkdir(parents=True)
            (of_one / MASK_FILE).write_bytes(b"mask")
            (of_one / FINDINGS_FILE).write_text(json.dumps({"timings_s": {"total": len(way)}, "vertebrae": []}))
        (folder / way / "failed.csv").write_text("scan\n")
    return folder / "alone", folder / "together"


def test_the_cost_of_a_kill_is_told_from_the_journal() -> None:
    runs = journal()
    cost = loss(runs, runs[2], KILL)
    assert cost.attempt_s == pytest.approx(2), "its age at the kill, not when the death was noticed"
    assert cost.replaced_s == pytest.approx(8)
    assert cost.begun_again_s == pytest.approx(12)
    assert loss([run for run in runs if run["pid"] != 3], runs[2], KILL).replaced_s is None


def test_one_attempt_of_the_killed_worker_is_lost_and_no_more(tmp_path) -> None:
    alone, together = results(tmp_path)
    runs = journal()
    assert checked("abcde", runs, KILL, alone, together) is runs[2]
    with pytest.raises(ChildError, match="killed worker 9"):
        checked("abcde", runs, Kill(9, KILL.at_s), alone, together)
    other = run_of("d", "two", 2, 5, 1, status="failed", kind="worker lost")
    with pytest.raises(ChildError, match="One run should be lost"):
        checked("abcde", [*runs, other], KILL, alone, together)
    with pytest.raises(ChildError, match="done once"):
        checked("abcde", [*runs, run_of("b", "one", 3, 18, 4)], KILL, alone, together)
