"""What ``python -m export.verify`` tells: figures as JSON, and as a table that a person can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from runtime.bundle import Bundle
from runtime.engines import EngineChoice
from runtime.engines.parity import LIMITS, Parity, faults, joined


@dataclass
class Outcome:
    """What was found of one engine, scan by scan.

    Args:
        choice: the engine, and its precision.
        version: of its library.
        device: where it ran, ``""`` where it didn't.
        with_itself: its batches and repetitions, or why it could not be opened.
        scans: name and figures of each scan.
        seconds: that the calls of its networks took on all scans.
        reference_seconds: that the calls of the reference's took on the same.
    """

    choice: EngineChoice
    version: str = ""
    device: str = ""
    with_itself: Parity = field(default_factory=Parity)
    scans: list[tuple[str, Parity]] = field(default_factory=list)
    seconds: float = 0.0
    reference_seconds: float = 0.0

    @property
    def whole(self) -> Parity:
        """Over all scans."""
        return joined([self.with_itself, *(parity for _, parity in self.scans)])

    @property
    def faults(self) -> tuple[str, ...]:
        """What is past the limits of its precision; none when it passes."""
        return faults(self.whole, LIMITS[self.choice.precision])


def as_json(bundle: Bundle, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All figures as plain values."""
    return {
        "bundle": {"name": bundle.spec.name, "version": bundle.spec.version, "sha256": bundle.sha256},
        "reference": {"name": "torch", "version": metadata.version("torch"), "precision": "fp32", "device": "CPU"},
        "engines": [
            {
                "name": outcome.choice.name,
                "version": outcome.version,
                "precision": outcome.choice.precision,
                "device": outcome.device,
                "passes": not outcome.faults,
                "faults": list(outcome.faults),
                "limits": asdict(LIMITS[outcome.choice.precision]),
                "seconds": round(outcome.seconds, 2),
                "seconds_of_reference": round(outcome.reference_seconds, 2),
                "worst": {**asdict(outcome.whole), "dice": outcome.whole.dice},
                "with_itself": {"batch": outcome.with_itself.batch, "repeat": outcome.with_itself.repeat},
                "scans": [{"scan": name, **asdict(parity), "dice": parity.dice} for name, parity in outcome.scans],
            }
            for outcome in outcomes
        ],
    }


def table(outcomes: Sequence[Outcome]) -> str:
    """The worst figures of each engine, a column each, and what is past its limits."""
    rows = [["", *(f"{o.choice.name} {o.choice.precision}" for o in outcomes)]]
    rows += [[name, *(text(o, o.whole) for o in outcomes)] for name, text in _ROWS]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows]  # fmt: skip
    said = [f"{o.choice.name} {o.choice.precision}{o.device and f' on {o.device}'}: "
            f"{'; '.join(o.faults) or 'within the limits'}"
            for o in outcomes]  # fmt: skip
    return "\n".join([*(line.rstrip() for line in lines), "", *said])


_ROWS: tuple[tuple[str, Callable[[Outcome, Parity], str]], ...] = (
    ("scans", lambda o, w: str(len(o.scans))),
    ("centres", lambda o, w: str(w.centres)),
    ("found by one alone", lambda o, w: str(w.centres_lost)),
    ("centre shift, mm", lambda o, w: f"{w.centre_shift_mm:.4f}"),
    ("mask Dice, all", lambda o, w: f"{w.dice:.6f}"),
    ("mask Dice, worst", lambda o, w: f"{w.smallest_dice:.5f}"),
    ("grades changed", lambda o, w: f"{w.grades_changed} of {w.grades}"),
    ("grade probability", lambda o, w: f"{w.grade:.1e}"),
    ("levels changed", lambda o, w: f"{w.levels_changed} of {w.levels}"),
    ("level probability", lambda o, w: f"{w.level:.1e}"),
    ("height, mm", lambda o, w: f"{w.heights_mm:.1e}"),
    ("raw heatmap", lambda o, w: f"{w.heatmap:.1e}"),
    ("raw offsets, voxels", lambda o, w: f"{w.offsets:.1e}"),
    ("raw mask", lambda o, w: f"{w.mask:.1e}"),
    ("within a batch", lambda o, w: f"{w.batch:.1e}"),
    ("on repetition", lambda o, w: f"{w.repeat:.1e}"),
    ("NaN or infinity", lambda o, w: str(w.not_finite)),
    ("time over torch's", lambda o, w: f"{o.seconds / o.reference_seconds:.2f}" if o.reference_seconds else "-"),
)
