"""A series that nobody was scanned for, and objects about it: so that the first real study is as quick as the next.

The library reads the tables of the standard when it makes its first object, the reader and the fonts are loaded and the
picture's kernel compiled when they are first used; together that takes about a second.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from runtime.dicom.uids import derived_uid
from runtime.dicom.writer import write_dicom
from runtime.engines.base import EngineInfo
from runtime.findings import COMBINED, BundleInfo, Findings, Heights, Measured, NetworkOpinion, ScanInfo, Vertebra
from runtime.heights import HeightEnds
from runtime.pipeline import Analysis
from runtime.readers import read_scan
from runtime.scout import WindowCount
from runtime.volume import Volume

_SLICES, _EDGE = 4, 16
_HEIGHTS = Heights(20.0, 19.0, 22.0)
_PROBABILITIES = (0.1, 0.6, 0.2, 0.1)


def rehearse(kinds: Sequence[str]) -> None:
    """Read a tiny invented series and write the objects of these kinds about an invented vertebra; none of it is kept.

    Raises:
        OSError: there is no room for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="vertscan-") as scratch:
        folder = Path(scratch) / "series"
        folder.mkdir()
        for number in range(_SLICES):
            _image(number).save_as(folder / f"{number}.dcm", enforce_file_format=True)
        write_dicom(_analysis(read_scan(folder)), Path(scratch), kinds)


def _image(number: int) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID, image.Modality = CTImageStorage, _uid(f"image {number}"), "CT"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = map(_uid, ("study", "series", "frame"))
    image.SeriesNumber, image.InstanceNumber = 1, number + 1
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 5 * number], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness = [5, 5], 5
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.Rows = image.Columns = _EDGE
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.PixelData = np.linspace(0, 1500, _EDGE**2).astype(np.uint16).tobytes()
    return image


def _uid(name: str) -> str:
    return derived_uid("rehearsal", name)


def _analysis(volume: Volume) -> Analysis:
    """What an analysis gives, with one vertebra of which everything is said."""
    grid = volume.grid
    vertebra = Vertebra(
        index=1, level="L1", level_confidence=0.9, centre_ras_mm=(-40.0, -40.0, 7.5), confidence=0.9, complete=True,
        grade=1, grade_probabilities=_PROBABILITIES, grade_from=COMBINED, grades_differ=False, no_grade_reason=None,
        shape="wedge", heights_mm=_HEIGHTS, expected_heights_mm=_HEIGHTS, height_loss=0.2,
        network=NetworkOpinion(1, _PROBABILITIES, _HEIGHTS, 0.2), measured=Measured(1, 0.2, _HEIGHTS),
        volume_ml=30.0, mean_hu=200.0, trabecular_hu=120.0, mask_label=1,
    )  # fmt: skip
    findings = Findings(
        scan=ScanInfo("rehearsal", "", grid.shape_zyx, grid.spacing_xyz_mm, grid.orientation),
        bundle=BundleInfo("rehearsal", "0", "0" * 64),
        engine=EngineInfo("none", "0", "fp32", "CPU", ""),
        timings_s={},
        peak_memory_mb=0.0,
        warnings=("This is a rehearsal.",),
        vertebrae=(vertebra,),
    )
    labels = np.zeros(grid.shape_zyx, np.uint8)
    labels[1:3, 4:12, 4:12] = 1
    upright = ((0.0, 0.0, 0.0), (0.0, 0.0, 20.0))
    ends = (HeightEnds(upright, upright, upright),)
    return Analysis(findings, labels, volume, "Not for clinical use.", ends, WindowCount(1, 1, 0))
