"""What the commands print, and how they end when a stream or the person who reads it goes away."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from runtime.errors import InputError

INTERRUPTED = 130
"""Exit status after Ctrl-C."""
DEFECT = 1
"""Exit status after a defect of this software."""


def say(text: str, *, else_say: str = "") -> None:
    """Print on stdout; when its reader has gone, say no more.

    Args:
        text: the lines.
        else_say: goes on after what is told when stdout can't be written, such as where the results are all the same.

    Raises:
        InputError: stdout can't be written, such as to a disk that is full.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # What is still buffered must go somewhere, or the interpreter complains when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise InputError(f"stdout can't be written ({error.strerror}){else_say}.") from error


def complain(text: str) -> None:
    """One line on stderr that says what went wrong."""
    print(f"error: {text}", file=sys.stderr)


def internal_error(error: Exception, *, debug: bool) -> int:
    """Tell of a defect of this software without a trace, unless it was asked for; the exit status to end with."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    complain(
        f"internal error: {type(error).__name__}: {error}. Please report it"
        f"{'.' if debug else '; --debug shows the trace.'}"
    )
    return DEFECT


def shown(path: Path) -> str:
    """The path as it can be copied from the terminal; what that can't show is escaped."""
    text = str(path)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ascii(text)[1:-1]
    return text if text.isprintable() else ascii(text)[1:-1]
