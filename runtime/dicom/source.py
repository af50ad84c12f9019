"""The images that a scan was read from, with the labels on their own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DS

from runtime.dicom.headers import reference, text_of, without_identity
from runtime.errors import InputError
from runtime.readers.dicom_source import DicomSource, labels_on_source
from runtime.volume import Volume


@dataclass(frozen=True, eq=False)
class SourceImages:
    """The images that a scan was read from.

    Args:
        headers: one per file, without pixel data: single slices in the order of ``labels``, or one multiframe image.
        labels: (frames, rows, columns) uint8 on the images' own pixels, 0 or a vertebra's ``mask_label``; of a
            multiframe image in the order of its frames.
        orientation: direction of a row, then of a column, LPS.
        spacing_mm: between rows, then between columns.
        step_mm: median distance of neighbouring slices along their normal.
        even_steps: whether all slices are that far apart.
        thickness_mm: of the slices as the files give it, or 0.
        frame_of_reference: UID, or ``""``.
    """

    headers: tuple[Dataset, ...]
    labels: npt.NDArray[np.uint8]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, float]
    step_mm: float
    even_steps: bool
    thickness_mm: float
    frame_of_reference: str

    @property
    def first(self) -> Dataset:
        """The header that study and patient are taken from."""
        return self.headers[0]

    @cached_property
    def references(self) -> tuple[Dataset, ...]:
        """A reference to each image, in the order of the headers; objects share them, so never change one."""
        return tuple(reference(header) for header in self.headers)

    def shown(self) -> list[Dataset]:
        """The headers as the library needs them: without identity, with all geometry that it asks for."""
        shown = [without_identity(header) for header in self.headers]
        measures = self._measures()
        if not self._is_multiframe:
            for header in shown:
                header.update(measures)
            return shown
        orientation = Dataset()
        orientation.ImageOrientationPatient = self._orientation()
        common = Dataset()
        common.PixelMeasuresSequence, common.PlaneOrientationSequence = [measures], [orientation]
        shown[0].SharedFunctionalGroupsSequence = [common]
        shown[0].PerFrameFunctionalGroupsSequence = [_place(groups) for groups in self._frame_groups()]
        return shown

    def stand_in(self) -> Dataset:
        """One header of a single slice, as the library needs it, that lies as all of them do."""
        header = without_identity(self.first)
        header.update(self._measures())
        if self._is_multiframe:
            header.SOPClassUID = CTImageStorage
            header.ImageOrientationPatient = self._orientation()
            header.ImagePositionPatient = self.positions()[0]
            header.pop("NumberOfFrames", None)
        return header

    def positions(self) -> list[Sequence[float]]:
        """Of each slice in the order of ``labels``: Image Position (Patient), LPS mm, as its header gives it."""
        holders = [groups.PlanePositionSequence[0] for groups in self._frame_groups()]
        return [holder.ImagePositionPatient for holder in (holders if self._is_multiframe else self.headers)]

    def plane_position(self, index: int) -> Sequence[Dataset]:
        """The Plane Position Sequence of a slice."""
        if self._is_multiframe:
            sequence: Sequence[Dataset] = self._frame_groups()[index].PlanePositionSequence
            return sequence
        place = Dataset()
        place.ImagePositionPatient = [DS(mm, auto_format=True) for mm in self.headers[index].ImagePositionPatient]
        return [place]

    def reference_to(self, index: int) -> Dataset:
        """A reference to the image that holds a slice, and to its frame where it holds several."""
        item = reference(self.first if self._is_multiframe else self.headers[index])
        if self._is_multiframe:
            item.ReferencedFrameNumber = index + 1
        return item

    @property
    def _is_multiframe(self) -> bool:
        return "PerFrameFunctionalGroupsSequence" in self.first

    def _measures(self) -> Dataset:
        measures = Dataset()
        measures.PixelSpacing = [DS(mm, auto_format=True) for mm in self.spacing_mm]
        measures.SliceThickness = DS(self.thickness_mm or self.step_mm, auto_format=True)
        if self.even_steps:
            measures.SpacingBetweenSlices = DS(self.step_mm, auto_format=True)
        return measures

    def _orientation(self) -> list[object]:
        return [DS(part, auto_format=True) for part in self.orientation]

    def _frame_groups(self) -> Sequence[Dataset]:
        groups: Sequence[Dataset] = self.first.get("PerFrameFunctionalGroupsSequence", ())
        return groups

    @property
    def frame_of_reference_uid(self) -> str:
        """Of the images. Raises InputError where they have none: coordinates would have no meaning."""
        if not self.frame_of_reference:
            raise InputError(
                "The series has no Frame of Reference UID, without which masks and coordinates can't be put on it; "
                "leave seg and sr out, or export the series again."
            )
        return self.frame_of_reference


def source_images(volume: Volume, labels: npt.NDArray[np.uint8]) -> SourceImages:
    """The images of a volume that was read from DICOM.

    Args:
        volume: the scan.
        labels: (z, y, x) uint8 on its grid.

    Raises:
        InputError: the volume was not read from DICOM, or from several enhanced or multiframe files.
    """
    source = require_source(volume)
    headers = tuple(source.headers())
    enhanced = any("PerFrameFunctionalGroupsSequence" in header for header in headers)
    if len(headers) > 1 and (enhanced or source.is_multiframe):
        raise InputError(
            f"The series comes in {len(headers)} enhanced or multiframe files; DICOM results can be written for one "
            "enhanced file or for classic single slices. Convert the series, or leave --output out."
        )
    brought = labels_on_source(labels, volume)
    if source.is_multiframe:
        brought = _in_frame_order(brought, source)
    step_mm, even = _step(source)
    return SourceImages(
        headers=headers,
        labels=np.ascontiguousarray(brought),
        orientation=source.orientation,
        spacing_mm=source.pixel_spacing_mm,
        step_mm=step_mm,
        even_steps=even,
        thickness_mm=_thickness_mm(headers[0]),
        frame_of_reference=source.frame_of_reference_uid,
    )


def require_source(volume: Volume) -> DicomSource:
    """Where the volume came from. Raises InputError when that is not DICOM: results would refer to nothing."""
    if volume.source is None:
        raise InputError(
            f"{volume.name} was not read from DICOM, so DICOM results (--output) can't refer to its images. Give the "
            "DICOM series, or leave --output out."
        )
    return volume.source


def _in_frame_order(labels: npt.NDArray[np.uint8], source: DicomSource) -> npt.NDArray[np.uint8]:
    frames = max(int(source.datasets[0].get("NumberOfFrames") or 0), *source.frame_numbers)
    ordered = np.zeros((frames, *labels.shape[1:]), labels.dtype)
    ordered[np.array(source.frame_numbers) - 1] = labels
    return ordered


def _place(groups: Dataset) -> Dataset:
    """Of a frame's functional groups the position alone."""
    place = Dataset()
    place.PlanePositionSequence = groups.PlanePositionSequence
    return place


def _step(source: DicomSource) -> tuple[float, bool]:
    """Median distance of neighbouring slices along their normal, mm, and whether all are that far apart."""
    row, column = source.orientation[:3], source.orientation[3:]
    steps = np.abs(np.diff(source.positions_lps_mm @ np.cross(row, column)))
    step = float(np.median(steps))
    return step, bool(np.abs(steps - step).max() < 0.01 * step + 0.005)


def _thickness_mm(header: Dataset) -> float:
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    measures = shared[0].get("PixelMeasuresSequence") or [header]
    try:
        return max(0.0, float(text_of(measures[0], "SliceThickness") or 0))
    except ValueError:
        return 0.0
