"""Where this software keeps what it can make again: compiled networks and unpacked bundles."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

_NAME = "vertscan"


def user_cache_folder(name: str) -> Path:
    """The folder ``name`` in the user's cache, as the platform places it; it is not created.

    Linux and others: ``$XDG_CACHE_HOME/vertscan`` or ``~/.cache/vertscan``; macOS: ``~/Library/Caches/vertscan``;
    Windows: ``%LOCALAPPDATA%\\vertscan\\Cache``.
    """
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / _NAME / "Cache"
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches" / _NAME
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / _NAME
    return base / name


def write_whole(place: Path, *parts: bytes) -> None:
    """Write a file whole or not at all, so that no other process ever reads half of it; its folder is made.

    Raises:
        OSError: it can't be written; nothing is left behind.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=place.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
        os.replace(temporary, place)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
