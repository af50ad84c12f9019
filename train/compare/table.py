"""The comparison's results as JSON, and as tables in Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from train.compare.figures import GradeFigures


@dataclass(frozen=True)
class Result:
    """One run: its part (``"heads"`` or ``"whole"``), variant and seed, and what it reached.

    Args:
        dice, height_error_mm: of the masks and heights; None for heads, whose masks are frozen.
        seconds: of processor time that it was trained for.
    """

    part: str
    variant: str
    seed: int
    grades: GradeFigures
    dice: float | None
    height_error_mm: float | None
    seconds: float


def kept_result(path: Path, make: Callable[[], Result]) -> Result:
    """The result in ``path``, or that of ``make``, which is then written there."""
    if path.is_file():
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        grades: dict[str, Any] = values.pop("grades")
        grades |= {name: tuple(grades[name]) for name in ("precision", "recall", "f1")}
        return Result(grades=GradeFigures(**grades), **values)
    result = make()
    write_text(path, json.dumps(asdict(result), indent=2, allow_nan=False) + "\n")
    return result


def write_text(path: Path, text: str) -> None:
    """The whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def markdown(results: Sequence[Result]) -> str:
    """A table for each part: a row for each variant, means over its seeds, with standard deviations of two."""
    columns = ("variant", "seeds", "F1 of grades 0 to 3", "recall of grades 0 to 3", "macro F1", "AUROC", "log loss",
               "ECE", "Dice", "heights, mm")  # fmt: skip
    lines = []
    for part in dict.fromkeys(r.part for r in results):
        rows = [r for r in results if r.part == part]
        lines += [
            f"{part}:",
            "",
            "| " + " | ".join(columns) + " |",
            "|" + "---|" * len(columns),
        ]
        for variant in dict.fromkeys(r.variant for r in rows):
            lines.append(_row(variant, [r for r in rows if r.variant == variant]))
        lines.append("")
    return "\n".join(lines)


def _row(variant: str, runs: Sequence[Result]) -> str:
    grades = [r.grades for r in runs]
    by_grade = [
        " ".join(_mean([getattr(g, name)[k] for g in grades], 2) for k in range(4)) for name in ("f1", "recall")
    ]
    cells = [
        variant,
        str(len(runs)),
        *by_grade,
        _with_spread([g.macro_f1 for g in grades]),
        _with_spread([g.auroc for g in grades]),
        _mean([g.log_loss for g in grades], 3),
        _mean([g.calibration_error for g in grades], 3),
        _mean([r.dice for r in runs], 3),
        _mean([r.height_error_mm for r in runs], 2),
    ]
    return "| " + " | ".join(cells) + " |"


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [v for v in values if v is not None]
    return f"{mean(known):.{digits}f}" if known else "-"


def _with_spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
