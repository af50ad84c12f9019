"""Results that can't be delivered: put into a folder with the reason, for people."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from runtime.node.audit import Audit
from runtime.node.identity import Redactor
from runtime.node.outbox import Outbox
from runtime.node.records import COMMITTING, ResultRecord
from runtime.node.store import DEAD_LETTERS

logger = logging.getLogger(__name__)

_AGAIN_S = 60.0
"""A letter that can't be written, such as for want of room, is written later."""


class DeadLetters:
    """``dead-letters/DESTINATION/STUDY`` in the data folder: objects, each with a JSON file that says why."""

    def __init__(self, data: Path, outbox: Outbox, redact: Redactor, audit: Audit) -> None:
        self._data, self._outbox, self._redact, self._audit = data, outbox, redact, audit

    def give_up(self, result: ResultRecord, reason: str) -> None:
        """Put a result there, and have it sent no more."""
        reason, name = self._redact(reason), Path(result.path).name
        try:
            self._write(result, reason)
        except OSError as error:
            said = f"{reason}; its dead letter can't be written ({error.strerror})"
            self._outbox.later(result, said, wait_s=_AGAIN_S)
            logger.error("study %s: %s is not given up yet: %s", result.study, name, said)
            return
        self._outbox.dead(result, reason)
        logger.error("study %s: %s is given up for %s: %s", result.study, name, result.destination, reason)
        self._audit.write("dead letter", study=result.study, peer=result.destination, detail=f"{name}: {reason}")

    def _write(self, result: ResultRecord, reason: str) -> None:
        """The letter, and the object if it is still there."""
        path = self._data / result.path
        folder = self._data / DEAD_LETTERS / result.destination / result.study
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            shutil.copy2(path, folder / path.name)
        letter = {"study": result.study, "destination": result.destination, "file": path.name, "reason": reason}
        (folder / f"{path.name}.json").write_text(json.dumps(letter, indent=1) + "\n", encoding="ascii")


class Strays:
    """Results on their way to destinations that the settings don't name any more: nobody would ever send them."""

    def __init__(self, destinations: Sequence[str], outbox: Outbox, letters: DeadLetters) -> None:
        self._destinations, self._outbox, self._letters = destinations, outbox, letters

    def step(self) -> bool:
        """Give them up, with the reason; what was sent and awaits a commitment counts as sent. True: it is done."""
        for result in self._outbox.strays(self._destinations):
            reason = f"the settings' deliver.to does not name {result.destination} any more"
            if result.state == COMMITTING:
                self._outbox.sent(result, note=f"its commitment is not awaited: {reason}")
            else:
                self._letters.give_up(result, reason)
        return True
