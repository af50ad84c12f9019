"""Studies that we fetch ourselves: those that somebody listed, and those that should have come and didn't."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from runtime.errors import InputError
from runtime.node.archive import Archive
from runtime.node.audit import Audit
from runtime.node.config import Reconcile
from runtime.node.identity import Redactor
from runtime.node.loops import log_defect
from runtime.node.outbox import PullList
from runtime.node.peer_errors import NotFoundError, PeerError
from runtime.node.queue import Queue
from runtime.node.records import IGNORED, RECEIVED, PullRecord

logger = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S, _ATTEMPTS = 5.0, 900.0, 12


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
        self._asked: set[str] = set()
        self._seen_missing: set[str] = set()

    def step(self) -> bool:
        """Ask every archive; whether all answered."""
        answers = [self._ask(archive) for archive in self._archives]  # each, though one fails
        return all(answers)

    def _ask(self, archive: Archive) -> bool:
        """The first answer is acted on at once; later on, what is missing may just be on its way: the second time."""
        first = archive.name not in self._asked
        since = (datetime.now(UTC).astimezone() - timedelta(days=self._settings.days - 1)).strftime("%Y%m%d")
        try:
            studies = archive.recent_studies(since)
            missing = [uid for uid in studies if self._is_missing(archive, uid, first=first)]
        except (PeerError, InputError) as error:
            logger.warning("%s could not be asked for studies that did not come: %s", archive.name, error)
            return False
        except Exception:  # noqa: BLE001  one archive must not keep the others waiting
            log_defect(f"asking {archive.name} for studies")
            return False
        for uid in missing:
            if first or uid in self._seen_missing:
                self.fetch_from(archive, uid)
        self._seen_missing = set(missing)
        self._asked.add(archive.name)
        return True

    def _is_missing(self, archive: Archive, study_uid: str, *, first: bool) -> bool:
        """Whether we have no CT image of a study, or lack images that the archive has of a series that we know.

        Studies that we don't wait for are compared the first time only: their images may have come while we were down.
        """
        key = self._queue.hasher.short(study_uid)
        study = self._queue.study(key)
        if study is None:
            return True
        if study.state not in (RECEIVED, IGNORED) and not first:
            return False
        ours, theirs = self._queue.series_counts(key), archive.series_counts(study_uid)
        if not ours:
            return True
        return any(n < theirs.get(uid, 0) for uid, n in ours.items())

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
