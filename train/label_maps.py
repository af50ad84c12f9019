"""Label maps: reading them, and taking them from one grid to another without inventing labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.errors import InputError
from runtime.volume import Grid


def read_labels(path: Path) -> tuple[np.ndarray, Grid]:
    """A NIfTI label map as uint8 (z, y, x) and its grid. Raises InputError when it is no 3D map of labels 0..255."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.load(path)
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise InputError(f"{path} cannot be read as a NIfTI label map: {error}.") from error
    if values.ndim != 3 or values.min() < 0 or values.max() > 255:
        raise InputError(
            f"{path} is no 3D map of labels 0..255: shape {values.shape}, {values.min()} to {values.max()}."
        )
    labels = np.ascontiguousarray(values.T.astype(np.uint8))
    return labels, Grid(labels.shape, image.affine)


def sample_nearest(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """uint8 (z, y, x) on ``target``: the label of the nearest source voxel, 0 outside. Works slab by slab."""
    to_source = np.linalg.inv(source.affine_ras) @ target.affine_ras
    out = np.zeros(target.shape_zyx, np.uint8)
    _, ny, nx = target.shape_zyx
    y, x = np.meshgrid(np.arange(ny), np.arange(nx), indexing="ij")
    for z in range(target.shape_zyx[0]):
        index = [
            np.floor(row[0] * x + row[1] * y + (row[2] * z + row[3]) + 0.5).astype(np.int64) for row in to_source[:3]
        ]
        inside = np.ones((ny, nx), bool)
        for i, size in zip(index, source.shape_zyx[::-1], strict=True):
            inside &= (i >= 0) & (i < size)
        out[z][inside] = labels[index[2][inside], index[1][inside], index[0][inside]]
    return out
