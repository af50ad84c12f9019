"""Series whose slices are not evenly spaced, missing, doubled or damaged: repaired, or refused with which and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.errors import GeometryError, InputError
from runtime.readers import read_scan
from runtime.readers.dicom_source import labels_on_source
from runtime.readers.options import ReadOptions
from runtime.resample import resample, working_grid
from runtime.volume import LPS_FROM_RAS
from tests.runtime.dicom_files import STEP_MM, save, slice_dataset, with_element, write_series

ACCEPT = ReadOptions(accept_gaps=True)
ROWS, COLUMNS = 20, 24
SLOPES = np.array([11.0, -7.0, 13.0])
"""HU per mm along x, y and z (LPS): an image of which linear interpolation loses nothing."""


def write_ramp(folder: Path, places_mm, *, tilt_degrees: float = 0.0, thickness_mm=None) -> None:
    """Slices of a linear ramp through space at these places along z; with a tilted gantry, tilted slices."""
    angle = np.radians(tilt_degrees)
    column = np.array([0.0, np.cos(angle), -np.sin(angle)])
    for k, place in enumerate(places_mm):
        position = np.array([-6.0, -5.0, float(place)])
        y, x = np.mgrid[:ROWS, :COLUMNS]
        points = position + 0.5 * x[..., None] * [1, 0, 0] + 0.7 * y[..., None] * column
        stored = np.rint(points @ SLOPES + 1024).astype(np.uint16)
        dataset = slice_dataset(stored, position)
        dataset.ImageOrientationPatient = [1, 0, 0, *column]
        if thickness_mm is not None:
            dataset.SliceThickness = thickness_mm[k] if np.ndim(thickness_mm) else thickness_mm
        save(dataset, folder / f"{k:02d}.dcm")


def ramp_at(points_ras) -> np.ndarray:
    return np.asarray(points_ras) @ LPS_FROM_RAS[:3, :3] @ SLOPES


def points_of(grid) -> np.ndarray:
    return grid.to_ras_mm(np.stack(np.meshgrid(*map(np.arange, grid.shape_zyx), indexing="ij"), -1))


@pytest.mark.parametrize("tilt_degrees", [0.0, 18.5, -25.0])
@pytest.mark.parametrize(
    "places", [[0, 2, 4, 7, 10, 13, 16], [0, 4, 8, 12, 13.08, 20, 27], 2 * np.arange(11) + 0.03 * np.arange(11) ** 2]
)
def test_uneven_steps_are_resampled_from_each_slices_own_position(tmp_path, places, tilt_degrees):
    write_ramp(tmp_path, places, tilt_degrees=tilt_degrees)
    volume = read_scan(tmp_path)
    assert any("resampled from each slice's own position" in note for note in volume.notes)
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.array, ramp_at(points_of(volume.grid)), atol=1.1)


@pytest.mark.parametrize("tilt_degrees", [18.5, -25.0])
def test_a_tilted_series_is_straight_on_the_working_grid(tmp_path, tilt_degrees):
    write_ramp(tmp_path, 2.0 * np.arange(12), tilt_degrees=tilt_degrees)
    volume = read_scan(tmp_path)
    assert f"tilted by {abs(tilt_degrees):.1f} degrees" in volume.notes[0]
    straight = working_grid(volume.grid, 1.0)
    values, points = resample(volume, straight, fill_hu=np.nan), points_of(straight)
    index = volume.grid.to_index_zyx(points)
    inside = ((index >= 0) & (index <= np.array(volume.grid.shape_zyx) - 1)).all(-1)
    assert inside.sum() > 300
    np.testing.assert_allclose(values[inside], ramp_at(points)[inside], atol=1.1)


@pytest.mark.parametrize("tilt_degrees", [0.0, 18.5])
def test_a_mask_comes_back_to_the_slices_as_they_were_received(tmp_path, tilt_degrees):
    write_ramp(tmp_path, [0, 2, 4, 7, 10, 13, 13.5, 14.2], tilt_degrees=tilt_degrees)
    volume = read_scan(tmp_path)
    source = volume.source
    assert source is not None
    threshold = float(np.median(volume.array))
    brought = labels_on_source((volume.array > threshold).astype(np.uint8), volume)
    assert brought.shape == (8, ROWS, COLUMNS)
    normal = np.cross(source.orientation[:3], source.orientation[3:])
    steps = np.diff(source.positions_lps_mm @ normal)
    assert (steps > 0).all()
    for k, labels in enumerate(brought):
        y, x = np.mgrid[:ROWS, :COLUMNS]
        row, column = np.reshape(source.orientation, (2, 3))
        points = source.positions_lps_mm[k] + 0.5 * x[..., None] * row + 0.7 * y[..., None] * column
        off_mm = np.abs((points @ SLOPES - threshold) / np.linalg.norm(SLOPES))
        assert (off_mm[labels != (points @ SLOPES > threshold)] <= 0.5 * volume.grid.spacing_xyz_mm[2] + 0.1).all()


def test_an_even_series_gets_its_labels_back_as_they_are(tmp_path):
    write_series(tmp_path)
    volume = read_scan(tmp_path)
    labels = np.arange(volume.array.size, dtype=np.int32).reshape(volume.array.shape)
    assert labels_on_source(labels, volume) is labels
    assert [path.name for path in volume.source.files] == [f"{(7 * k) % 11:02d}.dcm" for k in range(5)]
    assert [header.InstanceNumber for header in volume.source.headers()] == [5, 4, 3, 2, 1]
    assert all("PixelData" not in header for header in volume.source.headers())
    assert list(volume.source.sop_instance_uids) == [header.SOPInstanceUID for header in volume.source.headers()]
    np.testing.assert_allclose(volume.source.positions_lps_mm[:, 2], -100 + STEP_MM * np.arange(5))
    with pytest.raises(InputError, match="does not match the grid"):
        labels_on_source(labels[1:], volume)


def test_missing_slices_are_refused_or_interpolated_as_asked(tmp_path):
    places = 2.0 * np.delete(np.arange(12), [4, 8, 9])
    write_ramp(tmp_path, places)
    with pytest.raises(
        GeometryError, match=r"misses 3 slices: a gap of 4.00 mm between 03.dcm and 04.dcm.*accept-gaps"
    ):
        read_scan(tmp_path)
    volume = read_scan(tmp_path, ACCEPT)
    assert volume.array.shape[0] == 12
    assert "missing in 2 gaps of up to 6.00 mm" in volume.notes[0]
    np.testing.assert_allclose(volume.array, ramp_at(points_of(volume.grid)), atol=1.1)
    np.testing.assert_array_equal(volume.source.planes, places / 2)
    assert labels_on_source(volume.array, volume).shape == (9, ROWS, COLUMNS)


def test_wide_gaps_are_filled_with_air(tmp_path):
    places = 2.0 * np.delete(np.arange(20), range(8, 14))
    write_ramp(tmp_path, places)
    with pytest.raises(GeometryError, match=r"gap of 14.00 mm"):
        read_scan(tmp_path)
    volume = read_scan(tmp_path, ACCEPT)
    assert "air in those above 10 mm" in volume.notes[0]
    assert (volume.array[8:14] == -1024).all()
    np.testing.assert_allclose(
        volume.array[[*range(8), *range(14, 20)]],
        ramp_at(points_of(volume.grid))[volume.source.planes.astype(int)],
        atol=1.1,
    )


def test_a_block_of_thicker_slices_is_no_gap(tmp_path):
    places = [0, 2, 4, 6, 8, 10, 12, 16, 20, 24, 28]
    write_ramp(tmp_path / "protocol", places, thickness_mm=[2.0] * 7 + [4.0] * 4)
    volume = read_scan(tmp_path / "protocol")
    assert any("2.00 to 4.00 mm apart" in note for note in volume.notes)
    np.testing.assert_allclose(volume.array, ramp_at(points_of(volume.grid)), atol=1.1)
    write_ramp(tmp_path / "missing", places, thickness_mm=2.0)
    with pytest.raises(GeometryError, match="misses 4 slices"):
        read_scan(tmp_path / "missing")


def test_slices_that_are_far_thinner_than_their_steps_are_said(tmp_path):
    write_ramp(tmp_path, 4.0 * np.arange(6), thickness_mm=2.0)
    assert "4.00 mm apart and only 2 mm thick" in read_scan(tmp_path).notes[0]


def test_copies_are_left_out_if_asked_and_only_if_they_are_copies(tmp_path):
    stored = write_series(tmp_path)
    save(slice_dataset(stored[2], [10, 20, -100 + STEP_MM * 2]), tmp_path / "copy.dcm")
    volume = read_scan(tmp_path, ACCEPT)
    np.testing.assert_array_equal(volume.array, stored.astype(int) - 1024)
    assert volume.notes == ("1 slices that were there twice were left out, such as copy.dcm.",)
    save(slice_dataset(stored[3], [10, 20, -100 + STEP_MM * 2]), tmp_path / "copy.dcm")
    with pytest.raises(GeometryError, match=r"copy.dcm.*hold different images"):
        read_scan(tmp_path, ACCEPT)


@pytest.mark.parametrize("cut", [20, 600])
def test_a_slice_that_is_cut_off_is_refused_or_interpolated_as_asked(tmp_path, cut):
    write_ramp(tmp_path, 2.0 * np.arange(8))
    path = tmp_path / "03.dcm"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match=r"03.dcm can't be decoded.*cut off"):
        read_scan(tmp_path)
    volume = read_scan(tmp_path, ACCEPT)
    assert any("03.dcm" in note for note in volume.notes)
    np.testing.assert_allclose(volume.array, ramp_at(points_of(volume.grid)), atol=1.1)


def test_a_compressed_slice_that_is_cut_off_is_found_when_it_is_decoded(tmp_path):
    from pydicom.uid import RLELossless

    write_series(tmp_path, lambda k, d: d.compress(RLELossless))
    path = tmp_path / "03.dcm"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"03.dcm has no pixel data, or is cut off"):
        read_scan(tmp_path)
    volume = read_scan(tmp_path, ACCEPT)
    assert volume.array.shape[0] == 5
    assert any("03.dcm" in note for note in volume.notes)


def test_a_header_that_is_cut_off_is_refused_or_left_out_as_asked(tmp_path):
    write_ramp(tmp_path, 2.0 * np.arange(8))
    (tmp_path / "03.dcm").write_bytes((tmp_path / "03.dcm").read_bytes()[:140])
    with pytest.raises(InputError, match=r"03.dcm can't be decoded"):
        read_scan(tmp_path)
    notes = read_scan(tmp_path, ACCEPT).notes
    assert any("can't be read were left out, such as 03.dcm" in note for note in notes)


def test_an_empty_file_is_said(tmp_path):
    write_series(tmp_path)
    (tmp_path / "IM0007").write_bytes(b"")
    assert "1 files are empty, such as IM0007" in read_scan(tmp_path).notes[0]


def test_mixed_rescale_types_and_lookup_tables_are_refused(tmp_path):
    from pydicom import Dataset

    write_series(tmp_path / "a", lambda k, d: setattr(d, "ModalityLUTSequence", [Dataset()]))
    with pytest.raises(InputError, match="modality LUT"):
        read_scan(tmp_path / "a")
    write_series(tmp_path / "b", lambda k, d: setattr(d, "RescaleSlope", 0) if k == 2 else None)
    with pytest.raises(InputError, match=r"03.dcm has the rescale slope 0"):
        read_scan(tmp_path / "b")
    write_series(tmp_path / "c", lambda k, d: setattr(d, "PhotometricInterpretation", "MONOCHROME1"))
    with pytest.raises(InputError, match="MONOCHROME1 image"):
        read_scan(tmp_path / "c")


@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO 2022 IR 87", "GB18030", "ISO_IR 999", "\\ISO 2022 IR 149", ""])
def test_odd_character_sets_and_missing_attributes_survive(tmp_path, charset):
    def change(k, dataset):
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Name"
        dataset.SeriesDescription, dataset.ConvolutionKernel = "description", "kernel"
        del dataset.SeriesNumber, dataset.InstanceNumber

    stored = write_series(tmp_path, change)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        for tag in (0x00100010, 0x0008103E, 0x00181210):
            data = with_element(data, tag, b"\xb1\xe8\x1b$B;3ED\xff\x1b")
        path.write_bytes(with_element(data, 0x00080005, charset.encode()))
    volume = read_scan(tmp_path)
    np.testing.assert_array_equal(volume.array, stored.astype(int) - 1024)
    assert volume.notes == ()
