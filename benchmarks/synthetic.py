"""What networks would say of a whole spine, drawn: inputs to the steps that come after them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.engines.base import EngineInfo
from runtime.volume import Grid

SIGMA_VOXELS = 3.0
OFFSET_NOISE_VOXELS = 0.4
MOST_VERTEBRAE = 25
LEAST_APART_VOXELS = 12


@dataclass(frozen=True, eq=False)
class Maps:
    """Heatmap (z, y, x) and offsets (3, z, y, x) float32, and the centres (n, 3; z, y, x) that they were drawn from."""

    heatmap: np.ndarray
    offsets: np.ndarray
    centres_zyx: np.ndarray


def spine_maps(shape_zyx: tuple[int, int, int]) -> Maps:
    """A Gaussian around each of up to 25 centres down the middle, and offsets to them with some noise.

    Every page of the heatmap is written: pages that never were would be read from one and the same.
    """
    count = max(1, min(MOST_VERTEBRAE, shape_zyx[0] // LEAST_APART_VOXELS))
    rng = np.random.default_rng(7)
    heights = (np.arange(count) + 0.5) * shape_zyx[0] / count
    middle = np.array(shape_zyx[1:]) / 2
    centres = np.column_stack([heights, *(m + rng.uniform(-2, 2, count) for m in middle)])
    heatmap = np.full(shape_zyx, 1e-3, np.float32)
    offsets = np.zeros((3, *shape_zyx), np.float32)
    reach = 3 * SIGMA_VOXELS
    for centre in centres:
        first = np.clip(np.floor(centre - reach), 0, shape_zyx).astype(int)
        last = np.clip(np.ceil(centre + reach) + 1, 0, shape_zyx).astype(int)
        box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        away = centre[:, None, None, None] - (np.indices(last - first) + first[:, None, None, None])
        strength = np.exp(-(away**2).sum(axis=0) / (2 * SIGMA_VOXELS**2)).astype(np.float32)
        nearer = strength > heatmap[box]
        heatmap[box][nearer] = strength[nearer]
        noisy = (away + rng.normal(0, OFFSET_NOISE_VOXELS, away.shape)).astype(np.float32)
        for channel, values in zip(offsets, noisy, strict=True):
            channel[box][nearer] = values[nearer]
    return Maps(heatmap, offsets, centres)


def vertebra_masks(grid: Grid, *, shape_zyx: tuple[int, int, int], spacing_mm: float) -> list[tuple[Grid, np.ndarray]]:
    """Crops around up to 25 points down the middle of a grid, each with a ball of 20 mm radius as its probability."""
    from runtime.crops import crop_grid

    height_mm = grid.shape_zyx[0] * grid.spacing_xyz_mm[2]
    count = max(1, min(MOST_VERTEBRAE, int(height_mm // 25)))
    axes = [(np.arange(n) - (n - 1) / 2) * spacing_mm for n in shape_zyx]
    far_mm = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    ball = (1 / (1 + np.exp((far_mm - 20) / spacing_mm))).astype(np.float32)
    middle = (np.array(grid.shape_zyx) - 1) / 2
    points = [grid.to_ras_mm([(i + 0.5) * grid.shape_zyx[0] / count, *middle[1:]]) for i in range(count)]
    return [(crop_grid(p, spacing_mm=spacing_mm, shape_zyx=shape_zyx), ball) for p in points]


class NoNetwork:
    """A session that says the same of every window at the cost of a copy: what is left is cutting and blending."""

    def __init__(self, window_zyx: tuple[int, int, int]) -> None:
        self.info = EngineInfo("none", "0", "fp32", "CPU", "a benchmark")
        self.output_names: tuple[str, ...] = ("heatmap", "offsets")
        rng = np.random.default_rng(0)
        self.outputs: tuple[np.ndarray, ...] = tuple(rng.random((1, c, *window_zyx), dtype=np.float32) for c in (1, 3))

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """See ``runtime.engines.base.Session``."""
        return tuple(output.copy() for output in self.outputs)

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> NoNetwork:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
