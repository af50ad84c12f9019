"""What a user may ask of the readers, and what they tell before they read a scan's voxels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.volume import Grid


@dataclass(frozen=True)
class ScanHeader:
    """What is known of a scan before its voxels are read.

    Args:
        name: of the file or scan, for messages.
        grid: of the volume that it will become.
        stays_int16: whether every value is sure to be a whole number that int16 holds; otherwise the volume may
            become float32.
        reader_bytes: what the reader needs beside the volume while it reads, at most.
    """

    name: str
    grid: Grid
    stays_int16: bool
    reader_bytes: int


@dataclass(frozen=True)
class ReadOptions:
    """How a scan is to be read.

    Args:
        series_uid: Series Instance UID of the DICOM series to read; None lets the rules choose.
        accept_gaps: read a DICOM series though slices are missing, damaged or there twice, where that can be made
            right: gaps are filled by interpolation (wide ones with air), copies are left out. It is always said.
        on_header: called once with what the header says, before memory for the voxels is taken. It may wait; what it
            raises ends the reading.
        lowest_hu: what is below, as padding is, is raised to it; None reads every voxel as it is stored.
    """

    series_uid: str | None = None
    accept_gaps: bool = False
    on_header: Callable[[ScanHeader], None] | None = None
    lowest_hu: float | None = None
