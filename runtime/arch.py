"""Cutting the arch off a vertebra's mask.

The arch is cut off a whole vertebra's mask along the body's posterior wall. The canal is the largest space that mask
encloses in front, behind, on the left and on the right; the wall is what a ray meets that leaves the canal's axis
forwards, a robust line over the slices of the body grid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.body_grid import BODY_GRID_MM, INSIDE, Bool, Float32, Float64, main_part
from runtime.masks import numbered_parts

_WALL_HALF_WIDTH_MM = 5.0
_WALL_WITHIN_MM = 18.0
_HALF_CANAL_MM = 7.0
_STEEPEST_WALL = 0.6
_WALL_SPREAD_MM = 6.0
_SMALLEST_CANAL_MM2 = 80.0
_SMALLEST_SEED_MM2 = 20.0
_GRAZED_VOXELS = 2
_FEWEST_CANAL_SLICES = 3


def without_arch(whole: Float32) -> Float32:
    """The body's shares: what lies in front of the canal, or of the thickest part's back where there is no canal."""
    inside = whole > INSIDE
    canal = _canal(inside)
    wall_y = _wall_of_thickest(inside) if canal is None else _posterior_wall(inside, *_canal_axis(canal, len(whole)))
    keep = np.arange(whole.shape[1])[None, :, None] >= (wall_y - 1.0)[:, None, None]
    return main_part(np.where(keep, whole, np.float32(0.0)))


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
    seed = numbered_parts(through) == 1
    if seed.sum() * BODY_GRID_MM**2 < _SMALLEST_SEED_MM2:
        seed = np.zeros_like(through)
    found = [_canal_in_slice(space[z], seed, int(z)) for z in np.flatnonzero(space.any(axis=(1, 2)))]
    found = [voxels for voxels in found if len(voxels)]
    return np.concatenate(found) if len(found) >= _FEWEST_CANAL_SLICES else None


def _canal_in_slice(space: Bool, seed: Bool, z: int) -> npt.NDArray[np.intp]:
    """(n, 3) voxels of the part of one slice's enclosed space that is the canal; empty where none is."""
    parts = numbered_parts(space)
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
