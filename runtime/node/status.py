"""The queue as a table, read beside a node that runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from runtime.node.outbox import Outbox, PullList
from runtime.node.queue import Queue

MOST_STUDIES = 50


def summary(queue: Queue, outbox: Outbox, pulls: PullList) -> Mapping[str, Any]:
    """Counts, studies with what became of their results, and what waits to be fetched; without UIDs."""
    studies = []
    for study in queue.studies():
        entry = asdict(study)
        del entry["uid"]
        results = outbox.results(study.key)
        entry["images"] = sum(queue.series_counts(study.key).values())
        entry["results"] = [
            {"destination": r.destination, "state": r.state, "attempts": r.attempts, "reason": r.reason}
            for r in results
        ]
        studies.append(entry)
    waiting = [
        {"study": queue.hasher.short(p.study_uid), "peer": p.peer, "state": p.state, "reason": p.reason}
        for p in pulls.waiting()
    ]
    return {"counts": dict(queue.counts()), "studies": studies, "to_fetch": waiting}


def table(said: Mapping[str, Any]) -> str:
    """A summary for people: counts, then the studies that changed last."""
    lines = ["  ".join(f"{state} {n}" for state, n in said["counts"].items())]
    studies = said["studies"]
    if studies:
        lines.append(f"{'study':16}  {'state':9}  {'images':>6}  {'results':>9}  {'changed':>9}  reason")
    for study in studies[:MOST_STUDIES]:
        there = sum(result["state"] in ("sent", "committed") for result in study["results"])
        results = f"{there} of {len(study['results'])}"
        reasons = [study["reason"], *(result["reason"] for result in study["results"])]
        ago = _ago(time.time() - study["changed_s"])
        lines.append(
            f"{study['key']:16}  {study['state']:9}  {study['images']:6}  {results:>9}  {ago:>9}  "
            f"{next((reason for reason in reasons if reason), '')}"
        )
    if len(studies) > MOST_STUDIES:
        lines.append(f"... and {len(studies) - MOST_STUDIES} more (--json shows all)")
    lines += [f"to fetch: {p['study']} from {p['peer']} ({p['state']}) {p['reason']}" for p in said["to_fetch"]]
    return "\n".join(lines)


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"
