"""Files and folders brought to the disk itself, so that what was renamed into place is whole after a power cut too."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_CANNOT = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
"""What file systems say that can't flush a folder; some network file systems do."""
_MAY_NOT = frozenset({errno.EACCES, errno.EPERM})
"""What is said of a folder that this user may write to and not list, such as a drop folder of mode 0733."""


def flush_with_files(folder: Path) -> None:
    """Wait until the files in ``folder``, and the folder itself, are on the disk.

    Raises:
        OSError: one can't be brought there, such as for want of room.
    """
    for entry in folder.iterdir():
        with entry.open("rb+") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk; does nothing where the system can't, or this user may not.

    Raises:
        OSError: they can't be brought there.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _CANNOT | _MAY_NOT:
            raise
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)
