from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from runtime.errors import InputError
from runtime.scan_list import ListedScan, list_scans


def dicom(path, series="1.2.3", study=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.SeriesInstanceUID = series
    if study is not None:
        dataset.StudyInstanceUID = study
    dataset.save_as(path, enforce_file_format=True)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"something")


def listed(*named):
    scans, is_list = list_scans(named)
    return [(scan.path, scan.under) for scan in scans], is_list


def test_files_are_themselves_and_several_are_a_list(tmp_path):
    one, other = tmp_path / "a.nii.gz", tmp_path / "none.nii"
    touch(one)
    assert listed(one) == ([(one, Path())], False)
    assert listed(one, other) == ([(one, Path()), (other, Path())], True)


def test_a_folder_of_files_is_a_list_even_of_one(tmp_path):
    touch(tmp_path / "b" / "c" / "deep.NII.GZ")
    assert listed(tmp_path) == ([(tmp_path / "b" / "c" / "deep.NII.GZ", Path("b/c"))], True)
    for name in ("two.mha", "three.zip", "notes.txt", ".hidden/no.nii", "two.vertebrae/vertebrae.nii.gz"):
        touch(tmp_path / name)
    touch(tmp_path / "out" / "vertebrae.nii.gz")
    touch(tmp_path / "out" / "findings.json")
    found, is_list = listed(tmp_path)
    assert is_list
    assert [(str(path.relative_to(tmp_path)), str(under)) for path, under in found] == [
        ("three.zip", "."),
        ("two.mha", "."),
        ("b/c/deep.NII.GZ", "b/c"),
    ]


def test_a_folder_with_dicom_files_is_one_scan_whatever_else_it_holds(tmp_path):
    dicom(tmp_path / "IM0001")
    dicom(tmp_path / "more" / "IM0001", "9")
    touch(tmp_path / "a.nii.gz")
    assert listed(tmp_path) == ([(tmp_path, Path())], False)
    other = tmp_path / "disc"
    touch(other / "DICOMDIR")
    dicom(other / "DIR000" / "00000001")
    dicom(other / "DIR001" / "00000001", "2")
    assert listed(other) == ([(other, Path())], False)


def test_subfolders_with_series_of_their_own_are_scans(tmp_path):
    for number in (1, 2):
        dicom(tmp_path / f"patient{number}" / "ct" / "IM0001", f"1.2.{number}")
    touch(tmp_path / "three.nii")
    found, is_list = listed(tmp_path)
    assert is_list
    expected = [("three.nii", "."), ("patient1/ct", "patient1"), ("patient2/ct", "patient2")]
    assert [(str(path.relative_to(tmp_path)), str(under)) for path, under in found] == expected


def test_a_series_in_pieces_is_one_scan(tmp_path):
    for number in range(3):
        dicom(tmp_path / f"DIR{number}" / "00000001", "1.2.3")
    assert listed(tmp_path) == ([(tmp_path, Path())], False)


def test_the_series_of_one_study_are_one_scan_and_studies_are_scans_of_their_own(tmp_path):
    for patient in (1, 2):
        for number in (1, 2):
            dicom(tmp_path / f"patient{patient}" / f"series{number}" / "IM1", f"1.{patient}.{number}", f"1.{patient}")
    dicom(tmp_path / "patient3" / "a" / "IM1", "1.3.1", "1.3")
    dicom(tmp_path / "patient3" / "b" / "IM1", "1.4.1", "1.4")
    found, is_list = listed(tmp_path)
    assert is_list
    names = [str(path.relative_to(tmp_path)) for path, _ in found]
    assert names == ["patient1", "patient2", "patient3/a", "patient3/b"]
    assert listed(tmp_path / "patient1") == ([(tmp_path / "patient1", Path())], False)


def test_a_damaged_dicom_file_or_one_that_may_not_be_read_stops_no_other_patient(tmp_path, monkeypatch):
    for patient in (1, 2):
        dicom(tmp_path / f"patient{patient}" / "IM1.dcm", f"1.{patient}.1", f"1.{patient}")
    whole = (tmp_path / "patient2" / "IM1.dcm").read_bytes()
    both = [tmp_path / "patient1", tmp_path / "patient2"]
    for size in range(len(whole)):
        (tmp_path / "patient2" / "IM1.dcm").write_bytes(whole[:size])
        assert [scan.path for scan in list_scans([tmp_path])[0]] == both, size

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pydicom.dcmread", refuse)
    assert [scan.path for scan in list_scans([tmp_path])[0]] == both


def test_a_folder_without_scans_is_given_as_it_is_so_that_reading_tells(tmp_path):
    touch(tmp_path / "notes.txt")
    assert list_scans([tmp_path]) == ((ListedScan(tmp_path),), False)


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("runtime.scan_list.os.scandir", refuse)
    with pytest.raises(InputError, match=r"can't be listed \(Permission denied\)"):
        list_scans([tmp_path])


def test_a_link_that_goes_round_in_a_ring_is_no_scan_and_stops_nothing(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    (tmp_path / "ring.nii.gz").symlink_to("ring.nii.gz")
    scans, _ = list_scans([tmp_path])
    assert [scan.path.name for scan in scans] == ["a.nii.gz"]


def test_linked_folders_are_followed_and_each_folder_counts_once(tmp_path):
    dicom(tmp_path / "elsewhere" / "ct" / "IM1", "1.2.1", "1.1")
    here = tmp_path / "here"
    touch(here / "own" / "a.nii")
    for name in ("link", "same"):
        (here / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "around").symlink_to(here, target_is_directory=True)
    found, is_list = listed(here)
    assert is_list
    assert [str(path.relative_to(here)) for path, _ in found] == ["own/a.nii", "link/ct"]


def test_scans_of_other_formats_beside_dicom_files_are_left_out_and_that_is_said(tmp_path, caplog):
    dicom(tmp_path / "IM0001")
    touch(tmp_path / "mask.nii.gz")
    touch(tmp_path / "other.mha")
    assert listed(tmp_path) == ([(tmp_path, Path())], False)
    assert "2 other file(s) in it are left out, such as mask.nii.gz" in caplog.text
