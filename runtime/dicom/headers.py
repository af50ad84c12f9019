"""Headers of the source images, as the library that writes results needs them, and the identity that results take over.

Real files lack attributes that must be there (if only empty), and hold values that their type forbids: a birth date of
``1950-01-01``, a sex of ``U``. The library refuses both. So it is shown headers without identity, and the patient's and
the study's attributes are copied into each result afterwards as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

from highdicom.base import SOPClass
from pydicom.dataset import Dataset

_IDENTITY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"),
)
"""Attributes of type 2: they must be there, and may be empty."""
_GEOMETRY = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "Rows", "Columns", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)


@contextmanager
def tolerant_of_values() -> Iterator[None]:
    """Without pydicom's warnings on values of source files: these are taken over as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def without_identity(header: Dataset) -> Dataset:
    """What the library needs of one source image; the patient's and the study's attributes are empty in it.

    Its elements are its own: to set one of them changes nothing in the image's header.
    """
    shown = Dataset()
    for keyword in _GEOMETRY:
        if keyword in header:
            shown.add(copy(header[keyword]))
    for keyword in _IDENTITY:
        setattr(shown, keyword, None)
    if not shown.get("Modality"):
        shown.Modality = "CT"
    if shown.get("PositionReferenceIndicator") is None:
        shown.PositionReferenceIndicator = ""
    return shown


def take_identity(result: SOPClass, header: Dataset) -> None:
    """Copy the patient's and the study's attributes of a source image into a result, as they are.

    Empty ones are left out where they need not be there: many of them must have a value if they are.
    """
    copied = Dataset()
    for element in header:
        if not element.is_empty or element.keyword in _IDENTITY:
            copied.add(element)
    result.copy_patient_and_study_information(copied)
    if "SpecificCharacterSet" in copied:
        result.add(copied["SpecificCharacterSet"])


def text_of(header: Dataset, keyword: str) -> str:
    """An attribute as text, ``""`` where it is missing or empty."""
    value = header.get(keyword)
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\\".join(str(part) for part in value)
    return str(value).strip()


def reference(header: Dataset) -> Dataset:
    """A reference to one source image."""
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item
