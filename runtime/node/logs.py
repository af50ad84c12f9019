"""The node's log: one line per event on stderr, without patient data.

Messages of other libraries are withheld, since they may quote what is in a data set; that they came is said.
What is logged while a study is analysed begins with the study's key, whoever says it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from runtime.log_lines import LINE, with_message, withheld_unless_of
from runtime.node.identity import Redactor

OURS = "runtime"
_study: ContextVar[str] = ContextVar("study", default="")


@contextmanager
def about_study(key: str) -> Iterator[None]:
    """What this thread logs while the block runs is about a study: its lines bear the key."""
    token = _study.set(key)
    try:
        yield
    finally:
        _study.reset(token)


class RedactingFormatter(logging.Formatter):
    """Formats records of this software redacted, and says of others only where they come from."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__(LINE)
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """One line; traces go in as well, redacted."""
        record = withheld_unless_of(record, OURS)
        if (key := _study.get()) and key not in (message := record.getMessage()):
            record = with_message(record, f"study {key}: {message}")
        return self._redact(super().format(record))


@contextmanager
def log_to_stderr(redact: Redactor, level: str, stream: TextIO | None = None) -> Iterator[None]:
    """Send the log to stderr while the block runs, for whoever runs the process; warnings of Python included."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(RedactingFormatter(redact))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(OURS).setLevel(level.upper())
    for noisy in ("pynetdicom", "pydicom", "dicomweb_client", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
