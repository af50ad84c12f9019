"""The audit log: what was done with whose study, when; only ever appended to, each line sealed by the one before.

A line is a JSON object. Studies are named by their keyed hash, so that the file may be handed on; ``chain`` is the
SHA-256 of the line before and of this one without it, so that a line changed or taken out shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

AUDIT_FILE = "audit.jsonl"
_START = "0" * 64
_TAIL_BYTES = 65536


class Audit:
    """Appends to one audit file; safe to use from several threads of one process."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._chain = _last_chain(path)

    def write(self, event: str, *, study: str = "", peer: str = "", detail: str = "") -> None:
        """Append one event, and have it on the disk before going on.

        Raises:
            OSError: it can't be written; the file is as it was.
        """
        with self._lock:
            entry = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
            entry |= {k: v for k, v in (("study", study), ("peer", peer), ("detail", detail)) if v}
            chain = _link(self._chain, entry)
            line = json.dumps({**entry, "chain": chain}) + "\n"
            _append(self._path, line.encode("ascii"))
            self._chain = chain


def _append(path: Path, line: bytes) -> None:
    """Append a whole line and sync it, or raise OSError and leave the file as it was."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # what stands there was cut short, and could not be taken back
        try:
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def broken_lines(path: Path) -> list[int]:
    """Numbers, from 1, of the lines that don't follow from the one before them."""
    broken, chain = [], _START
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), start=1):
        try:
            entry = json.loads(line)
            said = entry.pop("chain")
        except (json.JSONDecodeError, KeyError):
            broken.append(number)
            continue
        if said != _link(chain, entry):
            broken.append(number)
        chain = said
    return broken


def _link(chain: str, entry: dict[str, str]) -> str:
    return hashlib.sha256((chain + json.dumps(entry, sort_keys=True)).encode("ascii")).hexdigest()


def _last_chain(path: Path) -> str:
    """The seal of the last whole line; a line that a crash cut short is ended, so that the next one stands alone."""
    if not path.exists():
        return _START
    with path.open("r+b") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
        tail = stream.read()
        if tail and not tail.endswith(b"\n"):
            stream.write(b"\n")
    for line in reversed(tail.splitlines()):
        try:
            return str(json.loads(line)["chain"])
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
            continue
    return _START
