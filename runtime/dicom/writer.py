"""From an analysis to DICOM objects, and these to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from pydicom.dataset import Dataset

from runtime.dicom import BINARY, FILES, PDF, SC, SEG, SR
from runtime.dicom.capture import make_capture
from runtime.dicom.context import ResultContext
from runtime.dicom.encode import write_object
from runtime.dicom.headers import text_of, tolerant_of_values
from runtime.dicom.seg import make_seg
from runtime.dicom.source import require_source, source_images
from runtime.dicom.sr import make_sr
from runtime.dicom.uids import ResultUids
from runtime.overview import draw_overview

if TYPE_CHECKING:
    from runtime.pipeline import Analysis


def dicom_results(analysis: Analysis, kinds: Sequence[str], *, seg_type: str = BINARY) -> Mapping[str, Dataset]:
    """The DICOM objects of an analysis, by kind.

    Where no vertebra was found, or none has a mask on the source images, there is no segmentation among them: a DICOM
    segmentation needs a segment. The report then says what was found.

    Args:
        analysis: of a scan that was read from DICOM.
        kinds: of ``runtime.dicom.KINDS``. A report refers to the segmentation if both are made.
        seg_type: one of ``runtime.dicom.SEG_TYPES``.

    Raises:
        InputError: the scan was not read from DICOM, or its headers lack what an object needs.
    """
    with tolerant_of_values(), ThreadPoolExecutor(1) as other_thread:
        context = _context(analysis)
        # Drawn meanwhile: unlike the objects, a picture is made by code that does not hold the interpreter's lock.
        picture = other_thread.submit(_picture, analysis, context) if SC in kinds or PDF in kinds else None
        made: dict[str, Dataset] = {}
        if SEG in kinds and context.images.labels.any():
            made[SEG] = make_seg(context, kind=seg_type)
        if SR in kinds:
            made[SR] = make_sr(context, segmentation=made.get(SEG))
        if picture is not None and SC in kinds:
            made[SC] = make_capture(context, picture.result())
        if picture is not None and PDF in kinds:
            from runtime.dicom.pdf import make_pdf

            made[PDF] = make_pdf(context, picture.result())
    return made


def write_dicom(analysis: Analysis, folder: Path, kinds: Sequence[str], *, seg_type: str = BINARY) -> None:
    """Write the DICOM objects of an analysis into a folder as ``seg.dcm`` and so on; see :func:`dicom_results`."""
    for kind, result in dicom_results(analysis, kinds, seg_type=seg_type).items():
        with tolerant_of_values():
            write_object(folder / FILES[kind], result)


def _context(analysis: Analysis) -> ResultContext:
    source = require_source(analysis.volume)
    uids = ResultUids.of(source.series_uid, source.sop_instance_uids, analysis.findings.bundle.sha256)
    images = source_images(analysis.volume, analysis.labels)
    return ResultContext(analysis.findings, analysis.notice, analysis.height_ends, images, uids)


def _picture(analysis: Analysis, context: ResultContext) -> Image.Image:
    """The overview under the series' number: what the folder is called may be the patient's name."""
    number = text_of(context.images.first, "SeriesNumber")
    named = replace(analysis.findings, scan=replace(analysis.findings.scan, name=f"CT series {number}".rstrip()))
    return draw_overview(analysis.volume, analysis.labels, named, notice=analysis.notice)
