"""The server's own folder: for this user only, locked while the server lives, removed with all that is in it."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from runtime.errors import InputError
from runtime.locks import HAS_POSIX_LOCKS, try_lock

logger = logging.getLogger(__name__)

_PREFIX = "vertscan-serve-"
_LOCK = "lock"


@contextmanager
def work_folder(home: Path) -> Iterator[Path]:
    """A fresh folder in ``home``, which is made if need be; it is removed at the end.

    What servers left there that were killed is removed first. It is known by its lock, which the system lets go of
    when its holder ends, however that ends; where the system has no such locks, it stays.

    Raises:
        InputError: ``home`` can't be made or written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(home)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=home))
    except OSError as error:
        raise InputError(
            f"The work folder can't be made in {home} ({error.strerror}); name another with --work-dir."
        ) from error
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _hold(folder, stack)
        yield folder


def _hold(folder: Path, stack: ExitStack) -> None:
    """Lock the folder; the lock's file gets its name when it is locked, so that nobody meets it free."""
    unnamed = folder / f"{_LOCK}.new"
    stream = stack.enter_context(unnamed.open("w+b"))
    if _lock(stream):
        unnamed.rename(folder / _LOCK)


def _lock(stream: IO[bytes]) -> bool:
    """Take the lock if nobody has it; False too where the system or the file system has none that serves here."""
    try:
        return HAS_POSIX_LOCKS and try_lock(stream.fileno())
    except OSError:
        return False


def _remove_leftovers(home: Path) -> None:
    if not hasattr(os, "geteuid"):  # Windows, which has no such locks either
        return
    for folder in home.glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with (folder / _LOCK).open("rb+") as stream:
                if _lock(stream):
                    shutil.rmtree(folder, ignore_errors=True)
                    logger.info("what a server that was killed had left was removed")
        except OSError:  # another user's, or one that begins just now
            continue
