"""CT series of bright balls in any geometry, with the truth on every image's own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, generate_uid

from tests.runtime.conftest import BALL_HU, RADIUS_MM
from tests.runtime.node.studies import ct_slice

CENTRES_LPS_MM = np.array([[2.0, -1.0, 62.0], [-3.0, 2.0, 32.0]])
"""From cranial to caudal."""
LOW_MM, HIGH_MM, SIDE = -2.0, 97.0, 40
STEP_MM, SPACING_MM = 2.5, (1.5, 1.5)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass
class BallSeries:
    """Images of one series, and for each image's UID which ball (from 1, or 0) every pixel lies in.

    An enhanced image has the truth of all its frames: (frames, rows, columns), in their order.
    """

    study_uid: str
    images: list[Dataset]
    truth: dict[str, np.ndarray] = field(default_factory=dict)


def tilted(degrees: float) -> tuple[float, ...]:
    """An orientation whose columns go down into the body: a gantry tilt."""
    angle = np.radians(degrees)
    return (1.0, 0.0, 0.0, 0.0, float(f"{np.cos(angle):.7f}"), float(f"{np.sin(angle):.7f}"))


def ball_series(
    *,
    z_mm: Sequence[float] | None = None,
    orientation: tuple[float, ...] = AXIAL,
    spacing_mm: tuple[float, float] = SPACING_MM,
    study_uid: str = "",
) -> BallSeries:
    """Two balls in soft tissue.

    Args:
        z_mm: of each slice's first voxel along the patient's axis, whatever the orientation; by default even steps.
        orientation: Image Orientation (Patient).
        spacing_mm: between rows, then between columns.
    """
    z_mm = np.arange(LOW_MM, HIGH_MM, STEP_MM) if z_mm is None else z_mm
    series = BallSeries(study_uid or generate_uid(None), [])
    series_uid = generate_uid(None)
    rows, columns = (round(SIDE * 1.5 / mm) for mm in spacing_mm)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    rng = np.random.default_rng(0)
    for number, z in enumerate(z_mm):
        image = ct_slice(series.study_uid, series_uid, number)
        position = np.array([-30.0, -30.0, float(z)])
        image.ImagePositionPatient, image.ImageOrientationPatient = position.tolist(), list(orientation)
        image.PixelSpacing, image.SliceThickness, image.PatientPosition = list(spacing_mm), STEP_MM, "HFS"
        image.SeriesNumber, image.KVP, image.AcquisitionNumber = 4, "120", 1
        image.PositionReferenceIndicator = ""
        points = (
            position
            + np.arange(rows)[:, None, None] * spacing_mm[0] * column
            + np.arange(columns)[None, :, None] * spacing_mm[1] * row
        )
        truth = np.zeros((rows, columns), np.uint8)
        for ball, centre in enumerate(CENTRES_LPS_MM, start=1):
            truth[np.linalg.norm(points - centre, axis=-1) < RADIUS_MM] = ball
        hu = np.where(truth > 0, BALL_HU, rng.integers(-3, 4, truth.shape))
        put_hu(image, hu)
        series.images.append(image)
        series.truth[image.SOPInstanceUID] = truth
    return series


def put_hu(image: Dataset, hu: np.ndarray, *, slope: float = 1.0, intercept: float = -1024.0) -> None:
    """Give an image these values, as 12 bits in 16."""
    image.Rows, image.Columns = hu.shape
    image.RescaleSlope, image.RescaleIntercept = slope, intercept
    image.PixelData = np.rint((hu - intercept) / slope).astype(np.uint16).tobytes()


def as_enhanced(series: BallSeries) -> BallSeries:
    """The same as one multiframe image, whose frames run from the last slice to the first."""
    frames = series.images[::-1]
    whole = frames[0]
    uid = whole.SOPInstanceUID
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    whole.NumberOfFrames = len(frames)
    shared = Dataset()
    shared.PixelMeasuresSequence = [_moved(whole, "PixelSpacing", "SliceThickness")]
    shared.PlaneOrientationSequence = [_moved(whole, "ImageOrientationPatient")]
    shared.PixelValueTransformationSequence = [_moved(whole, "RescaleSlope", "RescaleIntercept")]
    shared.PixelValueTransformationSequence[0].RescaleType = "HU"
    whole.SharedFunctionalGroupsSequence = [shared]
    whole.PerFrameFunctionalGroupsSequence = []
    for image in frames:
        groups = Dataset()
        groups.PlanePositionSequence = [_moved(image, "ImagePositionPatient")]
        whole.PerFrameFunctionalGroupsSequence.append(groups)
    whole.PixelData = b"".join(image.PixelData for image in frames)
    truth = np.stack([series.truth[image.SOPInstanceUID] for image in frames])
    return BallSeries(series.study_uid, [whole], {uid: truth})


def _moved(image: Dataset, *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        item.add(image[keyword])
        delattr(image, keyword)
    return item
