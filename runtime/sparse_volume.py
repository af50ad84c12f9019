"""A volume of which only the parts that hold something are kept: a vote map holds something at the vertebrae alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BRICK = 8
"""Voxels along each axis of a brick."""


@dataclass(frozen=True, eq=False)
class SparseVolume:
    """Bricks of 8 x 8 x 8 voxels, of those that hold something; elsewhere the volume is 0.

    Args:
        shape_zyx: of the whole volume, voxels.
        index: (z, y, x) int32, one entry for each brick of the volume: its place in ``bricks``, -1 where it isn't kept.
        corners_zyx: (n, 3) int64, the first voxel of each kept brick.
        bricks: (n, 8, 8, 8) float32. What juts out of the volume never counts.
    """

    shape_zyx: tuple[int, int, int]
    index: npt.NDArray[np.int32]
    corners_zyx: npt.NDArray[np.int64]
    bricks: npt.NDArray[np.float32]

    @classmethod
    def of_marked(cls, shape_zyx: tuple[int, int, int], index: npt.NDArray[np.int32]) -> SparseVolume:
        """A volume of zeros that keeps the bricks whose entry of ``index`` is not -1; they are numbered here."""
        bricks = np.argwhere(index >= 0)
        index[tuple(bricks.T)] = np.arange(len(bricks), dtype=np.int32)
        values = np.zeros((len(bricks), BRICK, BRICK, BRICK), np.float32)
        return cls(shape_zyx, index, (bricks * BRICK).astype(np.int64), values)

    def dense(self) -> npt.NDArray[np.float32]:
        """The whole volume, (z, y, x) float32."""
        out = np.zeros([n * BRICK for n in self.index.shape], np.float32)
        for (z, y, x), brick in zip(self.corners_zyx.tolist(), self.bricks, strict=True):
            out[z : z + BRICK, y : y + BRICK, x : x + BRICK] = brick
        return np.ascontiguousarray(out[tuple(slice(n) for n in self.shape_zyx)])


def no_bricks(shape_zyx: tuple[int, int, int]) -> npt.NDArray[np.int32]:
    """An index for a volume of this shape that keeps no brick yet."""
    return np.full([-(-n // BRICK) for n in shape_zyx], -1, np.int32)
