"""What every reader checks, whatever the format: sizes, geometry and values that can be a CT scan's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import GeometryError, InputError
from runtime.readers.hu_offset import offset_note
from runtime.readers.options import ReadOptions, ScanHeader
from runtime.volume import Grid

MIN_SPACING_MM = 0.05
MAX_SPACING_MM = 20.0
MAX_EXTENT_MM = 3000.0
MIN_DETERMINANT = 0.2
"""Of the voxel axes' unit vectors: a gantry tilt of 30 degrees leaves 0.87."""
ALL_AIR_BELOW_HU = -900.0
_LARGEST_HU = 32767.0
_LARGEST_LABEL = 255
_FEW_VALUES = 64
SLAB_VOXELS = 2**21
"""About so many voxels are read and converted at once."""


def check_shape(shape_xyz: Sequence[int], name: str) -> tuple[int, int, int]:
    """The sizes (z, y, x) of a scan whose file states them as x, y, z; further axes of one voxel are dropped.

    Raises:
        InputError: it is two- or four-dimensional, has no voxels, or is a single slice.
    """
    sizes = [int(n) for n in shape_xyz]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    shown = " x ".join(str(n) for n in sizes)
    if not sizes or min(sizes) < 1:
        raise InputError(f"{name} is empty: its size is {shown or 'not given'}. Export the scan again.")
    if len(sizes) > 3:
        raise InputError(
            f"{name} has {len(sizes)} dimensions ({shown}); give one three-dimensional CT volume, such as one phase."
        )
    if len(sizes) < 3 or min(sizes) < 2:
        raise InputError(f"{name} is a single slice ({shown}); give the whole CT volume.")
    return sizes[2], sizes[1], sizes[0]


def check_grid(shape_zyx: tuple[int, int, int], affine_ras: npt.ArrayLike, name: str) -> Grid:
    """The grid, if a CT scan can have it.

    Raises:
        GeometryError: the affine is not finite or (nearly) singular, or spacing or extent are absurd.
    """
    affine = np.asarray(affine_ras, np.float64)
    if not np.isfinite(affine).all():
        raise GeometryError(
            f"The affine of {name} holds values that are no numbers: {affine.tolist()}. Export it again."
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    shown = " x ".join(f"{length:.4g}" for length in lengths)
    if lengths.min() == 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < MIN_DETERMINANT:
        raise GeometryError(
            f"The affine of {name} is singular or nearly so, so voxels have no place in space: {affine.tolist()}. "
            "Export the scan again with its orientation."
        )
    if lengths.min() < MIN_SPACING_MM or lengths.max() > MAX_SPACING_MM:
        raise GeometryError(
            f"The voxel spacing of {name} is {shown} mm; a CT scan has {MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm. "
            "Correct the spacing or its unit in the file."
        )
    extents = lengths * np.array(shape_zyx[::-1])
    if extents.max() > MAX_EXTENT_MM:
        raise GeometryError(
            f"{name} would be {extents.max():.0f} mm long ({shown} mm per voxel); a patient is shorter than "
            f"{MAX_EXTENT_MM:.0f} mm. Correct the spacing in the file."
        )
    return Grid(shape_zyx, affine)


def fits_int16(largest_stored: float, slope: float, intercept: float) -> bool:
    """Whether whole stored values up to ``largest_stored`` are whole HU up to int16's largest; lower ones are refused.

    Args:
        largest_stored: that the type of the stored values can hold.
        slope: from stored values to HU.
        intercept: likewise.
    """
    is_whole = float(slope).is_integer() and float(intercept).is_integer()
    return is_whole and slope > 0 and largest_stored * slope + intercept <= _LARGEST_HU


def tell_of(header: ScanHeader, options: ReadOptions) -> None:
    """Tell whoever asked what the header says; raises what that raises."""
    if options.on_header is not None:
        options.on_header(header)


class VoxelCollector:
    """Takes a scan's voxels slab by slab: int16 while that is exact, float32 from the first slab where it isn't.

    Args:
        shape_zyx: of the scan.
        name: of the scan, for messages.
    """

    def __init__(self, shape_zyx: tuple[int, int, int], name: str) -> None:
        self._array: np.ndarray = np.empty(shape_zyx, np.int16)
        self._name = name
        self._low, self._high, self._whole = np.inf, -np.inf, True
        self.notes: list[str] = []

    @property
    def planes_per_slab(self) -> int:
        """How many (y, x) planes make a slab of some megabytes, so that conversions need little memory."""
        return max(1, SLAB_VOXELS // (self._array.shape[1] * self._array.shape[2]))

    def room_for(self, first: int, planes: int, dtype: np.dtype[Any]) -> np.ndarray:
        """(planes, y, x) memory to read the planes from ``first`` on into: their own where they hold this type."""
        if dtype == self._array.dtype:
            return self._array[first : first + planes]
        return np.empty((planes, *self._array.shape[1:]), dtype)

    def put(self, first: int, slab: np.ndarray) -> None:
        """Stores (n, y, x) HU of any real number type as the planes from ``first`` on.

        Raises:
            InputError: a value is NaN or infinite.
        """
        low, high = float(slab.min()), float(slab.max())  # NaN where there is any
        if not (np.isfinite(low) and np.isfinite(high)):
            self._require_finite(slab)
        whole = slab.dtype.kind != "f" or (self._whole and bool((np.rint(slab) == slab).all()))
        self._low, self._high, self._whole = min(self._low, low), max(self._high, high), self._whole and whole
        self._require_hu_range()
        if self._array.dtype == np.int16 and not (whole and low >= -32768 and high <= 32767):
            self._widen(first)
        if not np.may_share_memory(slab, self._array):
            self._array[first : first + len(slab)] = slab

    def finish(self, lowest_hu: float | None) -> np.ndarray:
        """The whole array (z, y, x), int16 or float32.

        To be called once the slabs are no longer needed as they were read, such as for a hash of the file.

        Args:
            lowest_hu: what is below is raised to it; None leaves every value as it is.

        Raises:
            InputError: the values cannot be Hounsfield units of a CT scan.
        """
        if self._low == self._high:
            self._require_air()
        elif self._low >= 0 and self._high <= _LARGEST_LABEL and self._whole:
            self._refuse_labels_or_picture()
        elif self._low >= -20 and self._high <= 20 and not self._whole:
            raise InputError(
                f"{self._name} looks like a normalised image: its values are {self._low:.4g} to {self._high:.4g}. "
                "Give the CT in Hounsfield units."
            )
        elif self._low >= 0 and self._high <= 255:
            raise InputError(
                f"{self._name} looks like an 8-bit picture: {self._shown()}. Give the CT in Hounsfield units."
            )
        elif self._low >= 0:
            self.notes.append(
                f"No voxel is below 0 HU ({self._shown()}): if the rescale intercept was lost, results are wrong."
            )
        elif (note := offset_note(self._array)) is not None:
            self.notes.append(note)
        if lowest_hu is not None and self._low < lowest_hu:
            np.maximum(self._array, self._array.dtype.type(lowest_hu), out=self._array)
        return self._array

    def _shown(self) -> str:
        return f"its values are {self._low:g} to {self._high:g}"

    def _require_finite(self, slab: np.ndarray) -> None:
        if not np.isfinite(slab).all():
            kind = "NaN (not a number)" if np.isnan(slab).any() else "infinite"
            count = int(np.count_nonzero(~np.isfinite(slab)))
            raise InputError(
                f"{self._name} has voxels that are {kind}: at least {count}. "
                "Export the scan again, or fill them with -1024 HU."
            )

    def _require_hu_range(self) -> None:
        if self._low < -_LARGEST_HU - 1 or self._high > 2 * _LARGEST_HU + 1:
            raise InputError(
                f"{self._name} can't be a CT in Hounsfield units: {self._shown()}. Give the CT with its rescale slope "
                "and intercept applied."
            )

    def _require_air(self) -> None:
        if self._low > ALL_AIR_BELOW_HU:
            raise InputError(
                f"{self._name} holds one value everywhere, {self._low:g}, which is not air. Export the scan again."
            )

    def _refuse_labels_or_picture(self) -> None:
        values = sum(np.bincount(plane.ravel().astype(np.int64), minlength=256) for plane in self._array)
        count = int(np.count_nonzero(values))
        if count <= _FEW_VALUES:
            raise InputError(
                f"{self._name} looks like a mask: it holds {count} different labels from {self._low:g} to "
                f"{self._high:g}. Give the CT itself, in Hounsfield units."
            )
        raise InputError(
            f"{self._name} looks like an 8-bit picture: {self._shown()}, whole numbers. Give the CT in "
            "Hounsfield units."
        )

    def _widen(self, filled: int) -> None:
        """Turns the array into float32, keeping its first ``filled`` planes."""
        wide = np.empty(self._array.shape, np.float32)
        wide[:filled] = self._array[:filled]
        self._array = wide
