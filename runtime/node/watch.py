"""A folder that is watched: DICOM files put there are taken in like images that were sent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from runtime.node.config import Watch
from runtime.node.receiver import CANNOT_UNDERSTAND, SUCCESS

logger = logging.getLogger(__name__)

REFUSED = "refused"


class FolderWatch:
    """Takes in files that haven't changed for a while, and removes them; what is no DICOM goes to ``refused/``."""

    def __init__(self, settings: Watch, take: Callable[[bytes, str], int]) -> None:
        self._settings, self._take = settings, take
        self._seen: dict[Path, tuple[int, int, float]] = {}

    def step(self) -> bool:
        """Look once; false, since what is left needs time."""
        root = self._settings.path
        root.mkdir(parents=True, exist_ok=True)
        seen: dict[Path, tuple[int, int, float]] = {}
        for path in sorted(root.rglob("*")):
            parts = path.relative_to(root).parts
            if path.is_file() and parts[0] != REFUSED and not any(part.startswith(".") for part in parts):
                self._look_at(path, seen)
        self._seen = seen
        return False

    def _look_at(self, path: Path, seen: dict[Path, tuple[int, int, float]]) -> None:
        try:
            state = path.stat()
        except FileNotFoundError:
            return
        size, mtime, since_s = self._seen.get(path, (-1, -1, 0.0))
        if (size, mtime) != (state.st_size, state.st_mtime_ns):
            seen[path] = (state.st_size, state.st_mtime_ns, time.monotonic())
        elif time.monotonic() - since_s < self._settings.settle_s or not self._take_in(path):
            seen[path] = (size, mtime, since_s)

    def _take_in(self, path: Path) -> bool:
        """Take in one file; False if it must wait, such as for room on the disk."""
        status = self._take(path.read_bytes(), "folder")
        if status == CANNOT_UNDERSTAND:
            refused = self._settings.path / REFUSED
            refused.mkdir(exist_ok=True)
            path.replace(refused / path.name)
        elif status == SUCCESS:
            path.unlink()
        return status in (SUCCESS, CANNOT_UNDERSTAND)
