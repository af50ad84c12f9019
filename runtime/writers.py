"""Label volumes on disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from runtime.errors import OutputError
from runtime.volume import Grid

DESCRIPTION = b"vertebrae, 0 background, 1..n cranial to caudal"
"""In the header of every mask that this software writes; by it they are known again."""
_COMPRESSION = 2
"""ISA-L's levels 1 and 2 make a mask half as large as zlib's level 1 in a twentieth of its time; 3 is no smaller."""


def write_label_volume(path: Path | str, labels_zyx: np.ndarray, grid: Grid) -> None:
    """Writes labels as a gzipped NIfTI-1 of uint8 on the scan's affine, whole or not at all.

    The sform always holds the affine; the qform does too where it can, that is, where the grid isn't sheared.

    Args:
        path: of the ``.nii.gz`` file; replaced if it is there.
        labels_zyx: (z, y, x) integers 0..255.
        grid: of the labels.

    Raises:
        OutputError: the file cannot be written.
        ValueError: the labels do not match the grid or do not fit in a byte.
    """
    from isal import igzip

    path = Path(path)
    labels = _as_bytes(labels_zyx, grid)
    header = _header(labels, grid)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as raw, igzip.IGzipFile("", "wb", _COMPRESSION, raw, mtime=0) as packed:
            packed.write(header)
            for plane in labels:
                packed.write(plane.data)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"The mask {path} can't be written ({error.strerror or error}); choose a folder that is writable "
            "and has room."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _as_bytes(labels: np.ndarray, grid: Grid) -> np.ndarray:
    if labels.shape != grid.shape_zyx:
        raise ValueError(f"Labels of shape {labels.shape} do not match their grid {grid.shape_zyx}.")
    if labels.dtype != np.uint8 and (labels.min() < 0 or labels.max() > 255):
        raise ValueError(f"Labels must be 0..255; met {labels.min()}..{labels.max()}.")
    return np.ascontiguousarray(labels, np.uint8)


def _header(labels: np.ndarray, grid: Grid) -> bytes:
    """The 352 bytes before the voxels. The (z, y, x) array's bytes are NIfTI's x-fastest order as they are."""
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(labels.shape[::-1])
    header.set_xyzt_units("mm")
    header["descrip"] = DESCRIPTION
    header["cal_max"] = float(labels.max())
    header.set_qform(grid.affine_ras, code="scanner")
    if not np.allclose(header.get_qform(), grid.affine_ras, atol=1e-3):
        header.set_qform(None, code=0)
    header.set_sform(grid.affine_ras, code="scanner")
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header.binaryblock + b"\0\0\0\0"
