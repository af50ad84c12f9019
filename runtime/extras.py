"""What to say when a command's imports fail or are interrupted: those of the extras take seconds."""

from __future__ import annotations

import sys
from typing import NoReturn

from runtime.console import INTERRUPTED, complain
from runtime.errors import InputError


def stop_interrupted() -> NoReturn:
    """End a command that Ctrl-C met in its imports: one line, exit status 130."""
    complain("interrupted")
    raise SystemExit(INTERRUPTED)


def stop_without(extra: str, error: ModuleNotFoundError) -> NoReturn:
    """End a command whose imports failed: one line that names the missing package and the extra, exit status 2.

    A module of this software itself that can't be found is a defect, so that error is raised again.
    """
    missing = (error.name or "").partition(".")[0]
    if missing in ("", "runtime", "train", "export", "benchmarks"):
        raise error
    print(
        f"error: this command needs the package {missing}; install it with: pip install 'vertscan[{extra}]'",
        file=sys.stderr,
    )
    raise SystemExit(InputError.exit_status)
