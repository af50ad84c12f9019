"""Whether a study has arrived: nothing came for a while, and an archive that can count agrees."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runtime.errors import InputError
from runtime.node.archive import Archive
from runtime.node.audit import Audit
from runtime.node.config import Complete
from runtime.node.loops import log_defect
from runtime.node.peer_errors import PeerError
from runtime.node.queue import Queue
from runtime.node.records import DEAD, IGNORED, QUEUED, ArchivedSeries, Study

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lack:
    """What of an archive's study isn't here.

    Args:
        images: how many series came in part; they have ``have`` images of ``need``.
        series: how many CT series did not come at all.
    """

    images: int
    have: int
    need: int
    series: int


def lack_of(queue: Queue, key: str, theirs: Mapping[str, ArchivedSeries]) -> Lack:
    """Compare a study with what an archive lists of it; an archive's series that are not CT are left aside."""
    ours, arrived = queue.series_counts(key), queue.arrived_counts(key)
    short = [(arrived[uid], one.images) for uid, one in theirs.items() if uid in ours and arrived[uid] < one.images]
    absent = sum(one.is_ct and uid not in arrived for uid, one in theirs.items())
    return Lack(len(short), sum(have for have, _ in short), sum(need for _, need in short), absent)


class Completeness:
    """Takes studies from RECEIVED to QUEUED.

    Each CT series that came (or that the archive has, if the settings say so) must have as many images here as an
    archive counts; the first that knows the study is believed. Where none of the archives knows it, the idle time has
    to do; while one of them does not answer, or the study is being fetched, it waits.
    """

    def __init__(
        self,
        settings: Complete,
        queue: Queue,
        archives: Sequence[Archive],
        audit: Audit,
        *,
        fetch: Callable[[str], bool],
        is_fetched: Callable[[str], bool],
    ) -> None:
        """Args:
        fetch: has a study's images come again from an archive, if there is one to ask; whether there is.
        is_fetched: whether a study, given by its UID, is being fetched or going to be.
        """
        self._settings, self._queue, self._archives = settings, queue, archives
        self._audit, self._fetch, self._is_fetched = audit, fetch, is_fetched

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
            return self._wait(study, f"{removed} image(s) are on the disk no more and must come again")
        if self._is_fetched(study.uid):
            return self._wait(study, "it is being fetched", until_s=float("inf"))
        if not self._archives:
            return self._to_queue(study, f"idle for {self._settings.idle_s:g} s; nobody can count")
        try:
            theirs = self._series(study.uid)
        except (PeerError, InputError) as error:
            return self._wait(study, f"the count can't be checked: {error}")
        if not theirs:
            return self._to_queue(study, f"idle for {self._settings.idle_s:g} s; no archive knows the study")
        lack = lack_of(self._queue, study.key, theirs)
        if lack.images:
            return self._wait(study, f"incomplete: {lack.have} of {lack.need} images in {lack.images} series")
        if lack.series and self._settings.series == "all":
            return self._wait(study, f"incomplete: {lack.series} CT series of the archive did not come")
        return self._to_queue(study, f"{sum(ours.values())} images in {len(ours)} series, as the archive counts")

    def _series(self, study_uid: str) -> Mapping[str, ArchivedSeries]:
        """Of the first archive that knows the study; raises what one met that doesn't answer, if none knows it."""
        silent: PeerError | InputError | None = None
        for archive in self._archives:
            try:
                listed = archive.series(study_uid)
            except (PeerError, InputError) as error:
                silent = error
                continue
            if listed:
                return listed
        if silent is not None:
            raise silent
        return {}

    def _to_queue(self, study: Study, why: str) -> bool:
        if not self._queue.decide(study, QUEUED):
            return False
        logger.info("study %s is complete (%s)", study.key, why)
        self._audit.write("complete", study=study.key, detail=why)
        return True

    def _wait(self, study: Study, why: str, *, until_s: float | None = None) -> bool:
        """Wait for more images, until a time (default: for ``give_up_s`` after the last); never run on a part."""
        if time.time() < (study.last_s + self._settings.give_up_s if until_s is None else until_s):
            waits = self._queue.decide(study, study.state, reason=why, wait_s=self._settings.ask_every_s)
            if waits and why != study.reason:
                logger.info("study %s waits (%s)", study.key, why)
        elif self._queue.decide(study, DEAD, reason=why):
            logger.error("study %s is given up (%s)", study.key, why)
            self._audit.write("dead", study=study.key, detail=why)
        return False
