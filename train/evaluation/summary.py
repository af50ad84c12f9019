"""All figures over all scans, and where they come from."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from train.evaluation.grades import GradeSummary, summarise_grades
from train.evaluation.localisation import LevelSummary, LocalisationSummary, summarise_levels, summarise_localisation
from train.evaluation.measures import (
    CalibrationSummary,
    HeightSummary,
    MaskSummary,
    summarise_calibration,
    summarise_heights,
    summarise_masks,
)
from train.evaluation.records import Comparison, ScanRecord, as_by
from train.evaluation.strata import Stratum, by_voxel


@dataclass(frozen=True)
class Provenance:
    """What was evaluated, on what, and how to do it again.

    Args:
        command: the command line.
        date: of the summary, ISO 8601, UTC.
        code_versions: of the software that evaluated the scans; more than one where it changed in between.
        bundle: name and version.
        bundle_sha256: of its ``bundle.json``.
        network_sha256: of its other files.
        engine: name and precision.
        data: ``"phantoms"``, or the name of the data set's folder.
        first_seed: of the phantoms; the others follow on. None for a data set.
        phantoms: their configuration; empty for a data set.
        splits: how many scans of the data set are in each split; empty for phantoms.
        without_centres: names of its scans that were left out, since no centroid file says where their vertebrae are.
    """

    command: str
    date: str
    code_versions: tuple[str, ...]
    bundle: str
    bundle_sha256: str
    network_sha256: Mapping[str, str]
    engine: str
    data: str
    first_seed: int | None
    phantoms: Mapping[str, Any]
    splits: Mapping[str, int] = field(default_factory=dict)
    without_centres: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkAlone:
    """The second network on the true centres."""

    grades: GradeSummary
    masks: MaskSummary
    heights: HeightSummary
    calibration: CalibrationSummary


@dataclass(frozen=True)
class Witness:
    """Grades and heights of one witness alone, on the same vertebrae as the whole pipeline's."""

    grades: GradeSummary
    heights: HeightSummary


@dataclass(frozen=True)
class Summary:
    """The figures. ``alone``, ``locnet_f`` and ``locnet_h`` are None where they weren't asked for.

    ``localisation`` and what follows are the whole pipeline's; ``locnet_f`` and ``locnet_h`` are bare centres of the
    first network, before any mask refines them. ``network_alone`` and ``measured_alone`` are what the network and what
    the measurement would have reported by themselves. ``by_voxel`` has the pipeline's by how coarse the scans are.
    """

    scans: int
    patients: int
    localisation: LocalisationSummary
    levels: LevelSummary
    grades: GradeSummary
    masks: MaskSummary
    heights: HeightSummary
    calibration: CalibrationSummary
    network_alone: Witness
    measured_alone: Witness
    alone: NetworkAlone | None
    locnet_f: LocalisationSummary | None
    locnet_h: LocalisationSummary | None
    by_voxel: tuple[Stratum, ...]
    median_seconds_per_scan: float
    notes: tuple[str, ...]
    provenance: Provenance | None


def summarise(records: Sequence[ScanRecord], *, provenance: Provenance | None = None) -> Summary:
    """Figures over all scans; nan where nothing could be measured."""
    whole = [r.whole for r in records]
    voted, heatmap = _all_of(records, lambda r: r.voted), _all_of(records, lambda r: r.heatmap)
    alone = _all_of(records, lambda r: r.alone)
    return Summary(
        len(records),
        len({r.patient for r in records}),
        summarise_localisation(whole),
        summarise_levels(records),
        summarise_grades(records, whole),
        summarise_masks(records, whole),
        summarise_heights(whole),
        summarise_calibration(records, whole),
        _witness(records, [as_by(c, lambda one: one.network) for c in whole]),
        _witness(records, [as_by(c, lambda one: one.measured) for c in whole]),
        None if alone is None else _alone(records, alone),
        None if voted is None else summarise_localisation(voted),
        None if heatmap is None else summarise_localisation(heatmap),
        by_voxel(records),
        float(np.median([r.seconds for r in records])) if records else float("nan"),
        (*(() if provenance is None else data_notes(provenance)), *notes(records)),
        provenance,
    )


def _all_of(records: Sequence[ScanRecord], of: Callable[[ScanRecord], Comparison | None]) -> list[Comparison] | None:
    """One comparison of each record, or None unless all have it."""
    found = [comparison for record in records if (comparison := of(record)) is not None]
    return found if found and len(found) == len(records) else None


def _witness(records: Sequence[ScanRecord], comparisons: Sequence[Comparison]) -> Witness:
    return Witness(summarise_grades(records, comparisons), summarise_heights(comparisons))


def _alone(records: Sequence[ScanRecord], alone: Sequence[Comparison]) -> NetworkAlone:
    return NetworkAlone(
        summarise_grades(records, alone),
        summarise_masks(records, alone),
        summarise_heights(alone),
        summarise_calibration(records, alone),
    )


def data_notes(provenance: Provenance) -> tuple[str, ...]:
    """What is to be known of the choice of scans: those that are trained on, and those that were left out."""
    return (*training_note(provenance.splits), *left_out_note(provenance.without_centres))


def left_out_note(names: Sequence[str]) -> tuple[str, ...]:
    """A warning of scans that can't be evaluated, or nothing."""
    if not names:
        return ()
    return (f"{len(names)} scans without a centroid file were left out, e.g. {names[0]}: nothing says what they show.",)


def training_note(splits: Mapping[str, int]) -> tuple[str, ...]:
    """A warning where scans that networks train on are among the evaluated ones, or nothing."""
    training = splits.get("training", 0)
    if not training:
        return ()
    return (
        f"{training} of {sum(splits.values())} scans are of the training split. Of a network that was trained on them "
        "the figures say nothing about other patients; --split validation or --split test leaves them out.",
    )


def notes(records: Sequence[ScanRecord]) -> tuple[str, ...]:
    """What limits the figures: scans without masks, grades or heights, mixed versions of the software."""
    said = []
    for what, missing in (
        ("no mask for their found vertebrae", [r for r in records if _lacks(r, lambda v: v.mask)]),
        ("no true grades", [r for r in records if all(v.grade is None for v in r.vertebrae)]),
        ("no true heights", [r for r in records if _lacks(r, lambda v: v.height_errors_mm)]),
    ):
        if missing:
            said.append(f"{len(missing)} of {len(records)} scans have {what}, e.g. {missing[0].name}.")
    versions = sorted({r.code_version for r in records})
    if len(versions) > 1:
        said.append(f"The scans were evaluated by several versions of the software: {', '.join(versions)}.")
    return tuple(said)


def _lacks(record: ScanRecord, known: Callable[[Any], object]) -> bool:
    """Whether vertebrae were found and of none of them this is known."""
    found = [v for v in record.vertebrae if v.found]
    return bool(found) and all(known(v) is None for v in found)


def code_version() -> str:
    """The commit of this checkout (``+`` where tracked files differ from it), or the installed version."""
    folder = Path(__file__).resolve().parents[2]
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "runtime", "train")
    except (OSError, subprocess.CalledProcessError):
        return metadata.version("vertscan")
    return commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
