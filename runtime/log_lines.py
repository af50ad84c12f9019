"""Log lines of the services: messages of other software are withheld, since they may quote what is in a data set."""

from __future__ import annotations

import logging

LINE = "%(asctime)s %(levelname)s %(message)s"


def withheld_unless_of(record: logging.LogRecord, *ours: str) -> logging.LogRecord:
    """The record, or one that only says whose it is where it is neither of one of these loggers nor from below them."""
    if any(record.name == name or record.name.startswith(f"{name}.") for name in ours):
        return record
    return without_trace(with_message(record, f"{record.name}: message withheld"))


def with_message(record: logging.LogRecord, message: str) -> logging.LogRecord:
    """The record with another message."""
    return logging.makeLogRecord({**record.__dict__, "msg": message, "args": ()})


def without_trace(record: logging.LogRecord) -> logging.LogRecord:
    """The record without traces, which quote values."""
    return logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None, "stack_info": None})
