"""Scans from files: one reader per format, chosen by the path through one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import InputError, OutOfMemoryError
from runtime.paths import is_folder
from runtime.readers import dicom, itk, nifti
from runtime.readers.dicom_mark import MARKED_BYTES, is_marked
from runtime.readers.options import ReadOptions
from runtime.volume import Volume

Reader = Callable[[Path, str, ReadOptions], Volume]
"""From a path, the scan's name and what was asked for to its volume."""


def _without_series(read: Reader) -> Reader:
    """A reader of files that hold one volume, in which there are no series to name and no gaps to accept."""

    def reader(path: Path, name: str, options: ReadOptions) -> Volume:
        if options.series_uid is not None:
            raise InputError(f"{path.name} is no DICOM, so there is no series to name; leave --series away.")
        return read(path, name, options)

    return reader


READERS: dict[str, Reader] = {
    ".nii.gz": _without_series(nifti.read),
    ".nii": _without_series(nifti.read),
    ".nrrd": _without_series(itk.read),
    ".mha": _without_series(itk.read),
    ".mhd": _without_series(itk.read),
    ".zip": dicom.read_zip,
    ".dcm": dicom.read_file,
    "dicomdir": dicom.read_dicomdir,
}
"""From a file name's ending, in lower case, to its reader; a folder has its own."""


def read_scan(path: Path | str, options: ReadOptions | None = None) -> Volume:
    """Reads a CT scan: NIfTI, NRRD, MetaImage, a folder or zip with DICOM, a DICOMDIR, or an enhanced DICOM file.

    Voxels stay int16 where that holds every value exactly and become float32 otherwise. ``Volume.notes`` says what
    was repaired or chosen or looks wrong, ``Volume.sha256`` is of the file, or, for DICOM, of the slices' sorted
    hashes. Of several DICOM series the rules of :mod:`runtime.readers.dicom_choice` choose one.

    Args:
        path: of the file or folder.
        options: which series, and what to put up with.

    Raises:
        InputError: the path, the file or its values cannot be used.
        GeometryError: the scan's geometry cannot be used.
    """
    path, options = Path(path), options or ReadOptions()
    with _errors_of_reading(path):
        read: Reader = dicom.read_folder if path.is_dir() else _reader_of(path)
        return read(path, scan_name(path), options)


def list_series(path: Path | str, options: ReadOptions | None = None) -> dicom.SeriesList:
    """The CT series in a folder, zip, DICOMDIR or DICOM file, and which :func:`read_scan` would choose, and why.

    Raises:
        InputError: there is no such path, or it can't be read or is of another format.
    """
    path, options = Path(path), options or ReadOptions()
    with _errors_of_reading(path):
        readers = (dicom.read_zip, dicom.read_file, dicom.read_dicomdir)
        if not path.is_dir() and _reader_of(path) not in readers:
            raise InputError(f"{path.name} is no DICOM, so there are no series in it. Give a DICOM folder or zip.")
        return dicom.list_series(path, scan_name(path), options)


@contextmanager
def _errors_of_reading(path: Path) -> Iterator[None]:
    """Says what the system refused in words a user can act on."""
    try:
        yield
    except PermissionError as error:
        raise InputError(
            f"No permission to read {error.filename or path}; give this user read access or choose another file."
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"There is no file or folder {error.filename or path}; check the path.") from error
    except OSError as error:
        raise InputError(
            f"{path} can't be read ({error.strerror or error}); check the disk or copy the file again."
        ) from error
    except MemoryError as error:
        raise OutOfMemoryError(
            f"The scan {path} does not fit in memory; use a machine with more memory or cut the scan."
        ) from error


def scan_name(path: Path) -> str:
    """What a scan is called: the file's name without its ending, or the folder's name.

    Characters that can't be shown (line breaks, what steers terminals, bytes that are no UTF-8) become underscores: the
    name goes into tables, pictures and JSON.
    """
    name = path.resolve().name if is_folder(path) else path.name[: len(path.name) - len(_ending(path))]
    if not name and _ending(path) == "dicomdir":
        name = path.resolve().parent.name
    return "".join(c if c.isprintable() else "_" for c in name) or "scan"


def may_be_dicom(path: Path) -> bool:
    """Whether a path's name and kind allow that it holds a DICOM series."""
    return is_folder(path) or _ending(path) not in (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def _ending(path: Path) -> str:
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), "")


def _reader_of(path: Path) -> Reader:
    if not path.exists():
        raise InputError(f"There is no file or folder {path}; check the path.")
    if not path.is_file():
        raise InputError(f"{path} is a device or a pipe, not a file; copy the scan into a file first.")
    ending = _ending(path)
    if not ending and _has_dicom_mark(path):
        return dicom.read_file
    if not ending:
        met = f"its name ends with {path.suffix!r}" if path.suffix else "its name has no ending"
        raise InputError(
            f"{path.name} is of an unknown kind: {met}. "
            f"Give a file ending with {', '.join(READERS)}, or a folder with a DICOM series."
        )
    return READERS[ending]


def _has_dicom_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return is_marked(file.read(MARKED_BYTES))
