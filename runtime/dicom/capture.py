"""The picture as a Secondary Capture, for viewers that show neither segmentation nor report."""

from __future__ import annotations

import numpy as np
from highdicom.sc import SCImage
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from runtime.dicom import SC
from runtime.dicom.context import ResultContext
from runtime.dicom.headers import take_identity, without_identity


def make_capture(context: ResultContext, picture: Image.Image) -> SCImage:
    """The overview as an RGB image with everything burned in, but nothing that tells who the patient is.

    Args:
        context: of the run.
        picture: RGB, see :func:`runtime.overview.draw_overview`.
    """
    images = context.images
    keywords = context.instance_keywords(SC)
    result = SCImage.from_ref_dataset(
        without_identity(images.first),
        np.asarray(picture.convert("RGB")),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("P", "F"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **keywords,
    )
    result.PatientOrientation = []  # two views with an orientation each; the letters are in the picture
    result.ConversionType = "WSD"
    result.BodyPartExamined = "SPINE"
    result.BurnedInAnnotation = "NO"
    result.RecognizableVisualFeatures = "NO"
    result.DerivationDescription = context.derivation
    result.SourceImageSequence = list(images.references)
    take_identity(result, images.first)
    return result
