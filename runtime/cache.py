"""Where this software keeps what it can make again: compiled networks and unpacked bundles."""

from __future__ import annotations

import os
import sys
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
