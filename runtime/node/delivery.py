"""Results to one destination: tried again with growing waits, given up with the reason."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.disk import flush_folder
from runtime.errors import InputError
from runtime.node.audit import Audit
from runtime.node.config import Deliver, DicomPeer, FolderPeer, Peer, WebPeer
from runtime.node.dead_letters import DeadLetters
from runtime.node.identity import Redactor
from runtime.node.loops import log_defect
from runtime.node.outbox import Outbox
from runtime.node.own import read_result
from runtime.node.peer_errors import PeerError, RefusedError
from runtime.node.records import ResultRecord
from runtime.node.statuses import NO_ROOM, TRANSIENT, is_stored, meaning

logger = logging.getLogger(__name__)

_ILL_WILL_ATTEMPTS = 5
"""So often is an object sent that the destination answers with a failure that may lie in the object."""


@dataclass(frozen=True)
class _Sent:
    """What a destination answered: a status per object (none: it got no answer), and the commitment's transaction."""

    statuses: dict[str, int]
    transaction_uid: str


class Delivery:
    """Sends what is due to one destination."""

    def __init__(
        self, settings: Deliver, peer: Peer, ae_title: str, data: Path, outbox: Outbox, redact: Redactor, audit: Audit
    ) -> None:
        self._settings, self._peer, self._ae_title, self._data = settings, peer, ae_title, data
        self._outbox, self._redact, self._audit = outbox, redact, audit
        self._letters = DeadLetters(data, outbox, redact, audit)
        self._failures: Counter[str] = Counter()
        self.last_error = ""

    def step(self) -> bool:
        """Send the results of one study; whether there were any."""
        self._check_commitments()
        results = self._outbox.due(self._peer.name)
        if not results:
            return False
        present = [(result, self._data / result.path) for result in results]
        for result, path in present:
            if not path.is_file():
                self._give_up(result, "its file is not on the disk any more")
        files = [(result, path) for result, path in present if path.is_file()]
        if not files:
            return True
        try:
            sent = self._send(files)
        except RefusedError as error:
            for result, _ in files:
                self._give_up(result, str(error))
        except PeerError as error:
            for result, _ in files:
                self._later(result, str(error))
        except InputError as error:
            for result, path in files:
                if self._is_readable(result, path):
                    self._later(result, str(error))
        except Exception:  # noqa: BLE001  one study must not keep the others waiting
            reason = log_defect(f"delivery to {self._peer.name}")
            for result, _ in files:
                self._later(result, reason)
        else:
            for result, _ in files:
                self._judge(result, sent)
        return True

    def _is_readable(self, result: ResultRecord, path: Path) -> bool:
        """Whether a result can be read; one that can't is given up, so that the study's others are delivered."""
        try:
            read_result(path)
        except InputError as error:
            self._give_up(result, str(error))
            return False
        return True

    def _send(self, files: Sequence[tuple[ResultRecord, Path]]) -> _Sent:
        peer = self._peer
        if isinstance(peer, FolderPeer):
            return _Sent(_copy(peer, files), "")
        if isinstance(peer, WebPeer):
            from runtime.node import web

            return _Sent(web.store(peer, files), "")
        from runtime.node import dimse

        transaction_uid = "" if peer.commitment == "off" else f"2.25.{uuid.uuid4().int}"
        statuses, asked = dimse.send(peer, self._ae_title, files, transaction_uid=transaction_uid)
        return _Sent(statuses, transaction_uid if asked else "")

    def _judge(self, result: ResultRecord, sent: _Sent) -> None:
        status = sent.statuses.get(result.sop_uid)
        if is_stored(status):
            self._failures.pop(result.sop_uid, None)
            if sent.transaction_uid:
                until_s = time.time() + self._settings.commitment_s
                self._outbox.asked(result, sent.transaction_uid, until_s=until_s)
            else:
                self._outbox.sent(result)
            logger.info("study %s: %s is at %s", result.study, Path(result.path).name, self._peer.name)
            self._audit.write("delivered", study=result.study, peer=self._peer.name, detail=Path(result.path).name)
        elif status is None:
            self._later(result, f"{self._peer.name} did not say that it kept it")
        else:
            reason = f"{self._peer.name} refused it with status {status:04X}: {meaning(status)}"
            if status in NO_ROOM or (status in TRANSIENT and self._failed_again(result) < _ILL_WILL_ATTEMPTS):
                self._later(result, reason)
            else:
                self._give_up(result, reason)

    def _failed_again(self, result: ResultRecord) -> int:
        """How often the destination failed on this object since the node started; it may have been down in between."""
        self._failures[result.sop_uid] += 1
        return self._failures[result.sop_uid]

    def _later(self, result: ResultRecord, reason: str) -> None:
        if time.time() - result.first_s > self._settings.give_up_s:
            self._give_up(result, f"{reason}; tried for {self._settings.give_up_s:g} s")
            return
        wait_s = min(self._settings.first_retry_s * 2 ** min(result.attempts, 30), self._settings.max_retry_s)
        self.last_error = self._redact(reason)
        self._outbox.later(result, self.last_error, wait_s=wait_s)
        logger.warning(
            "study %s: %s is not at %s yet (%s); again in %.0f s",
            result.study, Path(result.path).name, self._peer.name, reason, wait_s,
        )  # fmt: skip

    def _give_up(self, result: ResultRecord, reason: str) -> None:
        """The object and the reason go to the folder of dead letters."""
        self._failures.pop(result.sop_uid, None)
        self.last_error = self._redact(reason)
        self._letters.give_up(result, reason)

    def _check_commitments(self) -> None:
        """What is not kept is sent anew, later; so is what was not answered in time where an answer is required."""
        required = isinstance(self._peer, DicomPeer) and self._peer.commitment == "require"
        for result in self._outbox.uncommitted(self._peer.name):
            self._later(result, f"{self._peer.name} did not commit to it")
        for result in self._outbox.unanswered(self._peer.name):
            if required:
                self._later(result, f"{self._peer.name} did not answer the request to commit to it")
            else:
                self._outbox.sent(result, note="the request to commit to it was not answered")
                logger.warning("study %s: %s did not answer the request to commit", result.study, self._peer.name)


def _copy(peer: FolderPeer, files: Sequence[tuple[ResultRecord, Path]]) -> dict[str, int]:
    """Copy to a folder, whole files only; they are on the disk itself when it returns.

    Raises:
        PeerError: the folder can't be written.
    """
    statuses = {}
    try:
        for result, path in files:
            folder = peer.path / result.study
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".{path.name}.part"
            with path.open("rb") as source, temporary.open("wb") as copy:
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
            temporary.replace(folder / path.name)
            flush_folder(folder)
            statuses[result.sop_uid] = 0
        flush_folder(peer.path)
    except OSError as error:
        raise PeerError(f"the folder of {peer.name} can't be written ({error.strerror})") from error
    return statuses
