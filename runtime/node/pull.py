"""Studies that we fetch ourselves: those that somebody listed, and those that should have come and didn't."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from runtime.errors import InputError
from runtime.node.archive import Archive
from runtime.node.audit import Audit
from runtime.node.completeness import lack_of
from runtime.node.config import Reconcile
from runtime.node.identity import Redactor
from runtime.node.loops import log_defect
from runtime.node.outbox import PullList
from runtime.node.peer_errors import NotFoundError, PeerError
from runtime.node.queue import Queue
from runtime.node.records import IGNORED, RECEIVED, PullRecord

logger = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S, _ATTEMPTS = 5.0, 900.0, 12
_GIVEN_UP_AFTER = 3
"""Questions in a row that an archive does not answer, after which it is left alone until the next round."""
_FRESH_ROUNDS = 3
"""Rounds for which a study is compared after its last image, whatever became of it; two are needed to act."""


@dataclass
class _Asked:
    failed: bool = False


class Puller:
    """Fetches the studies on the list, one after the other."""

    def __init__(
        self,
        pulls: PullList,
        archives: Mapping[str, Archive],
        queue: Queue,
        redact: Redactor,
        audit: Audit,
        *,
        take: Callable[[bytes, str], int],
    ) -> None:
        """``take`` keeps one image, given with the name of its peer, and returns a C-STORE status."""
        self._pulls, self._archives, self._queue = pulls, archives, queue
        self._redact, self._audit, self._take = redact, audit, take

    def step(self) -> bool:
        """Fetch one study; whether there was one."""
        pull = self._pulls.due()
        if pull is None:
            return False
        key, archive = self._queue.hasher.short(pull.study_uid), self._archives.get(pull.peer)
        try:
            if archive is None:
                raise InputError(f"there is no peer {pull.peer}")
            series = archive.fetch(pull.study_uid, lambda encoded: self._take(encoded, pull.peer))
        except (PeerError, InputError) as error:
            self._failed(pull, str(error), last=isinstance(error, (InputError, NotFoundError)))
        except Exception:  # noqa: BLE001  one study must not keep the others waiting
            self._failed(pull, log_defect(f"fetching study {key}"), last=False)
        else:
            self._pulls.done(pull)
            logger.info("study %s came from %s: %d series", key, pull.peer, series)
            self._audit.write("fetched", study=key, peer=pull.peer)
        return True

    def _failed(self, pull: PullRecord, reason: str, *, last: bool) -> None:
        reason = self._redact(reason)
        last |= pull.attempts + 1 >= _ATTEMPTS
        wait_s = None if last else min(_FIRST_WAIT_S * 2**pull.attempts, _LONGEST_WAIT_S)
        self._pulls.failed(pull, reason, wait_s=wait_s)
        key = self._queue.hasher.short(pull.study_uid)
        logger.warning("study %s did not come from %s: %s", key, pull.peer, reason)


class Reconciler:
    """Compares archives with the queue: what they have and we don't is fetched."""

    def __init__(
        self, settings: Reconcile, queue: Queue, pulls: PullList, archives: Mapping[str, Archive], audit: Audit
    ) -> None:
        self._settings, self._queue, self._pulls = settings, queue, pulls
        self._archives = [archives[name] for name in settings.ask]
        self._audit = audit
        self._seen_missing: dict[str, set[str]] = {}
        self._has_asked = not self._archives
        self._defects: set[str] = set()

    def step(self) -> bool:
        """Ask every archive; whether all answered."""
        self._defects = set()
        answers = [self._ask(archive) for archive in self._archives]  # each, though one fails
        self._has_asked = True
        return all(answers)

    @property
    def has_asked(self) -> bool:
        """Whether every archive was asked once since the start, if any is to be, whatever it answered.

        Before that, a series whose sender stopped at its end would be taken for the whole study.
        """
        return self._has_asked

    @property
    def trouble(self) -> str:
        """What met a defect of this software the last time, or ``""``: not that an archive did not answer."""
        return f"a defect in asking {', '.join(sorted(self._defects))} for studies" if self._defects else ""

    def _ask(self, archive: Archive) -> bool:
        """The first answer is acted on at once; later on, what is missing may just be on its way: the second time."""
        first = archive.name not in self._seen_missing
        since = (datetime.now(UTC).astimezone() - timedelta(days=self._settings.days - 1)).strftime("%Y%m%d")
        studies: Sequence[str] = ()
        with self._asking(archive) as listing:
            studies = archive.recent_studies(since)
        if listing.failed:
            return False
        missing, in_a_row, answered = set(), 0, True
        for uid in studies:
            with self._asking(archive) as one:
                if self._is_missing(archive, uid, first=first):
                    missing.add(uid)
            in_a_row = in_a_row + 1 if one.failed else 0
            answered = answered and not one.failed
            if in_a_row == _GIVEN_UP_AFTER:
                break
        for uid in sorted(missing):
            if first or uid in self._seen_missing[archive.name]:
                self.fetch_from(archive, uid)
        self._seen_missing[archive.name] = missing
        return answered

    @contextmanager
    def _asking(self, archive: Archive) -> Iterator[_Asked]:
        """One question: that it is not answered is said, and keeps neither other studies nor other archives waiting."""
        asked = _Asked()
        try:
            yield asked
        except (PeerError, InputError) as error:
            asked.failed = True
            logger.warning("%s could not be asked for studies that did not come: %s", archive.name, error)
        except Exception:  # noqa: BLE001  see above
            asked.failed = True
            self._defects.add(archive.name)
            log_defect(f"asking {archive.name} for studies")

    def _is_missing(self, archive: Archive, study_uid: str, *, first: bool) -> bool:
        """Whether we don't know a study, or lack images that the archive has; of CT series that we don't know as well.

        So does a study that waits for images whose files are gone, though these were counted when they came.

        Studies that we don't wait for are compared the first time, since their images may have come while we were down,
        and for as long as they are fresh, since their sender may have stopped between two series.
        """
        key = self._queue.hasher.short(study_uid)
        study = self._queue.study(key)
        if study is None:
            return True
        if study.state == RECEIVED and self._queue.removed_images(key):
            return True
        fresh = time.time() - study.last_s < _FRESH_ROUNDS * self._settings.every_s
        if not (first or fresh or study.state in (RECEIVED, IGNORED)):
            return False
        lack = lack_of(self._queue, key, archive.series(study_uid))
        absent_count = self._settings.series == "all" or not self._queue.series_counts(key)
        return bool(lack.images or (lack.series and absent_count))

    def fetch_from(self, archive: Archive, study_uid: str) -> None:
        """Put a study on the list."""
        if self._pulls.add(study_uid, archive.name):
            key = self._queue.hasher.short(study_uid)
            logger.info("study %s is in %s and not here; it will be fetched", key, archive.name)
            self._audit.write("missing", study=key, peer=archive.name)

    def fetch(self, study_uid: str) -> bool:
        """Have a study come from the first archive; whether there is one."""
        for archive in self._archives[:1]:
            self.fetch_from(archive, study_uid)
        return bool(self._archives)
