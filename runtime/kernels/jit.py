"""Numba's ``njit``, made to work where no cache folder can be written. Kernel modules import it from here."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path

from numba import config, njit
from numba.misc.appdirs import AppDirs


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in the folder, which is made if it isn't there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _make_cache_possible() -> None:
    """Numba refuses to define cached functions where it can't write; there, cache for the life of the process only."""
    places = [Path(__file__).parent / "__pycache__", Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)]
    if os.environ.get("NUMBA_CACHE_DIR") or config.CACHE_DIR or any(_is_writable(place) for place in places):
        return
    folder = tempfile.mkdtemp(prefix="vertscan-numba-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config.CACHE_DIR = folder
    logging.getLogger(__name__).info("no cache folder can be written: kernels are compiled anew by each process")


_make_cache_possible()

__all__ = ["njit"]
