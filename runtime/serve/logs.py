"""The server's log: one line per event on stderr, without patient data.

Only what the server itself and the engines say is shown: messages of readers and libraries may quote what is in a scan
or what it is called. That they came is said.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.log_lines import LINE, with_message, withheld_unless_of, without_trace

_OURS = ("runtime.serve", "runtime.engines", "runtime.pipeline")


class PlainFormatter(logging.Formatter):
    """Formats records of ``_OURS``, and says of others only where they come from."""

    def __init__(self) -> None:
        super().__init__(LINE)

    def format(self, record: logging.LogRecord) -> str:
        """One line, without traces: these quote values."""
        record = without_trace(withheld_unless_of(record, *_OURS))
        return super().format(with_message(record, " ".join(record.getMessage().split())))


@contextmanager
def log_to_stderr(*, quiet: bool) -> Iterator[None]:
    """Send the log to stderr while the block runs; ``quiet``: errors only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter())
    handler.setLevel(logging.ERROR if quiet else logging.INFO)
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in _OURS}
    root.addHandler(handler)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        root.removeHandler(handler)


def where_from(error: BaseException) -> str:
    """Class and place of an error in one line, without its message, which may quote the scan."""
    frames = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)[-6:]]
    return f"{type(error).__name__} at {' < '.join(reversed(frames))}"
