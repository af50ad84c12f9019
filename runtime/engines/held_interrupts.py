"""Ctrl-C while a library is at work that calls back into Python: its bindings would swallow what is raised there."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Held:
    """Whether Ctrl-C was met meanwhile."""

    interrupted: bool = False


@contextmanager
def held_interrupts() -> Iterator[Held]:
    """Note Ctrl-C, and each signal that does the same, and raise KeyboardInterrupt when the block is left.

    Python raises on entering whichever function comes next, so in the middle of the library's work in a callback of
    ours, before that can catch anything. A signal that somebody handles otherwise is left alone, and so are threads
    besides the main one, which signals don't reach.
    """
    held, ours = Held(), []
    if threading.current_thread() is threading.main_thread():
        ending = [signal.SIGINT, signal.SIGTERM]
        if sys.platform != "win32":
            ending.append(signal.SIGHUP)
        ours = [number for number in ending if signal.getsignal(number) is signal.default_int_handler]

    def note(*_: object) -> None:
        held.interrupted = True

    for number in ours:
        signal.signal(number, note)
    try:
        yield held
    finally:
        for number in ours:
            signal.signal(number, signal.default_int_handler)
        if held.interrupted:
            raise KeyboardInterrupt
