"""Vertebral centres in a scan: windows through the network, votes, peaks, and their place in the patient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from runtime.bundle import LocNetSpec
from runtime.engines.base import Session
from runtime.errors import EngineError
from runtime.scout import WindowCount, windows_along_spine
from runtime.volume import Grid
from runtime.voting import Ballots, Density, density_peaks, peak_support, refine_peaks, vote_map
from runtime.windows import Slab, WindowRunner, plan_windows, windows_reaching

FEWEST = 3
"""Fewer centres than this are only reported after the exhaustive pass: they may be all but the spine."""


@dataclass(frozen=True)
class Centre:
    """The centre of one vertebral body.

    Args:
        centre_ras_mm: RAS+ mm (x, y, z).
        confidence: 0..1, the highest heatmap value around it; see ``runtime.voting.peak_support``.
        votes: sum of the votes that it gathered; for variant H, of the heatmap around it.
    """

    centre_ras_mm: tuple[float, float, float]
    confidence: float
    votes: float


@dataclass(frozen=True)
class Located:
    """What was found in a scan, and at what cost.

    Args:
        centres: from cranial to caudal (by their height in the patient); empty when there are none.
        windows: that the network was run on.
    """

    centres: tuple[Centre, ...]
    windows: WindowCount


def locate(
    hu: np.ndarray,
    grid: Grid,
    spec: LocNetSpec,
    session: Session,
    *,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
    exhaustive: bool = False,
) -> Located:
    """Find the centres of the vertebrae in a scan.

    Windows away from the spine are left out as ``spec.scout`` says. Where that leaves next to no centres, all windows
    with bone are run: that there is nothing is only said after the exhaustive pass.

    Args:
        hu: (z, y, x) Hounsfield units on the working grid.
        grid: the working grid: axes along RAS+, ``spec.spacing_mm`` apart.
        spec: how the network is run and read.
        session: the network.
        batch: windows that are run at once, at most.
        progress: called with the number of windows done and to do; how many there are to do grows as heat is followed.
        exhaustive: run every window that holds bone.

    Raises:
        EngineError: the network fails, or its outputs have other shapes, or hold NaN or infinity.
    """
    plan = plan_windows(grid.shape_zyx, spec.window_zyx, spec.overlap)
    keep = windows_reaching(hu, plan, spec.skip_below_hu)
    runner = WindowRunner(hu, plan, session, batch=batch, intensity=spec.intensity, progress=progress)
    centres: tuple[Centre, ...] = ()
    if keep.any():
        chosen = keep if exhaustive else windows_along_spine(hu, grid, plan, keep, spec, runner)
        all_chosen = bool(chosen[keep].all())
        centres = _centres_in(runner.slabs(chosen, remember=not all_chosen), grid, spec)
        if len(centres) < FEWEST and not all_chosen:
            centres = _centres_in(runner.slabs(keep), grid, spec)
    return Located(centres, WindowCount(runner.run_count, len(keep), runner.scouted))


def _centres_in(slabs: Iterable[Slab], grid: Grid, spec: LocNetSpec) -> tuple[Centre, ...]:
    heatmap = np.zeros(grid.shape_zyx, np.float32)
    ballots = Ballots(grid.shape_zyx, threshold=spec.heatmap_threshold)
    for slab in slabs:
        check_offsets(spec, len(slab.offsets))
        heatmap[slab.planes] = slab.heatmap
        if spec.variant == "F":
            ballots.add(slab.first, slab.heatmap, slab.offsets)
    return _centres(ballots.vote_map() if spec.variant == "F" else heatmap, heatmap, grid, spec)


def check_offsets(spec: LocNetSpec, channels: int) -> None:
    """Refuse a network of variant F without three offsets at each voxel.

    Raises:
        EngineError: it has another number of them.
    """
    if spec.variant == "F" and channels != 3:
        raise EngineError(f"A network of variant F has three offsets at each voxel; this one has {channels}.")


def centres_of(heatmap: np.ndarray, offsets: np.ndarray, grid: Grid, spec: LocNetSpec) -> tuple[Centre, ...]:
    """Read the centres out of what the network said about a whole scan.

    Args:
        heatmap: (z, y, x) float32.
        offsets: (3, z, y, x) float32, voxels; not used by variant H.
        grid: where the voxels lie.
        spec: thresholds, separation and radius.

    Returns:
        Centres of at least ``spec.min_confidence``, from cranial to caudal.
    """
    density: Density = heatmap
    if spec.variant == "F":
        density = vote_map(heatmap, offsets, threshold=spec.heatmap_threshold)
    return _centres(density, heatmap, grid, spec)


def _centres(density: Density, heatmap: np.ndarray, grid: Grid, spec: LocNetSpec) -> tuple[Centre, ...]:
    separation = spec.peak_separation_voxels
    peaks = density_peaks(density, threshold=spec.peak_threshold, separation_voxels=separation)
    places_mm = grid.to_ras_mm(refine_peaks(density, peaks, radius_voxels=spec.refine_radius_voxels))
    confidences, votes = peak_support(density, heatmap, peaks, radius_voxels=separation)
    return confident_centres(places_mm, confidences, votes, spec)


def confident_centres(
    places_ras_mm: np.ndarray, confidences: np.ndarray, votes: np.ndarray, spec: LocNetSpec
) -> tuple[Centre, ...]:
    """Those of the places (n, 3) whose confidence (n,) is at least ``spec.min_confidence``, from cranial to caudal."""
    centres = [
        Centre((float(place[0]), float(place[1]), float(place[2])), float(confidence), float(strength))
        for place, confidence, strength in zip(places_ras_mm, confidences, votes, strict=True)
        if confidence >= spec.min_confidence
    ]
    return tuple(sorted(centres, key=lambda centre: -centre.centre_ras_mm[2]))
