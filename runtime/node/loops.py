"""Threads that do one thing over and over, and survive what it meets."""

from __future__ import annotations

import errno
import logging
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable

logger = logging.getLogger(__name__)

_AFTER_DEFECT_S = 5.0
FULL = "the disk is full; free some"


def log_defect(where: str) -> str:
    """Log the exception that is handled now, which nobody foresaw, with its trace; what to say of it as a reason.

    A full disk is met in many places and is nobody's defect: that is said in one line.

    A part of the node that works on one thing after the other calls this for each, and puts the thing off: one that
    meets a defect every time must not keep the others waiting.
    """
    error = sys.exception()
    if is_full(error):
        logger.error("%s can't go on: %s", where, FULL)
        return FULL
    logger.error("%s met a defect:\n%s", where, traceback.format_exc())
    return f"a defect of this software ({type(error).__name__}); its log has the trace"


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that the disk is full, or this user's share of it."""
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Loop:
    """Calls ``step`` from a thread of its own: at once again while it returns true, else every ``pause_s``.

    ``last_error`` says what the last step met, if that was a defect.
    """

    def __init__(self, name: str, step: Callable[[], bool], *, pause_s: float) -> None:
        self.name, self.last_error = name, ""
        self._step, self._pause_s = step, pause_s
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Look again now."""
        self._wake.set()

    def stop(self, timeout_s: float) -> bool:
        """End after the step that runs now; whether it ended in time."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            pause_s = self._pause_s
            try:
                again = self._step()
            except Exception as error:  # noqa: BLE001  the node goes on; the defect is logged and shown by its health
                log_defect(self.name)
                self.last_error = f"{FULL if is_full(error) else type(error).__name__} in {self.name}"
                pause_s = max(pause_s, _AFTER_DEFECT_S)
            else:
                self.last_error = ""
                if again:
                    continue
            self._wake.wait(pause_s)
            self._wake.clear()


class Periodic:
    """Runs ``step`` at once, then every ``every_s`` (0: never again); sooner while it returns false."""

    def __init__(self, step: Callable[[], bool], *, every_s: float, retry_s: float = 5.0) -> None:
        self._step, self._every_s, self._retry_s = step, every_s, retry_s
        self._next_s, self._wait_s = 0.0, retry_s

    def __call__(self) -> bool:
        """Run if it is time; never asks to be called again at once."""
        if time.monotonic() < self._next_s:
            return False
        if self._step():
            self._wait_s = self._retry_s
            self._next_s = time.monotonic() + self._every_s if self._every_s else float("inf")
        else:
            self._next_s = time.monotonic() + self._wait_s
            self._wait_s = min(2 * self._wait_s, max(self._every_s, self._retry_s))
        return False
