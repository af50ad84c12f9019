"""What is removed when: images and results of finished studies after their time, sooner when the quota nears."""

from __future__ import annotations

import logging
import time

from runtime.node.config import Storage
from runtime.node.queue import Queue
from runtime.node.records import FINAL
from runtime.node.store import IMAGES, RESULTS, Store, remove_files

logger = logging.getLogger(__name__)

_FINAL = ", ".join(f"'{state}'" for state in FINAL)
_ROOM = 0.9
"""Images of finished studies go early while more than this part of the quota is used."""


class Retention:
    """Removes files and, much later, records of finished studies; never anything of a study that is on its way."""

    def __init__(self, settings: Storage, queue: Queue, store: Store) -> None:
        self._settings, self._queue, self._store = settings, queue, store

    def step(self) -> bool:
        """Remove what is due; true, since it can always be done."""
        now_s, keep = time.time(), self._settings
        for key in self._finished("image", now_s - keep.keep_images_s):
            self._remove_images(key)
        for key in self._finished("result", now_s - keep.keep_results_s):
            self._remove(key, "result", RESULTS)
        for key in self._finished("image", now_s):
            if self._store.used_bytes() <= _ROOM * keep.quota_bytes:
                break
            self._remove_images(key)
        self._forget(now_s - keep.keep_records_s)
        return True

    def _finished(self, table: str, before_s: float) -> list[str]:
        """Keys of finished studies that have files of this kind and last changed before a time, oldest first."""
        rows = self._queue.database.rows(
            f"SELECT DISTINCT study.key AS key, study.changed_s FROM study JOIN {table} ON {table}.study = study.key "
            f"WHERE study.state IN ({_FINAL}) AND study.changed_s <= ? AND {table}.path != '' ORDER BY study.changed_s",
            (before_s,),
        )
        return [row["key"] for row in rows]

    def _remove_images(self, key: str) -> None:
        self._remove(key, "image", IMAGES)

    def _remove(self, key: str, table: str, folder: str) -> None:
        """First the records, then the files: what a crash leaves between is taken in again at the next start."""
        with self._queue.database.transaction() as db:
            removed = db.execute(
                f"UPDATE {table} SET path = '' WHERE study = ? AND EXISTS "
                f"(SELECT 1 FROM study WHERE key = ? AND state IN ({_FINAL}))",
                (key, key),
            ).rowcount
            if removed:
                remove_files(self._store.data, key, folder)
        if removed:
            logger.info("study %s: %s of it were removed, their time was over", key, folder)

    def _forget(self, before_s: float) -> None:
        with self._queue.database.transaction() as db:
            due = f"SELECT key FROM study WHERE state IN ({_FINAL}) AND changed_s <= ?"
            for table in ("image", "result"):
                db.execute(f"DELETE FROM {table} WHERE study IN ({due}) AND path = ''", (before_s,))
            db.execute(
                f"DELETE FROM study WHERE key IN ({due}) AND key NOT IN (SELECT study FROM image) "
                "AND key NOT IN (SELECT study FROM result)",
                (before_s,),
            )
