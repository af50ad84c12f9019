"""Label maps: reading them, and taking them from one grid to another without inventing labels."""

from __future__ import annotations

import numpy as np

from runtime.label_map import read_labels
from runtime.volume import Grid

__all__ = ["read_labels", "sample_nearest"]


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
