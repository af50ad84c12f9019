"""The body grid: the 1 mm voxels on which a vertebral body is found and measured, and masks' parts on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

BODY_GRID_MM = 1.0
INSIDE = 0.5
"""Share of a voxel, or probability, from which it belongs to the mask."""


def main_part(share: Float32) -> Float32:
    """Zero outside the largest connected part (with a voxel around it, where the surface is interpolated)."""
    return np.where(numbered_parts(share > INSIDE) > 1, np.float32(0.0), share)


def numbered_parts(mask: Bool) -> npt.NDArray[np.uint32]:
    """Connected parts (sides touch) of a mask of two or three dimensions, numbered from 1 by falling size."""
    import SimpleITK as sitk  # noqa: N813  the name all of its users know

    parts = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)))
    return np.asarray(sitk.GetArrayFromImage(sitk.RelabelComponent(parts)))
