"""The vertebral body within a vertebra's mask, and the body's own axes.

Everything happens on a *body grid*: 1 mm voxels whose x index grows to the vertebra's right, y to its anterior and z to
its superior side. It starts along the spine's tangent and is turned, until it rests, to the body's own axes:

* superior: halfway between the normals of the two endplates. The endplates' normals are found by mean shift over the
  normals of the body's surface, weighted by the power of the cosine of the angle: endplates are flat and weigh much,
  side walls point in all directions, osteophytes are small.
* anterior: from the arch's centroid to the core of the body, at right angles to the superior axis; where there is no
  arch, the patient's anterior direction.

The arch is cut off a whole vertebra's mask along the body's posterior wall. The canal is the largest space that mask
encloses in front, behind, on the left and on the right; the wall is what a ray meets that leaves the canal's axis
forwards, a robust line over the slices of the body grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.resample import resample
from runtime.volume import Grid, Volume

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

BODY_GRID_MM = 1.0
INSIDE = 0.5
"""Share of a voxel, or probability, from which it belongs to the mask."""
SMALLEST_BODY_ML = 0.4
"""A child's or a crushed cervical body holds more."""
_MARGIN_MM = 4.0
_TURNS = 4
_STILL_DEG = 0.5
_SMOOTHING_MM = 1.5
_SMOOTHING_VOXELS = 0.6
_SHARPNESS = (4, 4, 4, 10, 10, 10)
_WALL_HALF_WIDTH_MM = 5.0
_WALL_WITHIN_MM = 18.0
_HALF_CANAL_MM = 7.0
_STEEPEST_WALL = 0.6
_WALL_SPREAD_MM = 6.0
_SMALLEST_CANAL_MM2 = 80.0
_SMALLEST_SEED_MM2 = 20.0
_GRAZED_VOXELS = 2
_FEWEST_CANAL_SLICES = 3


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

    Raises:
        InputError: neither mask is given, or one does not match the grid.
    """

    grid: Grid
    whole: npt.NDArray[np.generic] | None
    body: npt.NDArray[np.generic] | None = None
    complete: bool = True
    level: str | None = None

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
        voxels = np.argwhere(self.outline)
        if not len(voxels):
            raise InputError("A vertebra's mask is empty: no voxel is above 0.5. Leave it out.")
        return self.grid.to_ras_mm(voxels.mean(axis=0))


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
        return self.grid.to_ras_mm(np.argwhere(self.inside).mean(axis=0))


def find_body(vertebra: BodyMask, *, superior_ras: npt.ArrayLike = (0.0, 0.0, 1.0)) -> Body | None:
    """The body of one vertebra, along its own axes; None where the mask holds none (less than 0.4 ml).

    Args:
        vertebra: its mask.
        superior_ras: (3,) about where its cranial side points, within some 45 degrees; see :func:`spine_tangents`.
    """
    axes = _axes(np.asarray(superior_ras, np.float64), np.array([0.0, 1.0, 0.0]))
    voxels = np.argwhere(vertebra.outline)
    if len(voxels) * vertebra.grid.voxel_volume_mm3 < SMALLEST_BODY_ML * 1000:
        return None
    smoothing_mm = max(_SMOOTHING_MM, _SMOOTHING_VOXELS * max(vertebra.grid.spacing_xyz_mm))
    vertebra = _without_other_bodies(vertebra)
    core_ras_mm: Float64 | None = None
    for _ in range(_TURNS):
        body, behind_ras_mm = _on_body_grid(vertebra, axes)
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
    return _on_body_grid(vertebra, axes)[0]


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
    """(3,) centroid, RAS+ mm, of the inner half of a body, into which no process or spur reaches."""
    import SimpleITK as sitk  # noqa: N813  the name all of its users know

    image = sitk.GetImageFromArray(np.pad(body.inside, 1).astype(np.uint8))
    depth = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, True, False, True))[1:-1, 1:-1, 1:-1]
    return body.grid.to_ras_mm(np.argwhere(depth > 0.5 * depth.max()).mean(axis=0))


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
    return replace(vertebra, body=_main_part(np.asarray(vertebra.body, np.float32)))


def _on_body_grid(vertebra: BodyMask, axes: Float64) -> tuple[Body, Float64 | None]:
    """The body on the grid along ``axes``, and the arch's middle (3,), RAS+ mm, or None where there is hardly one."""
    if vertebra.body is not None:
        return _known_body(vertebra, vertebra.body, axes), _arch_ras_mm(vertebra, vertebra.body)
    assert vertebra.whole is not None
    grid = _grid_around(np.argwhere(np.asarray(vertebra.whole) > INSIDE), vertebra.grid, axes)
    whole = _shares(vertebra.whole, vertebra.grid, grid)
    share = _without_arch(whole)
    return Body(grid, share), _centroid_ras_mm((whole > INSIDE) & ~(share > INSIDE), grid)


def _known_body(vertebra: BodyMask, body: npt.NDArray[np.generic], axes: Float64) -> Body:
    """The body that a mask of its own gives: only the part of the grid that it reaches is computed."""
    grid = _grid_around(np.argwhere(np.asarray(body) > INSIDE), vertebra.grid, axes)
    return Body(grid, _shares(body, vertebra.grid, grid))


def _arch_ras_mm(vertebra: BodyMask, body: npt.NDArray[np.generic]) -> Float64 | None:
    """The middle of what a whole vertebra's mask holds beside its body."""
    if vertebra.whole is None:
        return None
    return _centroid_ras_mm((np.asarray(vertebra.whole) > INSIDE) & ~(np.asarray(body) > INSIDE), vertebra.grid)


def _centroid_ras_mm(arch: Bool, grid: Grid) -> Float64 | None:
    """(3,) RAS+ mm, or None where there is hardly an arch."""
    voxels = np.argwhere(arch)
    if len(voxels) * grid.voxel_volume_mm3 < 1000 * SMALLEST_BODY_ML:
        return None
    return grid.to_ras_mm(voxels.mean(axis=0))


def _grid_around(voxels_zyx: npt.NDArray[np.intp], source: Grid, axes: Float64) -> Grid:
    """The body grid along ``axes`` that holds these voxels of ``source`` and a margin."""
    along = source.to_ras_mm(voxels_zyx) @ axes
    margin = _MARGIN_MM + 0.5 * max(source.spacing_xyz_mm)
    low, high = along.min(axis=0) - margin, along.max(axis=0) + margin
    x, y, z = (int(n) for n in np.ceil((high - low) / BODY_GRID_MM) + 1)
    affine = np.eye(4)
    affine[:3, :3] = axes * BODY_GRID_MM
    affine[:3, 3] = axes @ low
    return Grid((z, y, x), affine)


def _shares(mask: npt.NDArray[np.generic], source: Grid, target: Grid) -> Float32:
    """A mask on another grid, averaged or interpolated: (z, y, x) float32, 0..1."""
    values = np.ascontiguousarray(mask, dtype=np.float32)
    return resample(Volume(values, source), target, fill_hu=0.0)


def _main_part(share: Float32) -> Float32:
    """Zero outside the largest connected part (with a voxel around it, where the surface is interpolated)."""
    return np.where(_numbered_parts(share > INSIDE) > 1, np.float32(0.0), share)


def _numbered_parts(mask: Bool) -> npt.NDArray[np.uint32]:
    """Connected parts (sides touch) of a mask of two or three dimensions, numbered from 1 by falling size."""
    import SimpleITK as sitk  # noqa: N813  the name all of its users know

    parts = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)))
    return np.asarray(sitk.GetArrayFromImage(sitk.RelabelComponent(parts)))


def _without_arch(whole: Float32) -> Float32:
    """The body's shares: what lies in front of the canal, or of the thickest part's back where there is no canal."""
    inside = whole > INSIDE
    canal = _canal(inside)
    wall_y = _wall_of_thickest(inside) if canal is None else _posterior_wall(inside, *_canal_axis(canal, len(whole)))
    keep = np.arange(whole.shape[1])[None, :, None] >= (wall_y - 1.0)[:, None, None]
    return _main_part(np.where(keep, whole, np.float32(0.0)))


def _canal(inside: Bool) -> npt.NDArray[np.intp] | None:
    """(n, 3) voxels of the canal, slice by slice, or None.

    Of the spaces that the mask encloses on four sides within a slice it is the one that goes on through the whole
    vertebra; where the grid is still too oblique for that, the rearmost of some size. The dent of a crushed endplate
    is enclosed too, but in front of the canal and with bone below.
    """
    space = ~inside
    for axis in (1, 2):
        space &= np.maximum.accumulate(inside, axis=axis)
        space &= np.flip(np.maximum.accumulate(np.flip(inside, axis), axis=axis), axis)
    through = (inside.sum(axis=0) <= _GRAZED_VOXELS) & (space.sum(axis=0) >= _FEWEST_CANAL_SLICES)
    seed = _numbered_parts(through) == 1
    if seed.sum() * BODY_GRID_MM**2 < _SMALLEST_SEED_MM2:
        seed = np.zeros_like(through)
    found = [_canal_in_slice(space[z], seed, int(z)) for z in np.flatnonzero(space.any(axis=(1, 2)))]
    found = [voxels for voxels in found if len(voxels)]
    return np.concatenate(found) if len(found) >= _FEWEST_CANAL_SLICES else None


def _canal_in_slice(space: Bool, seed: Bool, z: int) -> npt.NDArray[np.intp]:
    """(n, 3) voxels of the part of one slice's enclosed space that is the canal; empty where none is."""
    parts = _numbered_parts(space)
    size = np.bincount(parts.ravel())[1:]
    if seed.any():
        chosen = int(np.bincount(parts[seed], minlength=2)[1:].argmax()) + 1 if parts[seed].any() else 0
    else:
        large = np.flatnonzero(size >= max(_SMALLEST_CANAL_MM2 / BODY_GRID_MM**2, 0.4 * size.max())) + 1
        chosen = int(min(large, key=lambda part: float(np.argwhere(parts == part)[:, 0].mean()), default=0))
    yx = np.argwhere(parts == chosen) if chosen else np.empty((0, 2), np.intp)
    return np.column_stack([np.full(len(yx), z), yx])


def _canal_axis(canal: npt.NDArray[np.intp], count: int) -> tuple[Float64, Float64]:
    """(z,) y and x indices of a line through the canal, in front of the laminae by half a canal's depth.

    The laminae bound the canal reliably; its front does not, where the dent of a crushed endplate adds to it.
    """
    slices = np.arange(count, dtype=np.float64)
    levels, starts = np.unique(canal[:, 0], return_index=True)
    parts = np.split(canal, starts[1:])
    backs = np.array([np.percentile(p[:, 1], 2) for p in parts])
    rear = np.abs(backs - np.quantile(backs, 0.4, method="lower")) <= _WALL_SPREAD_MM
    z = levels[rear].astype(np.float64)
    middles = np.array(
        [np.median(p[p[:, 1] <= back + 2 * _HALF_CANAL_MM, 2]) for p, back in zip(parts, backs, strict=True)]
    )
    return _robust_line(z, backs[rear], slices) + _HALF_CANAL_MM, _robust_line(z, middles[rear], slices, quantile=0.5)


def _posterior_wall(inside: Bool, axis_y: Float64, axis_x: Float64) -> Float64:
    """(z,) y index of the body's posterior wall in every slice: what rays meet that leave the canal forwards."""
    slices = np.arange(inside.shape[0], dtype=np.float64)
    rays = np.arange(-_WALL_HALF_WIDTH_MM, _WALL_HALF_WIDTH_MM + 1)
    steps = np.arange(0, _WALL_WITHIN_MM + 1)
    z = np.arange(inside.shape[0])[:, None, None]
    y = np.rint(axis_y[:, None, None] + steps[None, :, None]).astype(int)
    x = np.rint(axis_x[:, None, None] + rays[None, None, :]).astype(int)
    within = (y >= 0) & (y < inside.shape[1]) & (x >= 0) & (x < inside.shape[2])
    met = within & inside[z, np.clip(y, 0, inside.shape[1] - 1), np.clip(x, 0, inside.shape[2] - 1)]
    first = np.where(met.any(axis=1), met.argmax(axis=1).astype(np.float64), np.nan)
    first[met[:, 0, :]] = np.nan
    found = np.isfinite(first).sum(axis=1) > len(rays) // 2
    if found.sum() < 3:
        return axis_y + _HALF_CANAL_MM
    z, wall = slices[found], np.nanmedian(first[found], axis=1) + np.rint(axis_y[found])
    near = wall <= np.quantile(wall, 0.2) + _WALL_SPREAD_MM
    return _robust_line(z[near], wall[near], slices)


def _robust_line(z: Float64, values: Float64, at: Float64, *, quantile: float = 0.35) -> Float64:
    """Theil and Sen's line through (z, values), up to 31 degrees steep, at other z; by default a little behind."""
    rise = (values[:, None] - values[None, :])[np.triu_indices(len(z), 2)]
    run = (z[:, None] - z[None, :])[np.triu_indices(len(z), 2)]
    slope = float(np.clip(np.median(rise / run), -_STEEPEST_WALL, _STEEPEST_WALL)) if len(run) else 0.0
    return np.asarray(np.quantile(values - slope * z, quantile) + slope * at)


def _wall_of_thickest(inside: Bool) -> Float64:
    """(z,) y index of the wall where there is no canal: behind the widest disc that fits into an axial slice."""
    import SimpleITK as sitk  # noqa: N813

    best_radius, wall = -1.0, 0.0
    for level in np.flatnonzero(inside.any(axis=(1, 2))):
        flat = np.pad(inside[level], 1).astype(np.uint8)
        depth = sitk.GetArrayFromImage(
            sitk.SignedMaurerDistanceMap(sitk.GetImageFromArray(flat), True, False, True)  # inside positive, in voxels
        )
        y = int(np.unravel_index(depth.argmax(), depth.shape)[0]) - 1
        if depth.max() > best_radius:
            best_radius, wall = float(depth.max()), y - float(depth.max())
    return np.full(inside.shape[0], wall)


def _to_the(power: int, values: Float64) -> Float64:
    """``values**power`` by squaring, which is several times faster than NumPy's general power."""
    if power == 1:
        return values
    half = _to_the(power // 2, values)
    return half * half * values if power % 2 else half * half


def _superior(share: Float32, smoothing_mm: float) -> Float64:
    """(3,) the superior axis in the grid's own (x, y, z), halfway between the endplates' normals."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(share), smoothing_mm)
    gradient = np.stack(np.gradient(sitk.GetArrayFromImage(image))[::-1], axis=-1).reshape(-1, 3)
    size = np.linalg.norm(gradient, axis=1)
    keep = size > 0.05
    normals, size = -gradient[keep] / size[keep, None], size[keep]
    ends = [np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])]
    for power in _SHARPNESS:
        axis = ends[0] - ends[1]
        axis /= np.linalg.norm(axis)
        for n, sign in enumerate((1.0, -1.0)):
            cosine = np.clip(sign * (normals @ axis), 0.0, None)
            mean = (size * _to_the(power, cosine)) @ normals
            ends[n] = mean / np.linalg.norm(mean)
    axis = ends[0] - ends[1]
    return np.asarray(axis / np.linalg.norm(axis))
