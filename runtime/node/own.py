"""Objects that this software made: how they are known when they come back, and how they are read to be sent."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from runtime.errors import InputError
from runtime.readers.dicom_damage import damage

MANUFACTURER = "vertscan"


def is_own(header: Dataset) -> bool:
    """Whether an object was made by this software, on this node or another one."""
    return str(header.get("Manufacturer", "")).strip().casefold() == MANUFACTURER


def read_result(path: Path) -> Dataset:
    """A result as it lies in the data folder.

    Raises:
        InputError: the file can't be read.
    """
    failures: tuple[type[Exception], ...] = (OSError, *damage())
    try:
        return dcmread(path)
    except failures as error:
        raise InputError(f"the result {path.name} can't be read ({type(error).__name__}); have it made anew") from error
