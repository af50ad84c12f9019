"""Drivers of a cohort as processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.local_cluster import ENVIRONMENT


class Driver(subprocess.Popen):
    """``python -m runtime.cohort`` over the pipeline of ``hooks``, in ``folder``."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        command = [sys.executable, "-m", "tests.runtime.cohort.hooks", *map(str, arguments)]
        super().__init__(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=folder
        )

    def ended(self) -> tuple[int, str, str]:
        """Its exit status, and what it said on stdout and stderr."""
        out, err = self.communicate(timeout=600)
        return self.returncode, out, err


def wait_for(condition, what: str, driver: Driver | None = None, seconds: float = 400.0) -> None:
    until_s = time.monotonic() + seconds
    while not condition():
        if driver is not None and driver.poll() is not None:
            raise AssertionError(f"ended while it should have shown {what}: {driver.communicate()}")
        assert time.monotonic() < until_s, f"no {what}"
        time.sleep(0.05)
