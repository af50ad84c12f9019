"""Two documents of one command: what moved beyond the noise that was measured in both runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import SCHEMA_VERSION, Table, number
from runtime.errors import InputError

ROUNDING = 1e-5
"""Documents keep six digits."""


@dataclass(frozen=True)
class Change:
    """One figure in both documents.

    Args:
        key: the figure's.
        unit: its.
        old: median.
        new: median.
        noise: of both runs together, in the figure's unit; None where one of them measured once and can't know.
        verdict: ``"better"``, ``"worse"``, ``"same"`` within the noise, or ``"unknown"`` without one.
    """

    key: str
    unit: str
    old: float
    new: float
    noise: float | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """What became of each figure, what only one document has, and which settings differ (then nothing is judged)."""

    changes: tuple[Change, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    other_settings: tuple[str, ...]

    @property
    def moved(self) -> tuple[Change, ...]:
        """Those beyond the noise."""
        return tuple(change for change in self.changes if change.verdict in ("better", "worse"))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def load(path: Path) -> dict[str, Any]:
    """A document from a file that holds it, or that holds a command's output with the document as its last line.

    Raises:
        InputError: there is none.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error}); give the JSON of an earlier run.") from error
    for candidate in (text, text.rsplit("\n", 1)[-1]):
        try:
            document = json.loads(candidate)
        except json.JSONDecodeError:
            continue
        if isinstance(document, dict) and document.get("schema_version") == SCHEMA_VERSION and "figures" in document:
            return document
    raise InputError(f"{path} holds no document of these benchmarks (schema {SCHEMA_VERSION}); write one with -o.")


def check_command(old: Mapping[str, Any], command: str) -> None:
    """Raise InputError where a document is of another command."""
    if old["command"] != command:
        raise InputError(f"A run of {command} can't be compared with one of {old['command']}.")


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Put two documents side by side.

    A figure moved when its medians differ by more than the noise of both runs added, each noise being the distance
    from the 10th to the 90th percentile. Exact figures move with any change beyond the digits that are kept.

    Raises:
        InputError: the documents are of different commands.
    """
    check_command(old, new["command"])
    theirs, ours = ({**document["figures"], **document["ratios"]} for document in (old, new))
    differ = tuple(
        f"{name}: {old['settings'].get(name)} -> {new['settings'].get(name)}"
        for name in sorted({*old["settings"], *new["settings"]})
        if old["settings"].get(name) != new["settings"].get(name)
    )
    shared = [key for key in ours if key in theirs and theirs[key]["unit"] == ours[key]["unit"]]
    return Comparison(
        tuple(_change(key, theirs[key], ours[key], comparable=not differ) for key in shared),
        tuple(key for key in theirs if key not in shared),
        tuple(key for key in ours if key not in shared),
        differ,
    )


def _change(key: str, old: Mapping[str, Any], new: Mapping[str, Any], *, comparable: bool) -> Change:
    before, now = old["median"], new["median"]
    noise: float | None
    if new["exact"]:
        noise = ROUNDING * abs(before)
    else:
        noise = old["noise"] + new["noise"] if min(old["runs"], new["runs"]) > 1 else None
    if noise is None or not comparable:
        verdict = "unknown"
    elif abs(now - before) <= noise:
        verdict = "same"
    else:
        verdict = "better" if (now > before) == new["more_is_better"] else "worse"
    return Change(key, new["unit"], before, now, noise, verdict)


def comparison_text(found: Comparison, old_path: Path) -> str:
    """What moved, as a table; what can't be compared, as lines."""
    rows = tuple((c.key, c.unit, number(c.old), number(c.new), _percent(c), c.verdict) for c in found.moved)
    same, unknown = (sum(c.verdict == verdict for c in found.changes) for verdict in ("same", "unknown"))
    lines = []
    if rows:
        title = f"moved beyond the noise of both runs, against {old_path}"
        lines.append(Table(title, ("", "unit", "old", "new", "change", ""), rows).text())
    lines.append(f"{len(rows)} moved, {same} within the noise, {unknown} can't be told")
    if found.other_settings:
        lines.append(f"other settings, so nothing is judged: {'; '.join(found.other_settings)}")
    for label, keys in (("only in the old run", found.only_old), ("only in this run", found.only_new)):
        if keys:
            lines.append(f"{label}: {', '.join(keys)}")
    return "\n".join(lines)


def _percent(change: Change) -> str:
    return f"{100 * (change.new / change.old - 1):+.1f} %" if change.old else "-"
