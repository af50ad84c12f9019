"""Small CT series on disk in several geometries, and analyses of them whose findings are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from runtime.dicom.uids import derived_uid
from runtime.engines.base import EngineInfo
from runtime.findings import COMBINED, BundleInfo, Findings, Heights, Measured, NetworkOpinion, ScanInfo, Vertebra
from runtime.heights import HeightEnds
from runtime.morphometry import CERVICAL, CUT
from runtime.pipeline import Analysis
from runtime.readers import read_scan
from runtime.scout import WindowCount
from runtime.volume import Volume

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
COUNT, ROWS, COLUMNS = 14, 24, 20
NOTICE = "Trained on synthetic data. Not for clinical use."


def turned(degrees: float) -> tuple[float, ...]:
    """An axial orientation turned about the patient's left-right axis and a little about the others."""
    a, b = np.deg2rad([degrees, 7.0])
    tilt = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    axes = turn @ tilt
    return (*np.round(axes[:, 0], 9), *np.round(axes[:, 1], 9))


@dataclass(frozen=True)
class Geometry:
    """How a series lies: LPS direction of rows and columns, spacings in mm, and whether file names run backwards."""

    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    pixel_spacing_mm: tuple[float, float] = (0.8, 0.8)
    step_mm: float = 2.5
    backwards: bool = False

    def positions_lps_mm(self, count: int = COUNT) -> np.ndarray:
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return np.array([-30.0, 15.5, 200.25]) + self.step_mm * np.arange(count)[:, None] * normal


GEOMETRIES = {
    "axial": Geometry(),
    "oblique": Geometry(turned(25.0)),
    "files backwards": Geometry(backwards=True),
    "feet first": Geometry((-1, 0, 0, 0, 1, 0)),
    "sagittal": Geometry((0, 1, 0, 0, 0, -1)),
    "oblong pixels": Geometry(pixel_spacing_mm=(0.7, 0.45)),
    "all at once": Geometry(turned(-38.0), (0.9765625, 0.45), 1.25, backwards=True),
}


def slice_dataset(series: str, number: int, geometry: Geometry = GEOMETRIES["axial"]) -> Dataset:
    """A whole CT image of the series, with random voxels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.Modality = CT, "CT"
    dataset.SOPInstanceUID = derived_uid("test", series, str(number))
    dataset.SeriesInstanceUID, dataset.SeriesNumber = derived_uid("test", series), 4
    dataset.StudyInstanceUID = derived_uid("test study", series)
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = derived_uid("test frame", series), ""
    dataset.PatientName, dataset.PatientID, dataset.PatientSex = "Müller^Grete^Ida", "P-17", "F"
    dataset.PatientBirthDate, dataset.PatientAge = "19500203", "076Y"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260401", "101500", "S1"
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.StudyDescription = "", "Weiß^Anna", "Wirbelsäule"
    dataset.Manufacturer, dataset.KVP, dataset.AcquisitionNumber, dataset.InstanceNumber = "Maker", "120", 1, number + 1
    dataset.PatientPosition, dataset.BodyPartExamined = "HFS", "SPINE"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImageOrientationPatient = [float(f"{part:.12g}") for part in geometry.orientation]
    dataset.ImagePositionPatient = [float(f"{mm:.8g}") for mm in geometry.positions_lps_mm()[number]]
    dataset.PixelSpacing, dataset.SliceThickness = list(geometry.pixel_spacing_mm), geometry.step_mm
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    voxels = np.random.default_rng(number).integers(900, 1500, (ROWS, COLUMNS)).astype(np.uint16)
    set_pixels(dataset, voxels)
    return dataset


def set_pixels(dataset: Dataset, voxels: np.ndarray) -> None:
    """Put 16-bit pixels into a CT image."""
    dataset.Rows, dataset.Columns = voxels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = voxels.tobytes()


def write_series(
    folder: Path, geometry: Geometry = GEOMETRIES["axial"], change: Callable[[Dataset], None] | None = None
) -> Path:
    """A series of single slices; ``change`` may alter each. The folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        dataset = slice_dataset(folder.name, number, geometry)
        if change is not None:
            change(dataset)
        name = COUNT - 1 - number if geometry.backwards else number
        dataset.save_as(folder / f"{name:03d}.dcm", enforce_file_format=True)
    return folder


def write_enhanced(path: Path) -> Path:
    """The same as one multiframe file, whose frames run against the slices' order. The file."""
    slices = [slice_dataset(path.stem, number) for number in reversed(range(COUNT))]
    dataset = slices[0]
    dataset.SOPClassUID, dataset.NumberOfFrames = ENHANCED_CT, COUNT
    shared, frames = Dataset(), []
    measures, orientation, rescale = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [rescale]
    for one in slices:
        place, groups = Dataset(), Dataset()
        place.ImagePositionPatient = one.ImagePositionPatient
        groups.PlanePositionSequence = [place]
        frames.append(groups)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    dataset.PixelData = b"".join(one.PixelData for one in slices)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, keyword)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _vertebra(index: int, level: str | None, **fields: object) -> Vertebra:
    """A vertebra with everything said of it, but for what ``fields`` say."""
    opinion = NetworkOpinion(1, (0.2, 0.5, 0.2, 0.1), Heights(20.11, 19.5, 22.75), 0.1812)
    said: dict[str, object] = {
        "level_confidence": None if level is None else 0.875,
        "centre_ras_mm": (10.5, -20.25, 205.0),
        "confidence": 0.9375,
        "complete": True,
        "grade": 2,
        "grade_probabilities": (0.05, 0.15, 0.6, 0.2),
        "grade_from": COMBINED,
        "grades_differ": False,
        "no_grade_reason": None,
        "shape": "wedge",
        "heights_mm": Heights(18.13, 19.02, 23.4),
        "expected_heights_mm": Heights(24.9, 23.3, 25.01),
        "height_loss": 0.2719,
        "network": opinion,
        "measured": Measured(2, 0.3011, Heights(17.5, 18.75, 23.25)),
        "volume_ml": 31.625,
        "mean_hu": 181.3,
        "trabecular_hu": 120.7,
    }
    return Vertebra(index=index, level=level, mask_label=index, **{**said, **fields})


_NONE = dict.fromkeys(
    (
        *("grade", "grade_probabilities", "grade_from", "shape", "heights_mm", "expected_heights_mm"),
        *("height_loss", "network", "measured"),
    )
)


def vertebrae() -> tuple[Vertebra, ...]:
    """Six vertebrae: cervical, of a usual level, of both variants, without a level, cut."""
    return (
        _vertebra(1, "C7", **{**_NONE, "no_grade_reason": CERVICAL}, trabecular_hu=None),
        _vertebra(2, "T12", grades_differ=True, shape="crush"),
        _vertebra(3, "T13", grade=0, shape=None),
        _vertebra(4, "L1", measured=None, expected_heights_mm=None, grade_from="network"),
        _vertebra(5, None, shape="biconcave", grade=3),
        _vertebra(6, "L6", **{**_NONE, "no_grade_reason": CUT}, complete=False, mean_hu=None),
    )


def _ends(number: int, heights: Heights) -> HeightEnds:
    """Upright end points as far apart as the heights."""
    segments = [
        ((float(number), 5.0 * place, 200.5), (float(number), 5.0 * place, 200.5 + mm))
        for place, mm in enumerate((heights.anterior, heights.middle, heights.posterior))
    ]
    return HeightEnds(*segments)


def blocks(shape_zyx: tuple[int, int, int], count: int) -> np.ndarray:
    """Labels 1..count as ragged blocks, unlike any mirror image of themselves; first and last planes stay empty."""
    labels = np.zeros(shape_zyx, np.uint8)
    z, y, x = shape_zyx
    for number in range(1, count + 1):
        top = 1 + (number - 1) * (z - 2) // count
        labels[top : top + max(1, (z - 2) // count), 1 + number : y // 2 + number, 2 : x // 2 + number] = number
    return labels


def analysis_of(volume: Volume, *, notice: str = NOTICE, found: tuple[Vertebra, ...] | None = None) -> Analysis:
    """An analysis of a scan with known findings."""
    found = vertebrae() if found is None else found
    grid = volume.grid
    findings = Findings(
        scan=ScanInfo("Mueller^Grete", "0" * 64, grid.shape_zyx, grid.spacing_xyz_mm, grid.orientation),
        bundle=BundleInfo("balls", "0.0.1", "ab" * 32),
        engine=EngineInfo("openvino", "2026.1", "fp32", "CPU", "the only one"),
        timings_s={"total": 1.0},
        peak_memory_mb=100.0,
        warnings=(*((notice,) if notice else ()), "Vertebra 6: cut by the edge of the scan (Größe)."),
        vertebrae=found,
    )
    ends = tuple(None if v.measured is None else _ends(v.index, v.measured.heights_mm) for v in found)
    return Analysis(findings, blocks(grid.shape_zyx, len(found)), volume, notice, ends, WindowCount(1, 1, 0))


def analysed(folder: Path, geometry: Geometry = GEOMETRIES["axial"], **options: object) -> Analysis:
    """Write a series, read it as the software does, and pretend to have analysed it."""
    return analysis_of(read_scan(write_series(folder, geometry)), **options)
