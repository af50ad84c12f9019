"""Files are what pydicom would have written, byte by byte."""

from __future__ import annotations

import warnings

import pydicom
import pytest
from pydicom.dataset import Dataset

pytest.importorskip("highdicom", reason="the extra 'dicom' is not installed")

from runtime.dicom import KINDS, SEG_TYPES
from runtime.dicom.encode import write_object
from runtime.dicom.writer import dicom_results
from runtime.readers import read_scan
from tests.runtime.dicom.series import analysed, analysis_of, write_enhanced, write_series


def require_same_bytes(analysis, folder, **options):
    for kind, result in dicom_results(analysis, KINDS, **options).items():
        # The library first: it leaves items as they were read, where another order would let it see them decoded.
        result.save_as(folder / "theirs.dcm", enforce_file_format=True)
        write_object(folder / "ours.dcm", result)
        assert (folder / "ours.dcm").read_bytes() == (folder / "theirs.dcm").read_bytes(), kind


@pytest.mark.parametrize("seg_type", SEG_TYPES)
def test_every_kind_of_object(tmp_path, seg_type):
    require_same_bytes(analysed(tmp_path / "scan"), tmp_path, seg_type=seg_type)


def test_objects_about_a_multiframe_image(tmp_path):
    require_same_bytes(analysis_of(read_scan(write_enhanced(tmp_path / "scan" / "enhanced.dcm"))), tmp_path)


@pytest.mark.parametrize(("charset", "name"), [
    (["ISO 2022 IR 100", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ("ISO_IR 192", "Łukasz^Ż"),
    ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
])  # fmt: skip
def test_identities_in_any_character_set(tmp_path, charset, name):
    def change(image):
        image.SpecificCharacterSet, image.PatientName = charset, name
        image.ReferringPhysicianName, image.StudyDescription = "Doe^Jane", name[:2]
        image.PatientComments, image.OtherPatientNames = "odd", [name, "Second^Name"]

    require_same_bytes(analysis_of(read_scan(write_series(tmp_path / "scan", change=change))), tmp_path)


def test_copied_sequences_without_lengths(tmp_path):
    """Files of some scanners end their sequences and items by delimiters, and what is copied from them does, too."""

    def change(image):
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "CTSPINE", "99SITE", "Wirbelsäule"
        image.ProcedureCodeSequence = [code]
        image["ProcedureCodeSequence"].is_undefined_length = True
        code.is_undefined_length_sequence_item = True

    analysis = analysis_of(read_scan(write_series(tmp_path / "scan", change=change)))
    require_same_bytes(analysis, tmp_path)
    assert "ProcedureCodeSequence" in pydicom.dcmread(tmp_path / "ours.dcm")


def test_copied_items_stay_as_they_were_read(tmp_path):
    """Padding of other writers, texts in another character set than the file's: decoded and encoded they'd change."""

    def change(image):
        image.SpecificCharacterSet = "ISO_IR 192"
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "CTSPINE ", "99SITE  ", "Spine   "
        code.add_new(0x0008_0119, "UC", "PLACE")
        image.ProcedureCodeSequence = [code]

    folder = write_series(tmp_path / "scan", change=change)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"PLACE ", b"PL\xe4CE "))
    analysis = analysis_of(read_scan(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        require_same_bytes(analysis, tmp_path)
    written = (tmp_path / "ours.dcm").read_bytes()
    assert b"PL\xe4CE " in written
    assert b"99SITE  " in written


def test_a_shared_item_is_encoded_in_the_character_set_of_each_place(tmp_path):
    result = dicom_results(analysed(tmp_path / "scan"), ("sc",))["sc"]
    text, elsewhere = Dataset(), Dataset()
    text.CodeMeaning = "Wirbelsäule"
    elsewhere.SpecificCharacterSet, elsewhere.ConceptCodeSequence = "ISO_IR 192", [text]
    result.SpecificCharacterSet = "ISO_IR 100"
    result.ConceptNameCodeSequence, result.ContentSequence = [text], [elsewhere]
    write_object(tmp_path / "ours.dcm", result)
    read = pydicom.dcmread(tmp_path / "ours.dcm")
    assert read.ConceptNameCodeSequence[0].CodeMeaning == "Wirbelsäule"
    assert read.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning == "Wirbelsäule"


def test_items_that_look_alike_are_not_taken_for_each_other(tmp_path):
    result = dicom_results(analysed(tmp_path / "scan"), ("sc",))["sc"]
    first, second = Dataset(), Dataset()
    first.CodeValue, second.CodeValue = "1", "2"
    result.ConceptNameCodeSequence = [first, second, first]
    write_object(tmp_path / "ours.dcm", result)
    values = [item.CodeValue for item in pydicom.dcmread(tmp_path / "ours.dcm").ConceptNameCodeSequence]
    assert values == ["1", "2", "1"]


def test_no_file_is_left_by_an_object_that_can_not_be_encoded(tmp_path):
    result = dicom_results(analysed(tmp_path / "scan"), ("sc",))["sc"]
    del result.SOPInstanceUID
    with pytest.raises((KeyError, AttributeError, ValueError)):
        write_object(tmp_path / "ours.dcm", result)
    assert not (tmp_path / "ours.dcm").exists()
