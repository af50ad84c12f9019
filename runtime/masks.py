"""What masks hold: their middle, their connected parts, and the block of voxels that they fill."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.volume import Block

Bool = npt.NDArray[np.bool_]


def filled_block(mask: Bool, *, margin: int = 0) -> Block | None:
    """The smallest block of voxels that holds all of a mask (z, y, x); None where the mask is empty.

    ``margin`` voxels are added on each side, as far as the array goes.
    """
    from runtime.kernels.moments import mask_ends

    ends = mask_ends(np.asarray(mask, bool)).tolist()
    if ends[0][1] == 0:
        return None
    z, y, x = (
        slice(max(0, first - margin), min(size, end + margin))
        for (first, end), size in zip(ends, mask.shape, strict=True)
    )
    return z, y, x


def centroid_zyx(mask: Bool) -> tuple[npt.NDArray[np.float64], int]:
    """The mean index (z, y, x) of a mask's voxels, and how many there are; nan where there are none."""
    from runtime.kernels.moments import index_sums

    voxels, *sums = index_sums(mask).tolist()
    return np.array([total / voxels if voxels else np.nan for total in sums]), voxels


def row_ends_zyx(mask: Bool) -> npt.NDArray[np.intp]:
    """(n, 3) indices (z, y, x) of the first and the last voxel of a mask in each of its rows along x.

    No plane has a voxel of the mask further out than the furthest of these.
    """
    z, y = np.nonzero(mask.any(axis=2))
    rows = mask[z, y]
    last = mask.shape[2] - 1 - rows[:, ::-1].argmax(axis=1)
    ends = np.concatenate([rows.argmax(axis=1), last])
    return np.stack([np.tile(z, 2), np.tile(y, 2), ends], axis=1)


def connected_parts(mask: Bool) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Connected parts (sides touch) of a mask of two or three dimensions, numbered from 1 by their first voxels.

    Returns:
        The numbers, of the mask's shape and 0 outside of it, and how many voxels have each number, 0 included.
    """
    from runtime.kernels.parts import number_parts

    volume = np.ascontiguousarray(mask, bool).reshape((1,) * (3 - mask.ndim) + mask.shape)
    numbers = np.empty(volume.shape, np.int32)
    sizes = number_parts(volume, numbers)
    return numbers.reshape(mask.shape), np.concatenate([[mask.size - sizes.sum()], sizes])


def numbered_parts(mask: Bool) -> npt.NDArray[np.int32]:
    """As :func:`connected_parts`, numbered from 1 by falling size; of equal ones the first keeps the lower number."""
    numbers, sizes = connected_parts(mask)
    order = 1 + np.argsort(-sizes[1:], kind="stable")
    if (np.diff(order) > 0).all():
        return numbers
    by_size = np.zeros(len(sizes), np.int32)
    by_size[order] = np.arange(1, len(sizes))
    return by_size[numbers]
