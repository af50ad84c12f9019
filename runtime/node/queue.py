"""The queue: which study is where on its way, in one sqlite file that outlives the process.

Every method is one transaction, so that a process killed at any moment leaves a state that ``recover`` understands.
States and tables are in ``runtime.node.records``.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence

from runtime.node.database import Database
from runtime.node.identity import Hasher
from runtime.node.records import (
    DEAD,
    DELIVERED,
    PENDING,
    QUEUED,
    READY,
    RECEIVED,
    RUNNING,
    STATES,
    SUPERSEDED,
    UNCOMMITTED,
    UNDERWAY,
    ImageRecord,
    ResultFile,
    Study,
)

GIVEN_BACK_S = 600.0
"""An analysis takes seconds, or some minutes on a slow processor: one that an end cuts off later may hang, and counts,
since it would never be given up else."""


class Queue:
    """Studies from their first image to their results' delivery."""

    def __init__(self, database: Database, hasher: Hasher) -> None:
        self.database, self.hasher = database, hasher

    # Images ------------------------------------------------------------------------------------------------------

    def add_image(self, image: ImageRecord) -> bool:
        """Enter an image that is on the disk; False if it was known, and nothing changes.

        A new CT image takes its study back to RECEIVED, whatever became of it, and withdraws results that are not
        delivered yet. While the study is analysed it stays RUNNING: ``finish`` sees that there are more images.
        """
        key, now_s = self.hasher.short(image.study_uid), time.time()
        with self.database.transaction() as db:
            if _is_known(db, image.sop_uid):
                return False
            entry = (image.sop_uid, key, image.series_uid, image.path, image.size_bytes, int(image.is_ct))
            db.execute(
                "INSERT INTO image VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (sop_uid) DO UPDATE SET "
                "study = excluded.study, series_uid = excluded.series_uid, path = excluded.path, "
                "bytes = excluded.bytes, is_ct = excluded.is_ct",
                entry,
            )
            _enter_study(db, key, image.study_uid, now_s)
            if image.is_ct:
                self._touch(db, key, now_s)
        return True

    def _touch(self, db: sqlite3.Connection, key: str, now_s: float) -> None:
        db.execute(
            "UPDATE study SET last_s = ?, next_s = 0, attempts = 0, reason = '', state = ?, changed_s = ? "
            "WHERE key = ? AND state != ?",
            (now_s, RECEIVED, now_s, key, RUNNING),
        )
        db.execute("UPDATE study SET last_s = ? WHERE key = ?", (now_s, key))
        db.execute(
            "UPDATE result SET state = ? WHERE study = ? AND state IN (?, ?, ?)",
            (SUPERSEDED, key, PENDING, UNCOMMITTED, DEAD),
        )

    def mention(self, study_uid: str) -> None:
        """Something came of a study, though no image: it is known from now on, so that ``status`` names it."""
        key, now_s = self.hasher.short(study_uid), time.time()
        with self.database.transaction() as db:
            _enter_study(db, key, study_uid, now_s)

    def knows_image(self, sop_uid: str) -> bool:
        """Whether this image came already; one that was removed is welcome again if its study is RECEIVED or DEAD."""
        with self.database.transaction() as db:
            return _is_known(db, sop_uid)

    def is_result(self, sop_uid: str) -> bool:
        """Whether this is an object that this node made."""
        return bool(self.database.rows("SELECT 1 FROM result WHERE sop_uid = ?", (sop_uid,)))

    def images(self, key: str) -> list[sqlite3.Row]:
        """The study's images that lie on the disk."""
        return self.database.rows("SELECT * FROM image WHERE study = ? AND path != '' ORDER BY sop_uid", (key,))

    def removed_images(self, key: str) -> int:
        """How many CT images of a study came once and are not on the disk any more."""
        rows = self.database.rows("SELECT COUNT(*) FROM image WHERE study = ? AND path = '' AND is_ct", (key,))
        return int(rows[0][0])

    def lose(self, sop_uids: Sequence[str]) -> None:
        """The files of these images are gone: the images are welcome again.

        A study that waits, or is analysed, is RECEIVED from now on and waits for them; to the others they are images
        that were removed after the analysis.
        """
        now_s = time.time()
        with self.database.transaction() as db:
            for sop_uid in sop_uids:
                db.execute("UPDATE image SET path = '' WHERE sop_uid = ?", (sop_uid,))
                db.execute(
                    "UPDATE study SET state = ?, last_s = ?, next_s = 0, attempts = 0, reason = '', changed_s = ? "
                    "WHERE key = (SELECT study FROM image WHERE sop_uid = ?) AND state IN (?, ?, ?)",
                    (RECEIVED, now_s, now_s, sop_uid, RECEIVED, QUEUED, RUNNING),
                )

    def series_counts(self, key: str) -> Mapping[str, int]:
        """How many CT images of each series came."""
        rows = self.database.rows(
            "SELECT series_uid, COUNT(*) AS n FROM image WHERE study = ? AND is_ct GROUP BY series_uid", (key,)
        )
        return {row["series_uid"]: row["n"] for row in rows}

    def arrived_counts(self, key: str) -> Mapping[str, int]:
        """How many objects of each series came: CT images, secondary captures, and what of CT series was not kept."""
        rows = self.database.rows(
            "SELECT series_uid, COUNT(*) AS n FROM image WHERE study = ? GROUP BY series_uid", (key,)
        )
        return {row["series_uid"]: row["n"] for row in rows}

    # From received to queued ---------------------------------------------------------------------------------------

    def idle(self, idle_s: float) -> list[Study]:
        """Studies that nothing was added to for so long, and that aren't told to wait."""
        now_s = time.time()
        rows = self.database.rows(
            "SELECT * FROM study WHERE state = ? AND last_s <= ? AND next_s <= ? ORDER BY last_s",
            (RECEIVED, now_s - idle_s, now_s),
        )
        return [study_of(row) for row in rows]

    def decide(self, study: Study, state: str, *, reason: str = "", wait_s: float = 0.0) -> bool:
        """Take a study that was RECEIVED further, unless images came since ``study`` was read; False if they did."""
        now_s = time.time()
        with self.database.transaction() as db:
            return bool(
                db.execute(
                    "UPDATE study SET state = ?, reason = ?, next_s = ?, changed_s = ? "
                    "WHERE key = ? AND state = ? AND last_s = ?",
                    (state, reason, now_s + wait_s, now_s, study.key, RECEIVED, study.last_s),
                ).rowcount
            )

    # Analysis ------------------------------------------------------------------------------------------------------

    def claim(self) -> Study | None:
        """The study that waits longest becomes RUNNING, with one attempt more; None if none waits."""
        now_s = time.time()
        with self.database.transaction() as db:
            row = db.execute(
                "SELECT key FROM study WHERE state = ? AND next_s <= ? ORDER BY changed_s LIMIT 1", (QUEUED, now_s)
            ).fetchone()
            if row is None:
                return None
            count = _ct_count(db, row["key"])
            db.execute(
                "UPDATE study SET state = ?, attempts = attempts + 1, taken = ?, changed_s = ? WHERE key = ?",
                (RUNNING, count, now_s, row["key"]),
            )
        return self.study(row["key"])

    def running(self) -> list[Study]:
        """Studies that are RUNNING."""
        return [study_of(row) for row in self.database.rows("SELECT * FROM study WHERE state = ?", (RUNNING,))]

    def finish(self, key: str, results: Sequence[ResultFile], destinations: Sequence[str]) -> bool:
        """The analysis is done and its results are on the disk: READY for every destination.

        False if images came meanwhile: then the study is RECEIVED again, and these results are nobody's. Results that
        a destination has already stay delivered.
        """
        now_s = time.time()
        with self.database.transaction() as db:
            if _changed_since_taken(db, key):
                _restart(db, key, now_s)
                return False
            for destination in destinations:
                for result in results:
                    db.execute(
                        "INSERT INTO result (destination, sop_uid, sop_class, study, path, bytes, state, first_s, "
                        "next_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (destination, sop_uid) DO UPDATE SET "
                        "path = excluded.path, bytes = excluded.bytes, state = excluded.state, attempts = 0, "
                        "first_s = excluded.first_s, next_s = excluded.next_s, reason = '' "
                        f"WHERE state IN ('{PENDING}', '{UNCOMMITTED}', '{DEAD}', '{SUPERSEDED}')",
                        (destination, result.sop_uid, result.sop_class, key, result.path, result.size_bytes, PENDING,
                         now_s, now_s),
                    )  # fmt: skip
            db.execute(
                "UPDATE study SET state = ?, revision = revision + 1, reason = '', next_s = 0, changed_s = ? "
                "WHERE key = ?",
                (READY, now_s, key),
            )
            settle(db, key)
        return True

    def fail(self, key: str, reason: str, *, retry_s: float | None) -> str:
        """The analysis failed: QUEUED again after ``retry_s``, or DEAD if None; the state that it is in now.

        Images that came meanwhile give it another chance: then it is RECEIVED. One that does not RUN any more, since
        it was put back or waits for images, stays as it is.
        """
        now_s = time.time()
        with self.database.transaction() as db:
            now = db.execute("SELECT state FROM study WHERE key = ?", (key,)).fetchone()["state"]
            if now != RUNNING:
                return str(now)
            if _changed_since_taken(db, key):
                _restart(db, key, now_s)
                return RECEIVED
            state = DEAD if retry_s is None else QUEUED
            db.execute(
                "UPDATE study SET state = ?, reason = ?, next_s = ?, changed_s = ? WHERE key = ?",
                (state, reason, now_s + (retry_s or 0.0), now_s, key),
            )
        return state

    def recover(self, attempts: int) -> tuple[list[str], list[str]]:
        """After a start: what RAN when the process died is QUEUED again, or DEAD after so many attempts; both keys.

        The time that the node was down is nobody's idle time: for what is RECEIVED it begins anew.
        """
        now_s = time.time()
        reason = (
            f"the process died {attempts} times while this study was analysed, "
            f"or was stopped after more than {GIVEN_BACK_S / 60:g} min of it"
        )
        with self.database.transaction() as db:
            db.execute("UPDATE study SET last_s = ?, next_s = 0 WHERE state = ?", (now_s, RECEIVED))
            rows = db.execute("SELECT key, attempts FROM study WHERE state = ?", (RUNNING,)).fetchall()
            again = [row["key"] for row in rows if row["attempts"] < attempts or _changed_since_taken(db, row["key"])]
            dead = [row["key"] for row in rows if row["key"] not in again]
            for key in again:
                if _changed_since_taken(db, key):
                    _restart(db, key, now_s)
                else:
                    db.execute("UPDATE study SET state = ?, next_s = 0 WHERE key = ?", (QUEUED, key))
            for key in dead:
                db.execute(
                    "UPDATE study SET state = ?, reason = ?, changed_s = ? WHERE key = ?", (DEAD, reason, now_s, key)
                )
        return again, dead

    def put_back(self) -> list[str]:
        """At an ordinary end: what RUNS is QUEUED again, and the attempt that is cut off is not counted; the keys.

        What RUNS for ``GIVEN_BACK_S`` stays RUNNING: to ``recover`` that is as if the process died, and counts.

        Of a worker that ends the study just then, results are believed (``finish`` doesn't ask for the state) and a
        failure is not.
        """
        now_s = time.time()
        with self.database.transaction() as db:
            rows = db.execute(
                "SELECT key FROM study WHERE state = ? AND changed_s > ?", (RUNNING, now_s - GIVEN_BACK_S)
            ).fetchall()
            keys = [row["key"] for row in rows]
            for key in keys:
                if _changed_since_taken(db, key):
                    _restart(db, key, now_s)
                else:
                    db.execute(
                        "UPDATE study SET state = ?, attempts = attempts - 1, next_s = 0 WHERE key = ?", (QUEUED, key)
                    )
        return keys

    # Looking and mending -------------------------------------------------------------------------------------------

    def study(self, key: str) -> Study | None:
        """One study."""
        rows = self.database.rows("SELECT * FROM study WHERE key = ?", (key,))
        return study_of(rows[0]) if rows else None

    def studies(self) -> list[Study]:
        """All studies, the last changed first."""
        return [study_of(row) for row in self.database.rows("SELECT * FROM study ORDER BY changed_s DESC")]

    def counts(self) -> Mapping[str, int]:
        """How many studies are in each state."""
        rows = self.database.rows("SELECT state, COUNT(*) AS n FROM study GROUP BY state")
        return dict.fromkeys(STATES, 0) | {row["state"]: row["n"] for row in rows}

    def forget(self, key: str, remove: Callable[[], None]) -> str | None:
        """Take a study, its images and its results out, unless it is RUNNING or READY; the state that it was in.

        Args:
            key: of the study.
            remove: removes its files; nobody changes the queue meanwhile.

        Returns:
            None if the study is unknown; RUNNING or READY, and nothing was done.
        """
        with self.database.transaction() as db:
            row = db.execute("SELECT state FROM study WHERE key = ?", (key,)).fetchone()
            if row is None or row["state"] in (RUNNING, READY):
                return None if row is None else str(row["state"])
            for table in ("image", "result"):
                db.execute(f"DELETE FROM {table} WHERE study = ?", (key,))
            db.execute("DELETE FROM study WHERE key = ?", (key,))
            remove()
        return str(row["state"])

    def retry(self, key: str) -> str | None:
        """Give a DEAD study another chance, with what failed: delivery or analysis; the new state, None if not dead."""
        now_s = time.time()
        with self.database.transaction() as db:
            row = db.execute("SELECT * FROM study WHERE key = ? AND state = ?", (key, DEAD)).fetchone()
            if row is None:
                return None
            revived = db.execute(
                "UPDATE result SET state = ?, attempts = 0, first_s = ?, next_s = 0, reason = '' "
                "WHERE study = ? AND state = ?",
                (PENDING, now_s, key, DEAD),
            ).rowcount
            state = READY if revived else RECEIVED
            db.execute(
                "UPDATE study SET state = ?, attempts = 0, first_s = ?, next_s = 0, reason = '', changed_s = ? "
                "WHERE key = ?",
                (state, now_s, now_s, key),
            )
        return state


def study_of(row: sqlite3.Row) -> Study:
    """A row of the table as a value."""
    return Study(**dict(row))


def settle(db: sqlite3.Connection, key: str) -> None:
    """A READY study whose results are all at their destinations is DELIVERED; DEAD if some were given up."""
    rows = db.execute("SELECT state, COUNT(*) AS n FROM result WHERE study = ? GROUP BY state", (key,)).fetchall()
    counts = {row["state"]: row["n"] for row in rows}
    if any(counts.get(state) for state in UNDERWAY):
        return
    dead = counts.get(DEAD, 0)
    reason = f"{dead} result(s) could not be delivered" if dead else ""
    db.execute(
        "UPDATE study SET state = ?, reason = ?, changed_s = ? WHERE key = ? AND state = ?",
        (DEAD if dead else DELIVERED, reason, time.time(), key, READY),
    )


def _enter_study(db: sqlite3.Connection, key: str, study_uid: str, now_s: float) -> None:
    """A study that is known already stays as it is."""
    db.execute(
        "INSERT OR IGNORE INTO study (key, uid, state, first_s, last_s, changed_s) VALUES (?, ?, ?, ?, ?, ?)",
        (key, study_uid, RECEIVED, now_s, now_s, now_s),
    )


def _is_known(db: sqlite3.Connection, sop_uid: str) -> bool:
    row = db.execute(
        "SELECT image.path AS path, study.state AS state FROM image LEFT JOIN study ON study.key = image.study "
        "WHERE sop_uid = ?",
        (sop_uid,),
    ).fetchone()
    return row is not None and not (row["path"] == "" and row["state"] in (DEAD, RECEIVED))


def _ct_count(db: sqlite3.Connection, key: str) -> int:
    return int(db.execute("SELECT COUNT(*) FROM image WHERE study = ? AND is_ct", (key,)).fetchone()[0])


def _changed_since_taken(db: sqlite3.Connection, key: str) -> bool:
    return bool(_ct_count(db, key) != db.execute("SELECT taken FROM study WHERE key = ?", (key,)).fetchone()[0])


def _restart(db: sqlite3.Connection, key: str, now_s: float) -> None:
    db.execute(
        "UPDATE study SET state = ?, attempts = 0, next_s = 0, reason = '', changed_s = ? WHERE key = ?",
        (RECEIVED, now_s, key),
    )
