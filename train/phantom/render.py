"""Renders a patient on any grid: the scan, its masks, and the truth about every vertebra in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.volume import Grid, Volume
from train.phantom import imaging, kernels
from train.phantom.anatomy import Anatomy, sample_anatomy
from train.phantom.appearance import Appearance, sample_appearance
from train.phantom.config import DEFAULT_CONFIG, PhantomConfig
from train.phantom.fields import random_scan_grid
from train.phantom.scene import Scene
from train.phantom.tables import Tissue

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
SLAB_VOXELS = 8_000_000


@dataclass(frozen=True, eq=False)
class PhantomVertebra:
    """The truth about one vertebra.

    Args:
        label, level: VerSe's label and its name, e.g. 19 and "T12".
        centre_ras_mm: (3,) centroid of the vertebral body, RAS+ mm (C1: of the middle of its anterior arch).
        grade: Genant grade 0..3; shape: "none", "wedge", "biconcave" or "crush".
        heights_mm: anterior, middle, posterior distance between the endplates in the midline, at 3/4 of the half depth
            in front of the body's middle, in its middle and 3/4 behind it, after any fracture.
        original_heights_mm: the same before it.
        height_loss: greatest relative loss of the three.
        complete: whether the whole vertebra lies inside the grid.
        axes_ras: (3, 3), columns are its right, anterior and superior directions.
        half_depth_mm: half of the body's depth.
        origin_ras_mm: (3,) reference middle of the body, where its midline's measuring points start.
    """

    label: int
    level: str
    centre_ras_mm: Float64
    grade: int
    shape: str
    heights_mm: tuple[float, float, float]
    original_heights_mm: tuple[float, float, float]
    height_loss: float
    complete: bool
    axes_ras: Float64
    half_depth_mm: float
    origin_ras_mm: Float64


@dataclass(frozen=True, eq=False)
class PhantomScan:
    """A rendered scan: ``volume`` (float32 HU), ``mask`` and ``body_mask`` ((z, y, x) uint8, VerSe labels; whole
    vertebrae and bodies alone), ``vertebrae`` whose body centre is inside the grid (cranial to caudal), ``seed``."""

    volume: Volume
    mask: UInt8
    body_mask: UInt8
    vertebrae: tuple[PhantomVertebra, ...]
    seed: int


def _index_boxes(
    scene: Scene, affine: Float64, shape: tuple[int, int, int], margin_mm: Float64
) -> npt.NDArray[np.int64]:
    """(P, 6) index ranges z0, y0, x0, z1, y1, x1 that contain each primitive; empty where it is outside the grid."""
    turn = scene.frames[:, :, :3]
    middle, half = (scene.lows + scene.highs) / 2, (scene.highs - scene.lows) / 2 + margin_mm[:, None]
    centre = np.einsum("nji,nj->ni", turn, middle - scene.frames[:, :, 3])
    back = np.linalg.inv(affine[:3, :3])
    index = (centre - affine[:3, 3]) @ back.T
    reach = np.einsum("nij,nj->ni", np.abs(back @ turn.transpose(0, 2, 1)), half)
    size = np.array(shape[::-1])
    low = np.clip(np.ceil(index - reach), 0, size).astype(np.int64)
    high = np.clip(np.floor(index + reach) + 1, 0, size).astype(np.int64)
    return np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1)


def paint_scene(scene: Scene, grid: Grid, appearance: Appearance) -> tuple[npt.NDArray[np.float32], UInt8, UInt8]:
    """Tissue HU before any imaging, whole-vertebra mask and body mask, each (z, y, x)."""
    shape, affine = grid.shape_zyx, np.array(grid.affine_ras)
    voxel = float(np.cbrt(grid.voxel_volume_mm3))
    hu = np.full(shape, appearance.hu[Tissue.AIR], np.float32)
    mask, body_mask = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    noise = np.empty((3, *shape), np.float32)
    for n, wavelength in enumerate(appearance.wavelengths_mm):
        kernels.value_noise(affine[:3], shape, wavelength, appearance.texture_seed + n, noise[n])
    shell, core = scene.looks[:, 0].astype(int), scene.looks[:, 1].astype(int)
    fade = 1 / (1 + (voxel / np.array(appearance.wavelengths_mm)) ** 2)
    hu_of = appearance.hu
    looks = [scene.looks[:, 2], hu_of[shell] + scene.looks[:, 4], hu_of[core] + scene.looks[:, 5], scene.looks[:, 3]]
    weights = np.stack([appearance.texture[shell], appearance.texture[core]], 1) * fade
    frames = scene.frames[:, :, :3] @ affine[:3]
    frames[:, :, 3] += scene.frames[:, :, 3]
    blend = np.repeat(scene.groups[:, 3] * 0.001, scene.groups[:, 1])
    boxes = _index_boxes(scene, affine, shape, voxel * 0.75 + 0.5 + blend)
    shapes = scene.kinds, scene.ops, frames, scene.params, scene.table_of, scene.tables, boxes
    kernels.paint(scene.groups, np.stack(looks, 1), weights, *shapes, voxel, hu, noise, mask, body_mask)
    return hu, mask, body_mask


def _supersampling(grid: Grid) -> tuple[int, int]:
    """Array axis and odd factor by which thick voxels are split before averaging (factor 1: not)."""
    spacing = np.array(grid.spacing_xyz_mm[::-1])
    axis = int(np.argmax(spacing))
    ratio = spacing[axis] / np.median(spacing)
    return axis, 1 if ratio < 1.7 else (3 if ratio < 4.5 else 5)


def _fine_grid(grid: Grid, axis: int, factor: int) -> Grid:
    shape, affine = list(grid.shape_zyx), grid.affine_ras.copy()
    shape[axis] *= factor
    affine[:3, 2 - axis] /= factor
    affine[:3, 3] -= affine[:3, 2 - axis] * (factor - 1) / 2
    return Grid((shape[0], shape[1], shape[2]), affine)


def _paint_in_slabs(scene: Scene, grid: Grid, appearance: Appearance) -> tuple[npt.NDArray[np.float32], UInt8, UInt8]:
    """``paint_scene`` with thick voxels split and averaged, slab after slab so that memory stays bounded."""
    axis, factor = _supersampling(grid)
    slices, rows, columns = grid.shape_zyx
    step = max(1, SLAB_VOXELS // (rows * columns * factor))
    hu = np.empty(grid.shape_zyx, np.float32)
    mask, body_mask = np.empty(grid.shape_zyx, np.uint8), np.empty(grid.shape_zyx, np.uint8)
    for start in range(0, slices, step):
        part = slice(start, min(start + step, slices))
        slab = grid.sub_grid((start, 0, 0), (part.stop - start, rows, columns))
        fine = paint_scene(scene, _fine_grid(slab, axis, factor), appearance)
        split = [*slab.shape_zyx[: axis + 1], factor, *slab.shape_zyx[axis + 1 :]]
        hu[part] = fine[0].reshape(split).mean(axis + 1)
        mask[part], body_mask[part] = (np.take(m.reshape(split), factor // 2, axis + 1) for m in fine[1:])
    return hu, mask, body_mask


def render(anatomy: Anatomy, grid: Grid, appearance: Appearance, rng: np.random.Generator) -> PhantomScan:
    """Renders ``anatomy`` on ``grid``; ``rng`` draws noise, shading and streaks alone."""
    pad = imaging.halo(appearance, grid)
    z, y, x = grid.shape_zyx
    wide = grid.sub_grid((-pad[0], -pad[1], -pad[2]), (z + 2 * pad[0], y + 2 * pad[1], x + 2 * pad[2]))
    hu, mask, body_mask = _paint_in_slabs(anatomy.scene, wide, appearance)
    hu = imaging.apply_kernel(hu, appearance, wide)
    inner = tuple(slice(p, p + n) for p, n in zip(pad, grid.shape_zyx, strict=True))
    hu = imaging.bend(hu[inner], appearance)
    hu = imaging.add_defects(hu, grid, appearance, anatomy.scene.metal_ras_mm, rng)
    hu = np.ascontiguousarray(imaging.finish(hu, grid, appearance))
    mask, body_mask = np.ascontiguousarray(mask[inner]), np.ascontiguousarray(body_mask[inner])
    volume = Volume(hu, grid, name=f"phantom-{anatomy.seed}")
    return PhantomScan(volume, mask, body_mask, _truth(anatomy, grid), anatomy.seed)


def _truth(anatomy: Anatomy, grid: Grid) -> tuple[PhantomVertebra, ...]:
    scene = anatomy.scene
    labels = scene.groups[:, 2]
    found = []
    size = np.array(grid.shape_zyx)
    for v in anatomy.vertebrae:
        centre = anatomy.centre_ras_mm(v)
        index = grid.to_index_zyx(centre)
        if (index < -0.5).any() or (index > size - 0.5).any():
            continue
        first, count = scene.groups[int(np.flatnonzero(labels == v.label)[0]), :2]
        keep = np.flatnonzero(scene.ops[first : first + count] == 0) + first
        found.append(
            PhantomVertebra(
                v.label,
                v.level,
                centre,
                v.grade,
                v.form,
                v.heights_mm,
                v.original_heights_mm,
                v.height_loss,
                _inside(scene, keep, grid),
                anatomy.patient_axes @ v.axes,
                v.half_depth_mm,
                anatomy.to_ras_mm(v.origin_mm),
            )
        )
    return tuple(found)


def _inside(scene: Scene, prims: npt.NDArray[np.int64], grid: Grid) -> bool:
    """Whether the bounds of all these primitives lie within the grid's voxels."""
    frames = scene.frames[prims]
    middle, half = (scene.lows + scene.highs)[prims] / 2, (scene.highs - scene.lows)[prims] / 2
    centre = np.einsum("nji,nj->ni", frames[:, :, :3], middle - frames[:, :, 3])
    back = np.linalg.inv(grid.affine_ras[:3, :3])
    reach = np.einsum("nij,nj->ni", np.abs(back @ frames[:, :, :3].transpose(0, 2, 1)), half)[:, ::-1]
    index = grid.to_index_zyx(centre)
    return bool((index - reach > -1).all() and (index + reach < np.array(grid.shape_zyx)).all())


def make_scan(seed: int, config: PhantomConfig = DEFAULT_CONFIG, *, spacing_mm: float | None = None) -> PhantomScan:
    """A scan of a new patient with a random field of view and appearance; the same seed gives the same bytes."""
    anatomy = sample_anatomy(seed, config)
    rng = np.random.default_rng([seed, 2])
    appearance = sample_appearance(rng, config)
    return render(anatomy, random_scan_grid(anatomy, rng, spacing_mm=spacing_mm), appearance, rng)
