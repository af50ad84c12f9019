"""What lies under a path, for paths of which nothing may be known: too long, or in folders that can't be entered."""

from __future__ import annotations

import os
from pathlib import Path


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False where that can't be told, such as for a name that is too long."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether a file is there; False where that can't be told, such as in a folder that this user may not enter."""
    try:
        return path.is_file()
    except OSError:
        return False


def nearest_there(path: Path) -> Path:
    """The path, or the nearest of the folders above it that is there; below one that can't be entered nothing is."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
