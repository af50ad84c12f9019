"""The files of a DICOM scan, wherever they lie: a folder, a zip, what a DICOMDIR names, or one file."""

from __future__ import annotations

import io
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runtime.errors import InputError

DICOMDIR = "DICOMDIR"
_LARGEST_BYTES = 4 * 2**30
"""Of a zip's member once unpacked: more than any CT file, less than what a bomb unpacks to."""


class SourceFile(ABC):
    """One file that can be read as a whole, or only where its header is."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes."""

    @abstractmethod
    def head(self, count: int) -> bytes:
        """The first ``count`` bytes, or all there are."""

    def read(self) -> bytes:
        """All of it."""
        return self.head(self.size)


class _DiskFile(SourceFile):
    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size(self) -> int:
        return self._path.stat().st_size

    def head(self, count: int) -> bytes:
        with self._path.open("rb") as file:
            return file.read(count)

    def read(self) -> bytes:
        return self._path.read_bytes()


class _ZipMember(SourceFile):
    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self._archive, self._info = archive, info

    @property
    def size(self) -> int:
        return self._info.file_size

    def head(self, count: int) -> bytes:
        if self.size > _LARGEST_BYTES:
            raise InputError(f"{self._info.filename} unpacks to {self.size} bytes, which no CT does. Give the folder.")
        with self._archive.open(self._info) as file:
            return file.read(count)


@dataclass(frozen=True, eq=False)
class FileSet:
    """The files of a scan.

    Args:
        files: by the name that messages use, relative to ``root``.
        root: the folder or zip that they lie in.
        where: what to call that in messages.
        missing: names that a DICOMDIR gives and that aren't there.
        notes: what to say about how the files were found.
    """

    files: Mapping[str, SourceFile]
    root: Path
    where: str
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def folder_files(path: Path) -> FileSet:
    """The files in a folder and its subfolders; where there is a DICOMDIR, only those that it names."""
    files = _walked(path)
    return _as_listed(files, _listings(files), path, f"The folder {path}")


def single_file(path: Path) -> FileSet:
    """One file alone."""
    return FileSet({path.name: _DiskFile(path)}, path.parent, f"The file {path}")


def dicomdir_files(path: Path) -> FileSet:
    """The files that a DICOMDIR names, which lie in its folder and below."""
    return _as_listed(_walked(path.parent), [path.name], path.parent, f"The folder {path.parent}")


@contextmanager
def zip_files(path: Path) -> Iterator[FileSet]:
    """The files in a zip, which are not unpacked to disk; as for a folder, a DICOMDIR says which."""
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        locked = next((info.filename for info in members if info.flag_bits & 1), None)
        if locked is not None:
            raise InputError(f"{path.name} is encrypted (such as {locked}); unpack it and give the folder.")
        files = {info.filename: _ZipMember(archive, info) for info in members}
        yield _as_listed(files, _listings(files), path, f"The zip {path}")


def _walked(path: Path) -> dict[str, SourceFile]:
    walked = [Path(folder) / file for folder, _, files in walk_once(path, onerror=_raise) for file in files]
    found = sorted(file for file in walked if file.is_file())  # not links that lead nowhere, pipes and the like
    return {file.relative_to(path).as_posix(): _DiskFile(file) for file in found}


def walk_once(
    top: Path, *, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` as folders are read here: links are followed, and each folder is entered once."""
    entered = {os.path.realpath(top)}
    for folder, below, files in os.walk(top, onerror=onerror, followlinks=True):
        yield folder, below, files
        below[:] = [name for name in sorted(below) if _enter(os.path.join(folder, name), entered)]


def _enter(folder: str, entered: set[str]) -> bool:
    """Whether a folder is new; links may lead to one that was entered already, even to one above."""
    real = os.path.realpath(folder)
    is_new = real not in entered
    entered.add(real)
    return is_new


def _raise(error: OSError) -> None:
    raise error


def _listings(files: Mapping[str, SourceFile]) -> list[str]:
    return [name for name in files if PurePosixPath(name).name.upper() == DICOMDIR]


def _as_listed(files: Mapping[str, SourceFile], listings: Sequence[str], root: Path, where: str) -> FileSet:
    """All the files, or, where there are DICOMDIRs, those that these name."""
    if not listings:
        return FileSet(files, root, where)
    by_folded = {name.upper(): name for name in files}
    kept, missing = {}, []
    for listing in listings:
        for name in _named_in(files[listing].read(), listing):
            # Names on a disc are in capitals; copies of it may not be, or end with the version ";1" or a dot.
            variants = (name.upper(), f"{name.upper()};1", f"{name.upper()}.", f"{name.upper()}.DCM")
            found = next((by_folded[variant] for variant in variants if variant in by_folded), None)
            if found is None:
                missing.append(name)
            else:
                kept[found] = files[found]
    left_out = len(files) - len(kept) - len(listings)
    notes = [f"{left_out} files that the DICOMDIR does not name were left out."] if left_out else []
    return FileSet(kept, root, f"{where} (by its DICOMDIR)", tuple(missing), tuple(notes))


def _named_in(data: bytes, listing: str) -> list[str]:
    """The images that a DICOMDIR names, as paths relative to where its own path is."""
    import pydicom

    from runtime.readers.dicom_damage import damage, damaged, quiet

    folder = PurePosixPath(listing).parent
    try:
        with quiet():
            records = pydicom.dcmread(io.BytesIO(data)).get("DirectoryRecordSequence") or ()
            named = [r.get("ReferencedFileID") for r in records if r.get("DirectoryRecordType") in ("IMAGE", None)]
    except damage() as error:
        raise damaged(listing, error, "Remove it to have all files of the folder looked at") from error
    paths = []
    for parts in named:
        if not parts:
            continue
        components = [parts] if isinstance(parts, str) else [str(part) for part in parts]
        if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in components):
            raise InputError(f"{listing} names {'/'.join(components)}, which is no file of its own. Give the folder.")
        paths.append((folder.joinpath(*components)).as_posix())
    if not paths:
        raise InputError(f"{listing} names no images. Remove it to have all files of the folder looked at.")
    return list(dict.fromkeys(paths))
