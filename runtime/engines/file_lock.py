"""One process at a time builds engines in a folder: the others wait for the lock on a file in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import EngineError
from runtime.locks import try_lock, unlock

logger = logging.getLogger(__name__)

_POLL_S = 0.1


@contextmanager
def file_lock(path: Path, *, is_needed: bool = True) -> Iterator[None]:
    """Hold the lock on a file, which is made if it isn't there and is left there; wait while another process holds it.

    Where the file system has no locks, nothing is held.

    Args:
        path: of the file.
        is_needed: whether a file that can't be made is refused, rather than done without: a folder that is only read
            needs no lock.

    Raises:
        EngineError: the file can't be made.
    """
    try:
        stream = open(path, "a+b")  # noqa: SIM115
    except OSError as error:
        if is_needed:
            raise EngineError(f"{path} cannot be made ({error.strerror}); name another folder with -o.") from error
        logger.debug("%s cannot be made (%s); going on without it", path, error.strerror)
        yield
        return
    with stream:
        is_held = _wait_for(stream.fileno(), path)
        try:
            yield
        finally:
            if is_held:
                unlock(stream.fileno())


def _wait_for(file: int, path: Path) -> bool:
    """Take the lock, however long that takes; False where the file system has none."""
    said = False
    try:
        while not try_lock(file):
            if not said:
                logger.info("another process builds engines in %s; waiting for it", path.parent)
                said = True
            time.sleep(_POLL_S)
    except OSError as error:
        logger.debug("%s cannot be locked (%s); going on without it", path, error.strerror)
        return False
    return True
