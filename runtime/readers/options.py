"""What a user may ask of the readers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """How a scan is to be read.

    Args:
        series_uid: Series Instance UID of the DICOM series to read; None lets the rules choose.
        accept_gaps: read a DICOM series though slices are missing, damaged or there twice, where that can be made
            right: gaps are filled by interpolation (wide ones with air), copies are left out. It is always said.
    """

    series_uid: str | None = None
    accept_gaps: bool = False
