"""What the geometry of a CT series needs to know about each of its frames, from DICOM headers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runtime.errors import GeometryError, InputError

CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image Storage",
}
_HU_TYPES = ("HU", "US", "")
"""Rescale types that may be Hounsfield units; US is "unspecified", which scanners write for CT too."""
_LARGEST_SLICE = 4096**2
"""Pixels; scanners write up to 2048 x 2048. A damaged header may claim any number."""
_FARTHEST_MM = 1e5
"""From the origin of the patient's frame."""

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Frame:
    """One slice of a CT series.

    Args:
        source: name of the file that holds it.
        index: its place in that file; 0 in a file of one slice.
        position_lps_mm: centre of its first voxel.
        row_lps, column_lps: unit vectors along which the column index and the row index grow.
        spacing_mm: between rows, then between columns (as DICOM orders them).
        rows, columns: its size.
        slope, intercept: from stored values to HU.
        padding: smallest and largest stored value that means "outside the scan", or None.
        frame_of_reference: UID.
        rescaled: whether the header gave slope and intercept.
        acquisition: what else sets frames of one series apart: acquisition number and, of enhanced files, the stack and
            the time point.
        thickness_mm: nominal, or None.
    """

    source: str
    index: int
    position_lps_mm: Vector
    row_lps: Vector
    column_lps: Vector
    spacing_mm: Vector
    rows: int
    columns: int
    slope: float
    intercept: float
    padding: tuple[float, float] | None
    frame_of_reference: str
    rescaled: bool
    acquisition: str
    thickness_mm: float | None


def frames_of(dataset: Any, source: str) -> list[Frame]:
    """The frames of one CT file, in its own order.

    Raises:
        InputError: it is in colour, not in Hounsfield units, or without pixel data, or larger than any slice.
        GeometryError: position, orientation or pixel spacing are missing.
    """
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise InputError(f"{source} has no pixel data. Give the CT images themselves.")
    if int(dataset.Rows) * int(dataset.Columns) > _LARGEST_SLICE:
        raise InputError(f"{source} claims slices of {dataset.Rows}x{dataset.Columns} pixels. Export it again.")
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if int(dataset.get("SamplesPerPixel", 1)) != 1 or photometric != "MONOCHROME2":
        raise InputError(f"{source} is a {photometric or 'colour'} image. Give the CT series itself, MONOCHROME2.")
    if dataset.get("ModalityLUTSequence"):
        raise InputError(f"{source} has a modality LUT instead of slope and intercept. Export it in Hounsfield units.")
    return [_frame(dataset, groups, source, index) for index, groups in enumerate(_groups(dataset, source))]


def _groups(dataset: Any, source: str) -> Iterator[tuple[Any, ...]]:
    """For each frame, where its attributes may be: its own functional groups, the shared ones, the file itself."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if not per_frame:
        yield (dataset,)
        return
    if int(dataset.get("NumberOfFrames") or 0) != len(per_frame):
        raise GeometryError(
            f"{source} has {dataset.get('NumberOfFrames')} frames and tells where {len(per_frame)} lie. Export the "
            "series again."
        )
    shared = tuple(dataset.get("SharedFunctionalGroupsSequence") or ())
    for groups in per_frame:
        yield (groups, *shared, dataset)


def _frame(dataset: Any, groups: tuple[Any, ...], source: str, index: int) -> Frame:
    orientation = _vector(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6, source)
    rescale = [_find(groups, "PixelValueTransformationSequence", key) for key in ("RescaleSlope", "RescaleIntercept")]
    unit = str(_find(groups, "PixelValueTransformationSequence", "RescaleType") or "")
    if unit not in _HU_TYPES:
        raise InputError(f"{source} holds values of type {unit!r}, not Hounsfield units. Give the CT series itself.")
    slope, intercept = (
        float(default if value is None else value) for value, default in zip(rescale, (1, 0), strict=True)
    )
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope > 0):
        raise InputError(f"{source} has the rescale slope {slope} and intercept {intercept}. Export the series again.")
    position = _vector(groups, "PlanePositionSequence", "ImagePositionPatient", 3, source)
    if max(abs(number) for number in position) > _FARTHEST_MM:
        raise GeometryError(f"{source} lies at {position} mm, which is no place in a scanner. Export the series again.")
    thickness = _find(groups, "PixelMeasuresSequence", "SliceThickness")
    return Frame(
        source=source,
        index=index,
        position_lps_mm=position,
        row_lps=orientation[:3],
        column_lps=orientation[3:],
        spacing_mm=_vector(groups, "PixelMeasuresSequence", "PixelSpacing", 2, source),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        slope=slope,
        intercept=intercept,
        padding=_padding(dataset),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID", "")),
        rescaled=None not in rescale,
        acquisition=_acquisition(groups),
        thickness_mm=float(thickness) if _is_number(thickness) and float(thickness) > 0 else None,
    )


def _acquisition(groups: tuple[Any, ...]) -> str:
    keys = ("FrameAcquisitionNumber", "StackID", "TemporalPositionIndex")
    values = [_find(groups, "FrameContentSequence", key) for key in keys]
    if values[0] is None:
        values[0] = _find(groups, "FrameContentSequence", "AcquisitionNumber")
    return "/".join("" if value is None else str(value) for value in values).rstrip("/")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _find(groups: tuple[Any, ...], sequence: str, key: str) -> Any:
    for group in groups:
        items = group.get(sequence)
        holder = items[0] if items else group
        if holder.get(key) is not None:
            return holder.get(key)
    return None


def _vector(groups: tuple[Any, ...], sequence: str, key: str, length: int, source: str) -> Vector:
    value = _find(groups, sequence, key)
    if value is None or isinstance(value, (str, float)) or len(value) != length:
        raise GeometryError(
            f"{source} does not say where it lies: its {key} is {'missing' if value is None else value}. "
            "Export the CT series with its geometry."
        )
    numbers = tuple(float(number) for number in value)
    if not all(math.isfinite(number) for number in numbers):
        raise GeometryError(f"{source} does not say where it lies: its {key} is {value}. Export the CT series again.")
    return numbers


def _padding(dataset: Any) -> tuple[float, float] | None:
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [_as_stored(dataset, number) for number in (value, value if limit is None else limit)]
    return min(ends), max(ends)


def _as_stored(dataset: Any, value: Any) -> float:
    """A padding value as the stored pixels have it: files often give it with the wrong sign convention."""
    number, bits = int(value), int(dataset.get("BitsAllocated", 16))
    if int(dataset.get("PixelRepresentation", 0)) == 1 and number >= 2 ** (bits - 1):
        return number - 2**bits
    if int(dataset.get("PixelRepresentation", 0)) == 0 and number < 0:
        return number + 2**bits
    return number
