"""Studies for ``batch``: tilt, every geometry defect, transfer syntaxes, headers as they come, and real files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, generate_uid

from tests.pacs.ball_series import HIGH_MM, LOW_MM, STEP_MM, BallSeries, as_enhanced, ball_series, put_hu, tilted
from tests.pacs.batch import Case
from tests.runtime.dicom_mutations import recoded

Change = Callable[[BallSeries], None]
MIDDLE = 18
"""A slice between others."""
UNEVEN_MM = np.concatenate([np.arange(LOW_MM, 40.0, STEP_MM), np.arange(40.6, HIGH_MM, 3.1)])


def written(series: BallSeries, folder: Path) -> Mapping[str, np.ndarray]:
    """Write a series; its truth."""
    for number, image in enumerate(series.images):
        image.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return series.truth


def of(change: Change | None = None, **geometry: object) -> Callable[[Path], Mapping[str, np.ndarray]]:
    """What makes a series of balls of this geometry, changed."""

    def make(folder: Path) -> Mapping[str, np.ndarray]:
        series = ball_series(**geometry)
        if change is not None:
            change(series)
        return written(series, folder)

    return make


def in_one(key: str, value: object) -> Change:
    """One slice gets a value, or, for None, loses the attribute."""

    def change(series: BallSeries) -> None:
        _set(series.images[MIDDLE], key, value)

    return change


def in_all(**values: object) -> Change:
    """All slices get values, or, for None, lose the attribute."""

    def change(series: BallSeries) -> None:
        for image in series.images:
            for key, value in values.items():
                _set(image, key, value)

    return change


def _set(image: Dataset, key: str, value: object) -> None:
    if value is not None:
        setattr(image, key, value)
    elif key in image:
        delattr(image, key)


def lose(first: int, last: int) -> Change:
    """Slices from ``first`` to before ``last`` are missing."""

    def change(series: BallSeries) -> None:
        del series.images[first:last]

    return change


def shift(by_mm: Callable[[int], list[float]]) -> Change:
    """Every slice's position moves by what is said for its number."""

    def change(series: BallSeries) -> None:
        for number, image in enumerate(series.images):
            image.ImagePositionPatient = [p + d for p, d in zip(image.ImagePositionPatient, by_mm(number), strict=True)]

    return change


def another_image_in_its_place(series: BallSeries) -> None:
    twin = deepcopy(series.images[MIDDLE])
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = generate_uid(None)
    put_hu(twin, np.random.default_rng(3).integers(-3, 4, (twin.Rows, twin.Columns)))
    series.images.append(twin)


def short_pixels(series: BallSeries) -> None:
    image = series.images[MIDDLE]
    image.PixelData = image.PixelData[: len(image.PixelData) // 2]


def another_size(series: BallSeries) -> None:
    put_hu(series.images[MIDDLE], np.zeros((20, 20)))


def colour(series: BallSeries) -> None:
    image = series.images[MIDDLE]
    image.PhotometricInterpretation, image.SamplesPerPixel, image.PlanarConfiguration = "RGB", 3, 0
    image.PixelData *= 3


def numbers_that_mislead(series: BallSeries) -> None:
    numbers = np.random.default_rng(5).permutation(len(series.images))
    for image, number in zip(series.images, numbers, strict=True):
        image.InstanceNumber, image.SliceLocation = int(number) + 1, -float(image.ImagePositionPatient[2])


def slopes_of_their_own(series: BallSeries) -> None:
    for number, image in enumerate(series.images):
        hu = np.frombuffer(image.PixelData, np.uint16).reshape(image.Rows, image.Columns) - 1024.0
        slope = (1.0, 0.5, 2.0)[number % 3]
        put_hu(image, hu, slope=slope, intercept=-1024.0 - 200 * (number % 2))


def padded_corners(series: BallSeries) -> None:
    """Outside a circle the files hold a value that they declare to be no picture, as scanners do."""
    side = series.images[0].Rows
    away = np.arange(side) - (side - 1) / 2
    outside = away[:, None] ** 2 + away**2 > (side / 2) ** 2
    for image in series.images:
        stored = np.frombuffer(image.PixelData, np.uint16).reshape(side, side).copy()
        stored[outside] = 0
        image.PixelData, image.PixelPaddingValue, image.RescaleIntercept = stored.tobytes(), 0, -1024
        image["PixelPaddingValue"].VR = "US"


def with_localizer(series: BallSeries) -> None:
    scout = deepcopy(series.images[MIDDLE])
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = generate_uid(None)
    scout.ImageType, scout.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [0, 1, 0, 0, 0, -1]
    series.images.append(scout)


def two_acquisitions(series: BallSeries) -> None:
    """A second phase in the same series, without the balls, in the same places; it reaches less far."""
    for image in series.images[4:-4]:
        second = deepcopy(image)
        second.AcquisitionNumber = 2
        second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = generate_uid(None)
        put_hu(second, np.random.default_rng(7).integers(-3, 4, (second.Rows, second.Columns)))
        series.images.append(second)


def one_multiframe_file(folder: Path) -> Mapping[str, np.ndarray]:
    return written(as_enhanced(ball_series()), folder)


REFUSED = "dead"
GEOMETRY: dict[str, Case] = {
    "as it should be": Case(of()),
    "positions rounded": Case(of(shift(lambda k: [0.005 * (-1) ** k, 0.0, 0.01 * (-1) ** k]))),
    "numbers that mislead": Case(of(numbers_that_mislead)),
    "oblong pixels": Case(of(spacing_mm=(1.0, 1.5))),
    "slopes of their own": Case(of(slopes_of_their_own)),
    "padded corners": Case(of(padded_corners)),
    "one multiframe file": Case(one_multiframe_file),
    "tilted": Case(of(orientation=tilted(18.5)), said=("tilted by 18.5 degrees",)),
    "tilted the other way": Case(of(orientation=tilted(-25.0)), said=("tilted by 25.0 degrees",)),
    "tilted, uneven": Case(
        of(orientation=tilted(12.0), z_mm=UNEVEN_MM), said=("tilted by 12.0 degrees", "2.45 to 3.03 mm apart")
    ),
    "uneven": Case(of(z_mm=UNEVEN_MM), said=("2.50 to 3.10 mm apart",)),
    "a localizer in the series": Case(of(with_localizer), said=("Not read: series 4", "it is a localizer")),
    "a second acquisition": Case(of(two_acquisitions), said=("Of 2 CT series", "Not read: series 4")),
    "thin slices far apart": Case(of(in_all(SliceThickness=1.0)), said=("every other one may be missing",)),
    "a slice missing": Case(of(lose(MIDDLE, MIDDLE + 1)), REFUSED, ("misses 1 slices", "gap of 5.00 mm")),
    "a piece missing": Case(of(lose(15, 20)), REFUSED, ("gap of 15.00 mm",)),
    "another image in its place": Case(of(another_image_in_its_place), REFUSED, ("in the same place",)),
    "cut off": Case(of(short_pixels), REFUSED, ("can't be decoded", "cut off")),
    "no position": Case(of(in_one("ImagePositionPatient", None)), REFUSED, ("ImagePositionPatient is missing",)),
    "no orientation": Case(
        of(in_one("ImageOrientationPatient", None)), REFUSED, ("ImageOrientationPatient is missing",)
    ),
    "no pixel spacing": Case(of(in_one("PixelSpacing", None)), REFUSED, ("PixelSpacing is missing",)),
    "another unit": Case(of(in_all(RescaleType="MGML")), REFUSED, ("not Hounsfield units",)),
    "colour": Case(of(colour), REFUSED, ("RGB image",)),
    "inverted": Case(of(in_all(PhotometricInterpretation="MONOCHROME1")), REFUSED, ("MONOCHROME1",)),
    "shifted sideways": Case(of(shift(lambda k: [5.0 * (k == MIDDLE), 0, 0])), REFUSED, ("do not lie on one line",)),
    "mixed pixel spacings": Case(of(in_one("PixelSpacing", [1.5, 1.4])), REFUSED, ("different pixel spacings",)),
    "a slice of another size": Case(of(another_size), REFUSED, ("misses 1 slices",)),
    "a slice of another orientation": Case(
        of(in_one("ImageOrientationPatient", [0, 1, 0, 0, 0, -1])), REFUSED, ("another orientation",)
    ),
    "a slice of another frame of reference": Case(
        of(in_one("FrameOfReferenceUID", "1.2.3.4")), REFUSED, ("another frame of reference",)
    ),
    "jitter": Case(of(shift(lambda k: [0.0, 0.0, 0.4 * np.sin(9.0 * k)])), said=("mm apart",)),
}
"""By name. Where nothing is to be said the report's warnings must be those of the series as it should be."""

GDCM = {
    "JPEG lossless 57": "JPEGLosslessProcess14",
    "JPEG lossless 70": "JPEGLosslessProcess14_1",
    "JPEG-LS": "JPEGLSLossless",
    "JPEG 2000": "JPEG2000Lossless",
    "RLE": "RLELossless",
    "deflated": "DeflatedExplicitVRLittleEndian",
}


def in_syntax(name: str) -> Callable[[Path], Mapping[str, np.ndarray]]:
    """What makes the series as it should be in a transfer syntax."""

    def make(folder: Path) -> Mapping[str, np.ndarray]:
        series = ball_series()
        for image in series.images if name in _NATIVE else ():
            image.file_meta.TransferSyntaxUID = _NATIVE[name]
            if name == "big endian":
                image.PixelData = np.frombuffer(image.PixelData, np.uint16).byteswap().tobytes()
                image["PixelData"].VR = "OW"
        written(series, folder)
        for path in sorted(folder.iterdir()) if name in GDCM else ():
            import gdcm

            path.write_bytes(recoded(path.read_bytes(), getattr(gdcm.TransferSyntax, GDCM[name])))
        return series.truth

    return make


_NATIVE = {"implicit": ImplicitVRLittleEndian, "big endian": ExplicitVRBigEndian}
SYNTAXES = {name: Case(in_syntax(name)) for name in (*_NATIVE, *GDCM)}
"""Lossless ones besides Explicit VR Little Endian, by name."""

TYPE_2 = ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
          "ReferringPhysicianName", "SliceThickness", "SeriesNumber", "InstanceNumber", "PatientPosition",
          "PositionReferenceIndicator", "KVP", "AcquisitionNumber")  # fmt: skip
HEADERS: dict[str, Case] = {
    "no type-2 attributes": Case(of(in_all(**dict.fromkeys(TYPE_2)))),
    "empty type-2 attributes": Case(of(in_all(**dict.fromkeys(TYPE_2, "")))),
    "Latin 1": Case(of(in_all(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Grete"))),
    "UTF-8": Case(of(in_all(SpecificCharacterSet="ISO_IR 192", PatientName="Ωmega^Зоя=山田^太郎"))),
    "Japanese": Case(
        of(in_all(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう"))
    ),
    "an unknown character set": Case(of(in_all(SpecificCharacterSet="FOO_7", PatientName="Huber^Eva"))),
}


def real(*files: Path, position_of_a_second: float | None = None, side: int | None = None) -> Callable[[Path], None]:
    """What copies real files into a study of their own.

    Args:
        position_of_a_second: a single slice gets a second one at this z, and pixels so small that the networks' part
            is short: the values count.
        side: only so many pixels in the middle; the small networks take every bright corner of a skull for a ball.
    """

    def make(folder: Path) -> None:
        study_uid, uids = generate_uid(None), {}
        for number, path in enumerate(files):
            image = dcmread(path)
            if side is not None:
                _crop(image, side)
            series_uid = uids.setdefault(str(image.SeriesInstanceUID), generate_uid(None))
            for twin in (False, True)[: 1 if position_of_a_second is None else 2]:
                image.StudyInstanceUID, image.SeriesInstanceUID = study_uid, series_uid
                image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid(None)
                if position_of_a_second is not None:
                    image.PixelSpacing = [0.2, 0.2]
                if twin:
                    image.ImagePositionPatient = [*image.ImagePositionPatient[:2], position_of_a_second]
                image.save_as(folder / f"{number:03d}-{int(twin)}.dcm")

    return make


def _crop(image: Dataset, side: int) -> None:
    """Keep the middle of an image, where it was."""
    top, left = (image.Rows - side) // 2, (image.Columns - side) // 2
    rows_mm, columns_mm = map(float, image.PixelSpacing)
    orientation = np.array(image.ImageOrientationPatient, float)
    shift_mm = left * columns_mm * orientation[:3] + top * rows_mm * orientation[3:]
    image.ImagePositionPatient = [float(f"{mm:.6f}") for mm in np.array(image.ImagePositionPatient, float) + shift_mm]
    image.PixelData = image.pixel_array[top : top + side, left : left + side].tobytes()
    image.Rows = image.Columns = side


SECOND_MM = 9.7
"""Where the transfer syntaxes' single slice gets its second."""


def real_cases(dicom: Path) -> dict[str, Case]:
    """The public files below a folder, by name."""
    tilt = sorted((dicom / "ge-tilt-and-uneven-spacing").glob("*.dcm"))
    dcmqi = dicom / "dcmqi-23x38x3"
    enhanced, syntaxes = dicom / "enhanced", dicom / "transfer-syntaxes"
    mask, ct = ("looks like a mask",), sorted(syntaxes.glob("CTImage.dcm_*"))
    cases = {
        "GE, tilt and uneven steps": Case(
            real(*tilt, side=96), said=("tilted by 18.5 degrees", "1.08 to 7.00 mm apart")
        ),
        "GE, tilt": Case(real(*tilt[:14], side=96), said=("tilted by 18.5 degrees",)),
        "GE, three slices": Case(real(*sorted((dicom / "three-slices").glob("*.dcm")), side=96)),
        "dcmqi, slices": Case(real(*sorted((dcmqi / "image").glob("*.dcm"))), REFUSED, mask),
        "dcmqi, multiframe": Case(real(dcmqi / "multiframe" / "mf.dcm"), REFUSED, mask),
        "legacy enhanced": Case(real(enhanced / "legacy_enh_23x38x3.dcm"), REFUSED, mask),
        "enhanced": Case(real(enhanced / "eCT_Supplemental.dcm")),
        "enhanced, 12-bit JPEG": Case(real(enhanced / "CT0012.fragmented_no_bot_jpeg_baseline.51.dcm")),
        "enhanced, both": Case(
            real(enhanced / "eCT_Supplemental.dcm", enhanced / "CT0012.fragmented_no_bot_jpeg_baseline.51.dcm"),
            REFUSED, ("in the same place",),
        ),
        "all syntaxes in one": Case(real(*ct), REFUSED, ("in the same place",)),
    }  # fmt: skip
    for path in ct:
        ending = path.name.split("Syntax_1.2.840.10008.")[1].removesuffix(".dcm")
        cases[f"syntax {ending}"] = Case(real(path, position_of_a_second=SECOND_MM))
    return cases
