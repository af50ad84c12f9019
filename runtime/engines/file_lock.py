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
        while not try_lock(stream.fileno()):
            if not said:
                logger.info("another process builds engines in %s; waiting for it", path.parent)
                said = True
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            unlock(stream.fileno())
