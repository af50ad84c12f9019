"""The whole path from a scan to its findings, with the networks loaded once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np

from runtime.bundle import Bundle, BundleSpec, open_bundle
from runtime.describe import body_masks, describe, notice, reported, warnings
from runtime.device.session import offers_device_tensors
from runtime.engines import measured_choice, open_session, select_engine, triton
from runtime.engines.base import EngineInfo, Session, release_memory
from runtime.engines.triton_server import TritonServer
from runtime.errors import BundleError, EngineError, InputError, OutOfMemoryError
from runtime.findings import BundleInfo, Findings, ScanInfo, Settings, Vertebra
from runtime.heights import HeightEnds
from runtime.kernels.threads import each_in_threads
from runtime.levels import LevelCall, decode_levels, level_evidence
from runtime.localise import Centre
from runtime.memory import MIB, give_back_memory, peak_memory_mb
from runtime.morphometry import measure_vertebrae
from runtime.order import cranial_to_caudal
from runtime.padding import LOWEST_HU, find_padding, raised_to_air, without_padded
from runtime.paste import paste_masks
from runtime.progress import NoProgress, Progress
from runtime.readers import read_scan
from runtime.readers.options import ReadOptions
from runtime.resample import working_grid
from runtime.scan_access import ImageAccess, ScanAccess, ScanOnHost, scan_opener
from runtime.scout import WindowCount
from runtime.segment import SegmentedVertebra, segment
from runtime.volume import Volume

logger = logging.getLogger(__name__)

GRADES = 4
GPU_BATCH = 4
"""Crops run at once on a GPU; on a processor it is one, since more take memory and save no time."""
MOST_VERTEBRAE = 60
"""About twice what a patient has; more centres than this come from a network that sees vertebrae everywhere."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """Findings with what they were read from.

    Args:
        findings: what is reported.
        labels: (z, y, x) uint8 on the scan's grid: 0 background, 1..n the vertebrae, cranial to caudal.
        volume: the scan.
        notice: what table and picture must say of the bundle, ``""`` for one that is fit for clinical use.
        height_ends: for each vertebra the end points of its measured heights, None where there are none.
        windows: how many the first network was run on.
    """

    findings: Findings
    labels: np.ndarray
    volume: Volume
    notice: str
    height_ends: tuple[HeightEnds | None, ...]
    windows: WindowCount


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The centres that go to the second network, from cranial to caudal.

    Args:
        centres: that were not rejected.
        evidence: (n, 27) what the third network says of each, or None where the bundle has none.
        dropped: centres left out because they were too many.
        rejected: centres left out because they are no vertebra.
        windows: that the first network was run on.
    """

    centres: tuple[Centre, ...]
    evidence: np.ndarray | None
    dropped: int
    rejected: int
    windows: WindowCount


@dataclass(frozen=True, eq=False)
class _Segmented:
    """The vertebrae of a scan, from cranial to caudal.

    Args:
        vertebrae: as the second network outlines them.
        calls: what is said of each one's level.
        rejected: candidates left out because they are no vertebra.
        padded: vertebrae left out because they lie where the scan holds no picture.
    """

    vertebrae: Sequence[SegmentedVertebra]
    calls: tuple[LevelCall | None, ...]
    rejected: int
    padded: int


class PreparedScan:
    """A scan that was read, and brought to the first network's grid where that is done in the host's memory.

    Args:
        volume: the scan.
        image: the scan on the working grid, or None where the engine's GPU makes it.
        seconds: what each stage took.
    """

    def __init__(self, volume: Volume, image: ImageAccess | None, seconds: Mapping[str, float]) -> None:
        self.volume, self.seconds = volume, dict(seconds)
        self._image = image

    def take_image(self) -> ImageAccess | None:
        """The image, given away so that its memory is free once it was used; the second time None."""
        image, self._image = self._image, None
        return image


class Stopwatch:
    """Seconds per stage, and the progress that goes with them; ``before`` is what was done ahead."""

    def __init__(self, progress: Progress, before: Mapping[str, float] | None = None) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = dict(before or {})
        self._start_s = time.perf_counter() - sum(self.seconds.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside as stage ``name``."""
        self.progress.stage(name)
        start_s = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start_s

    def timings_s(self) -> Mapping[str, float]:
        """Seconds of each stage so far, and ``"total"`` with what was done ahead; to the millisecond."""
        total_s = time.perf_counter() - self._start_s
        return {name: round(s, 3) for name, s in (*self.seconds.items(), ("total", total_s))}


class _OneAtATime:
    """A session that several threads may call: they wait for each other."""

    def __init__(self, session: Session) -> None:
        self._session, self._lock = session, threading.Lock()
        self.info, self.output_names = session.info, session.output_names

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        with self._lock:
            return self._session(image)

    def release_memory(self) -> None:
        with self._lock:
            release_memory(self._session)

    def close(self) -> None:
        with self._lock:
            self._session.close()

    def __enter__(self) -> _OneAtATime:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _in_turns(sessions: Sequence[Session]) -> list[Session]:
    """The sessions, such that several threads may use them; on the GPU the path that a scan takes sees to that."""
    on_gpu = all(offers_device_tensors(session) for session in sessions)
    return [session if on_gpu else _OneAtATime(session) for session in sessions]


class Pipeline:
    """An open bundle on an engine; serves many scans, from several threads. Close it, or use it in ``with``."""

    def __init__(
        self,
        bundle: Bundle,
        locnet: Session,
        fracsegnet: Session,
        levelnet: Session | None,
        resources: ExitStack,
        *,
        exhaustive: bool = False,
    ) -> None:
        """Use ``Pipeline.open``; ``resources`` owns the sessions, and is emptied into the pipeline."""
        sessions = _in_turns([locnet, fracsegnet, *([] if levelnet is None else [levelnet])])
        self._bundle, self._open_scan = bundle, scan_opener(sessions, resources)
        self._images_on_host = not all(offers_device_tensors(session) for session in sessions)
        self._locnet, self._fracsegnet = sessions[:2]
        self._levelnet = sessions[2] if len(sessions) > 2 else None
        self._exhaustive = exhaustive
        self._resources = resources.pop_all()

    @classmethod
    def open(
        cls,
        bundle: str | Path | None = None,
        *,
        engine: str = "auto",
        precision: str = "auto",
        device: int = 0,
        threads: int | None = None,
        server: TritonServer | None = None,
        exhaustive: bool = False,
    ) -> Pipeline:
        """Load a bundle's networks (the one that ships with the package if None) on an engine.

        Engine, precision and device are chosen here once, and the choice is logged with its reason. Where it is left
        to ``"auto"`` and several engines can run on the processor, they are timed on the first two networks when these
        are first used on this machine. The engine ``"triton"`` needs a ``server``, and no other engine takes one. With
        ``exhaustive`` the first network is run on every window that holds bone, not only along the spine.

        Raises:
            BundleError: the bundle is missing, damaged or of another kind.
            EngineError: the engine or precision can't be had here, or the bundle doesn't offer that precision.
        """
        opened = open_bundle(None if bundle is None else Path(bundle))
        spec = opened.spec
        if len(spec.fracsegnet.grade_names) != GRADES:
            raise BundleError(
                f"Bundle {spec.name} has the grades {', '.join(spec.fracsegnet.grade_names)}; "
                f"this software reports Genant's {GRADES}."
            )
        not_offered = spec.why_not_in(precision)
        if not_offered:
            raise EngineError(f"Bundle {spec.name} {spec.version} is not offered in {precision} ({not_offered}).")
        if server is not None:
            choice = triton.choose(server, opened, engine=engine, precision=precision, device=device)
        else:
            choice = select_engine(engine, precision=precision, device=device, verified=spec.verified)
            if engine == "auto":
                loc, frac = spec.locnet, spec.fracsegnet
                networks = {opened.path_of(loc.file): loc.window_zyx, opened.path_of(frac.file): frac.crop_zyx}
                choice = measured_choice(choice, networks, threads=threads)
        with ExitStack() as stack:
            sessions = [
                stack.enter_context(open_session(choice, opened.path_of(file), threads=threads))
                for file in (network.file for network in spec.networks)
            ]
            levelnet = sessions[2] if spec.levelnet is not None else None
            return cls(opened, sessions[0], sessions[1], levelnet, stack, exhaustive=exhaustive)

    @property
    def spec(self) -> BundleSpec:
        """What the open bundle says of itself."""
        return self._bundle.spec

    @property
    def bundle_sha256(self) -> str:
        """Hash of the open bundle, as the findings state it."""
        return self._bundle.sha256

    @property
    def engine_info(self) -> EngineInfo:
        """The engine that runs the networks, and why it was chosen."""
        return self._locnet.info

    def run(
        self,
        scan: str | Path | Volume | PreparedScan,
        *,
        progress: Progress | None = None,
        reading: ReadOptions | None = None,
    ) -> Findings:
        """The findings of one scan; see ``analyse``."""
        return self.analyse(scan, progress=progress, reading=reading).findings

    def prepare(
        self, scan: str | Path | Volume, *, progress: Progress | None = None, reading: ReadOptions | None = None
    ) -> PreparedScan:
        """Do what comes before the networks, such as for the next scan while they run on another one.

        Raises:
            InputError: the scan can't be read or used.
            OutOfMemoryError: the scan does not fit in the memory there is.
        """
        clock = Stopwatch(progress or NoProgress())
        volume, image = scan if isinstance(scan, Volume) else None, None
        try:
            if volume is None:
                with clock.stage("read"):
                    reading = replace(reading or ReadOptions(), lowest_hu=LOWEST_HU)
                    volume = read_scan(Path(scan), reading)  # type: ignore[arg-type]
            else:
                _check_finite(volume)
                volume = raised_to_air(volume)
            if self._images_on_host:
                with clock.stage("resample"):
                    image = ScanOnHost(volume).image_on(working_grid(volume.grid, self.spec.locnet.spacing_mm))
            return PreparedScan(volume, image, clock.seconds)
        except MemoryError as error:
            raise _out_of_memory(scan, volume) from error

    def analyse(
        self,
        scan: str | Path | Volume | PreparedScan,
        *,
        progress: Progress | None = None,
        reading: ReadOptions | None = None,
    ) -> Analysis:
        """Find, name, segment and grade every vertebra of a scan.

        Args:
            scan: a file, a DICOM folder or zip, a volume in memory, or what ``prepare`` gave, which is used up.
            progress: is told the stages, windows and crops; ``finish`` is left to the caller.
            reading: which DICOM series, and what to put up with, where the scan is a path.

        Raises:
            InputError: the scan can't be read or used.
            EngineError: a network failed.
            OutOfMemoryError: the scan does not fit in the memory there is.
        """
        progress = progress or NoProgress()
        prepared = scan if isinstance(scan, PreparedScan) else self.prepare(scan, progress=progress, reading=reading)
        try:
            return self._analyse(prepared, Stopwatch(progress, prepared.seconds))
        except MemoryError as error:
            raise _out_of_memory(prepared.volume, prepared.volume) from error

    def _analyse(self, prepared: PreparedScan, clock: Stopwatch) -> Analysis:
        frac, batch = self.spec.fracsegnet, 1 if self.engine_info.device == "CPU" else GPU_BATCH
        volume = prepared.volume
        with self._open_scan(volume) as scan:
            found = self._label(volume, scan, self._locate(prepared, scan, clock), clock, batch=batch)
            with clock.stage("segment"):
                kept = self._segmented(volume, scan, found, clock, batch=batch)
        vertebrae, calls = kept.vertebrae, kept.calls
        with clock.stage("measure"):
            masks = body_masks(vertebrae, calls, mask_threshold=frac.mask_threshold)
            grading = self.spec.grading
            measurements = measure_vertebrae(masks, scan=volume, reach=1.0 if grading is None else grading.reach)
            heights = reported(vertebrae, measurements, calls, grading)
        with clock.stage("paste"):
            labels = paste_masks(((v.grid, v.mask) for v in vertebrae), volume.grid, threshold=frac.mask_threshold)
            descriptions = [
                partial(
                    describe,
                    number,
                    v,
                    volume,
                    labels,
                    call=call,
                    measurement=measured,
                    heights=heights_of,
                    spec=self.spec,
                )
                for number, (v, call, measured, heights_of) in enumerate(
                    zip(vertebrae, calls, measurements, heights, strict=True), start=1
                )
            ]
            described = each_in_threads(lambda made: made(), descriptions)
        rejected = found.rejected + kept.rejected
        said = warnings(self.spec, volume, described, dropped=found.dropped, rejected=rejected, padded=kept.padded)
        findings = self._findings(volume, tuple(one.vertebra for one in described), said, clock)
        ends = tuple(measured.ends for measured in measurements)
        return Analysis(findings, labels, volume, notice(self.spec), ends, found.windows)

    def _findings(
        self, volume: Volume, vertebrae: tuple[Vertebra, ...], said: tuple[str, ...], clock: Stopwatch
    ) -> Findings:
        grid = volume.grid
        return Findings(
            scan=ScanInfo(volume.name, volume.sha256, grid.shape_zyx, grid.spacing_xyz_mm, grid.orientation),
            bundle=BundleInfo(self.spec.name, self.spec.version, self._bundle.sha256),
            engine=self.engine_info,
            timings_s=clock.timings_s(),
            peak_memory_mb=round(peak_memory_mb(), 1),
            warnings=said,
            vertebrae=vertebrae,
            settings=Settings(exhaustive=self._exhaustive),
        )

    def _locate(self, prepared: PreparedScan, scan: ScanAccess, clock: Stopwatch) -> _Candidates:
        """The centres that the first network finds, from cranial to caudal; not more than a patient can have."""
        spec, image = self.spec.locnet, prepared.take_image()
        if image is None:
            with clock.stage("resample"):
                image = scan.image_on(working_grid(prepared.volume.grid, spec.spacing_mm))
        with clock.stage("locate"):
            step = clock.progress.step
            found = image.locate(spec, self._locnet, progress=step, exhaustive=self._exhaustive)
        logger.info("the first network was run on %s", found.windows)
        kept = sorted(found.centres, key=lambda centre: -centre.confidence)[:MOST_VERTEBRAE]
        order = cranial_to_caudal([centre.centre_ras_mm for centre in kept])
        return _Candidates(tuple(kept[i] for i in order), None, len(found.centres) - len(kept), 0, found.windows)

    def _label(
        self, volume: Volume, scan: ScanAccess, found: _Candidates, clock: Stopwatch, *, batch: int
    ) -> _Candidates:
        """The candidates with what the third network says of them, without those that are no vertebra."""
        spec, centres = self.spec.levelnet, found.centres
        if spec is None or self._levelnet is None:
            return found
        with clock.stage("label"):
            points = [centre.centre_ras_mm for centre in centres]
            step = clock.progress.step
            evidence = level_evidence(volume, points, spec, self._levelnet, batch=batch, access=scan, progress=step)
            calls = decode_levels(points, [centre.confidence for centre in centres], evidence)
        kept = [i for i, call in enumerate(calls) if call.is_vertebra]
        return replace(
            found,
            centres=tuple(centres[i] for i in kept),
            evidence=evidence[kept],
            rejected=len(centres) - len(kept),
        )

    def _segmented(
        self, volume: Volume, scan: ScanAccess, found: _Candidates, clock: Stopwatch, *, batch: int
    ) -> _Segmented:
        """What the second network outlines around the candidates, without what is no vertebra or lies in padding."""
        frac, step = self.spec.fracsegnet, clock.progress.step
        segmented = segment(volume, found.centres, frac, self._fracsegnet, batch=batch, access=scan, progress=step)
        outlined = [v for v in segmented if (v.mask > frac.mask_threshold).any()]
        inside = without_padded(outlined, find_padding(volume), threshold=frac.mask_threshold)
        vertebrae, calls = self._called(inside, found)
        rejected = len(segmented) - len(outlined) + len(inside) - len(vertebrae)
        return _Segmented(vertebrae, calls, rejected, len(outlined) - len(inside))

    def _called(
        self, segmented: Sequence[SegmentedVertebra], found: _Candidates
    ) -> tuple[Sequence[SegmentedVertebra], tuple[LevelCall | None, ...]]:
        """The vertebrae and what is said of each one's level, decoded anew: centres moved, duplicates were merged.

        Those that are now held for none are left out, and the others decoded without them, until none is.
        """
        spec = self.spec.levelnet
        if spec is None or found.evidence is None:
            return segmented, (None,) * len(segmented)
        calls = decode_levels(
            [v.centre_ras_mm for v in segmented],
            [v.confidence for v in segmented],
            found.evidence[[v.source for v in segmented]],
            min_confidence=spec.min_confidence,
        )
        kept = [v for v, call in zip(segmented, calls, strict=True) if call.is_vertebra]
        return (kept, calls) if len(kept) == len(segmented) else self._called(kept, found)

    def rest(self) -> None:
        """Give back the memory that the next scan would need again: to be called before a pause of unknown length.

        The networks stay loaded, and scans may come at any time: the next takes some tenths of a second more.
        """
        for session in (self._locnet, self._fracsegnet, self._levelnet):
            if session is not None:
                release_memory(session)
        give_back_memory()

    def close(self) -> None:
        """Release the networks."""
        self._resources.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_finite(volume: Volume) -> None:
    """Raise InputError when the scan holds NaN or infinity (what is read from files is checked there)."""
    if volume.array.dtype == np.float32 and not np.isfinite(volume.array.sum(dtype=np.float64)):
        bad = int(np.count_nonzero(~np.isfinite(volume.array)))
        raise InputError(f"{volume.name} holds {bad} voxels that are NaN or infinite; replace them, e.g. by -1024 HU.")


def _out_of_memory(scan: str | Path | Volume, volume: Volume | None) -> OutOfMemoryError:
    """What to tell when memory ran out: how large the scan is, how much was used, what helps."""
    if volume is None:
        size = f"{scan} did not fit in memory while it was read"
    else:
        z, y, x = volume.grid.shape_zyx
        size = f"{volume.name} ({x} x {y} x {z} voxels, {volume.array.nbytes / MIB:.0f} MiB) did not fit in memory"
    return OutOfMemoryError(
        f"{size}; this process had used up to {peak_memory_mb():.0f} MiB. "
        "Close other programs, allow more memory, or crop the scan to the spine."
    )
