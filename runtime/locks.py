"""Locks between processes, held on open files: the system lets go of them when their holder ends, however that ends."""

from __future__ import annotations

import os
import sys

HAS_POSIX_LOCKS = sys.platform != "win32"
"""Whether locks can be shared, and files renamed and removed while they are locked."""


def try_lock(file: int, *, shared: bool = False) -> bool:
    """Take the lock on an open file; False, at once, where another process holds it.

    Args:
        file: its descriptor.
        shared: beside others that share it, rather than alone; only where ``HAS_POSIX_LOCKS``.

    Raises:
        OSError: the file system has no locks.
    """
    return _try_lock(file, shared)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: int, shared: bool) -> bool:
        if shared:
            raise OSError("Windows has no shared locks")
        os.lseek(file, 0, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(file: int) -> None:
        """Give the lock back."""
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file: int, shared: bool) -> bool:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(file: int) -> None:
        """Give the lock back."""
        fcntl.flock(file, fcntl.LOCK_UN)
