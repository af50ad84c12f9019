"""A lock between processes, held on an open file: the system lets go of it when its holder ends, however that ends."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from runtime.errors import EngineError

logger = logging.getLogger(__name__)

_POLL_S = 0.1


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock on a file, which is made if it isn't there and is left there; wait while another process holds it.

    Raises:
        EngineError: the file can't be made.
    """
    try:
        stream = open(path, "a+b")  # noqa: SIM115
    except OSError as error:
        raise EngineError(f"{path} cannot be made ({error.strerror}); name another folder with -o.") from error
    with stream:
        said = False
        while not _try_lock(stream):
            if not said:
                logger.info("another process builds engines in %s; waiting for it", path.parent)
                said = True
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            _unlock(stream)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(stream: IO[bytes]) -> bool:
        stream.seek(0)
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(stream: IO[bytes]) -> None:
        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(stream: IO[bytes]) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(stream: IO[bytes]) -> None:
        fcntl.flock(stream, fcntl.LOCK_UN)
