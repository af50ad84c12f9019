"""What the queue's database holds: studies, results on their way, studies to be fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RECEIVED, QUEUED, RUNNING, READY = "received", "queued", "running", "ready"
DELIVERED, DEAD, IGNORED = "delivered", "dead", "ignored"
STATES = (RECEIVED, QUEUED, RUNNING, READY, DELIVERED, DEAD, IGNORED)
"""Of a study: images arrive; complete and waiting; analysed; results on their way; all there; given up; no CT image."""
FINAL = (DELIVERED, DEAD, IGNORED)

PENDING, SENT, COMMITTING, COMMITTED, SUPERSEDED = "pending", "sent", "committing", "committed", "superseded"
UNCOMMITTED = "uncommitted"
"""Of a result at one destination, besides DEAD: COMMITTING is sent and asked for a commitment, UNCOMMITTED the answer
that it isn't kept, which the delivery has yet to act on."""
UNDERWAY = (PENDING, COMMITTING, UNCOMMITTED)
"""While a result of a study is in one of these, the study is READY."""

# ``kept`` holds the bytes of the images that lie on the disk: it is asked for with every image that comes, of a table
# that holds a year of them. A REPLACE would go past the trigger for rows that are deleted.
SCHEMA = """
CREATE TABLE IF NOT EXISTS study (
  key TEXT PRIMARY KEY, uid TEXT NOT NULL, state TEXT NOT NULL, revision INTEGER NOT NULL DEFAULT 0,
  first_s REAL NOT NULL, last_s REAL NOT NULL, changed_s REAL NOT NULL, next_s REAL NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0, taken INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS study_state ON study (state, next_s);
CREATE TABLE IF NOT EXISTS image (
  sop_uid TEXT PRIMARY KEY, study TEXT NOT NULL, series_uid TEXT NOT NULL, path TEXT NOT NULL,
  bytes INTEGER NOT NULL, is_ct INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS image_study ON image (study);
CREATE INDEX IF NOT EXISTS image_kept ON image (study) WHERE path != '';
CREATE TABLE IF NOT EXISTS kept (only INTEGER PRIMARY KEY CHECK (only = 1), bytes INTEGER NOT NULL);
INSERT OR IGNORE INTO kept SELECT 1, COALESCE(SUM(bytes), 0) FROM image
  WHERE path != '' AND NOT EXISTS (SELECT 1 FROM kept);
CREATE TRIGGER IF NOT EXISTS image_added AFTER INSERT ON image WHEN NEW.path != ''
  BEGIN UPDATE kept SET bytes = bytes + NEW.bytes; END;
CREATE TRIGGER IF NOT EXISTS image_changed AFTER UPDATE OF path, bytes ON image
  BEGIN UPDATE kept SET bytes = bytes + (NEW.path != '') * NEW.bytes - (OLD.path != '') * OLD.bytes; END;
CREATE TRIGGER IF NOT EXISTS image_forgotten AFTER DELETE ON image WHEN OLD.path != ''
  BEGIN UPDATE kept SET bytes = bytes - OLD.bytes; END;
CREATE TABLE IF NOT EXISTS result (
  destination TEXT NOT NULL, sop_uid TEXT NOT NULL, sop_class TEXT NOT NULL, study TEXT NOT NULL, path TEXT NOT NULL,
  bytes INTEGER NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, first_s REAL NOT NULL,
  next_s REAL NOT NULL, reason TEXT NOT NULL DEFAULT '', transaction_uid TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (destination, sop_uid));
CREATE INDEX IF NOT EXISTS result_due ON result (destination, state, next_s);
CREATE INDEX IF NOT EXISTS result_study ON result (study);
CREATE INDEX IF NOT EXISTS result_sop ON result (sop_uid);
CREATE INDEX IF NOT EXISTS result_kept ON result (path, bytes) WHERE path != '';
CREATE TABLE IF NOT EXISTS pull (
  study_uid TEXT NOT NULL, peer TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
  next_s REAL NOT NULL, reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (study_uid, peer));
"""


@dataclass(frozen=True)
class ImageRecord:
    """One received image; ``path`` is relative to the data folder, ``is_ct`` says that it is of a CT class.

    Of objects that aren't kept, though of CT series, there are records without a path, so that counts agree.
    """

    study_uid: str
    series_uid: str
    sop_uid: str
    path: str
    size_bytes: int
    is_ct: bool


@dataclass(frozen=True)
class Study:
    """A study in the queue; times in seconds since 1970.

    Args:
        key: its keyed hash, for logs and paths.
        revision: how many times results were made of it.
        last_s: when its last new image came.
        attempts: analyses begun since its images last changed.
        reason: why it waits or is dead; redacted.
    """

    key: str
    uid: str
    state: str
    revision: int
    first_s: float
    last_s: float
    changed_s: float
    next_s: float
    attempts: int
    taken: int
    reason: str


@dataclass(frozen=True)
class ResultRecord:
    """One result object at one destination."""

    destination: str
    sop_uid: str
    sop_class: str
    study: str
    path: str
    size_bytes: int
    state: str
    attempts: int
    first_s: float
    next_s: float
    reason: str
    transaction_uid: str


@dataclass(frozen=True)
class ArchivedSeries:
    """One series as an archive lists it: how many objects it has, and whether its modality is CT."""

    images: int
    is_ct: bool


@dataclass(frozen=True)
class ResultFile:
    """A result as it comes from the analysis; ``path`` is relative to the data folder."""

    sop_uid: str
    sop_class: str
    path: str
    size_bytes: int


@dataclass(frozen=True)
class PullRecord:
    """A study to be fetched from a peer."""

    study_uid: str
    peer: str
    state: str
    attempts: int
    next_s: float
    reason: str


@dataclass(frozen=True)
class StoredPath:
    """Something on the disk that may be removed: how much it frees, and the study whose it is."""

    study: str
    path: Path
    size_bytes: int
