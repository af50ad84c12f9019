from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from runtime.errors import GeometryError, InputError, OutOfMemoryError
from runtime.readers import READERS, read_scan, scan_name
from runtime.readers.checks import SLAB_VOXELS, VoxelCollector
from runtime.readers.options import ReadOptions
from runtime.resume import hash_of_file

AFFINE = np.array([[-0.8, 0, 0, 12.5], [0, -0.8, 0, 20], [0, 0, 1.5, -300], [0, 0, 0, 1]])


def ct_array(shape=(6, 7, 8), dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, shape).astype(dtype)


def save_nifti(path: Path, array_zyx: np.ndarray, affine=AFFINE, *, image=nib.Nifti1Image) -> Path:
    nib.save(image(array_zyx.T, affine), path)
    return path


def edit_header(path: Path, **fields) -> Path:
    """Changes header fields of an uncompressed NIfTI-1 file in place, unchecked."""
    data = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for key, value in fields.items():
        header[key] = value
    path.write_bytes(header.binaryblock + bytes(data[348:]))
    return path


def refused(path: Path, *parts: str, kind=InputError) -> str:
    """The message with which a scan is refused, which must hold every part."""
    with pytest.raises(kind) as caught:
        read_scan(path)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert caught.value.exit_status == 2
    assert message.endswith(".")
    assert "\n" not in message
    return message


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII.GZ"])
@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_comes_back_with_affine_hash_and_name(tmp_path, ending, image):
    array = ct_array()
    path = save_nifti(tmp_path / "patient.a.nii", array, image=image)
    if ending != ".nii":
        path = path.rename(tmp_path / f"patient.a{ending}")
        path.write_bytes(gzip.compress(path.read_bytes()))
    volume = read_scan(str(path))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.grid.affine_ras, AFFINE, atol=1e-5)
    assert volume.name == "patient.a"
    assert volume.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert volume.notes == ()


def test_compressed_voxels_are_unpacked_to_where_they_stay(tmp_path):
    array = ct_array((12, 1024, 1024))
    path = save_nifti(tmp_path / "a.nii", array)
    path.with_suffix(".nii.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    read_scan(path)  # what is loaded at the first time
    tracemalloc.start()
    try:
        volume = read_scan(path.with_suffix(".nii.gz"))
        beside = tracemalloc.get_traced_memory()[1] - array.nbytes
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(volume.array, array)
    slab = 2 * SLAB_VOXELS
    assert beside < 0.75 * slab, "buffers of the file, and no slab"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_hash_of_a_file_that_is_read_in_many_pieces(tmp_path, ending):
    noise = np.random.default_rng(0).integers(-1000, 2000, (40, 200, 300)).astype(np.int16)
    path = save_nifti(tmp_path / f"a{ending}", noise)
    for _ in range(3):  # hashing goes on beside reading
        volume = read_scan(path)
        assert volume.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        np.testing.assert_array_equal(volume.array, noise)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", ">f4", "<f8", "<i8"])
def test_whole_values_stay_exact_in_int16(tmp_path, dtype):
    array = ct_array()
    image = nib.Nifti1Image(array.astype(dtype).T, AFFINE, dtype=np.dtype(dtype))
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_scan(tmp_path / "a.nii.gz")
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, array)


def test_fractions_make_the_scan_float32(tmp_path):
    array = ct_array((40, 300, 300)).astype(np.float32)
    array[-1, -1, -1] = 0.25  # in the last slab only
    volume = read_scan(save_nifti(tmp_path / "a.nii.gz", array))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array)


def test_slope_and_intercept_are_applied(tmp_path):
    stored = np.random.default_rng(1).integers(0, 2000, (5, 6, 7)).astype(np.int16)
    path = edit_header(save_nifti(tmp_path / "a.nii", stored), scl_slope=1, scl_inter=-1024)
    volume = read_scan(path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, stored - 1024)
    volume = read_scan(edit_header(path, scl_slope=0.5, scl_inter=-512))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, stored * 0.5 - 512)


def test_a_fourth_axis_of_one_is_dropped(tmp_path):
    array = ct_array()
    nib.save(nib.Nifti1Image(array.T[..., None], AFFINE), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.nii").array, array)


def test_a_nifti_without_orientation_is_read_with_a_note(tmp_path):
    path = edit_header(save_nifti(tmp_path / "a.nii", ct_array()), sform_code=0, qform_code=0)
    volume = read_scan(path)
    assert "no sform nor qform code" in volume.notes[0]
    np.testing.assert_allclose(volume.grid.spacing_xyz_mm, (0.8, 0.8, 1.5), rtol=1e-6)


def test_a_qform_that_disagrees_with_the_sform_is_said(tmp_path):
    image = nib.Nifti1Image(ct_array().T, AFFINE)
    image.set_qform(AFFINE, code=1)
    nib.save(image, tmp_path / "a.nii")
    assert read_scan(tmp_path / "a.nii").notes == ()
    volume = read_scan(edit_header(tmp_path / "a.nii", qoffset_x=-12.5))
    assert volume.notes == ("The file's sform and qform disagree by up to 25.0 mm: the sform was used.",)
    np.testing.assert_allclose(volume.grid.affine_ras, AFFINE, atol=1e-5)


def test_an_nrrd_with_sheared_axes_in_ras_keeps_its_grid(tmp_path):
    array = ct_array()
    directions = " ".join(f"({x},{y},{z})" for x, y, z in ([0.8, 0, 0], [0, 0.8, 0], [0, 0.4, 1.5]))
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 8 7 6\n"
        f"space directions: {directions}\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        "space origin: (1,2,3)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + array.astype("<i2").tobytes())
    volume = read_scan(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume.array, array)
    expected = [[0.8, 0, 0, 1], [0, 0.8, 0.4, 2], [0, 0, 1.5, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.grid.affine_ras, expected, atol=1e-6)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("compress", [False, True])
def test_itk_formats_equal_the_nifti_of_the_same_scan(tmp_path, ending, compress):
    array = ct_array()
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.array([[c, -s, 0, 4], [s, c, 0, 5], [0, 0, 1, 6], [0, 0, 0, 1.0]]) @ np.diag([0.8, 0.9, 1.5, 1])
    image = SimpleITK.ReadImage(str(save_nifti(tmp_path / "a.nii", array, affine)))
    SimpleITK.WriteImage(image, str(tmp_path / f"b{ending}"), compress)
    expected, volume = read_scan(tmp_path / "a.nii"), read_scan(tmp_path / f"b{ending}")
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == np.int16
    assert volume.grid.same_as(expected.grid)
    assert volume.name == "b"


def test_the_hash_of_a_metaimage_covers_its_data_file(tmp_path):
    def write(array) -> str:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / "a.mhd"))
        return read_scan(tmp_path / "a.mhd").sha256

    array = ct_array()
    first = write(array)
    assert write(array) == first
    assert write(array + np.int16(1)) != first


METAIMAGE = (
    "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementSpacing = 1 1 1\nElementByteOrderMSB = False\n"
    "ElementType = MET_SHORT\nElementDataFile = "
)
NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\nendian: little\n"
)
LISTED = "LIST\ns01.raw\ns02.raw\ns03.raw\ns04.raw\n"
DETACHED = {
    "one.nrrd": f"{NRRD}data file: s.raw\n\n",
    "without_space.nrrd": f"{NRRD}datafile: s.raw\n",
    "case.nrrd": f"{NRRD}# data file: other.raw\nData File: s.raw\n\n",
    "list.nrrd": f"{NRRD}data file: {LISTED}",
    "numbered.nrrd": f"{NRRD}data file: s%02d.raw 1 4 1\n\n",
    "backwards.nrrd": f"{NRRD}data file: back%d.raw 4 1 -1\n\n",
    "one.mhd": f"{METAIMAGE}s.raw\n",
    "one.mha": f"{METAIMAGE}s.raw\n",
    "list.mhd": f"{METAIMAGE}{LISTED}",
    "numbered.mhd": f"{METAIMAGE}s%02d.raw 1 4 1\n",
    "counted.mhd": f"{METAIMAGE}s%02d.raw\n",
    "colons.mhd": f"\n{METAIMAGE}s.raw\n".replace(" =", ":"),
}
"""Headers without voxels, of the same scan of four slices in ``s.raw``, ``s01.raw`` ... or ``back4.raw`` ..."""


def write_slices(folder, array):
    (folder / "s.raw").write_bytes(array.astype("<i2").tobytes())
    for number, plane in enumerate(array.astype("<i2"), start=1):
        (folder / f"s{number:02d}.raw").write_bytes(plane.tobytes())
        (folder / f"back{5 - number}.raw").write_bytes(plane.tobytes())


@pytest.mark.parametrize("name", DETACHED)
def test_the_hash_of_a_scan_covers_every_file_that_its_header_names(tmp_path, name):
    array, path = np.arange(-1000, 200, 10, dtype=np.int16).reshape(4, 5, 6), tmp_path / name
    write_slices(tmp_path, array)
    path.write_text(DETACHED[name])
    volume = read_scan(path)
    np.testing.assert_array_equal(volume.array, array)
    assert hash_of_file(path) == volume.sha256
    seen = {volume.sha256}
    for z in range(4):
        changed = array.copy()
        changed[z, 2, 3] += 1
        write_slices(tmp_path, changed)
        seen.add(read_scan(path).sha256)
        assert hash_of_file(path) in seen
    assert len(seen) == 5


@pytest.mark.parametrize("header", [f"{NRRD}data file: ", METAIMAGE], ids=["nrrd", "metaimage"])
@pytest.mark.parametrize("pattern", ["s%n.raw 1 4 1", "s%02d.raw 1 4 0", "s%99d.raw 1 4 1", "%d%d.raw 1 4 1"])
def test_numbered_files_that_cannot_be_told_are_refused(tmp_path, header, pattern):
    write_slices(tmp_path, np.zeros((4, 5, 6)))
    path = tmp_path / ("a.nrrd" if header.startswith("NRRD") else "a.mhd")
    path.write_text(f"{header}{pattern}\n")
    refused(path, f"{pattern!r}, which can't be understood", "Export the scan as one file")


def test_absurdly_many_numbered_files_are_refused_before_any_is_read(tmp_path):
    (tmp_path / "a.nrrd").write_text(f"{NRRD}data file: s%d.raw 1 999999999 1\n")
    refused(tmp_path / "a.nrrd", "more than 10000 files")


@pytest.mark.parametrize("hu", [-1024, -1000])
def test_a_scan_of_pure_air_is_legal(tmp_path, hu):
    assert (read_scan(save_nifti(tmp_path / "a.nii", np.full((4, 5, 6), hu, np.int16))).array == hu).all()


def test_a_crop_padded_with_air_is_legal(tmp_path):
    array = np.full((8, 8, 8), -1000, np.int16)
    array[4, 4, 2:6] = [30, 60, 300, 800]
    np.testing.assert_array_equal(read_scan(save_nifti(tmp_path / "a.nii", array)).array, array)


def test_values_that_never_fall_below_zero_get_a_note(tmp_path):
    volume = read_scan(save_nifti(tmp_path / "a.nii", ct_array() + np.int16(1024)))
    assert "No voxel is below 0 HU" in volume.notes[0]


def trunk() -> np.ndarray:
    """A trunk of fat, muscle and a vertebra in a round field, with noise; what is outside the field is -1024."""
    _, y, x = np.indices((24, 64, 64)) - 32
    hu = np.select([x**2 + (y - 8) ** 2 < 64, x**2 + y**2 < 400, x**2 + y**2 < 625], [250, 50, -100], -1000)
    hu = hu + np.random.default_rng(0).normal(0, 15, hu.shape)
    return np.where(x**2 + y**2 < 900, np.maximum(hu, -1023), -1024).astype(np.int16)


@pytest.mark.parametrize("padding", [-3024, -2000, -1024])
def test_a_lost_intercept_is_noted_though_padding_is_below_zero(tmp_path, padding):
    hu = trunk()
    lost = np.where(hu == -1024, padding, hu + 1024).astype(np.int16)
    (note,) = read_scan(save_nifti(tmp_path / "a.nii", lost)).notes
    assert "if the rescale intercept was lost, results are wrong" in note


def test_an_intercept_that_was_applied_twice_is_noted(tmp_path):
    (note,) = read_scan(save_nifti(tmp_path / "a.nii", trunk() - np.int16(1024))).notes
    assert "if the rescale intercept was applied twice, results are wrong" in note


def test_values_that_a_ct_can_have_get_no_note(tmp_path):
    """A trunk, with padding and with metal, a field of 24 voxels with little but bone, and lung alone."""
    hu, noise = trunk(), np.random.default_rng(1).normal(0, 40, (24, 24, 24))
    metal = hu.copy()
    metal[:, 36:44, 30:36] = 3071
    lung = np.where(np.indices(noise.shape)[1] % 8 == 0, 0, -870) + noise
    scans = (hu, np.where(hu == -1024, -3024, hu), metal, hu[:, 28:52, 20:44], lung)
    for number, scan in enumerate(scans):
        assert read_scan(save_nifti(tmp_path / f"{number}.nii", scan.astype(np.int16))).notes == ()


@pytest.mark.parametrize("padding", [-32768, -3024, -2000])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_padding_below_air_becomes_air_where_asked_and_the_hash_stays_the_files(tmp_path, padding, dtype, ending):
    array = ct_array(dtype=dtype)
    array += dtype(0.25)  # nothing in int16
    array[:, :2] = padding
    path = tmp_path / f"a{ending}"
    if "nii" in ending:
        save_nifti(path, array)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
    np.testing.assert_array_equal(read_scan(path).array, array)
    volume = read_scan(path, ReadOptions(lowest_hu=-1024))
    assert volume.array.dtype == dtype
    assert (volume.array[:, :2] == -1024).all()
    np.testing.assert_array_equal(volume.array[:, 2:], array[:, 2:])
    assert volume.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_importing_the_readers_brings_in_no_heavy_library():
    code = "import runtime.readers, runtime.resample, runtime.paste, runtime.writers, sys; print(*sys.modules)"
    modules = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not modules & {"numba", "SimpleITK", "nibabel", "pydicom", "torch"}


def test_real_nifti_scans_are_read_and_their_masks_refused(shared_data):
    for scan in sorted(shared_data.glob("*/ct.nii.gz")):
        volume = read_scan(scan)
        image = nib.load(scan)
        np.testing.assert_array_equal(volume.array, np.asarray(image.dataobj).T.astype(volume.array.dtype))
        np.testing.assert_array_equal(volume.grid.affine_ras, image.affine)
    for mask in sorted(shared_data.glob("*/*msk.nii.gz")):
        refused(mask, "looks like a mask")


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_missing_path(tmp_path):
    refused(tmp_path / "none.nii.gz", "There is no file or folder", "none.nii.gz", "check the path")


def test_an_unknown_ending(tmp_path):
    (tmp_path / "scan.jpg").write_bytes(b"x")
    refused(tmp_path / "scan.jpg", "unknown kind", "'.jpg'", *READERS)
    (tmp_path / "scan").write_bytes(b"x")
    refused(tmp_path / "scan", "its name has no ending")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "scan.nii")
    refused(tmp_path / "scan.nii", "is a device or a pipe")
    (tmp_path / "link.nii.gz").symlink_to("/dev/zero")
    refused(tmp_path / "link.nii.gz", "is a device or a pipe")


def test_a_name_that_is_too_long_and_links_in_a_ring(tmp_path):
    refused(tmp_path / f"{'x' * 300}.nii.gz", "can't be read", "name too long")
    (tmp_path / "ring.nii").symlink_to("ring.nii")
    refused(tmp_path / "ring.nii", "There is no file or folder")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Müller, Jörg (1) 漢字.nii.gz", "Müller, Jörg (1) 漢字"),
        ("two\nlines.nii", "two_lines"),
        ("a\x1b[31mred.nrrd", "a_[31mred"),
        ("caf\udce9.mha", "caf_"),
        (".nii.gz", "scan"),
        ("a.b.c.nii", "a.b.c"),
    ],
)
def test_names_can_be_shown(file, name):
    assert scan_name(Path(file)) == name


def test_compression_that_the_name_does_not_tell(tmp_path):
    path = save_nifti(tmp_path / "a.nii", ct_array())
    plain = path.read_bytes()
    path.write_bytes(gzip.compress(plain))
    refused(path, "a.nii is gzipped", "Rename it to a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(plain)
    refused(tmp_path / "b.nii.gz", "b.nii.gz is not gzipped", "Rename it to b.nii")


@pytest.mark.parametrize("content", [b"", gzip.compress(b"")], ids=["empty", "gzip of nothing"])
def test_nothing_inside_an_empty_nifti(tmp_path, content):
    (tmp_path / "a.nii.gz").write_bytes(content)
    refused(tmp_path / "a.nii.gz", "a.nii.gz is empty")


def test_an_absurd_nrrd_header_is_refused_before_it_takes_minutes(tmp_path):
    path = tmp_path / "a.nrrd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ct_array()), str(path))
    first, rest = path.read_bytes().split(b"\n", 1)
    fields = b"".join(b"k%d:=v\n" % i for i in range(200_000))
    header, voxels = rest.split(b"\n\n", 1)
    path.write_bytes(first + b"\n" + header + b"\n" + fields + b"\n" + voxels)
    start_s = time.perf_counter()
    refused(path, "more than 10000 lines")
    assert time.perf_counter() - start_s < 5
    path.write_bytes(first + b"\n" + header + b"\n" + fields[:10_000].rsplit(b"\n", 1)[0] + b"\n\n" + voxels)
    np.testing.assert_array_equal(read_scan(path).array, ct_array())


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a file without end")
def test_a_metaimage_whose_voxels_are_no_file(tmp_path):
    path = tmp_path / "a.mhd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ct_array()), str(path))
    path.write_text(path.read_text().replace("a.raw", "/dev/zero"))
    refused(path, "/dev/zero as the file of its voxels, which is none")


@pytest.mark.parametrize("header", [f"{NRRD}data file: ", METAIMAGE], ids=["nrrd", "metaimage"])
def test_a_data_file_whose_name_cannot_be_one(tmp_path, header):
    path = tmp_path / ("a.nrrd" if header.startswith("NRRD") else "a.mhd")
    path.write_text(f"{header}s\0.raw\n")
    refused(path, r"'s\x00.raw' as its voxels' file, which is no name")


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_a_name_that_is_no_utf8_is_refused_where_itk_reads(tmp_path, ending):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ct_array()), str(tmp_path / f"a{ending}"))
    path = tmp_path / os.fsdecode(b"a\xff" + ending.encode())
    (tmp_path / f"a{ending}").rename(path)
    refused(path, rf"a\udcff{ending}' is not UTF-8", "Rename the file")
    folder = tmp_path / os.fsdecode(b"b\xff")
    folder.mkdir()
    refused(path.rename(folder / f"a{ending}"), r"b\udcff", "or the folder it is in")


@pytest.mark.parametrize("stated", ["NDims = 300", "NDims = 73", "NDims = -3", "NDims : -3", "NDims = 3\nNDims = -3"])
def test_a_metaimage_of_absurdly_many_axes_is_refused_before_itk_reads_it(tmp_path, stated):
    path = tmp_path / "a.mhd"
    write_slices(tmp_path, np.zeros((4, 5, 6)))
    path.write_text(METAIMAGE.replace("NDims = 3", stated) + "s.raw\n")
    refused(path, f"a.mhd is damaged or no MetaImage: its NDims is {stated.split()[-1]!r}", "export it again")


@pytest.mark.parametrize("lines", ["# x\nfoo = 1\nNDims = -3", "NDims\n= -3", "NDims = 3\nndims: 300"])
def test_no_line_hides_absurdly_many_axes(tmp_path, lines):
    """ITK goes on behind lines that are none of a header, and looks for the sign on the next line."""
    (tmp_path / "a.mhd").write_text(METAIMAGE.replace("NDims = 3", lines) + "s.raw\n")
    refused(tmp_path / "a.mhd", "a.mhd is damaged or no MetaImage: its NDims is")


@pytest.mark.parametrize("stated", ["03", "+3", "3.0", "3 // axes", "3   "])
def test_a_number_of_axes_is_read_as_itk_reads_it(tmp_path, stated):
    array = ct_array()
    write_slices(tmp_path, array)
    (tmp_path / "a.mhd").write_text(METAIMAGE.replace("NDims = 3", f"NDims = {stated}") + "s.raw\n")
    plain = tmp_path / "plain.mhd"
    plain.write_text(METAIMAGE + "s.raw\n")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.mhd").array, read_scan(plain).array)


def test_a_metaimage_without_its_number_of_axes(tmp_path):
    (tmp_path / "a.mhd").write_text(METAIMAGE.replace("NDims = 3\n", "") + "s.raw\n")
    refused(tmp_path / "a.mhd", "it states no NDims")


def test_no_permission(tmp_path, monkeypatch):
    path = save_nifti(tmp_path / "a.nii", ct_array())
    path.chmod(0)
    if os.access(path, os.R_OK):  # root, or a system without such permissions

        def denied(*args, **kwargs):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", denied)
    refused(path, "No permission to read", str(path), "give this user read access")


def test_no_memory(tmp_path, monkeypatch):
    path = save_nifti(tmp_path / "a.nii", ct_array())

    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("runtime.readers.nifti.VoxelCollector", full)
    with pytest.raises(OutOfMemoryError, match="does not fit in memory"):
        read_scan(path)


LIMITED = """
import resource, sys
import SimpleITK
from runtime.errors import OutOfMemoryError
from runtime.readers import read_scan
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28,) * 2)
try:
    read_scan(sys.argv[1])
except OutOfMemoryError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
@pytest.mark.parametrize("name", ["a.nrrd", "a.mhd"])
def test_no_memory_for_the_voxels_that_itk_reads(tmp_path, name):
    header = f"{NRRD}data file: " if name.endswith(".nrrd") else METAIMAGE
    (tmp_path / name).write_text(header.replace("6 5 4", "1024 1024 256") + "s.raw\n")
    with (tmp_path / "s.raw").open("wb") as file:
        file.truncate(2**29)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / name], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert f"The scan {tmp_path / name} does not fit in memory" in done.stderr


def test_two_and_four_dimensions(tmp_path):
    nib.save(nib.Nifti1Image(ct_array((7, 8)), AFFINE), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "single slice", "7 x 8", "whole CT volume")
    nib.save(nib.Nifti1Image(ct_array((7, 8, 1)), AFFINE), tmp_path / "b.nii")
    refused(tmp_path / "b.nii", "single slice", "7 x 8 x 1")
    nib.save(nib.Nifti1Image(ct_array((4, 5, 6, 2)), AFFINE), tmp_path / "c.nii")
    refused(tmp_path / "c.nii", "4 dimensions", "4 x 5 x 6 x 2", "give one three-dimensional")
    image = SimpleITK.GetImageFromArray(ct_array((2, 4, 5, 6)), isVector=False)
    SimpleITK.WriteImage(image, str(tmp_path / "d.mha"))
    refused(tmp_path / "d.mha", "4 dimensions", "6 x 5 x 4 x 2")


def test_colours(tmp_path):
    colours = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, AFFINE), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "colours", "Give the CT itself")
    image = SimpleITK.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(image, str(tmp_path / "b.nrrd"))
    refused(tmp_path / "b.nrrd", "3 values per voxel", "Give the CT itself")


def test_complex_values(tmp_path):
    nib.save(nib.Nifti1Image(ct_array().astype(np.complex64), AFFINE), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "complex64", "Hounsfield units")


def test_no_voxels(tmp_path):
    path = edit_header(save_nifti(tmp_path / "a.nii", ct_array()), dim=[3, 8, 0, 6, 1, 1, 1, 1])
    refused(path, "is empty", "8 x 0 x 6", "Export the scan again")


def test_an_empty_file(tmp_path):
    for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".zip", ".dcm"):
        path = tmp_path / f"a{ending}"
        path.write_bytes(b"")
        refused(path)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_values_that_are_no_numbers(tmp_path, value, said, everywhere, ending):
    array = np.full((5, 6, 7), value, np.float32) if everywhere else ct_array((5, 6, 7), np.float32)
    array[2, 3, 4] = value
    if ending == ".mha":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / "a.mha"))
    else:
        save_nifti(tmp_path / "a.nii.gz", array)
    refused(tmp_path / f"a{ending}", said, f"at least {210 if everywhere else 1}", "-1024 HU")


@pytest.mark.parametrize("value", [0, 7, 40, 1000])
def test_one_value_everywhere_that_is_not_air(tmp_path, value):
    path = save_nifti(tmp_path / "a.nii", np.full((4, 5, 6), value, np.int16))
    refused(path, "one value everywhere", str(value), "not air")


def test_pictures_normalised_images_and_masks(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.nii"
    refused(save_nifti(path, rng.integers(0, 256, (9, 9, 9)).astype(np.uint8)), "8-bit picture", "0 to 255")
    refused(save_nifti(path, (rng.random((9, 9, 9)) * 255).astype(np.float32)), "8-bit picture")
    refused(save_nifti(path, rng.random((9, 9, 9)).astype(np.float32)), "normalised image", "0.99")
    refused(save_nifti(path, rng.normal(size=(9, 9, 9)).astype(np.float32)), "normalised image")
    refused(save_nifti(path, rng.integers(0, 2, (9, 9, 9)).astype(np.uint8)), "mask", "2 different labels", "0 to 1")
    refused(save_nifti(path, rng.integers(0, 29, (9, 9, 9)).astype(np.float64)), "mask", "29 different labels")


def test_values_far_beyond_hounsfield_units(tmp_path):
    array = ct_array(dtype=np.float32)
    array[0, 0, 0] = 1e9
    refused(save_nifti(tmp_path / "a.nii", array), "can't be a CT", "1e+09", "slope and intercept")


@pytest.mark.parametrize(
    ("spacing", "parts"),
    [
        ((0.04, 1, 1), ("voxel spacing", "0.04 x 1 x 1 mm", "0.05 to 20 mm", "Correct")),
        ((1, 1, 21), ("voxel spacing", "1 x 1 x 21 mm")),
        ((8e-4, 8e-4, 1e-3), ("voxel spacing", "unit")),
    ],
)
def test_absurd_spacing(tmp_path, spacing, parts):
    path = save_nifti(tmp_path / "a.nii", ct_array(), np.diag([*spacing, 1.0]))
    refused(path, *parts, kind=GeometryError)


def test_an_absurd_field_of_view(tmp_path):
    path = save_nifti(tmp_path / "a.nii", ct_array((200, 4, 4)), np.diag([1, 1, 16.0, 1]))
    refused(path, "3200 mm long", "3000 mm", kind=GeometryError)


@pytest.mark.parametrize("rows", [([1, 0, 0], [0, 0, 0], [0, 0, 1]), ([1, 1, 0], [1, 1.01, 0], [0, 0, 1])])
def test_a_singular_affine(tmp_path, rows):
    path = save_nifti(tmp_path / "a.nii", ct_array())
    edit_header(path, sform_code=1, srow_x=[*rows[0], 0], srow_y=[*rows[1], 0], srow_z=[*rows[2], 0])
    refused(path, "singular", "Export the scan again with its orientation", kind=GeometryError)


def test_damaged_orientations(tmp_path):
    path = save_nifti(tmp_path / "a.nii", ct_array())
    edit_header(path, sform_code=1, srow_x=[np.nan, 0, 0, 0])
    refused(path, "no numbers", kind=GeometryError)
    edit_header(path, sform_code=0, qform_code=1, quatern_b=3, quatern_c=3, quatern_d=3)
    refused(path, "orientation", "damaged")


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_files_cut_in_the_middle(tmp_path, share):
    array = ct_array((20, 30, 40))
    save_nifti(tmp_path / "a.nii", array)
    save_nifti(tmp_path / "a.nii.gz", array)
    for ending, compress in ((".nrrd", False), (".nrrd", True), (".mha", False), (".mha", True)):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / f"{compress}{ending}"), compress)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        refused(path, "cut off", "again")


@pytest.mark.parametrize("size", [3, 100, 349])
def test_files_cut_in_the_header(tmp_path, size):
    data = save_nifti(tmp_path / "a.nii", ct_array()).read_bytes()
    (tmp_path / "a.nii").write_bytes(data[:size])
    refused(tmp_path / "a.nii", "a.nii")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".zip", ".dcm"])
def test_garbage(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(path, "a" + ending)


def test_a_damaged_gzip_stream(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", ct_array((20, 30, 40)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    refused(path, "a.nii.gz", "damaged", "Copy the file again")


def test_a_header_that_points_nowhere(tmp_path):
    path = save_nifti(tmp_path / "a.nii", ct_array())
    refused(edit_header(path, vox_offset=-5), "byte -5")
    refused(edit_header(path, vox_offset=2**20), "before its first voxel")
    refused(edit_header(path, vox_offset=352, datatype=9999), "header", "damaged")
    refused(edit_header(path, magic=b"ni1"), "not a single-file NIfTI")


def test_damaged_headers_are_read_or_refused_and_never_crash(tmp_path):
    rng = np.random.default_rng(0)
    save_nifti(tmp_path / "a.nii", ct_array())
    for ending in (".nrrd", ".mha"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ct_array()), str(tmp_path / f"a{ending}"))
    outcomes = set()
    for path in sorted(tmp_path.iterdir()):
        good = path.read_bytes()
        for _ in range(300):
            bad = bytearray(good)
            for place in rng.integers(0, min(352, len(good)), rng.integers(1, 4)):
                bad[place] = rng.integers(0, 256)
            path.write_bytes(bad)
            try:
                read_scan(path)
                outcomes.add("read")
            except (InputError, OutOfMemoryError) as error:
                outcomes.add(type(error).__name__)
    assert {"read", "InputError"} <= outcomes


def test_a_metaimage_without_its_data_file(tmp_path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ct_array()), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").unlink()
    refused(tmp_path / "a.mhd", "There is no file or folder", "a.raw")


def test_a_collector_switches_to_float_without_losing_earlier_planes():
    voxels = VoxelCollector((3, 2, 2), "a")
    voxels.put(0, np.full((1, 2, 2), -1000, np.int16))
    voxels.put(1, np.full((1, 2, 2), 40000, np.int64))
    voxels.put(2, np.full((1, 2, 2), 0.5))
    np.testing.assert_array_equal(voxels.finish(None)[:, 0, 0], np.array([-1000, 40000, 0.5], np.float32))


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (1.0, -24.0), (0.5, -24.0)])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", "<f4"])
def test_voxels_and_hash_are_the_files_whatever_is_done_to_them_while_it_is_hashed(tmp_path, dtype, slope, intercept):
    """Some types are read to where they stay; what is scaled must not be written over bytes that are still hashed."""
    array = ct_array((30, 256, 256)).astype(dtype)
    path = save_nifti(tmp_path / "a.nii", array)
    edit_header(path, scl_slope=slope, scl_inter=intercept)
    volume = read_scan(path)
    assert volume.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    np.testing.assert_array_equal(volume.array, array * slope + intercept)


def test_a_collector_gives_room_where_the_voxels_stay_and_elsewhere_for_other_types():
    voxels = VoxelCollector((4, 2, 3), "a")
    for first, dtype in ((0, np.int16), (2, np.int32), (3, np.float32)):
        room = voxels.room_for(first, 1, np.dtype(dtype))
        assert (room.shape, room.dtype) == ((1, 2, 3), dtype)
        room[...] = first - 1000 if dtype != np.int32 else 50000
        voxels.put(first, room)
    voxels.put(1, np.full((1, 2, 3), 7, np.int16))
    np.testing.assert_array_equal(voxels.finish(None)[:, 1, 2], np.float32([-1000, 7, 50000, -997]))
