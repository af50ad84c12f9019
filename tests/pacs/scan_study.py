"""A scan as a CT study that the real pipeline can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.volume import Volume
from tests.runtime.node.studies import StudyFiles, ct_slice


def write_scan(
    folder: Path, volume: Volume, *, study_uid: str, series_uid: str, step: int = 1, **changes: object
) -> StudyFiles:
    """Write a volume whose axes grow to the patient's left, back and head as axial slices.

    Args:
        step: write every so many slices.
        changes: attributes that all images get, by keyword.
    """
    folder.mkdir(parents=True, exist_ok=True)
    x_mm, y_mm, z_mm = volume.grid.spacing_xyz_mm
    files = []
    for z in range(0, volume.grid.shape_zyx[0], step):
        image = ct_slice(study_uid, series_uid, z)
        origin_ras_mm = volume.grid.affine_ras @ np.array([0, 0, z, 1.0])
        image.ImagePositionPatient = [-origin_ras_mm[0], -origin_ras_mm[1], origin_ras_mm[2]]
        image.PixelSpacing, image.SliceThickness = [y_mm, x_mm], z_mm * step
        image.Rows, image.Columns = volume.grid.shape_zyx[1:]
        image.PixelData = (volume.array[z] + 1024).astype(np.uint16).tobytes()
        for keyword, value in changes.items():
            setattr(image, keyword, value)
        path = folder / f"{series_uid[-6:]}-{z:04d}.dcm"
        image.save_as(path, enforce_file_format=True)
        files.append(path)
    return StudyFiles(study_uid, series_uid, tuple(files))
