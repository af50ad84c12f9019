"""The frames of a segmentation: for each vertebra the slices that it is on, packed bits with what says where they lie.

The library's own way to them looks at every slice once per segment and asks of every image what kind it is, which takes
a second for a spine. So it is given one pixel per segment on one image that stands for all, and the frames of the
result are replaced by those that are made here. A test compares them with the library's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from highdicom.seg import Segmentation
from highdicom.spatial import VOLUME_INDEX_CONVENTION, get_normal_vector, get_volume_positions
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import format_number_as_ds

from runtime.dicom.codes import concept
from runtime.dicom.source import SourceImages
from runtime.volume import Float64

_AT_ONCE = 8
"""Frames that are packed together: so many always fill whole bytes."""
_FRAME_CONTENT, _INDICES = 0x0020_9111, 0x0020_9157
_PLANE_POSITION, _DERIVATION = 0x0020_9113, 0x0008_9124
_SEGMENT, _SEGMENT_NUMBER = 0x0062_000A, 0x0062_000B
"""Tags by number: by keyword they are looked up anew for each frame."""


@dataclass(frozen=True, eq=False)
class _Plane:
    """A slice that labels are on: its index in the source, the labels, and what all frames on it say of it."""

    index: int
    numbers: frozenset[int]
    position: DataElement
    derivation: DataElement


def stand_in(images: SourceImages, segments: int) -> tuple[list[Dataset], npt.NDArray[np.uint8]]:
    """One image of one row that stands for all, and (1, 1, segments) uint8 labels on it: a pixel of each segment."""
    header = images.stand_in()
    header.Rows, header.Columns = 1, segments
    return [header], np.arange(1, segments + 1, dtype=np.uint8)[None, None]


def put_frames(result: Segmentation, images: SourceImages) -> None:
    """Put the labels of all images into a binary segmentation that was made of the ``stand_in``.

    Frames are ordered by segment, then by place along the normal; those without a pixel are left out.

    Raises:
        ValueError: there are not as many images as slices with labels, or a label has no segment.
    """
    orientation = result.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    positions = np.array(images.positions(), np.float64)
    if len(positions) != len(images.labels):
        raise ValueError(f"{len(positions)} images have {len(images.labels)} slices of labels.")
    planes = list(_planes(images, positions, orientation))
    unnamed = set().union(*(plane.numbers for plane in planes)) - {s.SegmentNumber for s in result.SegmentSequence}
    if unnamed:
        raise ValueError(f"Labels {sorted(unnamed)} have no segment.")
    several = len(result.SegmentSequence) > 1
    frames, places = [], []
    for order, segment in enumerate(result.SegmentSequence, start=1):
        number = int(segment.SegmentNumber)
        item = Dataset()
        item.add(DataElement(_SEGMENT_NUMBER, "US", number))
        identification = DataElement(_SEGMENT, "SQ", [item])
        for place, plane in enumerate(planes, start=1):
            if number in plane.numbers:
                frames.append(_groups(plane, (order, place), identification if several else None))
                places.append((plane.index, number))
    result.Rows, result.Columns = images.labels.shape[1:]
    result.NumberOfFrames = len(frames)
    result.PerFrameFunctionalGroupsSequence = frames
    result.PixelData = b"".join(_packed(images.labels, places))
    _put_references(result, images)
    _put_spacing(result, images, positions, orientation)
    labelled = positions[sorted(plane.index for plane in planes)]
    if not several and len(planes) > 1 and _spacing(labelled, orientation, sort=False):
        result.DimensionOrganizationType = "3D"


def _planes(images: SourceImages, positions: Float64, orientation: Sequence[float]) -> Iterator[_Plane]:
    """The slices that labels are on, along the normal as the library has it."""
    normal = get_normal_vector(orientation, index_convention=VOLUME_INDEX_CONVENTION)
    purpose = concept(codes.cid7202.SourceImageForImageProcessingOperation)
    derivation = concept(codes.cid7203.SegmentationImageDerivation)
    for index in np.argsort(positions @ normal, kind="stable").tolist():
        numbers = _numbers_on(images.labels[index])
        if numbers:
            source = images.reference_to(index)
            source.PurposeOfReferenceCodeSequence = [purpose]
            source.SpatialLocationsPreserved = "YES"
            item = Dataset()
            item.DerivationCodeSequence, item.SourceImageSequence = [derivation], [source]
            position = DataElement(_PLANE_POSITION, "SQ", images.plane_position(index))
            yield _Plane(index, numbers, position, DataElement(_DERIVATION, "SQ", [item]))


def _numbers_on(plane: npt.NDArray[np.uint8]) -> frozenset[int]:
    """The labels on a slice but 0; only the rows that hold any are looked at closely."""
    rows = np.flatnonzero(plane.max(axis=1))
    if not len(rows):
        return frozenset()
    counts = np.bincount(plane[rows[0] : rows[-1] + 1].ravel())
    return frozenset(np.flatnonzero(counts).tolist()) - {0}


def _groups(plane: _Plane, indices: tuple[int, int], identification: DataElement | None) -> Dataset:
    """The functional groups of one frame; of a single segment the shared ones say which it is."""
    content, groups = Dataset(), Dataset()
    content.add(DataElement(_INDICES, "UL", list(indices)))
    groups.add(DataElement(_FRAME_CONTENT, "SQ", [content]))
    groups.add(plane.position)
    groups.add(plane.derivation)
    if identification is not None:
        groups.add(identification)
    return groups


def _packed(labels: npt.NDArray[np.uint8], places: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The bits of frames, each of a slice (its index) and a label: one after the other, first pixel in the lowest."""
    for first in range(0, len(places), _AT_ONCE):
        some = np.stack([labels[index] == number for index, number in places[first : first + _AT_ONCE]])
        yield np.packbits(some.ravel(), bitorder="little").tobytes()


def _put_references(result: Segmentation, images: SourceImages) -> None:
    series, references = Dataset(), list(images.references)
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = images.first.SeriesInstanceUID, references
    result.SourceImageSequence, result.ReferencedSeriesSequence = references, [series]


def _put_spacing(result: Segmentation, images: SourceImages, positions: Float64, orientation: Sequence[float]) -> None:
    """The distance of the slices where the source does not tell it and they are evenly spaced for the library."""
    if images.even_steps:
        return
    measures = result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    spacing_mm = _spacing(positions, orientation, sort=True)
    if spacing_mm is None:
        del measures.SpacingBetweenSlices
    else:
        measures.SpacingBetweenSlices = format_number_as_ds(spacing_mm)


def _spacing(positions: Float64, orientation: Sequence[float], *, sort: bool) -> float | None:
    spacing_mm, _ = get_volume_positions(positions.tolist(), orientation, sort=sort)
    return None if spacing_mm is None else float(spacing_mm)
