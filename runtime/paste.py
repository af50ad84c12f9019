"""Masks found in crops, put back onto the scan's own grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from runtime.kernels.threads import run_slabs
from runtime.masks import filled_block
from runtime.resample import index_map_zyx, is_aligned
from runtime.volume import Grid

_Box = tuple[np.ndarray, np.ndarray]
"""First and one past the last voxel (z, y, x) of a block."""


def paste_masks(masks: Iterable[tuple[Grid, np.ndarray]], target: Grid, *, threshold: float) -> np.ndarray:
    """Labels 1..n, in the order given, on a scan's grid: (z, y, x) uint8, 0 where no mask reaches the threshold.

    Each probability map is interpolated trilinearly at the target's voxel centres inside its extent. Where several
    reach the threshold the highest probability wins, compared in steps of 1/65535, ties going to the lower label.

    Args:
        masks: grid and (z, y, x) probabilities 0..1 of each mask; any orientation.
        target: the scan's grid; any orientation.
        threshold: probability from which a voxel belongs to a mask.

    Raises:
        ValueError: more than 255 masks, or a map that does not match its grid.
    """
    pairs = list(masks)
    if len(pairs) > 255:
        raise ValueError(f"A label volume holds at most 255 masks; met {len(pairs)}.")
    for grid, probability in pairs:
        if probability.shape != grid.shape_zyx:
            raise ValueError(f"A mask of shape {probability.shape} does not match its grid {grid.shape_zyx}.")
    labels = np.zeros(target.shape_zyx, np.uint8)
    boxes = [_box_in(target, grid, probability, threshold) for grid, probability in pairs]
    union = _union(boxes)
    if union is not None:
        confidence = np.zeros(union[1] - union[0], np.uint16)
        for label, ((grid, probability), box) in enumerate(zip(pairs, boxes, strict=True), start=1):
            block = confidence[_slices(box, union[0])] if _has_voxels(box) else confidence[:0]
            _paste_one(probability, grid, target, box, label, threshold, labels, block)
    return labels


def _paste_one(
    probability: np.ndarray,
    grid: Grid,
    target: Grid,
    box: _Box,
    label: int,
    threshold: float,
    labels: np.ndarray,
    confidence: np.ndarray,
) -> None:
    """Pastes one map into the block ``box`` of ``labels``; ``confidence`` is of the block's shape."""
    from runtime.kernels.sampling import highest_of_rows, paste_slab, paste_slab_aligned

    if not _has_voxels(box):
        return
    matrix = index_map_zyx(grid, target.sub_grid(box[0].tolist(), (box[1] - box[0]).tolist()))
    values = np.ascontiguousarray(probability, np.float32)
    block = labels[_slices(box, np.zeros(3, np.int64))]
    level, number = np.float32(threshold), np.uint8(label)
    paste = partial(paste_slab, values)
    if is_aligned(matrix):
        paste = partial(paste_slab_aligned, values, highest_of_rows(values))
    run_slabs(
        lambda first, last: paste(matrix, number, level, block, confidence, first, last),
        block.shape[0],
        voxels_each=block.shape[1] * block.shape[2],
    )


def _box_in(target: Grid, grid: Grid, probability: np.ndarray, threshold: float) -> _Box:
    """The block of the target's voxels that can reach the threshold; may hold none.

    Those are the voxels whose centres lie less than a step from one of the map's that reaches it, within its extent.
    """
    block = filled_block(probability >= threshold)
    if block is None:
        return np.zeros(3, np.int64), np.zeros(3, np.int64)
    ends = [
        (max(-0.5, part.start - 1.0), min(size - 0.5, part.stop))
        for part, size in zip(block, grid.shape_zyx, strict=True)
    ]
    corners = target.to_index_zyx(grid.to_ras_mm([[z, y, x] for z in ends[0] for y in ends[1] for x in ends[2]]))
    first = np.clip(np.ceil(corners.min(axis=0) - 1e-6), 0, target.shape_zyx).astype(np.int64)
    last = np.clip(np.floor(corners.max(axis=0) + 1e-6) + 1, 0, target.shape_zyx).astype(np.int64)
    return first, last


def _has_voxels(box: _Box) -> bool:
    return bool((box[1] > box[0]).all())


def _union(boxes: Sequence[_Box]) -> _Box | None:
    """The smallest block around those of the boxes that hold voxels."""
    filled = [box for box in boxes if _has_voxels(box)]
    if not filled:
        return None
    return np.min([first for first, _ in filled], axis=0), np.max([last for _, last in filled], axis=0)


def _slices(box: _Box, origin: np.ndarray) -> tuple[slice, slice, slice]:
    z, y, x = (slice(int(a), int(b)) for a, b in zip(box[0] - origin, box[1] - origin, strict=True))
    return z, y, x
