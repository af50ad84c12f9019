"""A folder that is watched: DICOM files put there are taken in like images that were sent.

Linked folders are followed. What lies in them is somebody else's: it is taken in and stays where it is.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.node.config import Watch
from runtime.node.receiver import CANNOT_UNDERSTAND, SUCCESS
from runtime.readers.dicom_mark import MARKED_BYTES, is_marked

logger = logging.getLogger(__name__)

REFUSED = "refused"
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0


State = tuple[int, int]
"""Of a file: its size and the time of its last change."""


@dataclass(frozen=True)
class _Waiting:
    """A file that is to be taken in at ``due_s``, and, if that fails, again after ``wait_s``."""

    state: State
    due_s: float
    wait_s: float


class FolderWatch:
    """Takes in files that haven't changed for a while, and removes them; what is no DICOM goes to ``refused/``.

    What can't be taken in now, such as for want of room on the disk, is tried again after growing waits and keeps no
    other file waiting. Files in linked folders, and those that can't be removed, stay and are taken in once for as long
    as they don't change.
    """

    def __init__(self, settings: Watch, take: Callable[[bytes, str], int]) -> None:
        """``take`` keeps one object, given with a name for where it comes from, and returns a C-STORE status."""
        self._settings, self._take = settings, take
        self._waiting: dict[Path, _Waiting] = {}
        self._done: dict[Path, State] = {}
        self._trouble = ""

    def step(self) -> bool:
        """Look once; false, since what is left needs time."""
        root = self._settings.path
        waiting: dict[Path, _Waiting] = {}
        done: dict[Path, State] = {}
        try:
            root.mkdir(parents=True, exist_ok=True)
            for path, linked in _files_below(root):
                state = _state(path)
                if state is not None and self._done.get(path) == state:
                    done[path] = state
                elif state is not None:
                    self._look_at(path, state, linked, waiting, done)
        except OSError as error:
            self._say_once(f"the watched folder can't be looked through ({error.strerror})")
            return False
        self._waiting, self._done, self._trouble = waiting, done, ""
        return False

    @property
    def trouble(self) -> str:
        """Why the folder can't be looked through, or ``""``."""
        return self._trouble

    def _say_once(self, trouble: str) -> None:
        if trouble != self._trouble:
            logger.error("%s", trouble)
        self._trouble = trouble

    def _look_at(
        self, path: Path, state: State, linked: bool, waiting: dict[Path, _Waiting], done: dict[Path, State]
    ) -> None:
        """Take a file in if it has settled; noted in ``done`` if it is and stays, in ``waiting`` if it isn't yet."""
        now_s, known = time.monotonic(), self._waiting.get(path)
        if known is None or known.state != state:
            waiting[path] = _Waiting(state, now_s + self._settings.settle_s, _FIRST_WAIT_S)
        elif now_s < known.due_s:
            waiting[path] = known
        elif not self._take_in(path, linked, state, done):
            waiting[path] = _Waiting(state, now_s + known.wait_s, min(2 * known.wait_s, _LONGEST_WAIT_S))

    def _take_in(self, path: Path, linked: bool, state: State, done: dict[Path, State]) -> bool:
        """Take in one file; False if that is to be tried again."""
        try:
            encoded = _encoded(path)
        except OSError as error:
            logger.warning("a file in the watched folder can't be read (%s)", error.strerror)
            return False
        except MemoryError:
            logger.warning("a file of %d MiB in the watched folder does not fit in memory", state[0] >> 20)
            return False
        status = self._take(encoded, "folder")
        if status not in (SUCCESS, CANNOT_UNDERSTAND):
            return False
        if linked or not self._remove(path, refused=status == CANNOT_UNDERSTAND):
            done[path] = state
        return True

    def _remove(self, path: Path, *, refused: bool) -> bool:
        """Take a file out of the folder's way; whether that could be done."""
        try:
            if refused:
                folder = self._settings.path / REFUSED
                folder.mkdir(exist_ok=True)
                path.replace(_free_name(folder / path.name))
            else:
                path.unlink()
        except OSError as error:
            logger.warning("a file in the watched folder was taken in and can't be removed (%s)", error.strerror)
            return False
        return True


def _encoded(path: Path) -> bytes:
    """A whole DICOM file; of any other only its beginning, which is enough to refuse it, however large it is.

    Raises:
        OSError: it can't be read.
        MemoryError: it is larger than the memory that is left.
    """
    with path.open("rb") as stream:
        beginning = stream.read(MARKED_BYTES)
        if not is_marked(beginning):
            return beginning
        stream.seek(0)
        return stream.read()


def _free_name(path: Path) -> Path:
    """The path, numbered if something lies there: files of several folders may have the same name."""
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _state(path: Path) -> State | None:
    """None if the file is gone, or can't be looked at."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _files_below(root: Path) -> Iterator[tuple[Path, bool]]:
    """Files at any depth, with whether they lie in a linked folder; hidden ones and the refused are left out.

    What can't be looked at is left out, too, but for ``root``, of which it is an OSError. Each folder is entered once,
    whatever links lead to it; those that are no links come first.
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
        for path in _entries(folder, must=folder == root):
            if path.name.startswith(".") or (folder == root and path.name == REFUSED):
                continue
            is_file, is_folder = _kind(path)
            if is_file:
                yield path, linked
            elif is_folder:
                (links if linked or path.is_symlink() else own).append(path)


def _kind(path: Path) -> tuple[bool, bool]:
    """Whether it is a file, and whether it is a folder: neither what links in a ring, nor what can't be looked at."""
    try:
        return path.is_file(), path.is_dir()
    except OSError:  # a mount that is lost, say
        return False, False


def _entries(folder: Path, *, must: bool) -> list[Path]:
    """What a folder holds, by name; nothing where it can't be looked at, unless it ``must``."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        if must:
            raise
        return []
