"""The node's sqlite file: opened, its tables made, one transaction at a time, and its errors said in one line."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.node.loops import FULL, is_full
from runtime.node.records import SCHEMA

QUEUE_FILE = "queue.sqlite"
_BUSY_S = 30.0
_PRIMARY = 0xFF
"""The bits of sqlite's extended error codes that say what kind of error it is."""
_VERSION = 1
_NAMES = re.findall(r"IF NOT EXISTS (\w+) ", SCHEMA)


@contextmanager
def queue_errors(path: Path) -> Iterator[None]:
    """Say in one line why the queue in a file can't be used now, and what to do about it.

    Raises:
        InputError: that line, in place of sqlite's error.
        sqlite3.Error: it says nothing about the file, such as of a statement that is wrong: a defect of this software.
    """
    try:
        yield
    except sqlite3.Error as error:
        reason = _reason_of(error)
        if reason is None:
            raise
        raise InputError(f"The queue {path} can't be used{reason}.") from error


def _reason_of(error: sqlite3.Error) -> str | None:
    """None of a defect. Only a file that is damaged, or no queue, is to be replaced: it is lost to the node then."""
    if is_full(error):
        return f": {FULL}"
    code = (getattr(error, "sqlite_errorcode", None) or 0) & _PRIMARY
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f": another process held it for more than {_BUSY_S:g} s; try again, or end that process"
    if code == sqlite3.SQLITE_IOERR:
        return f" ({error}): its disk is full or faulty; free some of it, or see what the system says of it"
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return f" ({error}); give this user the file and its folder"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (not code and type(error) is sqlite3.DatabaseError):
        return f" ({error}); restore it or move it away"
    return None


class Database:
    """A connection that several threads share, one transaction at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file, and make its tables where they aren't there: otherwise nothing is written.

        Raises:
            InputError: the file can't be used, or is of another version of this software.
            sqlite3.Error: a defect of this software.
        """
        self._lock = threading.RLock()
        with queue_errors(path):
            self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            with queue_errors(path):
                version = self._prepare()
            if version not in (0, _VERSION):
                raise InputError(
                    f"The queue {path} is of version {version}, not {_VERSION}; move it away to begin anew."
                )
        except (InputError, sqlite3.Error):
            self._connection.close()
            raise

    def _prepare(self) -> int:
        """The version of the file as it was met; tables are made if it has none yet, or not all of this version's."""
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        there = {row["name"] for row in self._connection.execute("SELECT name FROM sqlite_master")}
        if version == 0 or (version == _VERSION and not there.issuperset(_NAMES)):
            self._connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        return version

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All statements inside, or none."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:  # commits, or rolls back, also where the commit fails
                yield self._connection

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a SELECT gives."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
