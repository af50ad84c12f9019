"""The segmentation: every vertebra a segment on the source images' own pixels."""

from __future__ import annotations

from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from runtime.dicom import BINARY, LABELMAP, LABELMAP_RLE, SEG
from runtime.dicom.codes import declare_private_codes, level_code
from runtime.dicom.context import LONGEST_LO, ResultContext, tracking_identifier, vertebra_name
from runtime.dicom.headers import take_identity
from runtime.dicom.seg_frames import put_frames, stand_in
from runtime.findings import Vertebra
from runtime.overview import GRADE_COLOURS, GRADE_WORDS, UNGRADED


def make_seg(context: ResultContext, *, kind: str = BINARY) -> Segmentation:
    """The segmentation of a run that found vertebrae: full frames, those without a vertebra left out.

    Args:
        context: of the run; ``findings`` hold at least one vertebra.
        kind: one of ``SEG_TYPES``.

    Raises:
        InputError: the images have no frame of reference.
    """
    images, vertebrae = context.images, context.findings.vertebrae
    frame_of_reference = images.frame_of_reference_uid
    sources, pixels = stand_in(images, len(vertebrae)) if kind == BINARY else (images.shown(), images.labels)
    result = Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=BINARY if kind == BINARY else LABELMAP,
        segment_descriptions=[_segment(context, vertebra) for vertebra in vertebrae],
        transfer_syntax_uid=RLELossless if kind == LABELMAP_RLE else ExplicitVRLittleEndian,
        omit_empty_frames=True,
        content_label="VERTEBRAE",
        content_description=(context.notice or "Vertebrae")[:LONGEST_LO],
        **context.instance_keywords(SEG, kind),
    )
    if kind == BINARY:
        put_frames(result, images)
    result.FrameOfReferenceUID = frame_of_reference
    result.BodyPartExamined = "SPINE"
    _fix_dimensions(result, context.uids.dimensions(SEG, kind))
    declare_private_codes(result)
    take_identity(result, images.first)
    return result


def _segment(context: ResultContext, vertebra: Vertebra) -> SegmentDescription:
    colour = UNGRADED if vertebra.grade is None else GRADE_COLOURS[vertebra.grade]
    segment = SegmentDescription(
        segment_number=vertebra.mask_label,
        segment_label=vertebra_name(vertebra),
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=level_code(vertebra.level),
        algorithm_type="AUTOMATIC",
        algorithm_identification=context.algorithm(),
        tracking_uid=context.uids.tracking(vertebra.index),
        tracking_id=tracking_identifier(vertebra),
        display_color=CIELabColor.from_rgb(*colour),
    )
    segment.SegmentDescription = description(vertebra, notice=context.notice)
    return segment


def description(vertebra: Vertebra, *, notice: str) -> str:
    """What viewers show beside a segment: the grade, and what must be said of it."""
    grade = vertebra.grade
    said = "No grade" if grade is None else f"Genant grade {grade} ({GRADE_WORDS[grade]})"
    if vertebra.height_loss is not None:
        said += f", height loss {100 * vertebra.height_loss:.0f} %"
    return f"{said}. {notice}".rstrip()


def _fix_dimensions(result: Segmentation, uid: str) -> None:
    """Put a derived UID where the library made a random one."""
    for item in (*result.DimensionOrganizationSequence, *result.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
