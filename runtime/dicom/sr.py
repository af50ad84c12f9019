"""The structured report: Comprehensive 3D SR after TID 1500, with two measurement groups per vertebra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from highdicom.base import SOPClass
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    LanguageOfContentItemAndDescendants,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

from runtime.dicom import SR
from runtime.dicom import codes as vc
from runtime.dicom.context import MANUFACTURER, ResultContext, plain
from runtime.dicom.headers import reference, take_identity
from runtime.dicom.source import SourceImages
from runtime.dicom.sr_groups import vertebra_groups
from runtime.dicom.uids import DEVICE_UID
from runtime.version import software_version

_CONTAINS = RelationshipTypeValues.CONTAINS
_CONTENT = 0x0040_A730
"""Tag of the Content Sequence."""


def make_sr(context: ResultContext, *, segmentation: Dataset | None) -> SOPClass:
    """The structured report of a run.

    The library's own class of the document searches and copies the whole tree several times, which takes seconds for a
    spine; what it would find there is known here.

    Args:
        context: of the run.
        segmentation: of the same run, which the report refers to; None where none was made.

    Raises:
        InputError: the images have no frame of reference.
    """
    images = context.images
    result = SOPClass(
        study_instance_uid=images.first.StudyInstanceUID,
        sop_class_uid=Comprehensive3DSRStorage,
        modality="SR",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **context.instance_keywords(SR, "" if segmentation is None else segmentation.SOPInstanceUID),
    )
    result.CompletionFlag, result.PreliminaryFlag, result.VerificationFlag = "COMPLETE", "PRELIMINARY", "UNVERIFIED"
    result.PerformedProcedureCodeSequence = []
    result.ReferencedPerformedProcedureStepSequence = []
    result.CurrentRequestedProcedureEvidenceSequence = [_evidence(images, segmentation)]
    result.update(_document(context, segmentation))
    vc.declare_private_codes(result)
    take_identity(result, images.first)
    return result


def _evidence(images: SourceImages, segmentation: Dataset | None) -> Dataset:
    """All instances that the report refers to, by their series; they are of one study."""
    by_series = {str(images.first.SeriesInstanceUID): list(images.references)}
    if segmentation is not None:
        by_series[str(segmentation.SeriesInstanceUID)] = [reference(segmentation)]
    study = Dataset()
    study.StudyInstanceUID = images.first.StudyInstanceUID
    study.ReferencedSeriesSequence = []
    for uid, references in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID, series.ReferencedSOPSequence = uid, references
        study.ReferencedSeriesSequence.append(series)
    return study


def _document(context: ResultContext, segmentation: Dataset | None) -> ContainerContentItem:
    """The root of the report with all below it."""
    root = ContainerContentItem(name=codes.DCM.ImagingMeasurementReport, template_id="1500")
    content = ContentSequence()
    content.extend(LanguageOfContentItemAndDescendants(CodedConcept("en-US", "RFC5646", "English (United States)")))
    content.extend(_observer(context))
    content.append(
        CodeContentItem(
            name=codes.DCM.ProcedureReported,
            value=codes.SCT.ComputedTomography,
            relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
    )
    content.append(_image_library(context))
    vertebrae = context.findings.vertebrae
    if vertebrae:
        measurements = _container(codes.DCM.ImagingMeasurements)
        for vertebra in vertebrae:
            for group in vertebra_groups(context, vertebra, segmentation):
                measurements.ContentSequence.extend(group)
        content.append(measurements)
    content.append(_remarks(context))
    root.ContentSequence = content
    return root


def _container(name: Code, items: Sequence[ContentItem] = ()) -> ContainerContentItem:
    container = ContainerContentItem(name=vc.concept(name), relationship_type=_CONTAINS)
    container.ContentSequence = ContentSequence(list(items))
    return container


def _observer(context: ResultContext) -> ObservationContext:
    """Who observed: this software with this bundle."""
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=DEVICE_UID,
                name=f"vertscan {software_version()}",
                manufacturer_name=MANUFACTURER,
                model_name=context.bundle_label,
                serial_number=context.findings.bundle.sha256[:16],
            ),
        )
    )


def _image_library(context: ResultContext) -> ContainerContentItem:
    """The source images (TID 1600), so that readers know what the report is about."""
    acquired = RelationshipTypeValues.HAS_ACQ_CONTEXT
    about = [
        CodeContentItem(name=codes.DCM.Modality, value=codes.cid29.ComputedTomography, relationship_type=acquired),
        UIDRefContentItem(
            name=codes.DCM.FrameOfReferenceUID,
            value=context.images.frame_of_reference_uid,
            relationship_type=acquired,
        ),
    ]
    group = _container(codes.DCM.ImageLibraryGroup)
    group.add(DataElement(_CONTENT, "SQ", [*about, *map(_image_item, context.images.references)]))
    return _container(codes.DCM.ImageLibrary, [group])


def _image_item(image: Dataset) -> Dataset:
    """What the library's ``ImageContentItem`` holds; there are as many as images, and its own way takes far longer."""
    item = Dataset()
    item.RelationshipType, item.ValueType = _CONTAINS.value, "IMAGE"
    item.ConceptNameCodeSequence, item.ReferencedSOPSequence = [vc.concept(codes.SCT.Source)], [image]
    return item


def _remarks(context: ResultContext) -> ContainerContentItem:
    """What is said of the whole scan: what the bundle is not for, whether anything was found, and all warnings."""
    return _container(vc.QUALITATIVE_EVALUATIONS, list(_remark_items(context)))


def _remark_items(context: ResultContext) -> Iterator[ContentItem]:
    if context.notice:
        yield CodeContentItem(name=vc.INTENDED_USE, value=vc.NOT_CLINICAL, relationship_type=_CONTAINS)
    if not context.findings.vertebrae:
        yield CodeContentItem(name=vc.FINDING, value=vc.NONE_FOUND, relationship_type=_CONTAINS)
    warnings = context.findings.warnings
    said = warnings if context.notice in ("", *warnings) else (context.notice, *warnings)
    for text in said:
        yield TextContentItem(name=vc.WARNING, value=plain(text), relationship_type=_CONTAINS)
