"""Whose results they are, under which UIDs, and that odd source headers do not stop them."""

from __future__ import annotations

import datetime
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.tag import Tag

from runtime.dicom import KINDS
from runtime.dicom.uids import derived_uid
from runtime.dicom.writer import dicom_results, write_dicom
from runtime.errors import InputError
from runtime.overview import draw_overview
from runtime.readers import read_scan
from tests.runtime.dicom.series import analysed, analysis_of, write_series

STUDY = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyDescription", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
)
TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)


def written(analysis, folder, kinds=KINDS):
    folder.mkdir(exist_ok=True)
    write_dicom(analysis, folder, kinds)
    return {kind: pydicom.dcmread(folder / f"{kind}.dcm") for kind in kinds}


def timeless(dataset) -> pydicom.Dataset:
    """A copy without the attributes that say when it was made."""
    copy = deepcopy(dataset)
    for equipment in copy.get("ContributingEquipmentSequence", []):
        del equipment.ContributionDateTime
    for keyword in (
        *("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"),
        *("DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
    ):
        if keyword in copy:
            del copy[keyword]
    return copy


def test_study_and_patient_are_those_of_the_source(tmp_path):
    results = written(analysed(tmp_path / "scan"), tmp_path)
    source = pydicom.dcmread(tmp_path / "scan" / "000.dcm")
    for result in results.values():
        for keyword in STUDY:
            assert result[keyword].value == source[keyword].value, keyword
        assert result.SpecificCharacterSet == "ISO_IR 100"
    assert str(results["sr"].PatientName) == "Müller^Grete^Ida"


def test_each_kind_is_a_series_of_its_own_behind_the_source(tmp_path):
    results = written(analysed(tmp_path / "scan"), tmp_path)
    assert [int(results[kind].SeriesNumber) for kind in KINDS] == [90041, 90042, 90043, 90044]
    assert [results[kind].Modality for kind in KINDS] == ["SEG", "SR", "OT", "DOC"]
    assert len({result.SeriesInstanceUID for result in results.values()}) == 4
    assert {tuple(result.SoftwareVersions)[1] for result in results.values()} == {"bundle balls 0.0.1"}


@pytest.mark.parametrize("number", [None, "", "7123", "-3"])
def test_any_series_number_will_do(tmp_path, number):
    def change(dataset):
        dataset.SeriesNumber = number

    results = dicom_results(analysis_of(read_scan(write_series(tmp_path / "scan", change=change))), ("seg",))
    assert 90000 < results["seg"].SeriesNumber < 100000


def test_a_second_run_makes_the_same_objects(tmp_path):
    analysis = analysed(tmp_path / "scan")
    first, second = written(analysis, tmp_path / "a"), written(analysis, tmp_path / "b")
    for kind in KINDS:
        assert first[kind].SOPInstanceUID == second[kind].SOPInstanceUID
        assert timeless(first[kind]) == timeless(second[kind])


def test_uids_depend_on_bundle_and_on_every_image(tmp_path):
    analysis = analysed(tmp_path / "scan")
    bundle = replace(analysis.findings.bundle, sha256="cd" * 32)
    other_bundle = replace(analysis, findings=replace(analysis.findings, bundle=bundle))
    (tmp_path / "scan" / "013.dcm").unlink()
    fewer = analysis_of(read_scan(tmp_path / "scan"))
    runs = [dicom_results(one, KINDS) for one in (analysis, other_bundle, fewer)]
    uids = [uid for run in runs for result in run.values() for uid in (result.SOPInstanceUID, result.SeriesInstanceUID)]
    tracking = [run["seg"].SegmentSequence[0].TrackingUID for run in runs]
    assert len(set(uids + tracking)) == len(uids) + len(tracking) == 3 * 9


def test_derived_uids_are_uids():
    uid = pydicom.uid.UID(derived_uid("a", "b"))
    assert uid.is_valid
    assert uid == derived_uid("a", "b") != derived_uid("b", "a")
    assert len(uid) <= 64


def test_missing_attributes_of_type_2_are_there_and_empty(tmp_path):
    def change(dataset):
        for keyword in (*TYPE_2, "SliceThickness", "PatientAge", "SpecificCharacterSet", "StudyDescription"):
            delattr(dataset, keyword)

    analysis = analysis_of(read_scan(write_series(tmp_path / "scan", change=change)))
    results = written(analysis, tmp_path)
    for result in results.values():
        for keyword in TYPE_2:
            assert keyword in result
            assert not result[keyword].value
    measures = results["seg"].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == pytest.approx(2.5)


def test_what_is_empty_and_need_not_be_there_is_left_out(tmp_path):
    def change(dataset):
        dataset.SpecificCharacterSet, dataset.PatientName = "", "Doe^John"
        dataset.DeidentificationMethod, dataset.PatientAge, dataset.PatientID = "", "", ""
        dataset.ReferringPhysicianName, dataset.StudyDescription = "", ""

    for result in written(analysis_of(read_scan(write_series(tmp_path / "scan", change=change))), tmp_path).values():
        for keyword in ("SpecificCharacterSet", "DeidentificationMethod", "PatientAge"):
            assert keyword not in result
        assert result["PatientID"].is_empty


def test_values_that_their_type_forbids_are_taken_over_as_they_are(tmp_path):
    odd = {
        "PatientBirthDate": "1950-02-03",
        "PatientSex": "weiblich",
        "PatientID": "P" * 80,
        "StudyTime": "25:61",
        "StudyDate": "yesterday",
        "AccessionNumber": "A" * 30,
        "PatientAge": "76",
        "SliceThickness": "",
    }
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:

        def change(dataset):
            for keyword, value in odd.items():
                tag = Tag(keyword)
                vr = pydicom.datadict.dictionary_VR(tag)
                dataset[tag] = pydicom.DataElement(tag, vr, value, validation_mode=pydicom.config.IGNORE)

        folder = write_series(tmp_path / "scan", change=change)
    finally:
        pydicom.config.settings.writing_validation_mode = None
    write_dicom(analysis_of(read_scan(folder)), tmp_path, KINDS)
    for kind in KINDS:
        stored = (tmp_path / f"{kind}.dcm").read_bytes()
        for keyword in ("PatientBirthDate", "PatientSex", "PatientID", "StudyTime", "StudyDate", "PatientAge"):
            assert odd[keyword].encode() in stored, (kind, keyword)


@pytest.mark.parametrize(
    ("character_set", "name", "on_page"),
    [
        ("ISO_IR 192", "Ünal^Şeyma", False),
        ("ISO_IR 144", "Люкceмбypг", False),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("GB18030", "Wang^XiaoDong=王^小东", True),
        ("ISO_IR 100", "Buc^Jérôme", True),
    ],
)
def test_names_survive_every_character_set(tmp_path, character_set, name, on_page):
    from runtime.dicom.page import IN_HEADER, _patient_name

    def change(dataset):
        dataset.SpecificCharacterSet, dataset.PatientName = character_set, name
        for keyword in ("ReferringPhysicianName", "StudyDescription"):
            setattr(dataset, keyword, "")

    analysis = analysis_of(read_scan(write_series(tmp_path / "scan", change=change)))
    results = written(analysis, tmp_path, ("seg", "sr"))
    for result in results.values():
        assert str(result.PatientName) == name
    assert (_patient_name(results["sr"]) != IN_HEADER) == on_page


def test_bytes_without_a_character_set_are_kept(tmp_path):
    def change(dataset):
        del dataset.SpecificCharacterSet
        dataset.ReferringPhysicianName, dataset.StudyDescription = "", ""
        dataset.PatientName = "Mueller^Xy"

    folder = write_series(tmp_path / "scan", change=change)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"Mueller^Xy", "Müller^Xyz".encode("latin-1")))
    write_dicom(analysis_of(read_scan(folder)), tmp_path, KINDS)
    for kind in KINDS:
        assert "Müller^Xyz".encode("latin-1") in (tmp_path / f"{kind}.dcm").read_bytes()


def test_without_a_frame_of_reference_only_pictures_are_made(tmp_path):
    def change(dataset):
        del dataset.FrameOfReferenceUID

    analysis = analysis_of(read_scan(write_series(tmp_path / "scan", change=change)))
    assert set(dicom_results(analysis, ("sc", "pdf"))) == {"sc", "pdf"}
    for kind in ("seg", "sr"):
        with pytest.raises(InputError, match="no Frame of Reference UID"):
            dicom_results(analysis, (kind,))


def test_a_scan_that_is_no_dicom_has_no_dicom_results(tmp_path):
    analysis = analysed(tmp_path / "scan")
    other = replace(analysis, volume=replace(analysis.volume, source=None))
    with pytest.raises(InputError, match="was not read from DICOM"):
        dicom_results(other, ("seg",))


def test_the_capture_is_the_overview_without_the_folder_s_name(tmp_path):
    analysis = analysed(tmp_path / "scan")
    capture = written(analysis, tmp_path, ("sc",))["sc"]
    assert (capture.BodyPartExamined, capture.BurnedInAnnotation) == ("SPINE", "NO")
    findings = analysis.findings
    named = replace(findings, scan=replace(findings.scan, name="CT series 4"))
    picture = draw_overview(analysis.volume, analysis.labels, named, notice=analysis.notice)
    np.testing.assert_array_equal(capture.pixel_array, np.asarray(picture))
    as_file = draw_overview(analysis.volume, analysis.labels, findings, notice=analysis.notice)
    assert not np.array_equal(capture.pixel_array, np.asarray(as_file))


def test_the_times_are_those_of_now(tmp_path):
    before = datetime.datetime.now()
    for result in dicom_results(analysed(tmp_path / "scan"), KINDS).values():
        made = datetime.datetime.strptime(f"{result.ContentDate}{str(result.ContentTime)[:6]}", "%Y%m%d%H%M%S")
        assert abs((made - before).total_seconds()) < 60


def test_the_picture_may_be_any_size_on_the_page(tmp_path):
    from runtime.dicom.page import draw_page
    from runtime.dicom.writer import _context

    context = _context(analysed(tmp_path / "scan"))
    for size in ((1700, 1300), (900, 300), (400, 2000)):
        assert draw_page(context, Image.new("RGB", size)).startswith(b"%PDF-")
