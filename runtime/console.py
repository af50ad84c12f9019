"""What the commands print, and how they end when a stream or the person who reads it goes away."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import InputError, OutOfMemoryError, VertscanError

INTERRUPTED = 130
"""Exit status after Ctrl-C."""
DEFECT = 1
"""Exit status after a defect of this software."""


def say(text: str, *, else_say: str = "") -> None:
    """Print on stdout, letters that it can't show escaped; when its reader has gone, say no more.

    Args:
        text: the lines.
        else_say: goes on after what is told when stdout can't be written, such as where the results are all the same.

    Raises:
        InputError: stdout can't be written, such as to a disk that is full.
    """
    try:
        print(_printable(text), flush=True)
    except OSError as error:
        # What is still buffered must go somewhere, or the interpreter complains when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise InputError(f"stdout can't be written ({error.strerror}){else_say}.") from error


def _printable(text: str) -> str:
    """The text as it is where stdout can encode it, such as to the code page of a console, else with escapes."""
    encoding = sys.stdout.encoding or "utf-8"  # none: a stream of text in memory
    try:
        text.encode(encoding, sys.stdout.errors or "strict")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def complain(text: str) -> None:
    """One line on stderr that says what went wrong; nothing where the terminal has gone."""
    with suppress(OSError):
        print(f"error: {text}", file=sys.stderr)


def internal_error(error: Exception, *, debug: bool | None) -> int:
    """Tell of a defect of this software; the exit status to end with.

    ``debug`` says whether its trace is shown, and None that the command has no option ``--debug``.
    """
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    way = "; --debug shows the trace." if debug is False else "."
    complain(f"internal error: {type(error).__name__}: {error}. Please report it{way}")
    return DEFECT


def status_after(
    error: KeyboardInterrupt | Exception, *, interrupted: str, out_of_memory: str, debug: bool | None = None
) -> int:
    """Tell in one line what ended a command; the exit status to end with.

    Args:
        error: what was raised; an Exception that none of this software's errors is, is a defect.
        interrupted: what to say after Ctrl-C.
        out_of_memory: what to say, with advice, where Python had no memory.
        debug: see ``internal_error``.
    """
    if isinstance(error, KeyboardInterrupt):
        complain(interrupted)
        return INTERRUPTED
    if isinstance(error, VertscanError):
        complain(str(error))
        return error.exit_status
    if isinstance(error, MemoryError):
        complain(out_of_memory)
        return OutOfMemoryError.exit_status
    return internal_error(error, debug=debug)


@contextmanager
def interrupted_by_sigterm(*, and_sighup: bool = False) -> Iterator[None]:
    """Let SIGTERM, by which service managers and schedulers end a process, do what Ctrl-C does.

    Args:
        and_sighup: likewise SIGHUP, by which a terminal that is closed ends what runs in it, unless that is ignored, as
            under ``nohup``.
    """
    if threading.current_thread() is not threading.main_thread():  # there only signals can be set
        yield
        return
    numbers = [signal.SIGTERM]
    if and_sighup and sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shown(path: Path) -> str:
    """The path as it can be copied from the terminal; what that can't show is escaped."""
    text = str(path)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ascii(text)[1:-1]
    return text if text.isprintable() else ascii(text)[1:-1]
