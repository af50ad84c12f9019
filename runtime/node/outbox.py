"""The outgoing half of the queue: results on their way to destinations, and studies to be fetched."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence

from runtime.node.database import Database
from runtime.node.identity import Hasher
from runtime.node.queue import settle
from runtime.node.records import (
    COMMITTED,
    COMMITTING,
    DEAD,
    PENDING,
    SENT,
    SUPERSEDED,
    UNCOMMITTED,
    UNDERWAY,
    PullRecord,
    ResultRecord,
)

_ARRIVED = f"('{SENT}', '{COMMITTING}')"
_REMEMBERED = 100
"""Answers to requests for commitment that are kept, the newest ones."""


class Outbox:
    """Results of studies, per destination."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._answers: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
        self._answering = threading.Lock()

    def due(self, destination: str) -> list[ResultRecord]:
        """Results of one study that are to be sent there now; empty if there are none."""
        rows = self._database.rows(
            "SELECT * FROM result WHERE destination = ? AND state = ? AND next_s <= ? AND study = (SELECT study FROM "
            "result WHERE destination = ? AND state = ? AND next_s <= ? ORDER BY next_s LIMIT 1) ORDER BY path",
            (destination, PENDING, time.time()) * 2,
        )
        return [_result_of(row) for row in rows]

    def sent(self, result: ResultRecord, *, note: str = "") -> None:
        """The destination has it."""
        self._to(result, SENT, reason=note)

    def asked(self, result: ResultRecord, transaction_uid: str, *, until_s: float) -> None:
        """The destination has it and was asked to commit to it, to be answered until then; it may have been already."""
        with self._answering:
            self._to(result, COMMITTING, next_s=until_s, transaction_uid=transaction_uid)
            if transaction_uid in self._answers:
                self._commitment(transaction_uid, *self._answers[transaction_uid])

    def later(self, result: ResultRecord, reason: str, *, wait_s: float) -> None:
        """It couldn't be sent now; try again after ``wait_s``."""
        self._to(result, PENDING, reason=reason, next_s=time.time() + wait_s, attempts=result.attempts + 1)

    def dead(self, result: ResultRecord, reason: str) -> None:
        """It can't be delivered there."""
        self._to(result, DEAD, reason=reason, attempts=result.attempts + 1)

    def _to(
        self,
        result: ResultRecord,
        state: str,
        *,
        reason: str = "",
        next_s: float = 0.0,
        attempts: int | None = None,
        transaction_uid: str = "",
    ) -> None:
        """What was withdrawn while it was on its way stays withdrawn, unless it arrived."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE result SET state = ?, reason = ?, next_s = ?, attempts = ?, transaction_uid = ? "
                f"WHERE destination = ? AND sop_uid = ? AND (state != '{SUPERSEDED}' OR ? IN {_ARRIVED})",
                (state, reason, next_s, result.attempts if attempts is None else attempts, transaction_uid,
                 result.destination, result.sop_uid, state),
            )  # fmt: skip
            settle(db, result.study)

    def commitment(self, transaction_uid: str, stored: Sequence[str], failed: Sequence[str]) -> list[ResultRecord]:
        """A destination answered: what it keeps is COMMITTED, what it doesn't UNCOMMITTED; the latter.

        A quick answer comes before ``asked`` was noted: the last ones are remembered for that.
        """
        with self._answering:
            self._answers[transaction_uid] = (stored, failed)
            while len(self._answers) > _REMEMBERED:
                del self._answers[next(iter(self._answers))]
            return self._commitment(transaction_uid, stored, failed)

    def _commitment(self, transaction_uid: str, stored: Sequence[str], failed: Sequence[str]) -> list[ResultRecord]:
        with self._database.transaction() as db:
            rows = db.execute(
                "SELECT * FROM result WHERE transaction_uid = ? AND state = ?", (transaction_uid, COMMITTING)
            ).fetchall()
            for row in rows:
                if row["sop_uid"] in stored:
                    _set_state(db, row, COMMITTED)
                elif row["sop_uid"] in failed:
                    _set_state(db, row, UNCOMMITTED)
            for study in {row["study"] for row in rows}:
                settle(db, study)
        return [_result_of(row) for row in rows if row["sop_uid"] in failed]

    def unanswered(self, destination: str) -> list[ResultRecord]:
        """Results whose commitment was not answered in time."""
        return self._in_state(destination, COMMITTING)

    def uncommitted(self, destination: str) -> list[ResultRecord]:
        """Results that the destination answered it does not keep."""
        return self._in_state(destination, UNCOMMITTED)

    def _in_state(self, destination: str, state: str) -> list[ResultRecord]:
        rows = self._database.rows(
            "SELECT * FROM result WHERE destination = ? AND state = ? AND next_s <= ?",
            (destination, state, time.time()),
        )
        return [_result_of(row) for row in rows]

    def strays(self, destinations: Sequence[str]) -> list[ResultRecord]:
        """Results on their way to other destinations than these."""
        marks = [", ".join("?" * len(values)) for values in (UNDERWAY, destinations)]
        rows = self._database.rows(
            f"SELECT * FROM result WHERE state IN ({marks[0]}) AND destination NOT IN ({marks[1]})",
            (*UNDERWAY, *destinations),
        )
        return [_result_of(row) for row in rows]

    def results(self, study: str) -> list[ResultRecord]:
        """All results of a study."""
        rows = self._database.rows("SELECT * FROM result WHERE study = ? ORDER BY destination, path", (study,))
        return [_result_of(row) for row in rows]


class PullList:
    """Studies to be fetched; what is done is forgotten."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, study_uid: str, peer: str) -> bool:
        """Fetch a study from a peer as soon as can be; False if that is planned already."""
        with self._database.transaction() as db:
            return bool(
                db.execute(
                    "INSERT INTO pull (study_uid, peer, state, next_s) VALUES (?, ?, ?, 0) "
                    "ON CONFLICT (study_uid, peer) DO UPDATE SET state = excluded.state, attempts = 0, next_s = 0 "
                    "WHERE state = ?",
                    (study_uid, peer, PENDING, DEAD),
                ).rowcount
            )

    def due(self) -> PullRecord | None:
        """The next that is to be fetched now."""
        rows = self._database.rows(
            "SELECT * FROM pull WHERE state = ? AND next_s <= ? ORDER BY next_s LIMIT 1", (PENDING, time.time())
        )
        return PullRecord(**dict(rows[0])) if rows else None

    def plans(self, study_uid: str) -> bool:
        """Whether a study is to be fetched, from whichever peer, or is being fetched."""
        return bool(self._database.rows("SELECT 1 FROM pull WHERE study_uid = ? AND state = ?", (study_uid, PENDING)))

    def waiting(self) -> list[PullRecord]:
        """All that is not fetched."""
        return [PullRecord(**dict(row)) for row in self._database.rows("SELECT * FROM pull ORDER BY next_s")]

    def cancel(self, key: str, hasher: Hasher) -> int:
        """Fetch a study, named by its key, no more; from how many peers that was planned."""
        pulls = [pull for pull in self.waiting() if hasher.short(pull.study_uid) == key]
        for pull in pulls:
            self.done(pull)
        return len(pulls)

    def done(self, pull: PullRecord) -> None:
        """It was fetched."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM pull WHERE study_uid = ? AND peer = ?", (pull.study_uid, pull.peer))

    def failed(self, pull: PullRecord, reason: str, *, wait_s: float | None) -> None:
        """It couldn't be fetched: again after ``wait_s``, or given up if None."""
        state, next_s = (DEAD, 0.0) if wait_s is None else (PENDING, time.time() + wait_s)
        with self._database.transaction() as db:
            db.execute(
                "UPDATE pull SET state = ?, reason = ?, next_s = ?, attempts = attempts + 1 "
                "WHERE study_uid = ? AND peer = ?",
                (state, reason, next_s, pull.study_uid, pull.peer),
            )


def _set_state(db: sqlite3.Connection, row: sqlite3.Row, state: str) -> None:
    db.execute(
        "UPDATE result SET state = ?, reason = '', next_s = 0 WHERE destination = ? AND sop_uid = ?",
        (state, row["destination"], row["sop_uid"]),
    )


def _result_of(row: sqlite3.Row) -> ResultRecord:
    values = dict(row)
    return ResultRecord(size_bytes=values.pop("bytes"), **values)
