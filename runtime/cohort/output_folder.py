"""The folder of a cohort's results: who may write to it, and what killed workers left there.

The driver and every worker hold a lock on one file in it while they live. The system gives it back when they die, so
a driver that gets it alone knows that no worker of an earlier run is still writing, on whichever machine.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from runtime.errors import InputError
from runtime.locks import HAS_POSIX_LOCKS, try_lock, unlock
from runtime.output import SCRATCH

LOCK_FILE = ".cohort.lock"
COHORT_SCRATCH = f"{SCRATCH}cohort-"
"""Begins the names of folders that a cohort's workers write to first."""
WAIT_S = 30.0
"""So long a driver waits for the workers of one that was killed."""
_POLL_S = 0.2


class OutputLock:
    """The lock on an output folder, given back when it is closed or the process dies.

    Where the system or the file system has no locks there is none, and ``works`` is False.

    Args:
        output: the folder; it must be there.
    """

    def __init__(self, output: Path) -> None:
        self._file = os.open(output / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        self.works = _has_locks(self._file)

    def take_alone(self, *, wait_s: float) -> bool:
        """Whether it was got before ``wait_s`` were over; nobody else has it then."""
        return self._take(alone=True, wait_s=wait_s)

    def share(self) -> bool:
        """Hold it beside others; False where somebody has it alone."""
        return self._take(alone=False, wait_s=1.0)

    def _take(self, *, alone: bool, wait_s: float) -> bool:
        if not self.works:
            return True
        until_s = time.monotonic() + wait_s
        while not try_lock(self._file, shared=not alone):
            if time.monotonic() >= until_s:
                return False
            time.sleep(_POLL_S)
        return True

    def write_run(self, run: str) -> None:
        """Leave the name of this run for its workers, who so know that they see the same folder."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, run.encode(), 0)
        os.fsync(self._file)

    def close(self) -> None:
        """Give it back."""
        with suppress(OSError):
            os.close(self._file)


def _has_locks(file: int) -> bool:
    if not HAS_POSIX_LOCKS:
        return False
    try:
        if try_lock(file, shared=True):
            unlock(file)
    except OSError:
        return False
    return True


def open_output(output: Path, run: str, *, folders: Iterable[Path], on_wait: Callable[[], None]) -> OutputLock:
    """Make the folder, be the only cohort that writes to it, and remove what killed workers left half-written.

    Args:
        output: the folder.
        run: names this run.
        folders: of the scans' results.
        on_wait: is called when an earlier run is still there and its end is waited for.

    Raises:
        InputError: the folder can't be made or written, or another cohort is writing to it.
    """
    with ExitStack() as on_failure:
        try:
            output.mkdir(parents=True, exist_ok=True)
            lock = OutputLock(output)
            on_failure.callback(lock.close)
            _begin(lock, output, run, folders=folders, on_wait=on_wait)
        except OSError as error:
            raise InputError(
                f"Nothing can be written to {output} ({error.strerror or error}); name another folder with -o."
            ) from error
        on_failure.pop_all()
    return lock


def _begin(lock: OutputLock, output: Path, run: str, *, folders: Iterable[Path], on_wait: Callable[[], None]) -> None:
    if not lock.take_alone(wait_s=0.0):
        on_wait()
        if not lock.take_alone(wait_s=WAIT_S):
            raise InputError(f"Another run of a cohort is writing to {output}; wait for its end, or end it.")
    if lock.works:
        sweep(folders)
    lock.write_run(run)
    if not lock.share():
        raise InputError(f"Another run of a cohort has just begun to write to {output}; wait for its end, or end it.")


def close_output(lock: OutputLock, *, folders: Iterable[Path], wait_s: float = 5.0) -> None:
    """Remove what killed workers left half-written, once they are gone, and give the lock back."""
    with suppress(OSError):  # the file system is gone: then nobody can sweep
        if lock.works and lock.take_alone(wait_s=wait_s):
            sweep(folders)
    lock.close()


def sweep(folders: Iterable[Path]) -> None:
    """Remove what cohorts' workers left half-written in result folders and beside them; nobody may be writing."""
    for place in {place for folder in folders for place in (folder, folder.parent)}:
        try:
            left = [entry for entry in place.iterdir() if entry.name.startswith(COHORT_SCRATCH)]
        except OSError:
            continue
        for entry in left:
            shutil.rmtree(entry, ignore_errors=True)


def is_run(output: Path, run: str) -> bool:
    """Whether ``output`` is the folder that ``run`` writes to, as seen from here."""
    try:
        return (output / LOCK_FILE).read_text() == run
    except OSError:
        return False
