"""Where a scan holds no picture: voxels that were filled with one value, as around a cropped or round field of view.

A network that sees padding of 0 HU sees soft tissue, and may complete a vertebra into it. Real tissue has noise:
padding is what keeps one value over three voxels along every axis, if that value also fills part of the scan's faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from runtime.kernels.threads import each_in_threads
from runtime.masks import filled_block
from runtime.segment import SegmentedVertebra
from runtime.volume import Grid, Volume

LOWEST_HU = -1024.0
"""What lies below is raised to this before a scan is analysed. No tissue is below air: it is what a scanner fills the
corners of a round field with, such as -2000 or -3024, and a mean over it and bone would darken the rim of the bone by
hundreds of HU. Padding stays flat, so that it is still told; where it meets air that the scanner cut off at -1024, both
become one flat region, and neither of them holds a picture of a vertebra."""
_LEAST_SHARE = 0.05
"""Of a scan's outermost voxels: a value that fewer of them have, in flat surroundings, is no padding."""
_REJECTED = 0.5
"""A vertebra is none when more of its body than this lies over padding."""
_CUT = 0.01
"""Share of a mask over padding from which the vertebra counts as cut, as it does by the scan's own edge."""


@dataclass(frozen=True, eq=False)
class Padding:
    """A scan and the values that it is padded with.

    Args:
        volume: the scan.
        values: HU; empty where nothing is padded.
    """

    volume: Volume
    values: tuple[float, ...]

    def share_of(self, mask: npt.NDArray[np.bool_], grid: Grid) -> float:
        """Share of a mask's voxels ((z, y, x) on ``grid``) that lie over padding; beyond the scan its edge goes on."""
        block = filled_block(mask)
        if block is None or not self._is_in_box_around(grid.sub_grid_at(block)):
            return 0.0
        voxels = np.argwhere(mask)
        index = np.rint(self.volume.grid.to_index_zyx(grid.to_ras_mm(voxels))).astype(np.intp)
        return self._count_padding(np.clip(index, 0, np.array(self.volume.grid.shape_zyx) - 1)) / len(voxels)

    def _is_in_box_around(self, grid: Grid) -> bool:
        """Whether a voxel of the scan in the box around a grid, which is little work to ask, has a padding value."""
        corners, last = self.volume.grid.to_index_zyx(grid.corners_ras_mm()), np.array(self.volume.grid.shape_zyx) - 1
        first = np.clip(np.floor(corners.min(axis=0)).astype(np.intp) - 1, 0, last)
        end = np.clip(np.ceil(corners.max(axis=0)).astype(np.intp) + 1, 0, last) + 1
        box = self.volume.array[tuple(slice(f, e) for f, e in zip(first, end, strict=True))]
        return bool(np.isin(box, self.values).any())

    def _count_padding(self, index_zyx: npt.NDArray[np.intp]) -> int:
        """How many voxels at these indices (n, 3) have one padding value with their neighbours along every axis."""
        array, last = self.volume.array, np.array(self.volume.grid.shape_zyx) - 1

        def at(index: npt.NDArray[np.intp]) -> np.ndarray:
            return np.asarray(array[tuple(np.clip(index, 0, last).T)])

        here = at(index_zyx)
        maybe = np.isin(here, self.values)
        index_zyx, here = index_zyx[maybe], here[maybe]  # few, or none: neighbours of the others need no look
        flat = np.ones(len(here), np.bool_)
        for axis in range(3):
            for step in (-1, 1):
                flat &= at(index_zyx + step * (np.arange(3) == axis)) == here
        return int(np.count_nonzero(flat))


def raised_to_air(volume: Volume) -> Volume:
    """The scan with nothing below ``LOWEST_HU``; a copy only where there is."""
    if float(volume.array.min(initial=LOWEST_HU)) >= LOWEST_HU:
        return volume
    return replace(volume, array=np.maximum(volume.array, volume.array.dtype.type(LOWEST_HU)))


def find_padding(volume: Volume) -> Padding:
    """The values that fill at least a twentieth of a scan's outermost voxels, flat in their faces."""
    counts: dict[float, int] = {}
    total = 0
    for axis in range(3):
        for end in (0, -1):
            face = np.take(volume.array, end, axis=axis)
            total += face.size
            for value, count in _flat_values(face).items():
                counts[value] = counts.get(value, 0) + count
    return Padding(volume, tuple(v for v, n in sorted(counts.items()) if n >= _LEAST_SHARE * total))


def _flat_values(face: np.ndarray) -> dict[float, int]:
    """How many pixels of a face (two axes) have each value and the same value on all four sides."""
    if min(face.shape) < 3:
        return {}
    middle = face[1:-1, 1:-1]
    flat = (middle == face[:-2, 1:-1]) & (middle == face[2:, 1:-1])
    flat &= (middle == face[1:-1, :-2]) & (middle == face[1:-1, 2:])
    values, counts = np.unique(middle[flat], return_counts=True)
    return {float(value): int(count) for value, count in zip(values, counts, strict=True)}


def without_padded(
    found: Sequence[SegmentedVertebra], padding: Padding, *, threshold: float
) -> list[SegmentedVertebra]:
    """The vertebrae that lie in the picture; those that reach into padding are marked as cut.

    Args:
        found: by the second network.
        padding: of the scan.
        threshold: probability from which a voxel belongs to a mask.
    """
    if not padding.values:
        return list(found)
    placed = each_in_threads(lambda one: _placed(one, padding, threshold), found)
    return [one for one in placed if one is not None]


def _placed(one: SegmentedVertebra, padding: Padding, threshold: float) -> SegmentedVertebra | None:
    mask = one.mask > threshold
    body = mask if one.body is None else one.body > threshold
    if padding.share_of(body, one.grid) > _REJECTED:
        return None
    body_cut = padding.share_of(_grown(body), one.grid) > _CUT
    cut = body_cut or padding.share_of(mask, one.grid) > _CUT
    return replace(one, complete=one.complete and not cut, body_complete=one.body_complete and not body_cut)


def _grown(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask and all voxels whose sides touch it."""
    padded = np.pad(mask, 1)
    grown = mask.copy()
    for axis in range(3):
        for step in (-1, 1):
            grown |= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return grown
