"""Folders that are locked while their process lives and removed at its end; what killed ones left is known by that."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from runtime.locks import HAS_POSIX_LOCKS, try_lock

_LOCK = "lock"
_LONGEST_MARK = 1024


@contextmanager
def locked_folder(home: Path, prefix: str, *, mark: str = "") -> Iterator[Path]:
    """A fresh folder in ``home``, for this user only, that is locked while the block runs and removed at its end.

    Where the system or the file system has no locks that serve here, it is not locked, and stays if the process is
    killed.

    Args:
        home: where it is made; it must be there.
        prefix: begins its name.
        mark: is stated in it: see ``remove_leftovers``.

    Raises:
        OSError: it can't be made.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _hold(folder, stack, mark)
        yield folder


def _hold(folder: Path, stack: ExitStack, mark: str) -> None:
    """Lock the folder; the lock's file gets its name when it is locked, so that nobody meets it free."""
    unnamed = folder / f"{_LOCK}.new"
    stream = stack.enter_context(unnamed.open("w+b"))
    stream.write(mark.encode())
    stream.flush()
    if _lock(stream):
        os.rename(unnamed, folder / _LOCK)


def _lock(stream: IO[bytes]) -> bool:
    """Take the lock if nobody has it; False too where the system or the file system has none that serves here."""
    try:
        return HAS_POSIX_LOCKS and try_lock(stream.fileno())
    except OSError:
        return False


def remove_leftovers(
    home: Path, prefix: str, *, mark: str = "", spared: Callable[[Path], bool] = lambda _: False
) -> int:
    """Remove from ``home`` this user's locked folders with this prefix and mark whose processes were killed.

    Those that are ``spared`` stay. Returns how many were removed. The system lets go of a lock when its holder ends,
    however that ends. Some file systems that several machines share keep their locks from each other's sight: there the
    mark must tell the machines apart.
    """
    if not hasattr(os, "geteuid"):  # Windows, which has no such locks either
        return 0
    removed = 0
    for folder in home.glob(f"{prefix}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with (folder / _LOCK).open("rb+") as stream:
                if stream.read(_LONGEST_MARK) != mark.encode() or spared(folder) or not _lock(stream):
                    continue
                shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)  # on NFS an open file stays until it is closed
            removed += 1
        except OSError:  # another user's, or one that begins just now
            continue
    return removed
