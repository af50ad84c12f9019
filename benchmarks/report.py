"""What a benchmark tells: tables for people, and one JSON document by ``report.schema.json`` for what comes after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import Figure
from benchmarks.peers import Missing

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Table:
    """Text in columns: the first ``left`` are aligned to the left, the others to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    def text(self) -> str:
        """As lines for a terminal."""
        cells = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < self.left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        return "\n".join([self.title, lines[0], "-" * len(lines[0]), *lines[1:]])


@dataclass(frozen=True)
class Report:
    """What one command found.

    Args:
        figures: all that was measured.
        tables: of them, for people.
        settings: what was measured; documents with other settings cannot be compared.
        ratios: of figures, in the unit ``"x"``.
        details: what else is worth keeping.
        missing: contenders that could not take part.
        notes: sentences for people.
    """

    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    settings: Mapping[str, Any]
    ratios: tuple[Figure, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Tables, notes and what is missing."""
        parts = [table.text() for table in self.tables]
        parts += ["\n".join(self.notes)] if self.notes else []
        parts += ["\n".join(one.text() for one in self.missing)] if self.missing else []
        return "\n\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Its part of the document."""
        return {
            "settings": dict(self.settings),
            "figures": {figure.key: figure.as_json() for figure in self.figures},
            "ratios": {figure.key: figure.as_json() for figure in self.ratios},
            "details": dict(self.details),
            "missing": [one.as_json() for one in self.missing],
        }


def number(value: float | None) -> str:
    """Three digits, for a table; a dash for what there is not."""
    if value is None:
        return "-"
    if value != 0 and abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def timing_table(title: str, figures: Sequence[Figure], *, base: str | None = None) -> Table:
    """Seconds of figures in milliseconds, and how many times as long as ``base`` of the same group each takes."""
    of_base = {figure.group: figure.median for figure in figures if figure.name == base}
    rows = []
    group = ""
    for figure in figures:
        values = [figure.median, figure.percentile(90), figure.percentile(99), figure.noise]
        times = figure.median / of_base[figure.group] if of_base.get(figure.group) else None
        heading = figure.group if figure.group != group else ""
        group = figure.group
        rows.append((heading, figure.name, *(number(1000 * v) for v in values), number(times)))
    columns = ("", "", "median ms", "p90", "p99", "p90-p10", "" if base is None else f"x {base}")
    return Table(title, columns, tuple(rows), left=2)
