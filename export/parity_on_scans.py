"""What the networks of an engine say of a whole scan, beside what a reference says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from export.timed_session import TimedSession
from runtime.bundle import Bundle, BundleSpec, FracSegNetSpec
from runtime.crops import crop_grid, extract_crops
from runtime.engines import EngineChoice, open_session
from runtime.engines.base import Session
from runtime.engines.parity import Parity, compare_batches, compare_crops, compare_maps, joined
from runtime.errors import EngineError, OutOfMemoryError
from runtime.intensity import normalise
from runtime.levels import level_evidence
from runtime.localise import centres_of
from runtime.looks import mean_of_interleaved, second_look
from runtime.resample import resample, working_grid
from runtime.volume import Grid, Volume
from runtime.windows import WindowPlan, plan_windows, sliding_windows, windows_reaching

MOST_CENTRES = 60
"""As the pipeline: more come from a network that sees vertebrae everywhere."""
Said = tuple[Mapping[str, np.ndarray], ...]
"""The second network's outputs by name for each look at one vertebra."""


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


def warm_up(spec: BundleSpec, networks: Networks) -> None:
    """Call each network once with zeros, on both sides of a comparison: first calls compile and tune.

    An engine that fails here fails on the scans as well, which is where it is told.
    """
    sizes = [spec.locnet.window_zyx, spec.fracsegnet.crop_zyx]
    sizes += [] if spec.levelnet is None else [spec.levelnet.crop_zyx]
    for session, size_zyx in zip((networks.locnet, networks.fracsegnet, networks.levelnet), sizes, strict=False):
        if session is not None:
            with suppress(EngineError, OutOfMemoryError):
                session(np.zeros((1, 1, *size_zyx), np.float32))


class _TimedNetworks(Networks):
    """Networks whose calls are timed: what lies between them is the same work on both sides. Left open by these."""

    @classmethod
    def of(cls, networks: Networks) -> _TimedNetworks:
        """These networks, timed."""
        level = networks.levelnet
        timed = TimedSession(networks.locnet), TimedSession(networks.fracsegnet)
        return cls(*timed, None if level is None else TimedSession(level))

    @property
    def seconds(self) -> float:
        """Spent in all calls so far."""
        sessions = (self.locnet, self.fracsegnet, self.levelnet)
        return sum(session.seconds for session in sessions if isinstance(session, TimedSession))


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
        looks: the second network's inputs, (1, 1, z, y, x) float32, at each centre: one, or two where the bundle looks
            twice.
        outputs: the reference's for each of them.
        evidence: (n, 27) the reference's for the levels, or None where the bundle has no network for them.
        seconds: that the calls of the reference's networks took, without what lies between them.
    """

    scan: Volume
    grid: Grid
    image: np.ndarray
    plan: WindowPlan
    keep: np.ndarray
    maps: tuple[np.ndarray, np.ndarray]
    centres_ras_mm: tuple[tuple[float, float, float], ...]
    looks: tuple[tuple[np.ndarray, ...], ...]
    outputs: tuple[Said, ...]
    evidence: np.ndarray | None
    seconds: float


def prepare(spec: BundleSpec, scan: Volume, reference: Networks) -> Prepared:
    """Cut the scan as the pipeline does, and run the reference on it; see ``warm_up`` where its seconds count."""
    loc, frac = spec.locnet, spec.fracsegnet
    grid = working_grid(scan.grid, loc.spacing_mm)
    hu = resample(scan, grid)
    plan = plan_windows(hu.shape, loc.window_zyx, loc.overlap)  # type: ignore[arg-type]
    keep = windows_reaching(hu, plan, loc.skip_below_hu)
    image = normalise(hu, loc.intensity)
    timed = _TimedNetworks.of(reference)
    maps = sliding_windows(image, plan, timed.locnet, keep=keep)
    found = centres_of(*maps, grid, loc) if keep.any() else ()
    likeliest = sorted(found, key=lambda centre: -centre.confidence)[:MOST_CENTRES]
    centres = tuple(centre.centre_ras_mm for centre in likeliest)
    looks = tuple(_looks(scan, frac.grid_around(centre), frac) for centre in centres)
    outputs = tuple(_run(timed.fracsegnet, at_one) for at_one in looks)
    evidence = _levels(spec, scan, centres, timed)
    return Prepared(scan, grid, image, plan, keep, maps, centres, looks, outputs, evidence, timed.seconds)


def _looks(scan: Volume, grid: Grid, spec: FracSegNetSpec) -> tuple[np.ndarray, ...]:
    grids = [grid, second_look(grid, spec)] if spec.mirrored else [grid]
    return tuple(crop[None, None] for crop in normalise(extract_crops(scan, grids), spec.intensity))


def _run(session: Session, looks: Sequence[np.ndarray]) -> Said:
    return tuple(dict(zip(session.output_names, session(np.ascontiguousarray(look)), strict=True)) for look in looks)


def said_together(said: Said, spec: FracSegNetSpec) -> Mapping[str, np.ndarray]:
    """What the looks at one vertebra say together, as the pipeline puts it: outputs by name, a batch of one each.

    Args:
        said: each look's outputs.
        spec: says how the second look lies. Masks of interleaved looks come out twice as fine, and are not trimmed.
    """
    if len(said) == 1:
        return said[0]
    first, second = said
    means = {name: np.float32(0.5) * (first[name] + second[name]) for name in first if name != "mask"}
    ours, theirs = first["mask"][0], np.ascontiguousarray(second["mask"][0][..., ::-1])
    if spec.interleaved:
        mask = np.stack([mean_of_interleaved(a, b) for a, b in zip(ours, theirs, strict=True)])
    else:
        mask = np.float32(0.5) * (ours + theirs)
    return {**means, "mask": mask[None]}


def compare_on_scan(spec: BundleSpec, prepared: Prepared, met: Networks) -> tuple[Parity, float]:
    """An engine's networks against the reference's on one scan, and the seconds that their calls took.

    An engine that fails on the scan is a finding, not an error.
    """
    timed, frac = _TimedNetworks.of(met), spec.fracsegnet
    try:
        maps = sliding_windows(prepared.image, prepared.plan, timed.locnet, keep=prepared.keep)
        outputs = [_run(timed.fracsegnet, looks) for looks in prepared.looks]
        evidence = _levels(spec, prepared.scan, prepared.centres_ras_mm, timed)
    except (EngineError, OutOfMemoryError) as error:
        return Parity(failed=f"{prepared.scan.name}: {str(error).rstrip('.')}"), timed.seconds
    parts = [
        compare_crops(said_together(right, frac), said_together(found, frac), threshold=frac.mask_threshold)
        for right, found in zip(prepared.outputs, outputs, strict=True)
    ]
    if prepared.keep.any():
        parts.append(compare_maps(prepared.maps, maps, prepared.grid, spec.locnet))
    if prepared.evidence is not None and evidence is not None:
        parts.append(compare_crops({"level": prepared.evidence}, {"level": evidence}, threshold=0.5))
    return joined(parts), timed.seconds


def images_alone(spec: BundleSpec, prepared: Prepared) -> dict[str, np.ndarray]:
    """An image (1, 1, z, y, x) for each network that a scan has one for, by the names in ``Networks``.

    They are the window with most bone, and the crops around the likeliest vertebra.
    """
    images = {}
    kept = [start for start, kept in zip(prepared.plan.starts_zyx, prepared.keep, strict=True) if kept]
    if kept:
        best = max(kept, key=lambda start: float(prepared.image[prepared.plan.inside(start)].mean()))
        window = np.zeros((1, 1, *prepared.plan.window_zyx), np.float32)
        seen = prepared.image[prepared.plan.inside(best)]
        window[0, 0, : seen.shape[0], : seen.shape[1], : seen.shape[2]] = seen
        images["locnet"] = window
    if prepared.looks:
        images["fracsegnet"] = prepared.looks[0][0]
        level = spec.levelnet
        if level is not None:
            grid = crop_grid(prepared.centres_ras_mm[0], spacing_mm=level.spacing_mm, shape_zyx=level.crop_zyx)
            images["levelnet"] = normalise(extract_crops(prepared.scan, [grid]), level.intensity)[None]
    return {name: np.ascontiguousarray(image) for name, image in images.items()}


def compare_with_itself(images: Mapping[str, np.ndarray], met: Networks) -> Parity:
    """An engine's networks against themselves, on those of ``images_alone``. One that fails is a finding, too."""
    try:
        return joined([compare_batches(getattr(met, name), image) for name, image in images.items()])
    except (EngineError, OutOfMemoryError) as error:
        return Parity(failed=str(error).rstrip("."))


def _levels(
    spec: BundleSpec, scan: Volume, centres: Sequence[tuple[float, float, float]], networks: Networks
) -> np.ndarray | None:
    if spec.levelnet is None or networks.levelnet is None:
        return None
    return level_evidence(scan, centres, spec.levelnet, networks.levelnet, batch=1)
