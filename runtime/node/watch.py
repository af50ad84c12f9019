"""A folder that is watched: DICOM files put there are taken in like images that were sent.

Linked folders are followed. What lies in them is somebody else's: it is taken in and stays where it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.node.config import Watch
from runtime.node.receiver import CANNOT_UNDERSTAND, SUCCESS

logger = logging.getLogger(__name__)

REFUSED = "refused"


class FolderWatch:
    """Takes in files that haven't changed for a while, and removes them; what is no DICOM goes to ``refused/``.

    Files in linked folders are neither removed nor moved, and taken in once for as long as they don't change.
    """

    def __init__(self, settings: Watch, take: Callable[[bytes, str], int]) -> None:
        self._settings, self._take = settings, take
        self._seen: dict[Path, tuple[int, int, float]] = {}
        self._left: dict[Path, tuple[int, int]] = {}

    def step(self) -> bool:
        """Look once; false, since what is left needs time."""
        root = self._settings.path
        root.mkdir(parents=True, exist_ok=True)
        seen: dict[Path, tuple[int, int, float]] = {}
        left: dict[Path, tuple[int, int]] = {}
        for path, linked in _files_below(root):
            state = _state(path)
            if state is None or (linked and self._left.get(path) == state):
                left |= {} if state is None else {path: state}
                continue
            self._look_at(path, state, seen, left if linked else None)
        self._seen, self._left = seen, left
        return False

    def _look_at(
        self,
        path: Path,
        state: tuple[int, int],
        seen: dict[Path, tuple[int, int, float]],
        left: dict[Path, tuple[int, int]] | None,
    ) -> None:
        """Take a file in if it has settled; ``left`` is where it is noted instead of being removed."""
        *before, since_s = self._seen.get(path, (-1, -1, 0.0))
        if tuple(before) != state:
            seen[path] = (*state, time.monotonic())
        elif time.monotonic() - since_s < self._settings.settle_s or not self._take_in(path, stays=left is not None):
            seen[path] = (*state, since_s)
        elif left is not None:
            left[path] = state

    def _take_in(self, path: Path, *, stays: bool) -> bool:
        """Take in one file; False if it must wait, such as for room on the disk."""
        try:
            encoded = path.read_bytes()
        except (FileNotFoundError, PermissionError) as error:
            logger.warning("a file in the watched folder can't be read (%s)", error.strerror)
            return False
        status = self._take(encoded, "folder")
        if stays:
            return status in (SUCCESS, CANNOT_UNDERSTAND)
        if status == CANNOT_UNDERSTAND:
            refused = self._settings.path / REFUSED
            refused.mkdir(exist_ok=True)
            path.replace(refused / path.name)
        elif status == SUCCESS:
            path.unlink()
        return status in (SUCCESS, CANNOT_UNDERSTAND)


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change; None if the file is gone."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_size, state.st_mtime_ns


def _files_below(root: Path) -> Iterator[tuple[Path, bool]]:
    """Files at any depth, with whether they lie in a linked folder; hidden ones and the refused are left out.

    Each folder is entered once, whatever links lead to it; those that are no links come first.
    """
    entered: set[str] = set()
    own, links = [root], list[Path]()
    while own or links:
        linked = not own
        folder = (own or links).pop()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        with contextlib.suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or (folder == root and entry.name == REFUSED):
                    continue
                path = Path(entry.path)  # which says of links that go round in a ring that they are neither
                if path.is_file():
                    yield path, linked
                elif path.is_dir():
                    (links if linked or path.is_symlink() else own).append(path)
