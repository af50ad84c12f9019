from __future__ import annotations

from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from runtime.dicom import SEG_TYPES
from runtime.dicom.codes import SCHEME
from runtime.dicom.writer import dicom_results, write_dicom
from runtime.errors import InputError
from runtime.readers import read_scan
from runtime.volume import Grid
from tests.runtime.dicom.series import (
    COLUMNS,
    COUNT,
    GEOMETRIES,
    NOTICE,
    ROWS,
    analysed,
    analysis_of,
    write_enhanced,
    write_series,
)

pytest.importorskip("highdicom", reason="the extra 'dicom' is not installed")


def written(analysis, folder, **options):
    write_dicom(analysis, folder, ("seg",), **options)
    return pydicom.dcmread(folder / "seg.dcm")


def placed(seg) -> dict[str, np.ndarray]:
    """What the file itself says, by hand: for each source image the labels on its pixels."""
    pixels = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    frames = pixels[: seg.NumberOfFrames * ROWS * COLUMNS].reshape(seg.NumberOfFrames, ROWS, COLUMNS)
    found: dict[str, np.ndarray] = {}
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence
        assert len(source) == 1
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels = found.setdefault(source[0].ReferencedSOPInstanceUID, np.zeros((ROWS, COLUMNS), np.uint8))
        assert not labels[frame > 0].any()
        labels[frame > 0] = number
    return found


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_pixel_of_every_source_image_has_its_label(tmp_path, name):
    analysis = analysed(tmp_path / "scan", GEOMETRIES[name])
    seg = written(analysis, tmp_path)
    found = placed(seg)
    for file in sorted((tmp_path / "scan").iterdir()):
        source = pydicom.dcmread(file)
        corner = np.diag([-1, -1, 1]) @ np.array(source.ImagePositionPatient, float)
        plane = round(float(analysis.volume.grid.to_index_zyx(corner)[0]))
        expected = analysis.labels[plane]
        np.testing.assert_array_equal(found.pop(source.SOPInstanceUID, np.zeros_like(expected)), expected)
    assert found == {}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_frames_lie_where_their_source_images_lie(tmp_path, name):
    seg = written(analysed(tmp_path / "scan", GEOMETRIES[name]), tmp_path)
    sources = [pydicom.dcmread(file) for file in sorted((tmp_path / "scan").iterdir())]
    positions = {source.SOPInstanceUID: source.ImagePositionPatient for source in sources}
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == sources[0].ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == sources[0].PixelSpacing
    assert shared.PixelMeasuresSequence[0].SliceThickness == sources[0].SliceThickness
    for groups in seg.PerFrameFunctionalGroupsSequence:
        uid = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert groups.PlanePositionSequence[0].ImagePositionPatient == positions[uid]


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("seg_type", SEG_TYPES)
def test_the_library_reads_the_same_array_back(tmp_path, name, seg_type):
    analysis = analysed(tmp_path / "scan", GEOMETRIES[name])
    write_dicom(analysis, tmp_path, ("seg",), seg_type=seg_type)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = list(analysis.volume.source.sop_instance_uids)
    numbers = seg.segment_numbers if seg_type == "BINARY" else None
    got = seg.get_pixels_by_source_instance(
        uids, segment_numbers=numbers, combine_segments=True, ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )  # fmt: skip
    np.testing.assert_array_equal(got, analysis.labels)


def test_frames_of_a_multiframe_image_keep_their_labels(tmp_path):
    analysis = analysis_of(read_scan(write_enhanced(tmp_path / "scan" / "enhanced.dcm")))
    assert analysis.volume.source.frame_numbers == tuple(range(COUNT, 0, -1))
    write_dicom(analysis, tmp_path, ("seg", "sr"))
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    got = seg.get_pixels_by_source_frame(
        analysis.volume.source.sop_instance_uids[0],
        list(range(1, COUNT + 1)),
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(got[::-1], analysis.labels)


def test_slices_of_a_repaired_series_take_the_nearest_plane(tmp_path):
    volume = read_scan(write_series(tmp_path / "scan"))
    affine = volume.grid.affine_ras.copy()
    affine[:3, 2] /= 2
    fine = Grid((2 * COUNT, ROWS, COLUMNS), affine)
    source = replace(volume.source, planes=2.0 * np.arange(COUNT) + 0.4)
    analysis = analysis_of(replace(volume, array=np.repeat(volume.array, 2, axis=0), grid=fine, source=source))
    found = placed(written(analysis, tmp_path))
    for number, uid in enumerate(source.sop_instance_uids):
        expected = analysis.labels[2 * number]
        np.testing.assert_array_equal(found.get(uid, np.zeros_like(expected)), expected)


def test_it_is_binary_uncompressed_and_without_empty_frames(tmp_path):
    analysis = analysed(tmp_path / "scan")
    seg = written(analysis, tmp_path)
    assert seg.SegmentationType == "BINARY"
    assert seg.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (seg.Rows, seg.Columns) == (ROWS, COLUMNS)
    planes = sum(len(np.flatnonzero((analysis.labels == n).any(axis=(1, 2)))) for n in range(1, 7))
    assert seg.NumberOfFrames == planes
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == analysis.volume.source.series_uid
    referenced = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referenced == set(analysis.volume.source.sop_instance_uids)


def test_the_label_map_is_another_class_and_another_instance(tmp_path):
    analysis = analysed(tmp_path / "scan")
    binary = dicom_results(analysis, ("seg",))["seg"]
    labels = dicom_results(analysis, ("seg",), seg_type="LABELMAP")["seg"]
    assert labels.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert labels.SOPInstanceUID != binary.SOPInstanceUID
    assert labels.SeriesInstanceUID != binary.SeriesInstanceUID


def test_a_compressed_label_map_holds_the_same_and_is_smaller(tmp_path):
    analysis = analysed(tmp_path / "scan")
    plain, packed = (dicom_results(analysis, ("seg",), seg_type=kind)["seg"] for kind in SEG_TYPES[1:])
    assert packed.file_meta.TransferSyntaxUID == RLELossless
    assert (packed.SegmentationType, packed.SOPClassUID) == ("LABELMAP", plain.SOPClassUID)
    assert packed.get("LossyImageCompression", "00") == "00"
    np.testing.assert_array_equal(packed.pixel_array, plain.pixel_array)
    assert len(packed.PixelData) < len(plain.PixelData)


def test_segments_say_which_vertebra_they_are_and_who_made_them(tmp_path):
    analysis = analysed(tmp_path / "scan")
    seg = written(analysis, tmp_path)
    types = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in seg.SegmentSequence]
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in types] == [
        ("87391001", "SCT"),
        ("23215003", "SCT"),
        ("T13", SCHEME),
        ("66794005", "SCT"),
        ("51282000", "SCT"),
        ("L6", SCHEME),
    ]
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["C7", "T12", "T13", "L1", "Vertebra 5", "L6"]
    assert len({segment.TrackingUID for segment in seg.SegmentSequence}) == 6
    for segment in seg.SegmentSequence:
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("balls", "0.0.1")
        assert "ab" * 32 in algorithm.AlgorithmParameters
        assert NOTICE in segment.SegmentDescription
    assert "Genant grade 3 (severe)" in seg.SegmentSequence[4].SegmentDescription


def test_a_clinical_bundle_is_not_disclaimed(tmp_path):
    volume = read_scan(write_series(tmp_path / "scan"))
    for notice, said in ((NOTICE, True), ("", False)):
        for result in dicom_results(analysis_of(volume, notice=notice), ("seg", "sr", "sc", "pdf")).values():
            assert ("NOT FOR CLINICAL USE" in result.SeriesDescription) == said
            assert ("clinical" in str(result)) == said


def test_without_vertebrae_there_is_no_segmentation_but_a_report(tmp_path):
    analysis = analysed(tmp_path / "scan", found=())
    made = dicom_results(analysis, ("seg", "sr", "sc", "pdf"))
    assert set(made) == {"sr", "sc", "pdf"}
    assert "No vertebra was found" in str(made["sr"])


def test_enhanced_files_of_one_frame_each_are_refused(tmp_path):
    whole = pydicom.dcmread(write_enhanced(tmp_path / "whole.dcm"))
    pixels, groups = whole.pixel_array, list(whole.PerFrameFunctionalGroupsSequence)
    (tmp_path / "scan").mkdir()
    for number, (frame, place) in enumerate(zip(pixels, groups, strict=True), start=1):
        whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        whole.InstanceNumber, whole.NumberOfFrames = number, 1
        whole.PerFrameFunctionalGroupsSequence, whole.PixelData = [place], frame.tobytes()
        whole.save_as(tmp_path / "scan" / f"{number}.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match=f"{len(pixels)} enhanced or multiframe files"):
        dicom_results(analysis_of(read_scan(tmp_path / "scan")), ("seg",))


def test_labels_without_a_segment_are_refused(tmp_path):
    analysis = analysed(tmp_path / "scan")
    labels = analysis.labels.copy()
    labels[tuple(np.argwhere(labels)[0])] = 77
    with pytest.raises(ValueError, match="77"):
        dicom_results(replace(analysis, labels=labels), ("seg",))


def test_a_series_in_several_multiframe_files_is_refused(tmp_path):
    for half in range(2):
        path = write_enhanced(tmp_path / "scan" / f"{half}.dcm")
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.4"
        for groups in dataset.PerFrameFunctionalGroupsSequence:
            place = groups.PlanePositionSequence[0]
            x, y, z = place.ImagePositionPatient
            place.ImagePositionPatient = [x, y, z + half * COUNT * GEOMETRIES["axial"].step_mm]
        dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(InputError, match="2 enhanced or multiframe files"):
        dicom_results(analysis_of(read_scan(tmp_path / "scan")), ("seg",))
