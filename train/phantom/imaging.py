"""From tissue HU to a scan: kernel, slice thickness, shading, streaks, noise, clipping and field of view."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.volume import Grid
from train.phantom import kernels
from train.phantom.appearance import Appearance

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
LOWEST_HU, HIGHEST_HU = -2048.0, 3071.0


def slice_axis(grid: Grid) -> int:
    """The array axis (0 z, 1 y, 2 x) closest to the patient's superior direction."""
    directions = grid.affine_ras[2, :3] / np.asarray(grid.spacing_xyz_mm)
    return 2 - int(np.argmax(np.abs(directions)))


def _gaussian(sigma: float) -> Float64:
    half = int(np.ceil(2.5 * sigma))
    k = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    return k / k.sum()


def _box(width: float) -> Float64:
    """A box of ``width`` voxels (>= 1) as an odd kernel with fractional ends."""
    half = int(np.ceil((width - 1) / 2))
    if half == 0:
        return np.ones(1)
    k = np.ones(2 * half + 1)
    k[[0, -1]] = (width - (2 * half - 1)) / 2
    return k / k.sum()


def filters(appearance: Appearance, grid: Grid) -> list[list[Float64]]:
    """Per array axis the kernels to apply one after the other (slice profile, then blur)."""
    spacing = grid.spacing_xyz_mm[::-1]
    axis = slice_axis(grid)
    chosen: list[list[Float64]] = []
    for n in range(3):
        row = []
        if n == axis and appearance.slice_mm > spacing[n] * 1.05:
            row.append(_box(appearance.slice_mm / spacing[n]))
        elif n != axis and appearance.blur_mm > 0.25 * spacing[n]:
            row.append(_gaussian(appearance.blur_mm / spacing[n]))
        chosen.append(row)
    return chosen


def halo(appearance: Appearance, grid: Grid) -> tuple[int, int, int]:
    """Voxels (z, y, x) by which a grid must be enlarged so that its filtered middle is exact."""
    pads = [sum(len(k) // 2 for k in row) for row in filters(appearance, grid)]
    if appearance.sharpen > 0:
        axis = slice_axis(grid)
        pads = [p + (0 if n == axis else len(_gaussian(_sharp_sigma(grid, n))) // 2) for n, p in enumerate(pads)]
    return pads[0], pads[1], pads[2]


def _sharp_sigma(grid: Grid, axis: int) -> float:
    return max(0.8, 0.9 / grid.spacing_xyz_mm[::-1][axis])


def apply_kernel(hu: Float32, appearance: Appearance, grid: Grid) -> Float32:
    """Averages over the slice, blurs, and sharpens edges in the slice's plane."""
    spare = np.empty_like(hu)
    for axis, row in enumerate(filters(appearance, grid)):
        for kernel in row:
            kernels.convolve(hu, kernel, axis, spare)
            hu, spare = spare, hu
    if appearance.sharpen > 0:
        soft, axis = hu, slice_axis(grid)
        for n in (n for n in range(3) if n != axis):
            out = np.empty_like(hu)
            kernels.convolve(soft, _gaussian(_sharp_sigma(grid, n)), n, out)
            soft = out
        hu = hu + np.float32(appearance.sharpen) * (hu - soft)
    return hu


def bend(hu: Float32, appearance: Appearance) -> Float32:
    """Applies the contrast bend of wild appearances between -1000 and 2000 HU, keeping both ends."""
    if appearance.gamma == 1.0:
        return hu
    share = np.clip((hu + np.float32(200)) / np.float32(1400), 0, 1)
    return np.where((hu > -200) & (hu < 1200), -200 + 1400 * share ** np.float32(appearance.gamma), hu).astype(
        np.float32
    )


def add_defects(
    hu: Float32, grid: Grid, appearance: Appearance, metal_ras_mm: Float64, rng: np.random.Generator
) -> Float32:
    """Shading, streaks, motion and noise, all drawn from ``rng``."""
    k, j, i = (np.linspace(-1, 1, n, dtype=np.float32) for n in hu.shape)
    waves = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
    field = [np.sin(waves[n, 0] * 3 + a * (1.5 + waves[n, 1]) * 2) for n, a in enumerate((k, j, i))]
    shade = field[0][:, None, None] + field[1][None, :, None] + field[2][None, None, :]
    hu = hu + np.float32(appearance.shading_hu / 2) * shade
    if appearance.ghost_mm > 0:
        step = max(1, round(appearance.ghost_mm / grid.spacing_xyz_mm[1]))
        hu = np.float32(0.7) * hu + np.float32(0.3) * np.roll(hu, step if rng.random() < 0.5 else -step, 1)
    if len(metal_ras_mm):
        hu = hu + _streaks(grid, appearance, metal_ras_mm, rng)
    if appearance.noise_hu > 0:
        hu = hu + _noise(grid, appearance, rng)
    return hu.astype(np.float32)


def _noise(grid: Grid, appearance: Appearance, rng: np.random.Generator) -> Float32:
    shape, spacing = grid.shape_zyx, grid.spacing_xyz_mm[::-1]
    white: Float32 = rng.standard_normal(shape, dtype=np.float32)
    spare, axis = np.empty_like(white), slice_axis(grid)
    gain = 1.0
    for n in range(3):
        grain = min(appearance.noise_grain_mm, 0.3 if appearance.sharpen > 0 else np.inf)
        grain *= (0.5 if n == axis else 1.0) / spacing[n]
        if grain > 0.3:
            kernel = _gaussian(grain)
            gain *= float((kernel**2).sum())
            kernels.convolve(white, kernel, n, spare)
            white, spare = spare, white
    if appearance.sharpen > 0:
        white, gain = _blue(white, appearance, grid), 1.0
    if appearance.starvation > 0:
        white, gain = _starved(white / np.float32(np.sqrt(gain)), appearance, grid, rng), 1.0
    j = np.linspace(-1, 1, shape[1], dtype=np.float32)[:, None]
    i = np.linspace(-1, 1, shape[2], dtype=np.float32)[None, :]
    level = np.float32(rng.uniform(-0.3, 0.3)) * i + np.float32(rng.uniform(-0.4, 0.4)) * (j * j + i * i) + 1
    return (white * np.float32(appearance.noise_hu / np.sqrt(gain)) * level).astype(np.float32)


def _blue(noise: Float32, appearance: Appearance, grid: Grid) -> Float32:
    """Noise as a sharp kernel leaves it: neighbours in the slice's plane differ; standard deviation 1."""
    axis, soft = slice_axis(grid), noise
    for n in (n for n in range(3) if n != axis):
        out = np.empty_like(noise)
        kernels.convolve(soft, _gaussian(0.7), n, out)
        soft = out
    noise = noise + np.float32(3 * appearance.sharpen) * (noise - soft)
    return (noise / max(float(noise.std()), 1e-6)).astype(np.float32)


def _starved(noise: Float32, appearance: Appearance, grid: Grid, rng: np.random.Generator) -> Float32:
    """Mixes in streaks from side to side, as where too few photons pass shoulders and hips; standard deviation 1."""
    directions = np.abs(grid.affine_ras[0, :3]) / np.asarray(grid.spacing_xyz_mm)
    axis = 2 - int(np.argmax(directions))
    kernel = _gaussian(8.0 / grid.spacing_xyz_mm[2 - axis])
    out = np.empty_like(noise)
    kernels.convolve(rng.standard_normal(noise.shape, dtype=np.float32), kernel, axis, out)
    share = appearance.starvation
    out *= np.float32(share / np.sqrt((kernel**2).sum()))
    return (noise * np.float32(np.sqrt(1 - share**2)) + out).astype(np.float32)


def _streaks(grid: Grid, appearance: Appearance, metal_ras_mm: Float64, rng: np.random.Generator) -> Float32:
    """Bright and dark rays in the slices' plane around points of metal."""
    out = np.zeros(grid.shape_zyx, np.float32)
    axis = slice_axis(grid)
    a, b = (n for n in range(3) if n != axis)
    spacing = grid.spacing_xyz_mm[::-1]
    index = grid.to_index_zyx(metal_ras_mm)
    ga = np.arange(out.shape[a], dtype=np.float32)[:, None]
    gb = np.arange(out.shape[b], dtype=np.float32)[None, :]
    for point in index:
        if not -10 < point[axis] < out.shape[axis] + 10:
            continue
        da, db = (ga - point[a]) * spacing[a], (gb - point[b]) * spacing[b]
        turn, r = np.arctan2(da, db), np.sqrt(da * da + db * db)
        rays = np.sin(turn * rng.integers(3, 9) + rng.uniform(0, 6)) + 0.7 * np.sin(
            turn * rng.integers(9, 25) + rng.uniform(0, 6)
        )
        plane = (appearance.streak_hu * rays * np.exp(-r / 45)).astype(np.float32)
        profile = np.exp(-0.5 * ((np.arange(out.shape[axis]) - point[axis]) * spacing[axis] / 5.0) ** 2).astype(
            np.float32
        )
        out += np.moveaxis(profile[:, None, None] * plane[None], 0, axis)
    return out


def finish(hu: Float32, grid: Grid, appearance: Appearance) -> Float32:
    """Clips to the stored range and applies the circular field of view."""
    hu = np.clip(hu, -1024.0, HIGHEST_HU).astype(np.float32)
    if appearance.field_mm <= 0:
        return hu
    axis = slice_axis(grid)
    a, b = (n for n in range(3) if n != axis)
    spacing = grid.spacing_xyz_mm[::-1]
    da = (np.arange(hu.shape[a]) - (hu.shape[a] - 1) / 2)[:, None] * spacing[a]
    db = (np.arange(hu.shape[b]) - (hu.shape[b] - 1) / 2)[None, :] * spacing[b]
    outside = np.expand_dims(da * da + db * db > appearance.field_mm**2, axis)
    return np.where(outside, np.float32(appearance.fill_hu), hu)
