"""Small CT studies as DICOM files, with patient data whose every word can be looked for in logs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

NAME, PATIENT_ID, ACCESSION = "Zwetschkenbaum^Leopoldine", "PID-47110815", "ACC-90210777"
PATIENT_WORDS = ("Zwetschkenbaum", "Leopoldine", PATIENT_ID, ACCESSION)


@dataclass(frozen=True)
class StudyFiles:
    """A study's files, slice by slice, and its UID."""

    uid: str
    series_uid: str
    files: tuple[Path, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """What must not be in any log."""
        return (*PATIENT_WORDS, self.uid, self.series_uid)


def make_study(
    folder: Path, *, slices: int = 6, study_uid: str = "", series_uid: str = "", size: int = 16, first: int = 0
) -> StudyFiles:
    """Write one axial CT series; ``first`` is the number of its first slice."""
    folder.mkdir(parents=True, exist_ok=True)
    study_uid, series_uid = study_uid or generate_uid(None), series_uid or generate_uid(None)
    files = []
    for z in range(first, first + slices):
        path = folder / f"{series_uid[-6:]}-{z:04d}.dcm"
        ct_slice(study_uid, series_uid, z, size=size).save_as(path, enforce_file_format=True)
        files.append(path)
    return StudyFiles(study_uid, series_uid, tuple(files))


def ct_slice(study_uid: str, series_uid: str, z: int, *, size: int = 16) -> Dataset:
    """One slice; its UID follows from its series and number, so that making it again makes the same image."""
    image = _image(study_uid, series_uid, generate_uid(entropy_srcs=[series_uid, str(z)]), CTImageStorage)
    image.Modality, image.Manufacturer = "CT", "Scanner works"
    image.InstanceNumber, image.ImageType = z + 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.FrameOfReferenceUID = generate_uid(entropy_srcs=[study_uid, "frame"])
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 2.0 * z], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness = [2, 2], 2
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.Rows = image.Columns = size
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    pixels = np.arange(size * size, dtype=np.uint16).reshape(size, size) + z
    image.PixelData = pixels.tobytes()
    return image


def capture(study_uid: str, sop_uid: str, *, manufacturer: str) -> Dataset:
    """A small secondary capture, such as results hold."""
    series_uid = generate_uid(entropy_srcs=[sop_uid, "series"])
    image = _image(study_uid, series_uid, sop_uid, SecondaryCaptureImageStorage)
    image.Modality, image.Manufacturer, image.ConversionType = "OT", manufacturer, "WSD"
    image.Rows = image.Columns = 8
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.PixelData = bytes(64)
    return image


def _image(study_uid: str, series_uid: str, sop_uid: str, sop_class: UID) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = sop_class
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = sop_uid
    image.StudyInstanceUID, image.SeriesInstanceUID = study_uid, series_uid
    image.PatientName, image.PatientID, image.AccessionNumber = NAME, PATIENT_ID, ACCESSION
    image.PatientBirthDate, image.PatientSex, image.StudyID, image.SeriesNumber = "19501231", "F", "1", 1
    image.StudyDate, image.StudyTime, image.ReferringPhysicianName = f"{date.today():%Y%m%d}", "120000", ""
    return image
