from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import pytest

from runtime.errors import InputError, OutputError
from runtime.volume import Grid
from runtime.writers import write_label_volume

AFFINES = {
    "straight": np.array([[-0.75, 0, 0, 100], [0, -0.75, 0, 80], [0, 0, 0.8, -400], [0, 0, 0, 1]]),
    "permuted": np.array([[0, 0, 1.5, 3], [-0.5, 0, 0, 4], [0, -0.5, 0, 5], [0, 0, 0, 1]]),
    "sheared": np.array([[0.8, 0, 0, 3], [0, 0.8, 0.4, -5], [0, 0, 1.2, 8], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_labels_and_affine_come_back_as_written(tmp_path, affine):
    labels = np.random.default_rng(0).integers(0, 26, (5, 6, 7)).astype(np.int32)
    path = tmp_path / "vertebrae.nii.gz"
    write_label_volume(path, labels, Grid(labels.shape, affine))
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, labels)
    np.testing.assert_array_equal(image.affine, affine.astype(np.float32))
    assert image.header["sform_code"] == 1
    sheared = abs(affine[:3, 1] @ affine[:3, 2]) > 1e-6
    assert image.header["qform_code"] == (0 if sheared else 1)
    if not sheared:
        np.testing.assert_allclose(image.get_qform(), affine, atol=1e-4)
    assert os.listdir(tmp_path) == ["vertebrae.nii.gz"]


def test_the_same_labels_give_the_same_bytes(tmp_path):
    labels, grid = np.ones((3, 4, 5), np.uint8), Grid((3, 4, 5), np.eye(4))
    write_label_volume(tmp_path / "a.nii.gz", labels, grid)
    write_label_volume(tmp_path / "b.nii.gz", labels, grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    labels, grid = np.ones((3, 4, 5), np.uint8), Grid((3, 4, 5), np.eye(4))
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("isal.igzip.IGzipFile.write", full)
    with pytest.raises(OutputError, match=r"a\.nii\.gz can't be written \(No space left on device\); choose a folder"):
        write_label_volume(path, labels, grid)
    assert os.listdir(tmp_path) == ["a.nii.gz"]
    assert path.read_bytes() == b"old"


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(InputError, match="can't be written"):
        write_label_volume(tmp_path / "none" / "a.nii.gz", np.ones((3, 4, 5), np.uint8), Grid((3, 4, 5), np.eye(4)))


@pytest.mark.parametrize("labels", [np.full((3, 4, 5), 256), np.full((3, 4, 5), -1), np.ones((3, 4, 6), np.uint8)])
def test_labels_that_do_not_fit_are_refused(tmp_path, labels):
    with pytest.raises(ValueError, match=r"0\.\.255|match their grid"):
        write_label_volume(tmp_path / "a.nii.gz", labels, Grid((3, 4, 5), np.eye(4)))
