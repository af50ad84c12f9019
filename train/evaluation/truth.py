"""Scans with what is known of them: held-out phantoms, and data sets in VerSe's layout."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from runtime.bundle_json import to_json
from runtime.errors import InputError
from runtime.readers import read_scan
from runtime.volume import Grid, Volume
from train.label_maps import read_labels, sample_nearest
from train.phantom import PhantomConfig, make_scan
from train.scan_grades import match_grades
from train.verse import LEVELS, Case, find_cases, find_grades, of_split, read_centroids, read_heights

HELD_OUT_SEED = 2**31
"""Training draws its phantoms' seeds below this; evaluation from here on."""
SACRUM_BELOW_MM = 35.0
"""A scan that goes on this far below the centre of L5 shows 20 mm of what lies under it: the sacrum."""
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class TrueVertebra:
    """What is known of one vertebra; ``grade``, ``heights_mm`` (3,) and ``height_loss`` are None where they aren't."""

    label: int
    centre_ras_mm: np.ndarray
    grade: int | None
    heights_mm: tuple[float, float, float] | None
    height_loss: float | None = None

    @property
    def level(self) -> str:
        """``"C1"``..``"L6"``."""
        return LEVELS[self.label]


@dataclass(frozen=True, eq=False)
class TrueScan:
    """A scan with its truth; ``mask`` (z, y, x) uint8 with VerSe labels, or None; ``patient`` whom it shows."""

    volume: Volume
    vertebrae: tuple[TrueVertebra, ...]
    mask: np.ndarray | None
    patient: str = ""

    @property
    def shows_junction(self) -> bool:
        """Whether counting can start somewhere: at C2, between a thoracic and a lumbar vertebra, or at the sacrum."""
        levels = [v.level for v in self.vertebrae]
        if "C2" in levels or {"T", "L"} <= {level[0] for level in levels}:
            return True
        return any(
            v.level in ("L5", "L6") and mm_below(self.volume.grid, v.centre_ras_mm) >= SACRUM_BELOW_MM
            for v in self.vertebrae
        )


def mm_below(grid: Grid, point_ras_mm: np.ndarray) -> float:
    """How far straight down from a point the scan goes on, mm; negative for a point outside."""
    here = grid.to_index_zyx(point_ras_mm)
    step = grid.to_index_zyx(np.asarray(point_ras_mm) - [0.0, 0.0, 1.0]) - here
    last = np.array(grid.shape_zyx) - 1
    room = np.where(step > 0, last - here, here)
    return float(min(r / abs(s) for r, s in zip(room, step, strict=True) if abs(s) > 1e-9))


@dataclass(frozen=True, eq=False)
class ScanItem:
    """A scan yet to be made or read: its name, a text that changes when it does, how to get it, and its split.

    ``split`` is as ``train.verse`` defines it, and empty for a phantom.
    """

    name: str
    fingerprint: str
    load: Callable[[], TrueScan]
    split: str = ""


def phantom_items(count: int, *, first_seed: int = HELD_OUT_SEED) -> list[ScanItem]:
    """Phantoms that no training run draws, all variations on."""
    return [_phantom_item(seed) for seed in range(first_seed, first_seed + count)]


def _phantom_item(seed: int) -> ScanItem:
    return ScanItem(f"phantom-{seed}", f"{seed} {to_json(PhantomConfig())}", lambda: _phantom(seed))


def _phantom(seed: int) -> TrueScan:
    scan = make_scan(seed)
    vertebrae = tuple(
        TrueVertebra(v.label, np.asarray(v.centre_ras_mm), v.grade, v.heights_mm, v.height_loss) for v in scan.vertebrae
    )
    return TrueScan(scan.volume, vertebrae, scan.mask, scan.volume.name)


def verse_items(root: Path, grades: Path | None, *, split: str | None = None) -> list[ScanItem]:
    """The scans under ``root`` (of one split) that have a centroid file; ``without_centres`` names the others.

    Args:
        root: a folder in VerSe's layout.
        grades: csv or json of Genant grades; None for those found beside the data.
        split: as ``train.verse`` defines them; None for every scan.

    Raises:
        InputError: there is no scan, none of them has centroids, or the grades belong to none of them.
    """
    every_case = find_cases(root)
    cases = of_split(every_case, split, root)
    known = find_grades(root, grades)
    matched = match_grades(every_case, known)
    if known and not any(case.name in matched for case in cases):
        raise InputError(
            f"The grades are of {', '.join(list(known)[:3])}, ..., none of which is a scan in {root}, where there are "
            f"{', '.join(case.name for case in cases[:3])}, ...; name the file of their grades with --grades."
        )
    located = [case for case in cases if case.centroids is not None]
    if not located:
        raise InputError(
            f"None of the {len(cases)} scans in {root} has a centroid file (derivatives/sub-*/*_seg-subreg_ctd.json), "
            "so nothing says where their vertebrae are."
        )
    return [_verse_item(case, matched.get(case.name, {})) for case in located]


def without_centres(root: Path, *, split: str | None = None) -> list[str]:
    """The names of the scans that ``verse_items`` leaves out: nothing says where their vertebrae are."""
    return [case.name for case in find_cases(root, split=split) if case.centroids is None]


def _verse_item(case: Case, grades: Mapping[int, int]) -> ScanItem:
    files = [path for path in (case.ct, case.mask, case.centroids, case.heights) if path is not None]
    stamps = " ".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
    return ScanItem(case.name, f"{stamps} {sorted(grades.items())}", lambda: _verse_scan(case, grades), case.split)


def _verse_scan(case: Case, grades: Mapping[int, int]) -> TrueScan:
    assert case.centroids is not None
    volume = read_scan(case.ct)
    heights = read_heights(case.heights) if case.heights else {}
    vertebrae = []
    for label, centre in read_centroids(case.centroids, volume.grid).items():
        vertebra = TrueVertebra(label, centre, grades.get(label), None)
        if (known := heights.get(label)) is not None:
            vertebra = replace(vertebra, heights_mm=known.heights_mm, height_loss=known.height_loss)
        vertebrae.append(vertebra)
    mask = sample_nearest(*read_labels(case.mask), volume.grid) if case.mask else None
    return TrueScan(volume, tuple(vertebrae), mask, case.subject)


def fingerprint_digest(*texts: str) -> str:
    """Twelve hex digits that stand for the texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """``make`` of each item in turn, the next one being made in a thread while the last one is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
