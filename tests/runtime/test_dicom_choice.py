"""Which series of a study is run on, and the reasons; DICOMDIRs; the command that lists it all."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from runtime.errors import GeometryError, InputError
from runtime.readers import list_series, read_scan, scan_name
from runtime.readers.dicom_choice import SeriesRules, choose, kernel_kind
from runtime.readers.dicom_frames import Frame
from runtime.readers.dicom_geometry import arrange
from runtime.readers.dicom_series import Candidate
from runtime.readers.options import ReadOptions
from runtime.series import main
from tests.runtime.dicom_files import STEP_MM, save, slice_dataset, stored_values, write_series

AXIAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]


def write(folder: Path, number: int, *, count=30, step_mm=1.0, orientation=AXIAL, **attributes) -> str:
    """A series of ``count`` slices; returns its UID."""
    uid, stored = generate_uid(), stored_values(count)
    normal = np.cross(orientation[:3], orientation[3:])
    for k in range(count):
        dataset = slice_dataset(stored[k], list(normal * step_mm * k), SeriesInstanceUID=uid, SeriesNumber=number)
        dataset.ImageOrientationPatient = orientation
        for key, value in attributes.items():
            setattr(dataset, key, value)
        save(dataset, folder / f"{number}" / f"{k:02d}.dcm")
    return uid


def chosen(folder: Path, **options) -> tuple[int, dict[int, str]]:
    """Number of the chosen series, and the reason of every series by number."""
    verdicts = list_series(folder, ReadOptions(**options)).verdicts
    (best,) = (int(v.candidate.series_number) for v in verdicts if v.chosen)
    return best, {int(v.candidate.series_number): v.reason for v in verdicts}


def test_a_mixed_study_has_one_series_to_run_on_and_a_reason_for_each(tmp_path):
    write(tmp_path, 1, count=2, orientation=SAGITTAL, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write(tmp_path, 2, count=6, step_mm=5.0, ConvolutionKernel="B31f")
    write(tmp_path, 3, ConvolutionKernel="B31f")
    write(tmp_path, 4, ConvolutionKernel="B70f")
    write(tmp_path, 5, count=40, ImageType=["DERIVED", "SECONDARY", "MPR"])
    write(tmp_path, 6, count=30, orientation=SAGITTAL, ImageType=["DERIVED", "PRIMARY", "MPR"])
    write(tmp_path, 7, count=1)
    best, reasons = chosen(tmp_path)
    assert best == 3
    assert reasons[1] == "it is a localizer"
    assert "slices 5.00 mm apart" in reasons[2]
    assert "fewest points" in reasons[3]
    assert "sharp kernel B70f" in reasons[4]
    assert "SECONDARY" in reasons[5]
    assert "sagittal slices" in reasons[6]
    assert "derived images" in reasons[6]
    assert "only one slice" in reasons[7]
    volume = read_scan(tmp_path)
    assert volume.array.shape[0] == 30
    assert volume.notes[0].startswith("Of 7 CT series, series 3 (30 slices 1.00 mm apart, kernel B31f) was read")
    assert len(volume.notes) == 7
    assert all(note.startswith("Not read: ") for note in volume.notes[1:])
    assert all(uid not in "".join(volume.notes) for uid in (volume.source.series_uid, volume.source.study_uid or "-"))


def test_the_reason_of_every_series_is_said_however_many_there_are(tmp_path):
    for number in range(1, 13):
        write(tmp_path, number, count=30 if number == 5 else 3, ConvolutionKernel="B30f")
    capture = slice_dataset(stored_values(1)[0], [0, 0, 0], SeriesInstanceUID="1.2", SeriesNumber=99, Modality="OT")
    capture.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    save(capture, tmp_path / "capture")
    head, *rest = read_scan(tmp_path).notes
    assert head.startswith("Of 12 CT series, series 5 ")
    assert {int(note.split()[3]) for note in rest} == {*range(1, 13), 99} - {5}
    assert all(note.startswith("Not read: series ") and ": 27 mm shorter, only 3 slices" in note for note in rest[:-1])
    assert rest[-1] == "Not read: series 99 (1 file): no CT images but Secondary Capture Image (OT)."


def test_a_refusal_bears_the_reason_of_every_series(tmp_path):
    for number in range(1, 6):
        write(tmp_path, number, count=3, ImageType=["DERIVED", "SECONDARY"])
    with pytest.raises(InputError, match=r"; 2 more\)\. See them all with python -m runtime\.series PATH") as refused:
        read_scan(tmp_path)
    assert [note.split()[3] for note in refused.value.__notes__] == ["1", "2", "3", "4", "5"]
    assert all("secondary captures or reformats" in note for note in refused.value.__notes__)
    write(tmp_path, 6)
    (tmp_path / "6" / "07.dcm").unlink()
    with pytest.raises(GeometryError, match="misses 1 slices") as refused:
        read_scan(tmp_path)
    assert [note.split()[3] for note in refused.value.__notes__] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"step_mm": 3.0, "count": 10}, {"count": 30}),
        ({"ConvolutionKernel": "BONE"}, {"ConvolutionKernel": "STANDARD"}),
        (
            {"step_mm": 4.0, "ConvolutionKernel": "STANDARD"},
            {"step_mm": 1.0, "count": 120, "ConvolutionKernel": "BONE"},
        ),
        ({"orientation": SAGITTAL}, {"orientation": AXIAL}),
        ({"ImageType": ["DERIVED", "PRIMARY"]}, {}),
        ({"count": 25}, {"count": 120}),
        ({"count": 120, "step_mm": 0.5}, {"count": 120, "step_mm": 1.0}),
        ({"count": 100, "SliceThickness": 5.0}, {"count": 80, "step_mm": 1.25, "SliceThickness": 1.25}),
    ],
)
@pytest.mark.parametrize("flipped", [False, True])
def test_what_counts_against_a_series(tmp_path, worse, better, flipped):
    numbers = (2, 1) if flipped else (1, 2)
    write(tmp_path, numbers[0], **worse)
    write(tmp_path, numbers[1], **better)
    assert chosen(tmp_path)[0] == numbers[1]


def candidate(number: int, step_mm: float, thickness_mm: float | None, *, extent_mm: float = 120.0) -> Candidate:
    """A soft axial series of that extent, without files."""
    frames = [
        Frame(
            source=f"{k}",
            index=0,
            position_lps_mm=(0.0, 0.0, step_mm * k),
            row_lps=(1.0, 0.0, 0.0),
            column_lps=(0.0, 1.0, 0.0),
            spacing_mm=(0.7, 0.7),
            rows=8,
            columns=8,
            slope=1.0,
            intercept=-1024.0,
            padding=None,
            frame_of_reference="1.2",
            rescaled=True,
            acquisition="",
            thickness_mm=thickness_mm,
        )
        for k in range(round(extent_mm / step_mm) + 1)
    ]
    return Candidate(
        series_uid=f"1.{number}",
        series_number=f"{number}",
        description="",
        kernel="B30f",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        files=(),
        frames=tuple(frames),
        part=(1, 1),
        set_apart="",
        stack=arrange(frames, "scan"),
        defect=None,
    )


STEPS_MM = st.sampled_from([0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0])  # 120 mm are whole numbers of each


@given(steps=st.tuples(STEPS_MM, STEPS_MM), thicknesses=st.tuples(*[st.floats(0.3, 12.0)] * 2))
@settings(max_examples=60, deadline=None)
def test_of_two_series_alike_the_one_whose_slices_stand_for_less_is_run_on(steps, thicknesses):
    stands_for = [max(1.5, *pair) for pair in zip(steps, thicknesses, strict=True)]
    best, other = choose([candidate(number, steps[number], thicknesses[number]) for number in (0, 1)])
    thinner = min((0, 1), key=lambda number: (round(10 * stands_for[number], 3), steps[number], number))
    assert best.candidate.series_number == str(thinner)
    assert [best.points, other.points] == pytest.approx([10 * (mm - 1.5) for mm in sorted(stands_for)], abs=0.01)


@given(step_mm=STEPS_MM, unused=st.one_of(st.none(), st.floats(0.001, 1.0), st.floats(100.1, 1e6)))
@settings(max_examples=30, deadline=None)
def test_a_thickness_that_is_not_stated_or_below_the_step_or_absurd_costs_nothing(step_mm, unused):
    thickness_mm = unused * step_mm if unused is not None and unused <= 1.0 else unused
    (stated,), (plain,) = choose([candidate(1, step_mm, thickness_mm)]), choose([candidate(1, step_mm, None)])
    assert (stated.points, stated.costs) == (plain.points, plain.costs)


def test_why_thick_slices_that_overlap_are_not_run_on(tmp_path, capsys):
    alike = {"StudyInstanceUID": "1.1", "ConvolutionKernel": "B30f"}
    write(tmp_path, 1, count=100, SliceThickness=5.0, **alike)
    write(tmp_path, 2, count=80, step_mm=1.25, SliceThickness=1.25, **alike)
    best, reasons = chosen(tmp_path)
    assert (best, reasons[1].partition(" (")[0]) == (2, "slices 5.00 mm thick, 1.00 mm apart")
    assert main([str(tmp_path)]) == 0
    assert "1.00 mm   5.00 mm axial" in capsys.readouterr().out


def test_rules_are_numbers_that_can_be_changed(tmp_path):
    write(tmp_path, 1, orientation=SAGITTAL)
    write(tmp_path, 2, step_mm=3.0)
    found = [verdict.candidate for verdict in list_series(tmp_path).verdicts]
    assert choose(found)[0].candidate.series_number == "2"
    assert choose(found, rules=SeriesRules(not_axial=0.0))[0].candidate.series_number == "1"


def test_a_series_can_be_named(tmp_path):
    write(tmp_path, 1)
    secondary = write(tmp_path, 2, count=12, ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert read_scan(tmp_path, ReadOptions(series_uid=secondary)).array.shape[0] == 12
    assert chosen(tmp_path, series_uid=secondary) == (2, {1: "another series was asked for", 2: "it was asked for"})
    with pytest.raises(InputError, match=r"no CT series with the UID 1\.2\.3"):
        read_scan(tmp_path, ReadOptions(series_uid="1.2.3"))


def test_secondary_images_alone_are_refused_unless_named(tmp_path):
    uid = write(tmp_path, 2, ImageType=["DERIVED", "SECONDARY"])
    with pytest.raises(InputError, match=r"SECONDARY.*--series"):
        read_scan(tmp_path)
    assert read_scan(tmp_path, ReadOptions(series_uid=uid)).array.shape[0] == 30


def test_a_defective_series_gives_way_to_one_as_long_only(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "1" / "07.dcm").unlink()
    write(tmp_path, 2, count=10)
    with pytest.raises(GeometryError, match=r"misses 1 slices: a gap of 2.00 mm between 1/06.dcm and 1/08.dcm"):
        read_scan(tmp_path)
    write(tmp_path, 3, count=10, step_mm=3.0)
    best, reasons = chosen(tmp_path)
    assert best == 3
    assert "misses 1 slices" in reasons[1]
    assert any("misses 1 slices" in note for note in read_scan(tmp_path).notes)
    assert chosen(tmp_path, accept_gaps=True)[0] == 1


def test_series_are_split_by_what_makes_them_two_volumes(tmp_path):
    other = generate_uid()

    def change(k, dataset):
        if k >= 6:
            dataset.FrameOfReferenceUID = other

    write_series(tmp_path, change, count=10)
    volume = read_scan(tmp_path)
    assert volume.array.shape[0] == 6
    assert "series 4 part 2 (4 slices 2.00 mm apart) of another frame of reference" in volume.notes[1]


def test_acquisitions_that_overlap_are_two_and_that_follow_each_other_are_one(tmp_path):
    stored = write_series(tmp_path / "one", lambda k, d: setattr(d, "AcquisitionNumber", 1 + k // 2), count=6)
    volume = read_scan(tmp_path / "one")
    np.testing.assert_array_equal(volume.array, stored.astype(int) - 1024)
    assert volume.notes == ()
    write_series(tmp_path / "two", lambda k, d: setattr(d, "AcquisitionNumber", 1), count=6)
    for k in range(4):
        position = [10, 20, -100 + STEP_MM * k]
        save(slice_dataset(stored[k][::-1].copy(), position, AcquisitionNumber=2), tmp_path / "two" / f"second{k}.dcm")
    volume = read_scan(tmp_path / "two")
    np.testing.assert_array_equal(volume.array, stored.astype(int) - 1024)
    assert "series 4 part 2 (4 slices 2.00 mm apart) of acquisition 2" in volume.notes[1]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        *((name, "soft") for name in ("B30f", "Br40d", "STANDARD", "SOFT", "FC08", "FC18-H", "B", "I31f', '3", "H31s")),
        *((name, "sharp") for name in ("B70f", "Bl57d", "BONE", "BONEPLUS", "LUNG", "FC51", "FC30", "YA", "L", "EDGE")),
        *((name, "") for name in ("", "custom", "XRES", "12")),
    ],
)
def test_kernels_are_known_by_name(kernel, kind):
    assert kernel_kind(kernel) == kind


# --- DICOMDIR ----------------------------------------------------------------------------------------------------


def write_dicomdir(folder: Path, names: list[str]) -> None:
    """A DICOMDIR that names files as a disc does: in capitals, one component per folder."""
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    records = []
    for kind, name in [("PATIENT", None), ("SERIES", None), *(("IMAGE", name) for name in names)]:
        record = Dataset()
        record.DirectoryRecordType = kind
        if name is not None:
            value = name.upper().replace("/", "\\").encode()
            record[0x00041500] = RawDataElement(Tag(0x00041500), "CS", len(value), value, 0, False, True)
        records.append(record)
    directory.DirectoryRecordSequence = Sequence(records)
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)


def disc(folder: Path) -> np.ndarray:
    """A disc with a series that its DICOMDIR names, and a longer one that it doesn't."""
    stored = write_series(folder / "images")
    for path in sorted((folder / "images").iterdir()):
        path.rename(path.with_name(f"im{path.stem}"))
    write_dicomdir(folder, [f"images/im{(7 * k) % 11:02d}" for k in range(5)])
    write(folder, 9, count=40)
    return stored


@pytest.mark.parametrize("given", ["folder", "DICOMDIR", "zip"])
def test_of_a_disc_only_what_its_dicomdir_names_is_read(tmp_path, given):
    folder = tmp_path / "disc"
    stored = disc(folder)
    path = {"folder": folder, "DICOMDIR": folder / "DICOMDIR", "zip": tmp_path / "a.zip"}[given]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, f"CD/{file.relative_to(folder)}")
    volume = read_scan(path)
    np.testing.assert_array_equal(volume.array, stored.astype(int) - 1024)
    assert volume.notes == ("40 files that the DICOMDIR does not name were left out.",)
    assert scan_name(path) == ("a" if given == "zip" else "disc")


def test_a_file_that_a_dicomdir_names_and_that_is_not_there(tmp_path):
    disc(tmp_path)
    (tmp_path / "images" / "im03").unlink()
    with pytest.raises(InputError, match=r"names 1 files that are not there, such as IMAGES/IM03"):
        read_scan(tmp_path)
    notes = read_scan(tmp_path, ReadOptions(accept_gaps=True)).notes
    assert any("IMAGES/IM03" in note for note in notes)
    assert any("missing in 1 gaps" in note for note in notes)


@pytest.mark.parametrize("name", ["../secret", "images/../../secret"])
def test_a_dicomdir_cannot_name_files_elsewhere(tmp_path, name):
    disc(tmp_path / "disc")
    write_dicomdir(tmp_path / "disc", [name])
    with pytest.raises(InputError, match="no file of its own"):
        read_scan(tmp_path / "disc")


def test_a_damaged_dicomdir_is_refused(tmp_path):
    disc(tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(b"no dicom")
    with pytest.raises(InputError, match=r"DICOMDIR can't be decoded.*Remove it"):
        read_scan(tmp_path)
    write_dicomdir(tmp_path, [])
    with pytest.raises(InputError, match=r"DICOMDIR names no images"):
        read_scan(tmp_path)


def test_a_dicom_file_is_known_without_an_ending(tmp_path):
    write_series(tmp_path)
    path = (tmp_path / "03.dcm").rename(tmp_path / "IM0003")
    with pytest.raises(InputError, match="only one slice, IM0003"):
        read_scan(path)


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_lists_every_series(tmp_path, capsys):
    uid = write(tmp_path, 3, ConvolutionKernel="B31f", SeriesDescription="thorax")
    write(tmp_path, 4, ConvolutionKernel="B70f")
    report = slice_dataset(stored_values(1)[0], [0, 0, 0], SeriesInstanceUID="1.2", SeriesNumber=7, Modality="SR")
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    save(report, tmp_path / "report")
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 40)
    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "-> 3 " in text
    assert "chosen: fewest points against it (0.0)" in text
    assert "not chosen: sharp kernel B70f (6.0 points against it, the chosen one has 0.0)" in text
    assert "not chosen: series 7 (1 file): no CT images but Basic Text SR (SR)" in text
    assert "broken.dcm" in text
    assert main([str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["series_number"] for entry in listed["series"]] == ["3", "4"]
    assert listed["series"][0]["series_uid"] == uid
    assert [entry["chosen"] for entry in listed["series"]] == [True, False]
    assert listed["series"][0]["extent_mm"] == 29.0
    assert list(listed["unreadable"]) == ["broken.dcm"]
    assert [(entry["series_number"], entry["files"]) for entry in listed["other_series"]] == [("7", 1)]


def test_the_command_says_that_there_is_nothing_to_run_on(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no CT series" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "There is no file or folder" in capsys.readouterr().err
    (tmp_path / "a.nii").write_bytes(b"")
    assert main([str(tmp_path / "a.nii")]) == 2
    assert "no DICOM" in capsys.readouterr().err
    write(tmp_path, 4, ImageType=["DERIVED", "SECONDARY"])
    assert main([str(tmp_path / "4")]) == 2
    assert "SECONDARY" in capsys.readouterr().out


def test_images_of_two_patients_are_one_scan_only_where_a_series_is_named(tmp_path, capsys):
    write(tmp_path, 1, PatientID="A", StudyInstanceUID="1.1")
    uid = write(tmp_path, 2, PatientID="B", StudyInstanceUID="1.1")
    with pytest.raises(InputError, match=r"CT images of 2 patients.*--series"):
        read_scan(tmp_path)
    assert read_scan(tmp_path, ReadOptions(series_uid=uid)).source.series_uid == uid
    assert main([str(tmp_path)]) == 0
    assert "of 2 patients" in capsys.readouterr().out


def test_of_several_studies_of_one_patient_the_one_that_was_read_is_said(tmp_path):
    write(tmp_path, 1, count=40, PatientID="A", StudyInstanceUID="1.1", StudyDate="20260102")
    write(tmp_path, 2, PatientID="A", StudyInstanceUID="1.2", StudyDate="20250102")
    assert any("2 studies" in note and "20260102" in note for note in read_scan(tmp_path).notes)


def test_the_command_lists_no_pool_of_what_would_be_several_scans(tmp_path, capsys):
    write(tmp_path, 1, StudyInstanceUID="1.1")
    write(tmp_path, 2, StudyInstanceUID="1.2")
    assert main([str(tmp_path)]) == 2
    assert "holds 2 scans" in capsys.readouterr().err
