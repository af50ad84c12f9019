from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from runtime.errors import GeometryError, InputError
from runtime.readers import jpeg_12bit, read_scan
from runtime.readers.options import ReadOptions
from runtime.volume import LPS_FROM_RAS
from tests.runtime.dicom_files import STEP_MM, enhanced, save, slice_dataset, stored_values, write_series


def refused(path: Path, *parts: str, kind=InputError) -> None:
    with pytest.raises(kind) as caught:
        read_scan(path)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.exit_status == 2
    assert str(caught.value).endswith(".")


def zip_of(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


# --- what is read ------------------------------------------------------------------------------------------------


def test_a_series_is_ordered_by_position_with_its_affine(tmp_path):
    stored = write_series(tmp_path / "scan")
    (tmp_path / "scan" / "README.txt").write_text("not DICOM")
    volume = read_scan(tmp_path / "scan")
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, stored.astype(int) - 1024)
    lps = np.array([[0.5, 0, 0, 10], [0, 0.7, 0, 20], [0, 0, 2.0, -100], [0, 0, 0, 1]])
    np.testing.assert_allclose(volume.grid.affine_ras, LPS_FROM_RAS @ lps)
    assert volume.name == "scan"
    assert volume.notes == ()


def test_links_that_lead_nowhere_are_passed_over(tmp_path):
    stored = write_series(tmp_path)
    (tmp_path / "old.dcm").symlink_to(tmp_path / "gone.dcm")
    np.testing.assert_array_equal(read_scan(tmp_path).array, stored.astype(int) - 1024)


def test_the_zip_of_a_folder_is_the_same_scan(tmp_path):
    write_series(tmp_path / "scan" / "deep" / "er")
    folder, packed = read_scan(tmp_path / "scan"), read_scan(zip_of(tmp_path / "scan", tmp_path / "packed.zip"))
    np.testing.assert_array_equal(packed.array, folder.array)
    assert packed.grid.same_as(folder.grid)
    assert packed.sha256 == folder.sha256
    assert packed.name == "packed"


def test_the_hash_depends_on_content_and_not_on_file_names(tmp_path):
    write_series(tmp_path / "a")
    first = read_scan(tmp_path / "a").sha256
    for file in sorted((tmp_path / "a").iterdir()):
        file.rename(file.with_name("renamed" + file.name))
    assert read_scan(tmp_path / "a").sha256 == first
    write_series(tmp_path / "b", lambda k, d: setattr(d, "InstanceNumber", 50 + k))
    assert read_scan(tmp_path / "b").sha256 != first


def test_slope_and_intercept_are_applied_per_slice(tmp_path):
    def change(k, dataset):
        dataset.RescaleSlope, dataset.RescaleIntercept = (2, -1000) if k % 2 else (1, -1024)

    stored = write_series(tmp_path, change).astype(int)
    volume = read_scan(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[1::2], stored[1::2] * 2 - 1000)
    np.testing.assert_array_equal(volume.array[::2], stored[::2] - 1024)


def test_a_fractional_slope_makes_the_scan_float32(tmp_path):
    stored = write_series(tmp_path, lambda k, d: setattr(d, "RescaleSlope", 1.25))
    volume = read_scan(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, stored * 1.25 - 1024)


def test_missing_rescale_is_said(tmp_path):
    def change(k, dataset):
        del dataset.RescaleSlope, dataset.RescaleIntercept

    stored = write_series(tmp_path, change)
    volume = read_scan(tmp_path)
    np.testing.assert_array_equal(volume.array, stored)
    assert any("Rescale slope or intercept are missing" in note for note in volume.notes)


@pytest.mark.parametrize(("padding", "limit"), [(0, None), (0, 5), (5, 0)])
def test_declared_padding_becomes_air(tmp_path, padding, limit):
    def change(k, dataset):
        pixels = stored_values()[k] + np.uint16(10)
        pixels[0], pixels[1] = padding, 3
        dataset.PixelData, dataset.PixelPaddingValue, dataset.RescaleIntercept = pixels.tobytes(), padding, -2000
        if limit is not None:
            dataset.PixelPaddingRangeLimit = limit

    write_series(tmp_path, change)
    array = read_scan(tmp_path).array
    assert (array[:, 0] == -1024).all()
    assert (array[:, 1] == (-1024 if limit is not None else 3 - 2000)).all()
    np.testing.assert_array_equal(array[:, 2:], stored_values()[:, 2:].astype(int) + 10 - 2000)


def test_padding_that_no_header_declares_becomes_air_where_asked(tmp_path):
    def change(k, dataset):
        pixels = stored_values()[k].astype(np.int16) - np.int16(1024)
        pixels[0] = -2000
        dataset.PixelData, dataset.PixelRepresentation, dataset.RescaleIntercept = pixels.tobytes(), 1, 0

    write_series(tmp_path, change)
    array = read_scan(tmp_path, ReadOptions(lowest_hu=-1024)).array
    assert (array[:, 0] == -1024).all()
    np.testing.assert_array_equal(array[:, 1:], stored_values()[:, 1:].astype(int) - 1024)
    assert (read_scan(tmp_path).array[:, 0] == -2000).all()


def test_gantry_tilt_is_kept_as_a_sheared_grid(tmp_path):
    angle = np.radians(18.5)

    def change(k, dataset):
        dataset.ImageOrientationPatient = [1, 0, 0, 0, float(f"{np.cos(angle):.7f}"), float(f"{-np.sin(angle):.7f}")]

    write_series(tmp_path, change)
    volume = read_scan(tmp_path)
    assert "tilted by 18.5 degrees" in volume.notes[0]
    for k in (0, 4):
        np.testing.assert_allclose(volume.grid.to_ras_mm([k, 0, 0]), [-10, -20, -100 + STEP_MM * k], atol=1e-6)
    far = volume.grid.to_ras_mm([4, 5, 7])
    expected = np.array([13.5, 20 + 3.5 * np.cos(angle), -92 - 3.5 * np.sin(angle)])
    np.testing.assert_allclose(far, expected * [-1, -1, 1], atol=1e-5)


def test_a_sagittal_series_is_read_on_its_own_axes(tmp_path):
    def change(k, dataset):
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        dataset.ImagePositionPatient = [30 - STEP_MM * k, 20, 100]

    stored = write_series(tmp_path, change)
    volume = read_scan(tmp_path)
    np.testing.assert_array_equal(volume.array, stored.astype(int) - 1024)
    assert volume.grid.orientation == "PIR"
    np.testing.assert_allclose(volume.grid.to_ras_mm([4, 5, 7]), [-22, -23.5, 96.5])


def test_rounded_positions_are_accepted(tmp_path):
    jitter = [0, 0.01, -0.01, 0.008, 0]

    def change(k, dataset):
        dataset.ImagePositionPatient = [10, 20, -100 + STEP_MM * k + jitter[k]]

    write_series(tmp_path, change)
    np.testing.assert_allclose(read_scan(tmp_path).grid.spacing_xyz_mm, (0.5, 0.7, 2.0))


def test_of_several_series_the_longest_is_read_and_that_is_said(tmp_path):
    stored = write_series(tmp_path / "long")
    other = generate_uid()

    def change(k, dataset):
        dataset.SeriesInstanceUID, dataset.SeriesNumber = other, 9

    write_series(tmp_path / "short", change, count=3)
    volume = read_scan(tmp_path)
    np.testing.assert_array_equal(volume.array, stored.astype(int) - 1024)
    assert len(volume.notes) == 2
    assert "Of 2 CT series, series 4 (5 slices 2.00 mm apart) was read" in volume.notes[0]
    assert volume.notes[1].startswith("Not read: series 9 (3 slices 2.00 mm apart): 4 mm shorter")


def test_localizers_and_other_modalities_are_left_out(tmp_path):
    stored = write_series(tmp_path)
    localizer = slice_dataset(stored[0], [0, 0, 0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    localizer.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    save(localizer, tmp_path / "scout.dcm")
    capture = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"}
    save(slice_dataset(stored[0], [0, 0, 0], **capture), tmp_path / "sc")
    report = {"SOPClassUID": "1.2.3.4", "Modality": "SR"}
    for uid, number, what in (("2.25.1", 12, capture), ("2.25.2", 11, capture), ("2.25.3", None, report)):
        other = slice_dataset(stored[0], [0, 0, 0], SeriesInstanceUID=uid, SeriesNumber=number, **what)
        save(other, tmp_path / uid)
    volume = read_scan(tmp_path)
    assert volume.array.shape == stored.shape
    assert volume.notes[1:] == (
        "Not read: series 4 (1 slices): it is a localizer.",
        "Not read: a series without number (1 file): no CT images but object of an unknown class (SR).",
        "Not read: series 11 (1 file): no CT images but Secondary Capture Image (OT).",
        "Not read: series 12 (1 file): no CT images but Secondary Capture Image (OT).",
        "1 files of series 4 are no CT images and were left out, such as sc (OT).",
    )


def test_an_enhanced_file_is_the_same_scan_as_its_slices(tmp_path):
    stored = write_series(tmp_path / "slices")
    save(enhanced(stored), tmp_path / "enhanced.dcm")
    slices, volume = read_scan(tmp_path / "slices"), read_scan(tmp_path / "enhanced.dcm")
    np.testing.assert_array_equal(volume.array, slices.array)
    assert volume.grid.same_as(slices.grid)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize(("bits", "signed"), [(16, False), (16, True), (12, False), (12, True)])
def test_stored_values_are_those_that_pydicom_reads(tmp_path, syntax, bits, signed):
    """Also with rubbish in the bits that are not used."""
    stored = np.random.default_rng(1).integers(-(2**15), 2**15, (3, 6, 8)).astype(np.int16)

    def change(k, dataset):
        dataset.PixelData, dataset.BitsStored, dataset.HighBit = stored[k].tobytes(), bits, bits - 1
        dataset.PixelRepresentation, dataset.RescaleIntercept = int(signed), 0
        if syntax == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = stored[k].byteswap().tobytes()
            dataset["PixelData"].VR = "OW"
        dataset.file_meta.TransferSyntaxUID = syntax

    write_series(tmp_path, change, count=3)
    files = [pydicom.dcmread(path) for path in sorted(tmp_path.iterdir())]
    files.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    np.testing.assert_array_equal(read_scan(tmp_path).array, [dataset.pixel_array for dataset in files])


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_folder_without_dicom(tmp_path):
    refused(tmp_path, "no CT images", "no files", "Give a folder or zip")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path, "no CT images", "1 not DICOM")


def test_another_modality(tmp_path):
    def change(k, dataset):
        dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.4", "MR"

    write_series(tmp_path, change)
    refused(tmp_path, "no CT images", "5 MR")


def test_one_slice(tmp_path):
    write_series(tmp_path, count=1)
    refused(tmp_path, "only one slice", "00.dcm", "whole CT series")
    refused(tmp_path / "00.dcm", "only one slice")


@pytest.mark.parametrize("missing", [2, 3])
def test_a_missing_slice(tmp_path, missing):
    write_series(tmp_path, count=8)
    (tmp_path / f"{(7 * missing) % 11:02d}.dcm").unlink()
    refused(tmp_path, "misses 1 slices", "gap of 4.00 mm", "2.00 mm apart", kind=GeometryError)


def test_doubled_slices(tmp_path):
    stored = write_series(tmp_path)
    save(slice_dataset(stored[2], [10, 20, -100 + STEP_MM * 2]), tmp_path / "copy.dcm")
    refused(tmp_path, "in the same place", "copy.dcm", "-96.00 mm", "without copies", kind=GeometryError)


def test_slices_that_shift_sideways(tmp_path):
    def change(k, dataset):
        dataset.ImagePositionPatient = [10 + (5 if k == 2 else 0), 20, -100 + STEP_MM * k]

    write_series(tmp_path, change)
    refused(tmp_path, "do not lie on one line", "5.00 mm off", kind=GeometryError)


def test_mixed_pixel_spacings(tmp_path):
    write_series(tmp_path, lambda k, d: setattr(d, "PixelSpacing", [0.7, 0.6]) if k == 3 else None)
    refused(tmp_path, "mixes slices of different pixel spacings", "10.dcm", kind=GeometryError)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ImageOrientationPatient", [0, 1, 0, 0, 0, -1], "of another orientation"),
        ("FrameOfReferenceUID", "1.2.3", "of another frame of reference"),
    ],
)
def test_a_slice_that_is_of_another_kind_is_missed_in_its_series(tmp_path, key, value, said):
    write_series(tmp_path, lambda k, d: setattr(d, key, value) if k == 3 else None)
    refused(tmp_path, "misses 1 slices", f"Set apart was 10.dcm, {said}", kind=GeometryError)


def test_a_slice_of_another_size_beside_the_series_is_set_apart_and_said(tmp_path):
    write_series(tmp_path)
    save(slice_dataset(stored_values(1, 4, 4)[0], [10, 20, -90]), tmp_path / "small.dcm")
    volume = read_scan(tmp_path)
    assert volume.array.shape == (5, 6, 8)
    assert "Not read: series 4 part 2 (1 slices) of 4x4 pixels" in volume.notes[1]
    assert "only one slice, small.dcm" in volume.notes[1]


@pytest.mark.parametrize("key", ["RescaleSlope", "RescaleIntercept"])
def test_one_slice_without_what_makes_its_values_hounsfield_units(tmp_path, key):
    stored = write_series(tmp_path, lambda k, d: delattr(d, key) if k == 2 else None)
    refused(tmp_path, "03.dcm has no rescale slope or intercept, which other slices of its series have")
    volume = read_scan(tmp_path, ReadOptions(accept_gaps=True))
    np.testing.assert_array_equal(volume.array[[0, 1, 3, 4]], stored[[0, 1, 3, 4]].astype(int) - 1024)
    between = (stored[1].astype(int) + stored[3]) / 2 - 1024
    assert np.abs(volume.array[2] - between).max() <= 0.5
    assert any("1 slices that can't be read were left out, such as 03.dcm" in note for note in volume.notes)


@pytest.mark.parametrize("key", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_missing_geometry(tmp_path, key):
    write_series(tmp_path, lambda k, d: delattr(d, key) if k == 1 else None)
    refused(tmp_path, "07.dcm", f"{key} is missing", "Export", kind=GeometryError)


def test_axes_that_are_not_perpendicular(tmp_path):
    write_series(tmp_path, lambda k, d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 0.5, 0.5, 0]))
    refused(tmp_path, "not two perpendicular unit vectors", "0.5", kind=GeometryError)


def test_absurd_pixel_spacing(tmp_path):
    write_series(tmp_path, lambda k, d: setattr(d, "PixelSpacing", [0.001, 0.001]))
    refused(tmp_path, "voxel spacing", "0.001", kind=GeometryError)


def test_no_pixel_data(tmp_path):
    def change(k, dataset):
        del dataset.PixelData

    write_series(tmp_path / "a", change)
    refused(tmp_path / "a", "no pixel data")

    def change_more(k, dataset):
        del dataset.PixelData, dataset.Rows

    write_series(tmp_path / "b", change_more)
    refused(tmp_path / "b", "no pixel data")


def test_colours(tmp_path):
    write_series(tmp_path, lambda k, d: setattr(d, "PhotometricInterpretation", "RGB"))
    refused(tmp_path, "RGB image", "MONOCHROME2")


def test_values_of_another_kind(tmp_path):
    write_series(tmp_path, lambda k, d: setattr(d, "RescaleType", "MGML"))
    refused(tmp_path, "'MGML', not Hounsfield units")


def test_pixels_cut_off(tmp_path):
    write_series(tmp_path)
    path = tmp_path / "03.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    refused(tmp_path, "03.dcm", "can't be decoded", "again")


def test_damaged_files_are_read_or_refused_and_never_crash(tmp_path):
    rng = np.random.default_rng(0)
    write_series(tmp_path, count=3)
    path = tmp_path / "07.dcm"
    good = path.read_bytes()
    outcomes = set()
    for _ in range(200):
        bad = bytearray(good)
        for place in rng.integers(128, len(good) - 96, rng.integers(1, 4)):
            bad[place] = rng.integers(0, 256)
        path.write_bytes(bad if rng.random() < 0.7 else bad[: rng.integers(0, len(bad))])
        try:
            read_scan(tmp_path)
            outcomes.add("read")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_zips_that_cannot_be_used(tmp_path):
    write_series(tmp_path / "scan")
    path = zip_of(tmp_path / "scan", tmp_path / "a.zip")
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    refused(path, "a.zip", "no zip or is damaged")
    bad = bytearray(good)
    bad[400] ^= 0xFF
    path.write_bytes(bad)
    refused(path, "again")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ct.nii.gz", b"x")
    path.write_bytes(buffer.getvalue())
    refused(path, "no CT images", "1 not DICOM")


def test_an_encrypted_zip(tmp_path):
    write_series(tmp_path / "scan")
    path = zip_of(tmp_path / "scan", tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(signature) + flags] |= 1
    path.write_bytes(data)
    refused(path, "encrypted", "give the folder")


# --- real files --------------------------------------------------------------------------------------------------


def test_a_real_series(shared_data):
    volume = read_scan(shared_data / "dicom" / "visible-human-pelvis")
    assert volume.array.shape == (150, 512, 512)
    assert volume.grid.orientation == "LPS"
    assert volume.array.min() == -1024
    assert len(read_scan(shared_data / "dicom" / "three-slices").array) == 3


def test_a_real_tilted_series(shared_data, tmp_path):
    folder = shared_data / "dicom" / "ge-tilt-and-uneven-spacing"
    volume = read_scan(folder)
    assert any("1.08 to 7.00 mm apart" in note and "14.dcm and 15.dcm" in note for note in volume.notes)
    for k in range(1, 15):
        (tmp_path / f"{k:02d}.dcm").write_bytes((folder / f"{k:02d}.dcm").read_bytes())
    volume = read_scan(tmp_path)
    assert "tilted by 18.5 degrees" in volume.notes[0]
    last = pydicom.dcmread(folder / "14.dcm", stop_before_pixels=True).ImagePositionPatient
    np.testing.assert_allclose(volume.grid.to_ras_mm([13, 0, 0]), np.array(last) * [-1, -1, 1], atol=1e-4)
    assert volume.array.min() >= -1500


LOSSLESS = ("1.2.1", "1.2.2", "1.2", "1.2.5", "1.99", "4.57", "4.70", "4.80", "4.90")
LOSSY = {"4.50": 70.0, "4.51": 40.0, "4.53": 40.0, "4.55": 40.0, "4.81": 1.0, "4.91": 6.0}
"""HU by which these may differ from the original: what their quality loses."""


@pytest.mark.parametrize("ending", [*LOSSLESS, *LOSSY])
def test_transfer_syntaxes_give_the_same_values(shared_data, tmp_path, ending):
    folder = shared_data / "dicom" / "transfer-syntaxes"
    (path,) = (p for p in folder.glob("CTImage.dcm_*") if p.name.endswith(f"Syntax_1.2.840.10008.{_full(ending)}.dcm"))
    (tmp_path / "1.dcm").write_bytes(path.read_bytes())
    other = pydicom.dcmread(path)
    other.ImagePositionPatient = [*other.ImagePositionPatient[:2], 9.7]
    other.save_as(tmp_path / "2.dcm")
    original = pydicom.dcmread(folder / "CTImage.dcm").pixel_array.astype(np.int32) - 1024
    difference = np.abs(read_scan(tmp_path).array - original)
    assert difference.max() <= LOSSY.get(ending, 0.0)


def _full(ending: str) -> str:
    return {"1.99": "1.2.1.99", "1.2": "1.2"}.get(ending, f"1.2.{ending}" if ending[0] == "4" else ending)


@pytest.mark.parametrize("ending", ["4.51", "4.53", "4.55"])
def test_12_bit_jpeg_decodes_as_dcmtk_decodes_it(shared_data, tmp_path, ending):
    tool = shutil.which("dcmdjpeg", path="/usr/bin:/usr/local/bin")  # not pynetdicom's or another's of that name
    if tool is None:
        pytest.skip("dcmtk is not installed")
    (path,) = (shared_data / "dicom" / "transfer-syntaxes").glob(f"*_1.2.840.10008.1.2.{ending}.dcm")
    subprocess.run([tool, path, tmp_path / "decoded.dcm"], check=True, capture_output=True)
    decoded = jpeg_12bit.decode(pydicom.dcmread(path))
    np.testing.assert_array_equal(decoded[0], pydicom.dcmread(tmp_path / "decoded.dcm").pixel_array)


def test_real_enhanced_files(shared_data):
    assert read_scan(shared_data / "dicom" / "enhanced" / "eCT_Supplemental.dcm").array.shape == (2, 512, 512)
    refused(shared_data / "dicom" / "enhanced" / "legacy_enh_23x38x3.dcm", "looks like a mask")
    refused(shared_data / "dicom" / "transfer-syntaxes", "in the same place", kind=GeometryError)
