"""DICOM series for tests, written by pydicom."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SERIES = generate_uid(entropy_srcs=["series"])
STEP_MM = 2.0


def slice_dataset(stored: np.ndarray, position, **attributes) -> Dataset:
    """One CT slice, 0.7 mm between rows and 0.5 mm between columns."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.Modality = CT, "CT"
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.SeriesNumber = SERIES, 4
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = list(position)
    dataset.PixelSpacing = [0.7, 0.5]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    for key, value in attributes.items():
        setattr(dataset, key, value)
    return dataset


def stored_values(count=5, rows=6, columns=8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2500, (count, rows, columns)).astype(np.uint16)


def save(dataset: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder: Path, change: Callable[[int, Dataset], None] | None = None, *, count=5) -> np.ndarray:
    """Writes slices under names that are out of order; ``change`` may alter each. Returns the stored values."""
    stored = stored_values(count)
    for k in range(count):
        dataset = slice_dataset(stored[k], [10, 20, -100 + STEP_MM * k], InstanceNumber=count - k)
        if change is not None:
            change(k, dataset)
        save(dataset, folder / f"{(7 * k) % 11:02d}.dcm")
    return stored


def enhanced(stored: np.ndarray) -> Dataset:
    """An enhanced multiframe CT whose frames are stored from the last position to the first."""
    dataset = slice_dataset(stored[::-1].copy(), [0, 0, 0], SOPClassUID=ENHANCED_CT, NumberOfFrames=len(stored))
    for key in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, key)

    def item(**attributes) -> Sequence:
        holder = Dataset()
        for key, value in attributes.items():
            setattr(holder, key, value)
        return Sequence([holder])

    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.7, 0.5])
    shared.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    frames = []
    for k in reversed(range(len(stored))):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[10, 20, -100 + STEP_MM * k])
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return dataset


def with_element(data: bytes, tag: int, value: bytes | None) -> bytes:
    """The bytes of an explicit little endian file in which one element is replaced or, for None, missing.

    No library looks at the value. Nothing is changed where the element isn't there.
    """
    wanted, at = struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132
    while at < len(data):
        is_long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        start = at + (12 if is_long else 8)
        end = start + struct.unpack_from("<I" if is_long else "<H", data, start - (4 if is_long else 2))[0]
        if data[at : at + 4] == wanted:
            if value is None:
                return data[:at] + data[end:]
            fresh = value + b" " * (len(value) % 2)
            return data[: start - 2] + struct.pack("<H", len(fresh)) + fresh + data[end:]
        at = end
    return data
