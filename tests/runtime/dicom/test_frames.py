"""The segmentation's frames, made at once, say what the library says that looks at every image on its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest

pytest.importorskip("highdicom", reason="the extra 'dicom' is not installed")

from highdicom.sr import ImageContentItem, RelationshipTypeValues
from pydicom.sr.codedict import codes

from runtime.dicom import KINDS, SEG_TYPES
from runtime.dicom import seg as seg_module
from runtime.dicom import sr as sr_module
from runtime.dicom.headers import reference
from runtime.dicom.writer import dicom_results
from runtime.readers import read_scan
from runtime.readers.options import ReadOptions
from tests.runtime.dicom.series import GEOMETRIES, analysed, analysis_of, set_pixels, write_enhanced, write_series

_TIMES = ("Date", "Time", "DateTime")


def without_times(dataset, _=None):
    """As text, element by element, without when it was made."""
    return [line for line in str(dataset).splitlines() if not any(f"{word}  " in line for word in _TIMES)]


def require_the_librarys(analysis, monkeypatch):
    ours = dicom_results(analysis, ("seg",))["seg"]
    with monkeypatch.context() as patched:
        patched.setattr(seg_module, "stand_in", lambda images, _: (images.shown(), images.labels))
        patched.setattr(seg_module, "put_frames", lambda result, images: None)
        theirs = dicom_results(analysis, ("seg",))["seg"]
    assert without_times(ours) == without_times(theirs)
    assert bytes(ours.PixelData) == bytes(theirs.PixelData)
    return ours


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_geometry(tmp_path, monkeypatch, name):
    require_the_librarys(analysed(tmp_path / "scan", GEOMETRIES[name]), monkeypatch)


def test_a_multiframe_image(tmp_path, monkeypatch):
    path = write_enhanced(tmp_path / "scan" / "enhanced.dcm")
    require_the_librarys(analysis_of(read_scan(path)), monkeypatch)


@pytest.mark.parametrize("planes", [slice(3, 9), [2, 3, 7], [5]])
def test_a_single_vertebra(tmp_path, monkeypatch, planes):
    """Its number stands in the shared groups, and slices in a row make the image three-dimensional."""
    analysis = analysed(tmp_path / "scan")
    labels = np.zeros_like(analysis.labels)
    labels[planes, 4:11, 3:8] = 1
    (first, *_), (ends, *_) = analysis.findings.vertebrae, analysis.height_ends
    findings = replace(analysis.findings, vertebrae=(first,))
    ours = require_the_librarys(replace(analysis, findings=findings, labels=labels, height_ends=(ends,)), monkeypatch)
    assert ("DimensionOrganizationType" in ours) == (planes == slice(3, 9))


def test_a_vertebra_without_a_pixel(tmp_path, monkeypatch):
    analysis = analysed(tmp_path / "scan")
    labels = np.where(analysis.labels == 3, 0, analysis.labels)
    ours = require_the_librarys(replace(analysis, labels=labels), monkeypatch)
    assert len(ours.SegmentSequence) == 6


def test_frames_that_do_not_fill_bytes(tmp_path, monkeypatch):
    def change(image):
        set_pixels(image, np.random.default_rng(image.InstanceNumber).integers(900, 1500, (23, 19)).astype(np.uint16))

    require_the_librarys(analysis_of(read_scan(write_series(tmp_path / "scan", change=change))), monkeypatch)


def test_slices_that_are_not_evenly_spaced(tmp_path, monkeypatch):
    def change(image):
        x, y, z = image.ImagePositionPatient
        image.ImagePositionPatient = [x, y, z + 0.06 * (image.InstanceNumber % 3)]

    volume = read_scan(write_series(tmp_path / "scan", change=change), ReadOptions())
    ours = require_the_librarys(analysis_of(volume), monkeypatch)
    assert "SpacingBetweenSlices" not in ours.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


@pytest.mark.parametrize("is_multiframe", [False, True])
@pytest.mark.parametrize("seg_type", SEG_TYPES)
def test_the_images_own_headers_stay_as_they_are(tmp_path, seg_type, is_multiframe):
    if is_multiframe:
        analysis = analysis_of(read_scan(write_enhanced(tmp_path / "scan" / "enhanced.dcm")))
    else:
        analysis = analysed(tmp_path / "scan")
    before = [str(header) for header in analysis.volume.source.headers()]
    dicom_results(analysis, KINDS, seg_type=seg_type)
    assert [str(header) for header in analysis.volume.source.headers()] == before


def test_the_reports_images_are_the_librarys_items(tmp_path):
    header = pydicom.dcmread(next(write_series(tmp_path / "scan").iterdir()))
    assert sr_module._image_item(reference(header)) == ImageContentItem(
        name=codes.SCT.Source,
        referenced_sop_class_uid=header.SOPClassUID,
        referenced_sop_instance_uid=header.SOPInstanceUID,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
