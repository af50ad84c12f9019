"""Every run of a scan that has ended, one JSON object a line: what a run of the cohort knows of those before it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.cohort.dispatch import Attempt
from runtime.cohort.work import DONE
from runtime.errors import InputError

JOURNAL_FILE = "runs.jsonl"


@dataclass(frozen=True)
class History:
    """What the journal tells of a scan.

    Args:
        runs: that have ended, well or not.
        host: of the last that went well, or ``""``.
        node: of the same.
        seconds: of the same, or None.
    """

    runs: int = 0
    host: str = ""
    node: str = ""
    seconds: float | None = None


class Journal:
    """The file, which is only ever added to; what stands there before is read at once.

    Args:
        path: of the file.

    Raises:
        InputError: it can't be read or written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.before = _read(path)
            self._file = path.open("a", encoding="ascii", newline="\n")
            if not _ends_whole(path):
                self._file.write("\n")
        except OSError as error:
            raise InputError(
                f"{path} can't be used ({error.strerror or error}); name another folder with -o."
            ) from error

    def add(self, scan_id: str, results: str, run: str, attempt: Attempt) -> None:
        """Write one run down, so that it is kept though this process or the machine dies.

        Raises:
            InputError: it can't be written.
        """
        outcome = attempt.outcome
        line = {
            "ended": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "cohort_run": run,
            "id": scan_id,
            "results": results,
            "status": outcome.status,
            "kind": outcome.kind,
            "reason": outcome.reason,
            "seconds": outcome.seconds,
            "attempt": attempt.attempt,
            "host": attempt.info.host,
            "node": attempt.info.node,
            "pid": attempt.info.pid,
        }
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"{self._file.name} can't be written ({error.strerror or error}).") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _ends_whole(path: Path) -> bool:
    """Whether the last line is complete; the one that a dying machine was writing may not be."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"


def _read(path: Path) -> dict[str, History]:
    """What is known of each scan, by where its results are in the output folder."""
    if not path.exists():
        return {}
    known: dict[str, History] = {}
    for text in path.read_text(encoding="ascii", errors="replace").splitlines():
        try:
            line: dict[str, Any] = json.loads(text)
            key, status, before = line["results"], line["status"], known.get(line["results"], History())
            runs = before.runs + 1
            if status == DONE:
                known[key] = History(runs, str(line["host"]), str(line["node"]), float(line["seconds"]))
            else:
                known[key] = History(runs, before.host, before.node, before.seconds)
        except (ValueError, KeyError, TypeError):  # half a line: that run is not known of
            continue
    return known
