"""The vertebral body within a vertebra's mask, and the body's own axes.

Everything happens on a *body grid*: 1 mm voxels whose x index grows to the vertebra's right, y to its anterior and z to
its superior side. It starts along the spine's tangent and is turned, until it rests, to the body's own axes:

* superior: halfway between the normals of the two endplates. The endplates' normals are found by mean shift over the
  normals of the body's surface, weighted by the power of the cosine of the angle: endplates are flat and weigh much,
  side walls point in all directions, osteophytes are small.
* anterior: from the arch's centroid to the core of the body, at right angles to the superior axis; where there is no
  arch, the patient's anterior direction.

Where only a whole vertebra's mask is known, :mod:`runtime.arch` cuts off the arch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from runtime.arch import without_arch
from runtime.body_grid import BODY_GRID_MM, INSIDE, Bool, Float32, Float64, main_part, squared_depth
from runtime.errors import InputError
from runtime.masks import centroid_zyx, row_ends_zyx
from runtime.resample import resample
from runtime.smoothing import gaussian_smoothed
from runtime.volume import Grid, Volume

SMALLEST_BODY_ML = 0.4
"""A child's or a crushed cervical body holds more."""
_MARGIN_MM = 4.0
_TURNS = 4
_STILL_DEG = 0.5
_SMOOTHING_MM = 1.5
_SMOOTHING_VOXELS = 0.6
_LEAST_GRADIENT = 0.05
_SHARPNESS = (4, 4, 4, 10, 10, 10)


@dataclass(frozen=True, eq=False)
class BodyMask:
    """One vertebra as a mask.

    Args:
        grid: where the arrays lie; any orientation and spacing.
        whole: (z, y, x) bool or float, share of the voxel (or probability) that is this vertebra; None where only the
            body is known.
        body: the same of its body alone, or None: then it is separated from ``whole``.
        complete: False where the scan's edge cuts the body, so that its heights mean nothing.
        level: ``"C1"``..``"L6"`` or None.
        in_neck: True where it is taken for a cervical one although its level is not known.

    Raises:
        InputError: neither mask is given, or one does not match the grid.
    """

    grid: Grid
    whole: npt.NDArray[np.generic] | None
    body: npt.NDArray[np.generic] | None = None
    complete: bool = True
    level: str | None = None
    in_neck: bool = False

    def __post_init__(self) -> None:
        masks = [m for m in (self.whole, self.body) if m is not None]
        if not masks:
            raise InputError("A vertebra needs a mask of all of it or of its body; met neither.")
        for mask in masks:
            if mask.shape != self.grid.shape_zyx:
                raise InputError(f"A mask of shape {mask.shape} does not match its grid {self.grid.shape_zyx}.")

    @property
    def outline(self) -> Bool:
        """(z, y, x) bool: the voxels of the body where it is known, else of the whole vertebra."""
        known = self.body if self.body is not None else self.whole
        return np.asarray(known) > INSIDE

    def centre_ras_mm(self) -> Float64:
        """(3,) centroid of :attr:`outline`, RAS+ mm. Raises InputError when it is empty."""
        centre_zyx, voxels = centroid_zyx(self.outline)
        if not voxels:
            raise InputError("A vertebra's mask is empty: no voxel is above 0.5. Leave it out.")
        return self.grid.to_ras_mm(centre_zyx)


@dataclass(frozen=True, eq=False)
class Body:
    """A vertebral body on its body grid.

    Args:
        grid: 1 mm, its index axes are the body's right, anterior and superior axes.
        share: (z, y, x) float32, 0..1; the surface is where it is 0.5. The arch is removed, and what does not touch.
    """

    grid: Grid
    share: Float32

    @property
    def axes_ras(self) -> Float64:
        """(3, 3), columns are the unit right, anterior and superior axes in RAS+."""
        return self.grid.affine_ras[:3, :3] / BODY_GRID_MM

    @property
    def inside(self) -> Bool:
        """(z, y, x) bool."""
        return self.share > INSIDE

    def centre_ras_mm(self) -> Float64:
        """(3,) centroid, RAS+ mm."""
        return self.grid.to_ras_mm(centroid_zyx(self.inside)[0])


def find_body(vertebra: BodyMask, *, superior_ras: npt.ArrayLike = (0.0, 0.0, 1.0)) -> Body | None:
    """The body of one vertebra, along its own axes; None where the mask holds none (less than 0.4 ml).

    Args:
        vertebra: its mask.
        superior_ras: (3,) about where its cranial side points, within some 45 degrees; see :func:`spine_tangents`.
    """
    axes = _axes(np.asarray(superior_ras, np.float64), np.array([0.0, 1.0, 0.0]))
    if np.count_nonzero(vertebra.outline) * vertebra.grid.voxel_volume_mm3 < SMALLEST_BODY_ML * 1000:
        return None
    smoothing_mm = max(_SMOOTHING_MM, _SMOOTHING_VOXELS * max(vertebra.grid.spacing_xyz_mm))
    on_body_grid = _placer(_without_other_bodies(vertebra))
    core_ras_mm: Float64 | None = None
    for _ in range(_TURNS):
        body, behind_ras_mm = on_body_grid(axes)
        if body.inside.sum() < SMALLEST_BODY_ML * 1000:
            return None
        superior = axes @ _superior(body.share, smoothing_mm)
        if core_ras_mm is None or vertebra.body is None:
            core_ras_mm = _core_ras_mm(body)
        forwards = np.array([0.0, 1.0, 0.0]) if behind_ras_mm is None else core_ras_mm - behind_ras_mm
        turned = _axes(superior, forwards)
        moved_deg = np.rad2deg(np.arccos(np.clip((turned * axes).sum(axis=0).min(), -1.0, 1.0)))
        axes = turned
        if moved_deg < _STILL_DEG:
            break
    return on_body_grid(axes)[0]


def spine_tangents(centres_ras_mm: Sequence[npt.ArrayLike]) -> Float64:
    """(n, 3) unit vectors that point cranially along the spine, from bodies' centres, cranial to caudal.

    Each is the direction between a vertebra's neighbours; at the ends between it and its only one; for a single
    vertebra it is the patient's superior direction.
    """
    centres = np.array([np.asarray(c, np.float64) for c in centres_ras_mm]).reshape(-1, 3)
    if len(centres) < 2:
        return np.tile([0.0, 0.0, 1.0], (len(centres), 1))
    padded = np.vstack([centres[:1], centres, centres[-1:]])
    along = padded[:-2] - padded[2:]
    length = np.linalg.norm(along, axis=1, keepdims=True)
    return np.where(length > 1.0, along / np.maximum(length, 1e-6), [[0.0, 0.0, 1.0]])


def _core_ras_mm(body: Body) -> Float64:
    """(3,) centroid, RAS+ mm, of the inner half of a body, into which no process or spur reaches.

    Of a body that is surface throughout, such as a sliver at the scan's end, it is the centroid of all of it.
    """
    squared = squared_depth(body.inside)
    inner = 4 * squared > squared.max() if squared.any() else body.inside
    return body.grid.to_ras_mm(centroid_zyx(inner)[0])


def _axes(superior: Float64, forwards: Float64) -> Float64:
    """(3, 3) right-handed columns right, anterior, superior; ``forwards`` is made perpendicular."""
    up = superior / np.linalg.norm(superior)
    front = forwards - up * (forwards @ up)
    if np.linalg.norm(front) < 0.1 * np.linalg.norm(forwards):
        front = np.array([0.0, 0.0, -1.0]) + up * up[2]
    front = front / np.linalg.norm(front)
    return np.stack([np.cross(front, up), front, up], axis=1)


def _without_other_bodies(vertebra: BodyMask) -> BodyMask:
    """The vertebra with only the largest connected part of its body's mask, where it has one."""
    if vertebra.body is None:
        return vertebra
    return replace(vertebra, body=main_part(np.asarray(vertebra.body, np.float32)))


def _placer(vertebra: BodyMask) -> Callable[[Float64], tuple[Body, Float64 | None]]:
    """What puts the body on the grid along the axes it is given, with all done before that doesn't depend on these.

    It gives the arch's middle (3,), RAS+ mm, as well, or None where there is hardly an arch.
    """
    mask = np.asarray(vertebra.whole if vertebra.body is None else vertebra.body)
    source = Volume(np.ascontiguousarray(mask, np.float32), vertebra.grid)
    outline_ras_mm = vertebra.grid.to_ras_mm(row_ends_zyx(mask > INSIDE))

    def on_axes(axes: Float64) -> tuple[Grid, Float32]:
        grid = _grid_around(outline_ras_mm, axes, margin_mm=_MARGIN_MM + 0.5 * max(vertebra.grid.spacing_xyz_mm))
        return grid, resample(source, grid, fill_hu=0.0)

    def of_whole(axes: Float64) -> tuple[Body, Float64 | None]:
        grid, whole = on_axes(axes)
        share = without_arch(whole)
        return Body(grid, share), _centroid_ras_mm((whole > INSIDE) & ~(share > INSIDE), grid)

    if vertebra.body is None:
        return of_whole
    arch_ras_mm = _arch_ras_mm(vertebra, vertebra.body)
    return lambda axes: (Body(*on_axes(axes)), arch_ras_mm)


def _arch_ras_mm(vertebra: BodyMask, body: npt.NDArray[np.generic]) -> Float64 | None:
    """The middle of what a whole vertebra's mask holds beside its body."""
    if vertebra.whole is None:
        return None
    return _centroid_ras_mm((np.asarray(vertebra.whole) > INSIDE) & ~(np.asarray(body) > INSIDE), vertebra.grid)


def _centroid_ras_mm(arch: Bool, grid: Grid) -> Float64 | None:
    """(3,) RAS+ mm, or None where there is hardly an arch."""
    centre_zyx, voxels = centroid_zyx(arch)
    if voxels * grid.voxel_volume_mm3 < 1000 * SMALLEST_BODY_ML:
        return None
    return grid.to_ras_mm(centre_zyx)


def _grid_around(places_ras_mm: Float64, axes: Float64, *, margin_mm: float) -> Grid:
    """The body grid along ``axes`` that holds these places (n, 3) and a margin."""
    along = places_ras_mm @ axes
    low, high = along.min(axis=0) - margin_mm, along.max(axis=0) + margin_mm
    x, y, z = (int(n) for n in np.ceil((high - low) / BODY_GRID_MM) + 1)
    affine = np.eye(4)
    affine[:3, :3] = axes * BODY_GRID_MM
    affine[:3, 3] = axes @ low
    return Grid((z, y, x), affine)


def _superior(share: Float32, smoothing_mm: float) -> Float64:
    """(3,) the superior axis in the grid's own (x, y, z), halfway between the endplates' normals."""
    from runtime.kernels.endplates import axis_between_endplates, surface_normals

    smooth = gaussian_smoothed(share, sigma_voxels=smoothing_mm / BODY_GRID_MM)
    normals, sizes = surface_normals(smooth, np.float32(_LEAST_GRADIENT))
    return np.asarray(axis_between_endplates(normals, sizes, np.array(_SHARPNESS)))
