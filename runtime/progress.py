"""Progress of a run: what the pipeline tells, and how the command line shows it."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from typing import Protocol, TextIO


class Progress(Protocol):
    """What the pipeline calls while it works; from the thread that runs it."""

    def stage(self, name: str) -> None:
        """A stage begins, such as ``"locate"``."""

    def step(self, done: int, total: int) -> None:
        """``done`` of the ``total`` windows or crops of this stage are through."""

    def finish(self) -> None:
        """The run is over, well or not."""


class NoProgress:
    """Says nothing."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def step(self, done: int, total: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class TerminalLine:
    """One line of a terminal that is rewritten in place, and others that stay above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._width = stream, 0

    def show(self, text: str) -> None:
        """Put the text in the place of what the line shows; what is too long for it is cut."""
        room = self._room()
        shown = self._encodable(text)[:room]
        self._write("\r" + shown.ljust(min(self._width, room)))
        self._width = len(shown)

    def leave(self, text: str) -> None:
        """A line that stays."""
        self.wipe()
        self._write(f"{self._encodable(text)}\n")

    def wipe(self) -> None:
        """Clear the line, so that what comes next starts on a clean one."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _room(self) -> int:
        """So many characters don't wrap; the last column stays free, since some terminals wrap behind it."""
        columns = 0
        with suppress(OSError):  # the stream is no terminal
            columns = os.get_terminal_size(self._stream.fileno()).columns
        return (columns or shutil.get_terminal_size().columns) - 1

    def _encodable(self, text: str) -> str:
        """With letters that the terminal can't show escaped."""
        encoding = self._stream.encoding or "ascii"
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # the terminal was closed
            self._stream.write(text)
            self._stream.flush()


class TerminalProgress:
    """One line on a terminal, rewritten in place: scan, stage, windows done and time left.

    Args:
        stream: the terminal, usually stderr.
        title: what the line begins with, such as the scan's name.
        interval_s: shortest time between two rewritings within a stage.
    """

    def __init__(self, stream: TextIO, title: str, *, interval_s: float = 0.1) -> None:
        self._line, self._title, self._interval_s, self._stage = TerminalLine(stream), title, interval_s, ""
        self._stage_start_s = self._shown_at_s = time.monotonic()

    def stage(self, name: str) -> None:
        """Name the stage that begins."""
        self._stage, self._stage_start_s = name, time.monotonic()
        self._show(name)

    def step(self, done: int, total: int) -> None:
        """Show how far the stage is, and from the second step on how long it will still take."""
        now_s = time.monotonic()
        if done < total and now_s - self._shown_at_s < self._interval_s:
            return
        text = f"{self._stage} {done}/{total}"
        if 0 < done < total:
            text += f", {format_duration((now_s - self._stage_start_s) * (total - done) / done)} left"
        self._show(text)

    def finish(self) -> None:
        """Wipe the line."""
        self._line.wipe()

    def _show(self, text: str) -> None:
        self._line.show(f"{self._title}: {text}")
        self._shown_at_s = time.monotonic()


def format_duration(seconds: float) -> str:
    """Seconds as people say them: ``"8 s"``, ``"2 min 05 s"``."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
