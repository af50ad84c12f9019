"""What the networks of an engine say of a whole scan, beside what a reference says of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from runtime.bundle import Bundle, BundleSpec
from runtime.crops import extract_crops
from runtime.engines import EngineChoice, open_session
from runtime.engines.base import Session
from runtime.engines.parity import Parity, compare_batches, compare_crops, compare_maps, joined
from runtime.errors import EngineError
from runtime.intensity import normalise
from runtime.levels import level_evidence
from runtime.localise import centres_of
from runtime.resample import resample, working_grid
from runtime.volume import Grid, Volume
from runtime.windows import WindowPlan, plan_windows, sliding_windows, windows_reaching

MOST_CENTRES = 60
"""As the pipeline: more come from a network that sees vertebrae everywhere."""


@dataclass(frozen=True, eq=False)
class Networks:
    """A bundle's networks on one engine."""

    locnet: Session
    fracsegnet: Session
    levelnet: Session | None


@contextmanager
def opened(bundle: Bundle, choice: EngineChoice, *, threads: int | None = None) -> Iterator[Networks]:
    """The bundle's networks on an engine, closed in the end."""
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(open_session(choice, bundle.path_of(network.file), threads=threads))
            for network in bundle.spec.networks
        ]
        yield Networks(sessions[0], sessions[1], sessions[2] if len(sessions) > 2 else None)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan, its windows, and what the reference says of them.

    Args:
        scan: as it was read.
        grid: the first network's working grid.
        image: (z, y, x) float32 on it, normalised.
        plan: the windows over it.
        keep: bool, which of them are run.
        maps: the reference's heatmap and offsets.
        centres_ras_mm: those that the reference found; crops are taken around them for every engine.
        crops: (n, 1, z, y, x) float32, the second network's inputs.
        outputs: the reference's for the crops, by name.
        evidence: (n, 27) the reference's for the levels, or None where the bundle has no network for them.
        seconds: that the reference took.
    """

    scan: Volume
    grid: Grid
    image: np.ndarray
    plan: WindowPlan
    keep: np.ndarray
    maps: tuple[np.ndarray, np.ndarray]
    centres_ras_mm: tuple[tuple[float, float, float], ...]
    crops: np.ndarray
    outputs: Mapping[str, np.ndarray]
    evidence: np.ndarray | None
    seconds: float


def prepare(spec: BundleSpec, scan: Volume, reference: Networks) -> Prepared:
    """Cut the scan as the pipeline does, and run the reference on it."""
    loc, frac = spec.locnet, spec.fracsegnet
    grid = working_grid(scan.grid, loc.spacing_mm)
    hu = resample(scan, grid)
    plan = plan_windows(hu.shape, loc.window_zyx, loc.overlap)  # type: ignore[arg-type]
    keep = windows_reaching(hu, plan, loc.skip_below_hu)
    image = normalise(hu, loc.intensity)
    start = time.perf_counter()
    maps = sliding_windows(image, plan, reference.locnet, keep=keep)
    found = centres_of(*maps, grid, loc) if keep.any() else ()
    likeliest = sorted(found, key=lambda centre: -centre.confidence)[:MOST_CENTRES]
    centres = tuple(centre.centre_ras_mm for centre in likeliest)
    grids = [frac.grid_around(c) for c in centres]
    voxels = extract_crops(scan, grids) if grids else np.zeros((0, *frac.crop_zyx), np.float32)
    crops = normalise(voxels, frac.intensity)[:, None]
    outputs = run_crops(reference.fracsegnet, crops)
    evidence = _levels(spec, scan, centres, reference)
    seconds = time.perf_counter() - start
    return Prepared(scan, grid, image, plan, keep, maps, centres, crops, outputs, evidence, seconds)


def run_crops(session: Session, crops: np.ndarray) -> dict[str, np.ndarray]:
    """A crop network's outputs by name, crop by crop, joined along the first axis; empty without crops."""
    outputs = [session(np.ascontiguousarray(crops[i : i + 1])) for i in range(len(crops))]
    return dict(
        zip(session.output_names, (np.concatenate(parts) for parts in zip(*outputs, strict=True)), strict=False)
    )


def compare_on_scan(spec: BundleSpec, prepared: Prepared, met: Networks) -> tuple[Parity, float]:
    """An engine's networks against the reference's on one scan, and the seconds that they took.

    An engine that fails on the scan is a finding, not an error.
    """
    start = time.perf_counter()
    try:
        maps = sliding_windows(prepared.image, prepared.plan, met.locnet, keep=prepared.keep)
        outputs = run_crops(met.fracsegnet, prepared.crops)
        evidence = _levels(spec, prepared.scan, prepared.centres_ras_mm, met)
    except EngineError as error:
        return Parity(failed=f"{prepared.scan.name}: {str(error).rstrip('.')}"), time.perf_counter() - start
    seconds = time.perf_counter() - start
    parts = [compare_crops(prepared.outputs, outputs, threshold=spec.fracsegnet.mask_threshold)]
    if prepared.keep.any():
        parts.append(compare_maps(prepared.maps, maps, prepared.grid, spec.locnet))
    if prepared.evidence is not None and evidence is not None:
        parts.append(compare_crops({"level": prepared.evidence}, {"level": evidence}, threshold=0.5))
    return joined(parts), seconds


def compare_with_itself(prepared: Prepared, met: Networks) -> Parity:
    """An engine's networks against themselves, on the scan's window with most bone and on its first crop."""
    kept = [start for start, kept in zip(prepared.plan.starts_zyx, prepared.keep, strict=True) if kept]
    best = max(kept, key=lambda start: float(prepared.image[prepared.plan.inside(start)].mean()))
    window = np.zeros((1, 1, *prepared.plan.window_zyx), np.float32)
    seen = prepared.image[prepared.plan.inside(best)]
    window[0, 0, : seen.shape[0], : seen.shape[1], : seen.shape[2]] = seen
    try:
        parts = [compare_batches(met.locnet, window)]
        if len(prepared.crops):
            parts.append(compare_batches(met.fracsegnet, np.ascontiguousarray(prepared.crops[:1])))
    except EngineError as error:
        return Parity(failed=str(error).rstrip("."))
    return joined(parts)


def _levels(
    spec: BundleSpec, scan: Volume, centres: Sequence[tuple[float, float, float]], networks: Networks
) -> np.ndarray | None:
    if spec.levelnet is None or networks.levelnet is None:
        return None
    return level_evidence(scan, centres, spec.levelnet, networks.levelnet, batch=1)
