"""Volumes and grids: the values that flow between the stages.

Conventions, used everywhere in this software:

* arrays are indexed ``[z, y, x]``: the array's last axis is the first voxel index of the affine, as in ITK;
* ``affine_ras`` maps homogeneous voxel indices ``(x, y, z, 1)`` to millimetres in the patient's RAS+ frame
  (x to the right, y anterior, z superior, as nibabel uses); integer indices are voxel centres;
* ``LPS_FROM_RAS`` is the only place where the ITK/DICOM frame (LPS+) and the RAS+ frame meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runtime.errors import GeometryError, InputError

if TYPE_CHECKING:
    from runtime.readers.dicom_source import DicomSource

LPS_FROM_RAS: npt.NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Converts homogeneous RAS+ millimetres to LPS+ and back (it is its own inverse)."""
LPS_FROM_RAS.setflags(write=False)

Float64 = npt.NDArray[np.float64]
Block = tuple[slice, slice, slice]
"""Part of an array along z, y and x; each slice has a start and a stop."""


def _readonly(values: npt.ArrayLike) -> Float64:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Grid:
    """Where a volume's voxels lie in the patient.

    Args:
        shape_zyx: number of voxels along z, y and x; all at least 1.
        affine_ras: (4, 4) float64, voxel index (x, y, z, 1) to RAS+ mm, origin at the centre of voxel (0, 0, 0);
            kept read-only.

    Raises:
        GeometryError: the shape is not three positive numbers, or the affine is not finite or not invertible.
    """

    shape_zyx: tuple[int, int, int]
    affine_ras: Float64

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape_zyx)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"A grid needs three positive sizes; met shape {self.shape_zyx}.")
        affine = _readonly(self.affine_ras)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(f"A grid needs a finite 4x4 affine; met {affine.tolist()}.")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise GeometryError(f"The scan's affine is singular, so voxels have no place in space: {affine.tolist()}.")
        object.__setattr__(self, "shape_zyx", shape)
        object.__setattr__(self, "affine_ras", affine)

    @cached_property
    def spacing_xyz_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along the x, y and z index axes, mm."""
        x, y, z = (float(s) for s in np.linalg.norm(self.affine_ras[:3, :3], axis=0))
        return x, y, z

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel, mm^3 (right for sheared grids too)."""
        return float(abs(np.linalg.det(self.affine_ras[:3, :3])))

    @cached_property
    def orientation(self) -> str:
        """The anatomical direction in which the x, y and z index grows, e.g. ``"RAS"`` or ``"PIR"``.

        Each axis is named for the patient axis to which it is closest, each patient axis used once.
        """
        directions = self.affine_ras[:3, :3] / np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        free_patient, free_index, letters = [0, 1, 2], [0, 1, 2], ["", "", ""]
        for _ in range(3):
            _, patient, index = max((abs(directions[p, i]), p, i) for p in free_patient for i in free_index)
            letters[index] = ("LR", "PA", "IS")[patient][int(directions[patient, index] > 0)]
            free_patient.remove(patient)
            free_index.remove(index)
        return "".join(letters)

    def to_ras_mm(self, points_zyx: npt.ArrayLike) -> Float64:
        """Voxel indices (..., 3) in z, y, x order to RAS+ millimetres (..., 3) in x, y, z order."""
        points = np.asarray(points_zyx, dtype=np.float64)[..., ::-1]
        return points @ self.affine_ras[:3, :3].T + self.affine_ras[:3, 3]

    def to_index_zyx(self, points_ras_mm: npt.ArrayLike) -> Float64:
        """RAS+ millimetres (..., 3) to fractional voxel indices (..., 3) in z, y, x order."""
        points = np.asarray(points_ras_mm, dtype=np.float64) - self.affine_ras[:3, 3]
        return (points @ np.linalg.inv(self.affine_ras[:3, :3]).T)[..., ::-1]

    def sub_grid(self, start_zyx: Sequence[float], shape_zyx: Sequence[int]) -> Grid:
        """The grid of ``shape_zyx`` voxels, the first at ``start_zyx``, which may be negative and fractional."""
        affine = self.affine_ras.copy()
        affine[:3, 3] = self.to_ras_mm(np.asarray(start_zyx))
        z, y, x = (int(n) for n in shape_zyx)
        return Grid((z, y, x), affine)

    def sub_grid_at(self, block: Block) -> Grid:
        """The grid of a block of voxels, slices with a start and a stop along z, y and x."""
        return self.sub_grid([s.start for s in block], [s.stop - s.start for s in block])

    def same_as(self, other: Grid, *, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same shape and put every corner within ``tolerance_mm``."""
        return self.shape_zyx == other.shape_zyx and bool(
            np.abs(self.corners_ras_mm() - other.corners_ras_mm()).max() <= tolerance_mm
        )

    def corners_ras_mm(self) -> Float64:
        """(8, 3) RAS+ mm of the eight corner voxels' centres."""
        ends = [(0, n - 1) for n in self.shape_zyx]
        return self.to_ras_mm([[z, y, x] for z in ends[0] for y in ends[1] for x in ends[2]])


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT scan in Hounsfield units with its place in the patient.

    Args:
        array: (z, y, x), int16 or float32, HU. It is not copied; treat it as read-only.
        grid: where its voxels lie; ``grid.shape_zyx == array.shape``.
        name: what to call it in messages and results.
        sha256: hex digest of the file or files that it was read from, or ``""``.
        notes: what a reader repaired or wants said about it; they become warnings of the findings.
        source: the DICOM series that it was read from, or None for other formats.

    Raises:
        InputError: the array is not three-dimensional, of another dtype, or does not match the grid.
    """

    array: np.ndarray
    grid: Grid
    name: str = "scan"
    sha256: str = ""
    notes: tuple[str, ...] = field(default=())
    source: DicomSource | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise InputError(f"A CT volume has three dimensions; met an array of shape {self.array.shape}.")
        if self.array.dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
            raise InputError(f"A volume's voxels are int16 or float32 HU; met {self.array.dtype}.")
        if tuple(self.array.shape) != self.grid.shape_zyx:
            raise InputError(f"The array's shape {self.array.shape} does not match its grid {self.grid.shape_zyx}.")
