"""Scans from files: one reader per format, chosen by the path through one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runtime.errors import InputError, OutOfMemoryError
from runtime.readers import dicom, itk, nifti
from runtime.volume import Volume

READERS: dict[str, Callable[[Path, str], Volume]] = {
    ".nii.gz": nifti.read,
    ".nii": nifti.read,
    ".nrrd": itk.read,
    ".mha": itk.read,
    ".mhd": itk.read,
    ".zip": dicom.read_zip,
    ".dcm": dicom.read_file,
}
"""From a file name's ending, in lower case, to its reader (path, scan's name); a folder has its own."""


def read_scan(path: Path | str) -> Volume:
    """Reads a CT scan: NIfTI, NRRD, MetaImage, a folder or zip of one DICOM series, or an enhanced DICOM file.

    Voxels stay int16 where that holds every value exactly and become float32 otherwise. ``Volume.notes`` says what was
    repaired or chosen, ``Volume.sha256`` is of the file, or, for DICOM, of the slices' sorted hashes.

    Raises:
        InputError: the path, the file or its values cannot be used.
        GeometryError: the scan's geometry cannot be used.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return dicom.read_folder(path, scan_name(path))
        return _reader_of(path)(path, scan_name(path))
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
    name = path.resolve().name if _is_folder(path) else path.name[: len(path.name) - len(_ending(path))]
    return "".join(c if c.isprintable() else "_" for c in name) or "scan"


def may_be_dicom(path: Path) -> bool:
    """Whether a path's name and kind allow that it holds a DICOM series."""
    return _is_folder(path) or _ending(path) not in (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long: reading it will tell
        return False


def _ending(path: Path) -> str:
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), "")


def _reader_of(path: Path) -> Callable[[Path, str], Volume]:
    if not path.exists():
        raise InputError(f"There is no file or folder {path}; check the path.")
    if not path.is_file():
        raise InputError(f"{path} is a device or a pipe, not a file; copy the scan into a file first.")
    ending = _ending(path)
    if not ending:
        met = f"its name ends with {path.suffix!r}" if path.suffix else "its name has no ending"
        raise InputError(
            f"{path.name} is of an unknown kind: {met}. "
            f"Give a file ending with {', '.join(READERS)}, or a folder with a DICOM series."
        )
    return READERS[ending]
