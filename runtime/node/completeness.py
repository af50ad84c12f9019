"""Whether a study has arrived: nothing came for a while, and an archive that can count agrees."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from runtime.errors import InputError
from runtime.node.archive import Archive
from runtime.node.audit import Audit
from runtime.node.config import Complete
from runtime.node.loops import log_defect
from runtime.node.peer_errors import PeerError
from runtime.node.queue import Queue
from runtime.node.records import DEAD, IGNORED, QUEUED, Study

logger = logging.getLogger(__name__)


class Completeness:
    """Takes studies from RECEIVED to QUEUED.

    Each CT series that came must have as many images here as an archive counts; the first that knows the study is
    believed. Where none of the archives knows it, the idle time has to do; while one of them does not answer, it waits.
    """

    def __init__(
        self,
        settings: Complete,
        queue: Queue,
        archives: Sequence[Archive],
        audit: Audit,
        *,
        fetch: Callable[[str], bool],
    ) -> None:
        """``fetch`` has a study's images come again from an archive, if there is one to ask; whether there is."""
        self._settings, self._queue, self._archives = settings, queue, archives
        self._audit, self._fetch = audit, fetch

    def step(self) -> bool:
        """Look at every study that is idle; whether one was queued."""
        queued = False
        for study in self._queue.idle(self._settings.idle_s):
            try:
                queued |= self._look_at(study)
            except Exception:  # noqa: BLE001  one study must not keep the others waiting
                self._wait(study, log_defect(f"study {study.key}"))
        return queued

    def _look_at(self, study: Study) -> bool:
        ours = self._queue.series_counts(study.key)
        if not ours:
            self._queue.decide(study, IGNORED, reason="no CT image")
            return False
        removed = self._queue.removed_images(study.key)
        if removed:
            if not study.reason:
                self._fetch(study.uid)
            return self._wait(study, f"{removed} image(s) were removed after an earlier analysis and must come again")
        if not self._archives:
            return self._to_queue(study, f"idle for {self._settings.idle_s:g} s; nobody can count")
        try:
            theirs = self._counts(study.uid)
        except (PeerError, InputError) as error:
            return self._wait(study, f"the count can't be checked: {error}")
        if not theirs:
            return self._to_queue(study, f"idle for {self._settings.idle_s:g} s; no archive knows the study")
        short = {uid: (n, theirs[uid]) for uid, n in ours.items() if n < theirs.get(uid, 0)}
        if not short:
            return self._to_queue(study, f"{sum(ours.values())} images in {len(ours)} series, as the archive counts")
        have, need = map(sum, zip(*short.values(), strict=True))
        return self._wait(study, f"incomplete: {have} of {need} images in {len(short)} series")

    def _counts(self, study_uid: str) -> Mapping[str, int]:
        """Of the first archive that knows the study; raises what one met that doesn't answer, if none knows it."""
        silent: PeerError | InputError | None = None
        for archive in self._archives:
            try:
                counts = archive.series_counts(study_uid)
            except (PeerError, InputError) as error:
                silent = error
                continue
            if counts:
                return counts
        if silent is not None:
            raise silent
        return {}

    def _to_queue(self, study: Study, why: str) -> bool:
        if not self._queue.decide(study, QUEUED):
            return False
        logger.info("study %s is complete (%s)", study.key, why)
        self._audit.write("complete", study=study.key, detail=why)
        return True

    def _wait(self, study: Study, why: str) -> bool:
        """Wait for more images, for as long as that makes sense; never run on a part."""
        if time.time() - study.last_s < self._settings.give_up_s:
            waits = self._queue.decide(study, study.state, reason=why, wait_s=self._settings.ask_every_s)
            if waits and why != study.reason:
                logger.info("study %s waits (%s)", study.key, why)
        elif self._queue.decide(study, DEAD, reason=why):
            logger.error("study %s is given up (%s)", study.key, why)
            self._audit.write("dead", study=study.key, detail=why)
        return False
