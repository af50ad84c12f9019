"""Scans to measure on: phantoms of seeds that neither training nor evaluation draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from runtime.crops import crop_grid
from runtime.volume import Grid, Volume
from train.phantom import PhantomConfig, render, sample_anatomy, sample_appearance
from train.phantom.verse import to_int16, write_nifti

FIRST_SEED = 2**31 + 2**20
"""As ``export.verify``."""
SMALL_ZYX, LARGE_ZYX = (300, 290, 340), (400, 275, 400)
"""Trunks of 300 x 340 x 290 mm and 400 x 400 x 275 mm (height, width, depth) at 1 mm."""
LARGE_SEED = 11
COARSE_MM = 3.2
"""Large scans are rendered at this spacing and enlarged: their voxels count, not their beauty."""

Shape = tuple[int, int, int]


def phantom_scan(shape_zyx: Shape, *, spacing_mm: float, seed: int = FIRST_SEED) -> Volume:
    """A phantom of ``shape_zyx`` voxels around the middle of its spine; int16 HU."""
    rng = np.random.default_rng(seed)
    anatomy = sample_anatomy(seed)
    middle = anatomy.centre_ras_mm(anatomy.vertebrae[len(anatomy.vertebrae) // 2])
    grid = crop_grid(middle, spacing_mm=spacing_mm, shape_zyx=shape_zyx)
    volume = render(anatomy, grid, sample_appearance(rng), rng).volume
    size = "x".join(str(round(n * spacing_mm)) for n in shape_zyx)
    return replace(volume, array=to_int16(volume.array), name=f"phantom-{size}")


def enlarged_scan(shape_zyx: Shape, *, spacing_mm: float = 0.8) -> Volume:
    """A patient's spine in the middle of ``shape_zyx`` voxels of about ``spacing_mm``: quick to make, int16 HU.

    It is rendered at about ``COARSE_MM`` and each voxel is repeated, so that any size takes seconds.
    """
    factor = max(1, round(COARSE_MM / spacing_mm))
    z, y, x = (-(-n // factor) for n in shape_zyx)
    config = PhantomConfig(wild_probability=0.0, tilt_probability=0.0)
    anatomy = sample_anatomy(LARGE_SEED, config)
    middle = np.mean([anatomy.centre_ras_mm(v) for v in anatomy.vertebrae], axis=0)
    coarse = crop_grid(middle, spacing_mm=spacing_mm * factor, shape_zyx=(z, y, x))
    rng = np.random.default_rng(LARGE_SEED)
    hu = to_int16(render(anatomy, coarse, sample_appearance(rng, config), rng).volume.array)
    large = np.empty(shape_zyx, np.int16)
    for plane in range(shape_zyx[0]):
        rows = np.repeat(hu[plane // factor], factor, axis=0)[: shape_zyx[1]]
        large[plane] = np.repeat(rows, factor, axis=1)[:, : shape_zyx[2]]
    affine = coarse.affine_ras.copy()
    affine[:3, :3] /= factor
    affine[:3, 3] = coarse.to_ras_mm([0, 0, 0]) - affine[:3, :3].sum(axis=1) * (factor - 1) / 2
    return Volume(large, Grid(shape_zyx, affine), name="enlarged phantom")


def save(volume: Volume, path: Path) -> Path:
    """The scan as int16 NIfTI; gives the path back."""
    write_nifti(path, to_int16(volume.array), volume.grid)
    return path
