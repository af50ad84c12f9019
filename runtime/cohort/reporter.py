"""What a run of a cohort tells on the terminal while it goes on."""

from __future__ import annotations

import time
from typing import TextIO

from runtime.progress import TerminalLine, format_duration

_INTERVAL_S = 0.5
_LONG_S = 60.0
"""After so long without a worker it is told."""


class Reporter:
    """One line that is rewritten in place, and warnings above it.

    Args:
        stream: usually stderr.
        total: scans in the list.
        shows_progress: whether the line is drawn: on a terminal, unless it was asked to be quiet.
    """

    def __init__(self, stream: TextIO, total: int, *, shows_progress: bool) -> None:
        self._terminal, self._total, self._shows = TerminalLine(stream), total, shows_progress
        self._done = self._failed = self._before = 0
        self._shown_at_s = 0.0
        self._start_s: float | None = None
        self._without_since_s: float | None = time.monotonic()

    def warn(self, text: str) -> None:
        """A line that stays."""
        self._terminal.leave(f"warning: {text}")

    def count(self, *, done: int, failed: int, before: int) -> None:
        """So many scans are done in this run, failed, and were done before it."""
        self._done, self._failed, self._before = done, failed, before

    def tick(self, ready: int) -> None:
        """Redraw the line, for so many workers."""
        now_s = time.monotonic()
        if ready:
            self._start_s, self._without_since_s = self._start_s or now_s, None
        elif self._without_since_s is None:
            self._without_since_s = now_s
        elif now_s - self._without_since_s > _LONG_S:
            self.warn("no worker is ready yet; is the cluster busy with other work? Waiting.")
            self._without_since_s = now_s + 5 * _LONG_S  # told again after some minutes
        if self._shows and now_s - self._shown_at_s >= _INTERVAL_S:
            self._shown_at_s = now_s
            self._terminal.show(self.line(ready, now_s - (self._start_s or now_s)))

    def line(self, ready: int, seconds: float) -> str:
        """The line: scans, workers, rate and time left, ``seconds`` after the first worker was ready."""
        through = self._done + self._failed + self._before
        parts = [f"{through}/{self._total} scans"]
        if self._before:
            parts.append(f"{self._before} done before")
        if self._failed:
            parts.append(f"{self._failed} failed")
        parts.append(f"{ready} worker{'' if ready == 1 else 's'}")
        run = self._done + self._failed
        if run and seconds > 0:
            per_hour = 3600 * run / seconds
            parts.append(f"{per_hour:.0f} scans/h" if per_hour >= 10 else f"{per_hour:.1f} scans/h")
            if through < self._total:
                parts.append(f"{format_duration(seconds / run * (self._total - through))} left")
        return ", ".join(parts)

    def finish(self) -> None:
        """Leave a clean line."""
        self._terminal.wipe()
