"""Where a scan came from in DICOM: the slices as they were received, which is what results must refer to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

    from runtime.volume import Float64, Volume


@dataclass(frozen=True, eq=False)
class DicomSource:
    """The series that a volume was read from; everything per slice is in slice order, along the slice normal.

    Slice k lies on the volume's plane ``planes[k]``: k itself, unless the series was repaired (uneven steps, accepted
    gaps), when the volume has planes of its own. The normal is ``row x column`` of ``orientation``. Rows and columns
    are the volume's always.

    Args:
        series_uid: Series Instance UID.
        study_uid: Study Instance UID.
        frame_of_reference_uid: or ``""``.
        files: of each slice; an enhanced file comes once per slice. Members of a zip are named as if it were a folder.
        sop_instance_uids: of each slice's file.
        frame_numbers: of each slice in its file, from 1; 1 for files of one slice.
        positions_lps_mm: (n, 3) float64, centre of each slice's first voxel (Image Position, Patient).
        orientation: Image Orientation (Patient): the row's direction, then the column's, unit vectors in LPS.
        pixel_spacing_mm: between rows, then between columns.
        thickness_mm: of the slices, as the headers state it: the median; None where none does, or it can't be.
        rows: of every slice.
        columns: of every slice.
        planes: (n,) float64, index along z of the volume's grid at which each slice lies.
        datasets: the headers without pixels, one per file, in the order of their first slice; never change them.
    """

    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    files: tuple[Path, ...]
    sop_instance_uids: tuple[str, ...]
    frame_numbers: tuple[int, ...]
    positions_lps_mm: Float64
    orientation: tuple[float, ...]
    pixel_spacing_mm: tuple[float, float]
    thickness_mm: float | None
    rows: int
    columns: int
    planes: Float64
    datasets: tuple[Dataset, ...]

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return len(self.files)

    @property
    def is_multiframe(self) -> bool:
        """Whether files hold several slices (enhanced CT), so that there are fewer headers than slices."""
        return len(self.datasets) != len(self.files)

    def headers(self) -> list[Dataset]:
        """The headers without pixels in slice order; an enhanced file's once. Copy one before changing it."""
        return list(self.datasets)


def labels_on_source(labels: np.ndarray, volume: Volume) -> np.ndarray:
    """Labels on a volume's grid, brought onto the slices as they were received.

    Every slice takes the volume's nearest plane: at most half a plane's distance away, and exactly its own where
    nothing was repaired.

    Args:
        labels: (z, y, x) of any type, on ``volume.grid``.
        volume: read from DICOM.

    Returns:
        (slices, rows, columns) of the same type, in the order of ``volume.source``; a view where that is the same.

    Raises:
        InputError: the volume was not read from DICOM, or the labels are not on its grid.
    """
    source = volume.source
    if source is None:
        raise InputError(f"{volume.name} was not read from DICOM, so there are no slices to bring labels onto.")
    if tuple(labels.shape) != volume.grid.shape_zyx:
        raise InputError(f"The labels' shape {labels.shape} does not match the grid {volume.grid.shape_zyx}.")
    nearest = np.clip(np.rint(source.planes).astype(np.int64), 0, len(labels) - 1)
    if np.array_equal(nearest, np.arange(len(labels))):
        return labels
    brought: np.ndarray = labels[nearest]
    return brought
