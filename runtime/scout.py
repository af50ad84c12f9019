"""Which windows of a scan the localisation network needs: a first look at low resolution, then along the spine.

The windows are those of the exhaustive pass, never others, so that what is said of a voxel is a blend of the same
outputs. The first look only says where to begin: it may miss vertebrae, and may see some where there are none. From
there the full-resolution windows lead on: wherever they show heat, every window that counts there is run as well, and
every height of the scan is looked at where the spine would go on. Where nothing was found, all windows are run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.bundle import LocNetSpec, ScoutSpec
from runtime.resample import resample, working_grid
from runtime.trail import Chosen, Points, Trail
from runtime.volume import Grid, Volume
from runtime.windows import WindowPlan, WindowRunner, plan_windows, windows_reaching

MOST_PER_HEIGHT = 4
"""Windows that a straight spine needs at one height, at most: two along each of y and x."""


@dataclass(frozen=True)
class WindowCount:
    """How many windows the localisation network was run on.

    Args:
        run: at full resolution; one that was run twice, because its outputs did not fit in memory until they were
            needed again, counts twice.
        planned: that cover the scan, as the exhaustive pass has them; those without bone among them are never run.
        scouted: at low resolution, to find where the spine is.
    """

    run: int
    planned: int
    scouted: int

    def __str__(self) -> str:
        return f"{self.run} of {self.planned} windows, {self.scouted} at low resolution before"


def windows_along_spine(
    hu: np.ndarray, grid: Grid, plan: WindowPlan, keep: Chosen, spec: LocNetSpec, runner: WindowRunner
) -> Chosen:
    """Which of the windows are enough to find what all of them would find.

    Args:
        hu: (z, y, x) Hounsfield units on the working grid.
        grid: the working grid.
        plan: all windows.
        keep: bool, those that hold bone.
        spec: how the network is run; ``spec.scout`` says how to look for the spine.
        runner: runs windows, counts them, and remembers their outputs.

    Returns:
        bool, of the windows in ``keep`` those that were chosen, which ``runner`` has run; ``keep`` itself where
        choosing would save nothing, or where no heat was found.

    Raises:
        EngineError: as ``runtime.windows.window_slabs``.
    """
    scout = spec.scout
    if scout is None:
        return keep
    coarse = working_grid(grid, scout.spacing_mm)
    coarse_plan = plan_windows(coarse.shape_zyx, spec.window_zyx, scout.overlap)
    heights = len({start[0] for start, kept in zip(plan.starts_zyx, keep, strict=True) if kept})
    if keep.sum() <= len(coarse_plan.starts_zyx) + MOST_PER_HEIGHT * heights:
        return keep
    image = resample(Volume(hu, grid, "working image"), coarse)
    keep_coarse = windows_reaching(image, coarse_plan, spec.skip_below_hu)
    seeds = _seeds(image, coarse, coarse_plan, keep_coarse, grid, scout, runner)
    if not len(seeds):
        return keep
    trail = Trail(plan, keep, share=scout.share)
    chosen = np.zeros(len(keep), bool)
    pending = trail.windows_at(seeds)
    while pending.any():
        for start, outputs in runner.run(plan.starts_in(pending), remember=True):
            trail.add(start, outputs[0][0])
        chosen |= pending
        hot = trail.hot(scout.follow_threshold)
        if not len(hot):
            return keep
        pending = trail.windows_at(hot) & ~chosen
        if not pending.any():
            pending = trail.beyond(hot, chosen)
    return chosen


def _seeds(
    image: np.ndarray,
    coarse: Grid,
    coarse_plan: WindowPlan,
    keep: Chosen,
    grid: Grid,
    scout: ScoutSpec,
    runner: WindowRunner,
) -> Points:
    """Voxels (n, 3), z, y, x, of the working grid around which the low resolution shows heat."""
    if not keep.any():
        return np.zeros((0, 3), np.int64)
    heat = runner.heatmap_of(image, coarse_plan, keep)
    near = _grown_box(heat > scout.threshold, round(scout.margin_mm / scout.spacing_mm))
    places = grid.to_index_zyx(coarse.to_ras_mm(np.argwhere(near).astype(np.float64)))
    return np.clip(np.rint(places).astype(np.int64), 0, np.array(grid.shape_zyx) - 1)


def _grown_box(mark: Chosen, voxels: int) -> Chosen:
    """The marked voxels and all that lie up to so many voxels from one along each axis."""
    out = mark
    for axis in range(3):
        grown = out.copy()
        for shift in range(1, min(voxels, mark.shape[axis] - 1) + 1):
            ahead = [slice(None)] * 3
            behind = [slice(None)] * 3
            ahead[axis], behind[axis] = slice(shift, None), slice(None, -shift)
            grown[tuple(ahead)] |= out[tuple(behind)]
            grown[tuple(behind)] |= out[tuple(ahead)]
        out = grown
    return out
