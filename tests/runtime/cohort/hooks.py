"""What tests let a cohort's workers do beside their work: note every run, wait, or die. Runs in their processes.

Which is for files beside the scans to say: ``log`` gets a line for every run of the networks; a scan beside which there
is ``<name>.kills`` ends its worker by SIGKILL, one beside which there is ``<name>.hold`` waits until that is gone, and
one beside which there is ``<name>.hangs`` never ends, as a library that has gone astray holds up all threads of Python.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from runtime.cohort.__main__ import main
from runtime.cohort.work import Orders, open_pipeline
from runtime.errors import OutOfMemoryError


def opener(orders: Orders):
    """The usual pipeline, watched."""
    pipeline = open_pipeline(orders)
    real_prepare, real_analyse = pipeline.prepare, pipeline.analyse

    def prepare(scan, **options):
        _obey(orders.root, Path(scan).name.partition(".")[0])
        return real_prepare(scan, **options)

    def analyse(scan, **options):
        note(orders.root, scan.volume.name)
        return real_analyse(scan, **options)

    pipeline.prepare, pipeline.analyse = prepare, analyse
    return pipeline


def note(root: Path, name: str) -> None:
    with (root / "log").open("a") as log:
        log.write(f"{name}\n")


def _obey(root: Path, name: str) -> None:
    (root / f"{name}.pid").write_text(str(os.getpid()))
    if (root / f"{name}.kills").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (root / f"{name}.memory").exists():
        raise OutOfMemoryError(f"{name} does not fit.")
    if (root / f"{name}.hangs").exists():
        ctypes.PyDLL(None).sleep(10**6)
    while (root / f"{name}.hold").exists():
        time.sleep(0.05)


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell that started the tests in the background ignores it
    sys.exit(main(opener=opener))
