"""What can go wrong with a DICOM series, one function per kind: each changes a phantom's series, seeded."""

from __future__ import annotations

import copy
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from tests.runtime.dicom_files import slice_dataset, with_element

SLICES, ROWS, COLUMNS = 12, 16, 14
STEP_MM = 2.0
STUDY = generate_uid(entropy_srcs=["study"])
ROW_SPACING_MM, COLUMN_SPACING_MM = 0.7, 0.5
Generator = np.random.Generator
_GARBAGE = ("", "x", "1e999", "nan", "-1", "0", "65535", "1\\2\\3\\4\\5\\6\\7", "ORIGINAL", "\x00\xff", "9" * 40)
_ATTRIBUTES = """
SOPClassUID SOPInstanceUID Modality SeriesInstanceUID SeriesNumber FrameOfReferenceUID ImageType InstanceNumber
ImageOrientationPatient ImagePositionPatient PixelSpacing RescaleSlope RescaleIntercept RescaleType Rows Columns
SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue
NumberOfFrames AcquisitionNumber SliceThickness ConvolutionKernel SpecificCharacterSet PatientName"""


@dataclass
class Truth:
    """One slice as it really is: HU, and where it lies (LPS mm).

    ``mutated`` where its values may have changed; ``claimed`` is where its header says that it lies.
    """

    hu: np.ndarray
    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    mutated: bool = False
    claimed: np.ndarray | None = None

    def index_of(self, point: np.ndarray, *, as_claimed: bool = False) -> np.ndarray:
        """Where a point (LPS mm) lies in voxels (z, y, x) of this slice, or of where it is claimed to be."""
        position = self.claimed if as_claimed and self.claimed is not None else self.position
        offset = np.asarray(point) - position
        normal = np.cross(self.row, self.column)
        return np.array(
            [offset @ normal / STEP_MM, offset @ self.column / ROW_SPACING_MM, offset @ self.row / COLUMN_SPACING_MM]
        )


@dataclass
class Series:
    """The files of a series, as datasets until ``raw`` holds their bytes, and the truth of each slice by file name."""

    datasets: dict[str, Dataset]
    truth: dict[str, Truth]
    raw: dict[str, bytes] = field(default_factory=dict)

    def names(self) -> list[str]:
        return sorted(self.datasets)

    def some(self, rng: Generator) -> str:
        return str(rng.choice(self.names()))

    def inner(self, rng: Generator) -> str:
        """A slice between others."""
        return str(rng.choice(self.names()[1:-1]))

    def bytes_of(self, name: str) -> bytes:
        if name not in self.raw:
            buffer = io.BytesIO()
            self.datasets[name].save_as(buffer, enforce_file_format=True)
            self.raw[name] = buffer.getvalue()
        return self.raw[name]

    def write(self, folder: Path) -> None:
        for name in {*self.datasets, *self.raw}:
            (folder / name).write_bytes(self.bytes_of(name))

    def remove(self, name: str) -> None:
        del self.datasets[name], self.truth[name]


def phantom(rng: Generator) -> Series:
    """Slices of random values: no two are alike, so that a volume's planes can be told apart."""
    series = Series({}, {})
    for k in range(SLICES):
        stored = rng.integers(0, 2500, (ROWS, COLUMNS)).astype(np.uint16)
        position = np.array([10.0, 20.0, -100 + STEP_MM * k])
        dataset = slice_dataset(stored, position.tolist(), InstanceNumber=k + 1, SliceThickness=STEP_MM)
        dataset.PatientName, dataset.AcquisitionNumber, dataset.StudyInstanceUID = "Phantom", 1, STUDY
        series.datasets[f"{k:02d}.dcm"] = dataset
        row, column = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
        series.truth[f"{k:02d}.dcm"] = Truth(stored.astype(np.int16) - 1024, position, row, column)
    return series


def _shift(series: Series, name: str, by_mm: np.ndarray) -> None:
    dataset = series.datasets[name]
    moved = np.array([float(v) for v in dataset.ImagePositionPatient]) + by_mm
    dataset.ImagePositionPatient = [float(f"{v:.6f}") for v in moved]
    series.truth[name].claimed = moved


def inner_slices_missing(series: Series, rng: Generator) -> None:
    for _ in range(rng.integers(1, 4)):
        series.remove(series.inner(rng))


def end_slices_missing(series: Series, rng: Generator) -> None:
    for _ in range(rng.integers(1, 4)):
        series.remove(series.names()[-int(rng.integers(0, 2))])


def file_there_twice(series: Series, rng: Generator) -> None:
    name = series.some(rng)
    series.raw["copy.dcm"] = series.bytes_of(name)


def other_image_in_the_same_place(series: Series, rng: Generator) -> None:
    dataset = copy.deepcopy(series.datasets[series.some(rng)])
    dataset.SOPInstanceUID = generate_uid()
    dataset.PixelData = rng.integers(0, 2500, (ROWS, COLUMNS)).astype(np.uint16).tobytes()
    series.datasets["other.dcm"] = dataset


def slice_moved_along(series: Series, rng: Generator) -> None:
    _shift(series, series.some(rng), np.array([0, 0, _signed(rng, 0.02, 30)]))


def slice_moved_sideways(series: Series, rng: Generator) -> None:
    _shift(series, series.some(rng), np.array([*rng.permutation([_signed(rng, 0.02, 20), 0]), 0]))


def positions_rounded(series: Series, rng: Generator) -> None:
    for name in series.names():
        _shift(series, name, rng.uniform(-0.01, 0.01, 3))


def positions_jittered(series: Series, rng: Generator) -> None:
    reach_mm = 10 ** rng.uniform(-2, 0.5)
    for name in series.names():
        _shift(series, name, rng.uniform(-reach_mm, reach_mm, 3))


def gantry_tilted(series: Series, rng: Generator) -> None:
    angle = np.radians(_signed(rng, 0.2, 30))
    column = np.array([0, np.cos(angle), np.sin(angle)])
    for name, dataset in series.datasets.items():
        dataset.ImageOrientationPatient = [1, 0, 0, *(float(f"{v:.7f}") for v in column)]
        series.truth[name].column = column


def step_changes(series: Series, rng: Generator) -> None:
    """A scan that really was made in two steps."""
    factor, first = rng.uniform(0.3, 3.0), int(rng.integers(2, SLICES - 2))
    for k, name in enumerate(series.names()):
        by_mm = np.array([0, 0, max(k - first, 0) * STEP_MM * (factor - 1)])
        _shift(series, name, by_mm)
        series.truth[name].position = series.truth[name].position + by_mm


def turned_slice(series: Series, rng: Generator) -> None:
    angle = 10 ** rng.uniform(-5, 0)
    series.datasets[series.some(rng)].ImageOrientationPatient = [1, 0, 0, 0, np.cos(angle), np.sin(angle)]


def other_pixel_spacing(series: Series, rng: Generator) -> None:
    factor = 1 + _signed(rng, 1e-5, 1)
    series.datasets[series.some(rng)].PixelSpacing = [ROW_SPACING_MM * abs(factor), COLUMN_SPACING_MM]


def other_size(series: Series, rng: Generator) -> None:
    name = series.some(rng)
    setattr(series.datasets[name], str(rng.choice(["Rows", "Columns"])), int(rng.integers(0, 65536)))
    series.truth[name].mutated = True


def other_series_uid(series: Series, rng: Generator) -> None:
    uid = generate_uid()
    for _ in range(rng.integers(1, 7)):
        series.datasets[series.some(rng)].SeriesInstanceUID = uid


def other_frame_of_reference(series: Series, rng: Generator) -> None:
    series.datasets[series.some(rng)].FrameOfReferenceUID = generate_uid()


def acquisition_numbers(series: Series, rng: Generator) -> None:
    for name in series.names():
        series.datasets[name].AcquisitionNumber = int(rng.integers(1, 4))


def misleading_numbers(series: Series, rng: Generator) -> None:
    for name, number in zip(series.names(), rng.permutation(SLICES), strict=True):
        series.datasets[name].InstanceNumber = int(number)
        series.datasets[name].SliceLocation = float(-number)


def attribute_missing(series: Series, rng: Generator) -> None:
    _replace(series, [series.some(rng)], str(rng.choice(_ATTRIBUTES.split())), None)


def attribute_missing_everywhere(series: Series, rng: Generator) -> None:
    _replace(series, series.names(), str(rng.choice(_ATTRIBUTES.split())), None)


def attribute_garbage(series: Series, rng: Generator) -> None:
    _replace(series, [series.some(rng)], str(rng.choice(_ATTRIBUTES.split())), rng.choice(_GARBAGE))


def attribute_garbage_everywhere(series: Series, rng: Generator) -> None:
    _replace(series, series.names(), str(rng.choice(_ATTRIBUTES.split())), rng.choice(_GARBAGE))


def _replace(series: Series, names: list[str], key: str, value: str | None) -> None:
    """Puts a value that does not fit into the files' bytes, where no library refuses it, or takes the element out."""
    tag = pydicom.datadict.tag_for_keyword(key)
    for name in names:
        series.raw[name] = with_element(series.bytes_of(name), tag, None if value is None else value.encode("latin-1"))
        series.truth[name].mutated = True


def file_cut_off(series: Series, rng: Generator) -> None:
    name = series.some(rng)
    data = series.bytes_of(name)
    series.raw[name] = data[: int(rng.integers(0, len(data)))]
    series.truth[name].mutated = True


def all_files_cut_off(series: Series, rng: Generator) -> None:
    at = rng.integers(0, 1400)
    for name in series.names():
        series.raw[name] = series.bytes_of(name)[: int(at)]
        series.truth[name].mutated = True


def header_bytes_changed(series: Series, rng: Generator) -> None:
    name = series.some(rng)
    series.raw[name] = _with_noise(series.bytes_of(name), rng, 0, -2 * ROWS * COLUMNS)
    series.truth[name].mutated = True


def pixel_bytes_changed(series: Series, rng: Generator) -> None:
    name = series.some(rng)
    data = series.bytes_of(name)
    series.raw[name] = _with_noise(data, rng, len(data) - 2 * ROWS * COLUMNS - 12, len(data))
    series.truth[name].mutated = True


def run_length_bytes_changed(series: Series, rng: Generator) -> None:
    for name in series.names():
        series.datasets[name].compress(RLELossless, generate_instance_uid=False)
    name = series.some(rng)
    data = series.bytes_of(name)
    series.raw[name] = _with_noise(data, rng, data.find(b"\xe0\x7f\x10\x00"), len(data))
    series.truth[name].mutated = True


def jpeg_bytes_changed(series: Series, rng: Generator) -> None:
    import gdcm

    syntax = getattr(
        gdcm.TransferSyntax, str(rng.choice(["JPEG2000Lossless", "JPEGLosslessProcess14_1", "JPEGLSLossless"]))
    )
    for name in series.names():
        series.raw[name] = recoded(series.bytes_of(name), syntax)
    name = series.some(rng)
    data = series.raw[name]
    series.raw[name] = _with_noise(data, rng, data.find(b"\xe0\x7f\x10\x00"), len(data))
    series.truth[name].mutated = True


def recoded(data: bytes, syntax: int) -> bytes:
    import tempfile

    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dcm"
        path.write_bytes(data)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return path.read_bytes()


def wrong_transfer_syntax(series: Series, rng: Generator) -> None:
    syntaxes = (
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.5",
        "1.2.3",
        "",
    )
    name, syntax = series.some(rng), str(rng.choice(syntaxes))
    data = series.bytes_of(name)
    own = b"1.2.840.10008.1.2.1\x00"
    assert own in data
    series.raw[name] = data.replace(own, syntax.encode()[: len(own)].ljust(len(own), b"\x00"), 1)


def enhanced_bytes_changed(series: Series, rng: Generator) -> None:
    from tests.runtime.dicom_files import enhanced

    truths = [series.truth[name] for name in reversed(series.names())]
    stored = np.stack([truth.hu + 1024 for truth in reversed(truths)]).astype(np.uint16)
    single = Series({"enhanced.dcm": enhanced(stored)}, {})
    data = single.bytes_of("enhanced.dcm")
    # From the positions of the frames on: what all frames share is told once, so nothing could contradict it.
    first, end = data.find(struct.pack("<HH", 0x5200, 0x9230)), len(data) - stored.nbytes
    damaged = _with_noise(data, rng, first, end) if rng.random() < 0.8 else data[: int(rng.integers(end))]
    series.datasets, series.raw = {}, {"enhanced.dcm": damaged}
    series.truth = {f"enhanced.dcm#{number}": truth for number, truth in enumerate(truths, start=1)}


def other_files_beside(series: Series, rng: Generator) -> None:
    series.raw["DICOMDIR"] = rng.bytes(300) if rng.random() < 0.2 else b""
    if rng.random() < 0.8:
        del series.raw["DICOMDIR"]
    series.raw["notes.txt"] = rng.bytes(int(rng.integers(0, 500)))
    if rng.random() < 0.3:
        series.raw["thumb"] = b"\0" * 128 + b"DICM" + rng.bytes(int(rng.integers(0, 200)))


def _with_noise(data: bytes, rng: Generator, first: int, last: int) -> bytes:
    """Some bytes between ``first`` and ``last`` changed."""
    noisy = bytearray(data)
    places = range(len(data))[first:last]
    for place in rng.choice(places, size=int(rng.integers(1, 9))):
        noisy[place] = int(rng.integers(0, 256))
    return bytes(noisy)


def _signed(rng: Generator, low: float, high: float) -> float:
    """Evenly in the logarithm, of either sign."""
    return float(rng.choice([-1, 1]) * np.exp(rng.uniform(np.log(low), np.log(high))))


MUTATIONS: dict[str, Callable[[Series, Generator], None]] = {
    function.__name__.replace("_", " "): function
    for function in (
        inner_slices_missing,
        end_slices_missing,
        file_there_twice,
        other_image_in_the_same_place,
        slice_moved_along,
        slice_moved_sideways,
        positions_rounded,
        positions_jittered,
        gantry_tilted,
        step_changes,
        turned_slice,
        other_pixel_spacing,
        other_size,
        other_series_uid,
        other_frame_of_reference,
        acquisition_numbers,
        misleading_numbers,
        attribute_missing,
        attribute_missing_everywhere,
        attribute_garbage,
        attribute_garbage_everywhere,
        file_cut_off,
        all_files_cut_off,
        header_bytes_changed,
        pixel_bytes_changed,
        run_length_bytes_changed,
        jpeg_bytes_changed,
        wrong_transfer_syntax,
        enhanced_bytes_changed,
        other_files_beside,
    )
}
"""By name; each changes a phantom's series in place."""
