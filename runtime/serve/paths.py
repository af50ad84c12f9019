"""Which paths may be submitted: those below the folders that the server was started with, links followed.

There are none by default: whoever has the token could otherwise have every file read that this user can read, and
messages would tell which ones exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime.readers.dicom_files import walk_once
from runtime.serve.refusal import RefusedRequestError

_NO_DICOM = (".nrrd", ".mha", ".mhd", ".nhdr")


class Roots:
    """The folders that scans may lie below.

    Args:
        folders: absolute and without links.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)

    def __bool__(self) -> bool:
        return bool(self._folders)

    def admit(self, text: str) -> Path:
        """The path of a scan, with links followed.

        Raises:
            RefusedRequestError: 403 where it lies elsewhere, is not there, or holds a link that leads elsewhere: all in
                one message, so that nobody learns what else there is on the machine. 400 for what can't be a scan's
                path, 415 for formats that are not taken.
        """
        if not self._folders:
            raise RefusedRequestError(403, "Paths are not taken: the server was started without --allow-path; upload.")
        if "\0" in text or not Path(text).is_absolute():
            raise RefusedRequestError(400, "The path must be absolute.")
        path = self._inside(Path(text))
        if path is None:
            raise _elsewhere()
        refuse_headers_that_name_files(path.name)
        if any(self._inside(link) is None for link in _links_of(path)):
            raise _elsewhere()
        return path

    def _inside(self, path: Path) -> Path | None:
        """The path without links where it is below one of the folders, else None."""
        try:
            resolved = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        return resolved if any(resolved.is_relative_to(folder) for folder in self._folders) else None


def _elsewhere() -> RefusedRequestError:
    return RefusedRequestError(
        403, "The path is not there, or it or a link in it leads out of the folders that the server may read."
    )


def _links_of(path: Path) -> Iterator[Path]:
    """The links among what reading this path would open: in a folder, or in the folder that a DICOMDIR lies in."""
    top = path if path.is_dir() else path.parent
    if top is not path and path.name.lower() != "dicomdir":
        return
    for folder, below, files in walk_once(top):
        for name in (*below, *files):
            entry = Path(folder) / name
            if entry.is_symlink():
                yield entry


def refuse_headers_that_name_files(name: str) -> None:
    """Raise RefusedRequestError (415) for NRRD and MetaImage, whose headers can name any other file as their voxels."""
    if name.lower().endswith(_NO_DICOM):
        raise RefusedRequestError(
            415,
            "NRRD and MetaImage are not taken here, since their headers can name other files of the server; send "
            "NIfTI or DICOM.",
        )
