"""Running the pipeline and its single networks on scans whose truth is known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from runtime.bundle import Bundle, LocNetSpec, open_bundle
from runtime.engines import open_session, select_engine
from runtime.engines.base import Session
from runtime.errors import InputError
from runtime.findings import Heights, Measured, NetworkOpinion, Vertebra
from runtime.intensity import normalise
from runtime.localise import Centre, centres_of
from runtime.paste import paste_masks
from runtime.pipeline import Analysis, Pipeline
from runtime.resample import resample, working_grid
from runtime.segment import SegmentedVertebra, segment
from runtime.volume import Grid, Volume
from runtime.windows import plan_windows, sliding_windows, windows_reaching
from train.evaluation.compare import Called, Slices, compare, compare_one_by_one
from train.evaluation.records import Comparison, Opinion, ScanRecord
from train.evaluation.truth import TrueScan

HEATMAP_ETA = 0.7
"""LocNet-H's threshold (thesis 4.1)."""


@dataclass(frozen=True)
class Extras:
    """What is evaluated beside the whole pipeline; each costs time of its own.

    Args:
        true_centres: the second network on the true centres.
        compare_heatmap: LocNet-F and LocNet-H from one pass of the first network.
    """

    true_centres: bool = False
    compare_heatmap: bool = False


class SingleNetworks:
    """The bundle's networks outside the pipeline, opened for the extras alone. Use it in ``with``."""

    def __init__(
        self, bundle: Path | None, extras: Extras, *, engine: str, precision: str, threads: int | None
    ) -> None:
        self._resources = ExitStack()
        self.extras, self._bundle = extras, open_bundle(bundle)
        choice = select_engine(engine, precision=precision)

        def session(file: str) -> Session:
            return self._resources.enter_context(open_session(choice, self._bundle.path_of(file), threads=threads))

        spec = self._bundle.spec
        if extras.compare_heatmap and spec.locnet.variant != "F":
            raise InputError(
                f"Bundle {spec.name} holds a LocNet-{spec.locnet.variant}, which has no votes to compare its heatmap "
                "with; leave out --compare-heatmap."
            )
        self._locnet = session(spec.locnet.file) if extras.compare_heatmap else None
        self._fracsegnet = session(spec.fracsegnet.file) if extras.true_centres else None

    def add_to(self, record: ScanRecord, scan: TrueScan) -> ScanRecord:
        """The record with what the extras ask for."""
        if self._fracsegnet is not None:
            record = replace(record, alone=graded_on_true_centres(scan, self._bundle, self._fracsegnet))
        if self._locnet is not None:
            voted, heatmap = votes_and_heatmap(scan, self._bundle.spec.locnet, self._locnet)
            record = replace(record, voted=voted, heatmap=heatmap)
        return record

    def __enter__(self) -> SingleNetworks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()


def evaluate_scan(pipeline: Pipeline, scan: TrueScan, *, code_version: str = "") -> ScanRecord:
    """Run the whole pipeline on one scan and compare what it found with the truth."""
    start_s = time.perf_counter()
    analysis = pipeline.analyse(scan.volume)
    seconds = time.perf_counter() - start_s
    called = [_called_by_pipeline(vertebra, analysis) for vertebra in analysis.findings.vertebrae]
    return ScanRecord(
        scan.volume.name,
        scan.patient or scan.volume.name,
        scan.shows_junction,
        round(seconds, 3),
        code_version,
        compare(scan, called),
        voxel_mm=max(scan.volume.grid.spacing_xyz_mm),
        has_mask=scan.mask is not None,
    )


def _called_by_pipeline(vertebra: Vertebra, analysis: Analysis) -> Called:
    def mask_in(block: Slices, _: Grid) -> np.ndarray:
        return np.asarray(analysis.labels[block] == vertebra.mask_label)

    return Called(
        vertebra.centre_ras_mm,
        vertebra.confidence,
        vertebra.level,
        vertebra.grade,
        vertebra.grade_probabilities,
        _three(vertebra.heights_mm),
        vertebra.height_loss,
        mask_in,
        _by_network(vertebra.network),
        _by_measurement(vertebra.measured),
    )


def _by_network(said: NetworkOpinion | None) -> Opinion | None:
    if said is None:
        return None
    return Opinion(said.grade, said.grade_probabilities, _three(said.heights_mm), said.height_loss)


def _by_measurement(said: Measured | None) -> Opinion | None:
    if said is None:
        return None
    loss = said.height_loss
    ranks = None if loss is None else (1.0 - loss, 0.0, 0.0, loss)
    return Opinion(said.grade, ranks, _three(said.heights_mm), loss)


def _three(heights: Heights | None) -> tuple[float, float, float] | None:
    return None if heights is None else (heights.anterior, heights.middle, heights.posterior)


def graded_on_true_centres(scan: TrueScan, bundle: Bundle, session: Session) -> Comparison:
    """The second network alone: one crop around each true centre, nothing merged, nothing lost."""
    spec = bundle.spec.fracsegnet
    called = []
    for vertebra in scan.vertebrae:
        x, y, z = (float(n) for n in vertebra.centre_ras_mm)
        (found,) = segment(scan.volume, [Centre((x, y, z), 1.0, 1.0)], spec, session, batch=1)
        called.append(_called_by_network(found, spec.mask_threshold))
    return compare_one_by_one(scan, called)


def _called_by_network(found: SegmentedVertebra, threshold: float) -> Called:
    """As ``runtime.describe`` reads it: neither grade nor heights where the scan's edge cuts the body."""

    def mask_in(_: Slices, grid: Grid) -> np.ndarray:
        return paste_masks([(found.grid, found.mask)], grid, threshold=threshold) > 0

    called = Called(found.centre_ras_mm, found.confidence, mask_in=mask_in)
    if not found.body_complete:
        return called
    return replace(
        called,
        grade=int(np.argmax(found.grade_probabilities)),
        probabilities=found.grade_probabilities,
        heights_mm=found.heights_mm,
        height_loss=found.height_loss,
    )


def votes_and_heatmap(scan: TrueScan, spec: LocNetSpec, session: Session) -> tuple[Comparison, Comparison]:
    """LocNet-F and LocNet-H from the same outputs of the same network.

    F reads the peaks of the votes, as the bundle says; H those of the heatmap itself above 0.7 (thesis 3.2), with the
    same separation and refinement.
    """
    heatmap, offsets, grid = _first_network(scan.volume, spec, session)
    as_heatmap = replace(spec, variant="H", peak_threshold=HEATMAP_ETA)
    voted, peaks = (centres_of(heatmap, offsets, grid, s) for s in (spec, as_heatmap))
    return compare(scan, _called_centres(voted)), compare(scan, _called_centres(peaks))


def _called_centres(centres: Sequence[Centre]) -> list[Called]:
    return [Called(c.centre_ras_mm, c.confidence) for c in centres]


def _first_network(volume: Volume, spec: LocNetSpec, session: Session) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Heatmap (z, y, x), offsets (3, z, y, x) and their grid, as ``runtime.localise.locate`` gets them."""
    grid = working_grid(volume.grid, spec.spacing_mm)
    hu = resample(volume, grid)
    plan = plan_windows(grid.shape_zyx, spec.window_zyx, spec.overlap)
    keep = windows_reaching(hu, plan, spec.skip_below_hu)
    if not keep.any():
        return np.zeros(grid.shape_zyx, np.float32), np.zeros((3, *grid.shape_zyx), np.float32), grid
    heatmap, offsets = sliding_windows(normalise(hu, spec.intensity), plan, session, keep=keep)
    return heatmap, offsets, grid
