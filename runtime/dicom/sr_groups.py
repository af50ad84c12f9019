"""The measurement groups of one vertebra in the structured report.

There are two, since coordinates are forbidden in groups about a volume: one of its segment (TID 1411) with grade,
probabilities, volume and HU, and one (TID 1501) with the heights and the points between which they were measured. Both
carry the vertebra's Tracking UID.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CoordinatesForMeasurement3D,
    FindingSite,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from runtime.dicom import codes as vc
from runtime.dicom.context import ResultContext, tracking_identifier
from runtime.dicom.headers import text_of
from runtime.findings import Heights, Vertebra
from runtime.heights import HeightEnds, Segment
from runtime.volume import LPS_FROM_RAS

Group = MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations


def vertebra_groups(context: ResultContext, vertebra: Vertebra, segmentation: Dataset | None) -> list[Group]:
    """The groups of one vertebra: what is said of it, and its heights where it has any.

    Args:
        context: of the run.
        vertebra: of its findings.
        segmentation: that holds its segment; None where none goes with the report, then both groups are of TID 1501.
    """
    measurements, evaluations = list(_measurements(vertebra)), list(_evaluations(vertebra))
    about = _about(context, vertebra)
    first: Group
    if segmentation is None:
        first = MeasurementsAndQualitativeEvaluations(
            measurements=measurements, qualitative_evaluations=evaluations, **about
        )
    else:
        series = SourceSeriesForSegmentation(text_of(context.images.first, "SeriesInstanceUID"))
        first = VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=ReferencedSegment(
                segmentation.SOPClassUID, segmentation.SOPInstanceUID, vertebra.mask_label, source_series=series
            ),
            measurements=measurements,
            qualitative_evaluations=evaluations,
            **about,
        )
    heights = list(_heights(context, vertebra))
    if not heights:
        return [first]
    return [first, MeasurementsAndQualitativeEvaluations(measurements=heights, **_about(context, vertebra))]


def _about(context: ResultContext, vertebra: Vertebra) -> dict[str, Any]:
    """Which vertebra a group is about, and what measured it."""
    algorithm = context.algorithm()
    parameters = algorithm.parameters or {}
    return {
        "tracking_identifier": TrackingIdentifier(
            uid=context.uids.tracking(vertebra.index), identifier=tracking_identifier(vertebra)
        ),
        "finding_type": vc.concept(vc.VERTEBRA),
        "finding_sites": [FindingSite(anatomic_location=vc.concept(vc.level_code(vertebra.level)))],
        "algorithm_id": AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            parameters=[f"{key}={value}" for key, value in parameters.items()],
        ),
    }


def _measurements(vertebra: Vertebra) -> Iterator[Measurement]:
    """The numbers that are about the whole vertebra."""
    yield _measured(codes.SCT.Volume, vertebra.volume_ml, vc.MILLILITRE)
    if vertebra.mean_hu is not None:
        yield _measured(
            codes.DCM.AttenuationCoefficient, vertebra.mean_hu, codes.UCUM.HounsfieldUnit, derivation=codes.SCT.Mean
        )
    if vertebra.trabecular_hu is not None:
        yield _measured(vc.TRABECULAR_HU, vertebra.trabecular_hu, codes.UCUM.HounsfieldUnit)
    yield _probability(vc.CONFIDENCE, vertebra.confidence)
    if vertebra.level_confidence is not None:
        yield _probability(vc.LEVEL_CONFIDENCE, vertebra.level_confidence)
    network, measured = vertebra.network, vertebra.measured
    for source, probabilities in (
        (vc.REPORTED, vertebra.grade_probabilities),
        (vc.BY_NETWORK, None if network is None else network.grade_probabilities),
    ):
        for name, probability in zip(
            vc.GRADE_PROBABILITY[source], probabilities or (), strict=probabilities is not None
        ):
            yield _probability(name, probability)
    for source, loss in (
        (vc.REPORTED, vertebra.height_loss),
        (vc.MEASURED, None if measured is None else measured.height_loss),
        (vc.BY_NETWORK, None if network is None else network.height_loss),
    ):
        if loss is not None:
            yield _measured(vc.HEIGHT_LOSS[source], round(100 * loss, 4), codes.UCUM.Percent)


def _measured(
    name: Code,
    value: float,
    unit: Code,
    *,
    derivation: Code | None = None,
    referenced_coordinates: Sequence[CoordinatesForMeasurement3D] | None = None,
) -> Measurement:
    return Measurement(
        name=vc.concept(name),
        value=value,
        unit=vc.concept(unit),
        derivation=None if derivation is None else vc.concept(derivation),
        referenced_coordinates=referenced_coordinates,
    )


def _said(name: Code, value: Code) -> QualitativeEvaluation:
    return QualitativeEvaluation(vc.concept(name), vc.concept(value))


def _probability(name: Code, value: float) -> Measurement:
    return _measured(name, value, vc.PROBABILITY_UNIT)


def _evaluations(vertebra: Vertebra) -> Iterator[QualitativeEvaluation]:
    """What is said of a vertebra in codes."""
    network, measured = vertebra.network, vertebra.measured
    for source, grade in (
        (vc.REPORTED, vertebra.grade),
        (vc.MEASURED, None if measured is None else measured.grade),
        (vc.BY_NETWORK, None if network is None else network.grade),
    ):
        if grade is not None:
            yield _said(vc.GRADE[source], vc.GRADE_VALUES[grade])
    if vertebra.no_grade_reason is not None:
        yield _said(vc.NO_GRADE, vc.NO_GRADE_VALUES[vertebra.no_grade_reason])
    if vertebra.grade_from is not None:
        yield _said(vc.GRADE_BASIS, vc.GRADE_BASIS_VALUES[vertebra.grade_from])
        yield _said(vc.GRADES_DIFFER, vc.yes_or_no(vertebra.grades_differ))
    if vertebra.shape is not None:
        yield _said(vc.SHAPE, vc.SHAPE_VALUES[vertebra.shape])
    yield _said(vc.COMPLETE, vc.yes_or_no(vertebra.complete))


def _heights(context: ResultContext, vertebra: Vertebra) -> Iterator[Measurement]:
    """All heights that are known; the measured ones with their end points."""
    network, measured = vertebra.network, vertebra.measured
    ends = context.height_ends[vertebra.index - 1]
    for source, heights in (
        (vc.REPORTED, vertebra.heights_mm),
        (vc.MEASURED, None if measured is None else measured.heights_mm),
        (vc.BY_NETWORK, None if network is None else network.heights_mm),
        (vc.EXPECTED, vertebra.expected_heights_mm),
    ):
        if heights is not None:
            yield from _three(context, source, heights, ends if source == vc.MEASURED else None)


def _three(context: ResultContext, source: str, heights: Heights, ends: HeightEnds | None) -> Iterator[Measurement]:
    for place in vc.HEIGHTS:
        points = None if ends is None else [_line(context, getattr(ends, place))]
        name, height_mm = vc.HEIGHT[place, source], getattr(heights, place)
        yield _measured(name, height_mm, codes.UCUM.Millimeter, referenced_coordinates=points)


def _line(context: ResultContext, segment: Segment) -> CoordinatesForMeasurement3D:
    """Two points as DICOM has them: LPS+ mm in the images' frame of reference."""
    points = np.array(segment) @ LPS_FROM_RAS[:3, :3].T
    return CoordinatesForMeasurement3D(
        graphic_type="POLYLINE",
        graphic_data=points.astype(np.float32).astype(np.float64),
        frame_of_reference_uid=context.images.frame_of_reference_uid,
    )
