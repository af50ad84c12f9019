"""The report as an Encapsulated PDF."""

from __future__ import annotations

from highdicom.base import SOPClass
from PIL import Image
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from runtime.dicom import PDF
from runtime.dicom.context import TITLES, ResultContext
from runtime.dicom.headers import take_identity
from runtime.dicom.page import draw_page


def make_pdf(context: ResultContext, picture: Image.Image) -> SOPClass:
    """The one-page report with its picture, in a DICOM object.

    Args:
        context: of the run.
        picture: the overview, RGB.
    """
    images = context.images
    result = SOPClass(
        study_instance_uid=images.first.StudyInstanceUID,
        sop_class_uid=EncapsulatedPDFStorage,
        modality="DOC",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **context.instance_keywords(PDF),
    )
    result.ConversionType = "WSD"
    result.AcquisitionDateTime = None
    result.BurnedInAnnotation = "YES"
    result.RecognizableVisualFeatures = "NO"
    result.DocumentTitle = f"{TITLES[PDF]}. {context.notice}".rstrip()
    result.ConceptNameCodeSequence = []
    result.SourceInstanceSequence = list(images.references)
    result.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document = draw_page(context, picture)
    result.EncapsulatedDocumentLength = len(document)
    result.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    take_identity(result, images.first)
    return result
