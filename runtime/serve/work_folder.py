"""The server's own folder: for this user only, locked while the server lives, removed with all that is in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from runtime.errors import InputError
from runtime.locked_folder import locked_folder, remove_leftovers

logger = logging.getLogger(__name__)

_PREFIX = "vertscan-serve-"


@contextmanager
def work_folder(home: Path) -> Iterator[Path]:
    """A fresh folder in ``home``, which is made if need be; it is removed at the end.

    What servers left there that were killed is removed first. It is known by its lock; where the system has no locks
    that serve here, it stays.

    Raises:
        InputError: ``home`` can't be made or written.
    """
    with ExitStack() as stack:
        try:
            home.mkdir(parents=True, exist_ok=True)
            if remove_leftovers(home, _PREFIX):
                logger.info("what a server that was killed had left was removed")
            folder = stack.enter_context(locked_folder(home, _PREFIX))
        except OSError as error:
            raise InputError(
                f"The work folder can't be made in {home} ({error.strerror}); name another with --work-dir."
            ) from error
        yield folder
