"""Work in fresh processes: peak memory and cold starts can be seen in no other way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.errors import VertscanError


class ChildError(VertscanError):
    """A process that was measured failed."""

    exit_status = 1


def run_python(arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> str:
    """The standard output of this interpreter with the arguments.

    Raises:
        ChildError: it ended with another status than 0.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ChildError(f"A measured process ended with status {done.returncode}: {last}")
    return done.stdout


def run_program(
    program: str, arguments: Sequence[str] = (), *, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a program prints as JSON in its last line.

    Raises:
        ChildError: as ``run_python``.
    """
    out = run_python(["-c", program, *arguments], environment=environment)
    result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return result
