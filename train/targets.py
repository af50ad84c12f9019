"""What LocNet learns: a Gaussian heatmap and the offsets to the nearest centre (thesis 3.2.1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def gaussian_heatmap(centres_zyx: npt.ArrayLike, shape_zyx: tuple[int, int, int], *, sigma_voxels: float) -> Float32:
    """(z, y, x) float32: the maximum over all centres of a Gaussian that is 1 at the (fractional) centre.

    Centres (k, 3) in voxels; they may lie outside the volume. No centre gives zeros.
    """
    squared = _nearest(centres_zyx, shape_zyx)[1]
    return np.exp(-squared / (2 * sigma_voxels**2)).astype(np.float32)


def offset_map(centres_zyx: npt.ArrayLike, shape_zyx: tuple[int, int, int]) -> Float32:
    """(3, z, y, x) float32: voxels, in z, y, x order, from each voxel to its nearest centre; zeros without centres."""
    centres = np.asarray(centres_zyx, dtype=np.float64).reshape(-1, 3)
    if not len(centres):
        return np.zeros((3, *shape_zyx), np.float32)
    nearest = _nearest(centres, shape_zyx)[0]
    grid = np.indices(shape_zyx, dtype=np.float32)
    return (np.moveaxis(centres[nearest], -1, 0) - grid).astype(np.float32)


def _nearest(centres_zyx: npt.ArrayLike, shape_zyx: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Index of, and squared distance to, the nearest centre of every voxel; distance inf without centres."""
    nearest = np.zeros(shape_zyx, np.int64)
    best = np.full(shape_zyx, np.inf, np.float32)
    axes = [np.arange(n, dtype=np.float32) for n in shape_zyx]
    for index, (z, y, x) in enumerate(np.asarray(centres_zyx, dtype=np.float32).reshape(-1, 3)):
        squared = (
            ((axes[0] - z) ** 2)[:, None, None] + ((axes[1] - y) ** 2)[None, :, None] + ((axes[2] - x) ** 2)[None, None]
        )
        closer = squared < best
        np.copyto(best, squared, where=closer)
        np.copyto(nearest, index, where=closer)
    return nearest, best
