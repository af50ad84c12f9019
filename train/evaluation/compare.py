"""One scan's predictions against its truth: who belongs to whom, and how far they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime.volume import Grid
from train.evaluation.plain import number
from train.evaluation.records import CentreRecord, Comparison, MaskAgreement, Opinion, VertebraRecord
from train.evaluation.truth import TrueScan, TrueVertebra
from train.metrics import average_hausdorff_mm, dice, distances_mm, match_centres
from train.verse import LEVELS

MATCH_MM = 10.0
"""A true centre is found when a predicted one lies this near, each counted once."""
VERSE_MM = 20.0
"""VerSe's limit for identification and detection (Sekuboyina et al. 2021, section 3.3)."""
CUT_MM = 10.0
"""A centre is in the vertebra that most of the labelled voxels in a block of this size around it belong to."""
BLOCK_MM = 128.0
"""Masks are compared in a block of this size around the true centre: no vertebra is larger."""

Point = tuple[float, float, float]
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Called:
    """What was said of one vertebra, by the pipeline or by one of its networks.

    Args:
        centre_ras_mm: RAS+ mm.
        confidence: 0..1.
        level: or None.
        grade: Genant 0..3 or None.
        probabilities: of grades 0..3, or None.
        heights_mm: anterior, middle, posterior, or None.
        height_loss: 0..1 or None.
        mask_in: its mask (bool) in a block of the scan: given the block's slices and grid; None where there is none.
        network: what the network alone said, where more than it had a say.
        measured: what was measured alone.
    """

    centre_ras_mm: Point
    confidence: float
    level: str | None = None
    grade: int | None = None
    probabilities: tuple[float, ...] | None = None
    heights_mm: Point | None = None
    height_loss: float | None = None
    mask_in: Callable[[Slices, Grid], np.ndarray] | None = None
    network: Opinion | None = None
    measured: Opinion | None = None


def compare(scan: TrueScan, called: Sequence[Called]) -> Comparison:
    """Predictions anywhere in a scan against its truth: centres one to one within 10 mm, then what belongs to them."""
    predicted, true = [c.centre_ras_mm for c in called], [v.centre_ras_mm for v in scan.vertebrae]
    pairs = match_centres(predicted, true, limit_mm=MATCH_MM)
    partner = {j: (called[i], distance) for i, j, distance in pairs}
    matched = {i for i, _, _ in pairs}
    distance = distances_mm(predicted, true)
    near = [_nearest(row, scan) for row in distance]
    vertebrae = []
    for j, vertebra in enumerate(scan.vertebrae):
        close = [c for c, (k, d) in zip(called, near, strict=True) if k == j and d < VERSE_MM]
        record = _vertebra(scan, vertebra, *partner.get(j, (None, 0.0)))
        identified = any(c.level == vertebra.level for c in close)
        vertebrae.append(replace(record, detected=bool(close), identified=identified))
    centres = tuple(
        CentreRecord(
            c.confidence,
            i in matched,
            number(near[i][1]),
            _level_at(scan, near[i][0]),
            c.grade,
            c.probabilities,
            None if i in matched else _cut_level(scan, c.centre_ras_mm),
            c.network,
            c.measured,
        )
        for i, c in enumerate(called)
    )
    return Comparison(tuple(vertebrae), centres)


def compare_one_by_one(scan: TrueScan, called: Sequence[Called]) -> Comparison:
    """As ``compare`` where ``called[j]`` is of vertebra ``j``, having been looked for at its true centre."""
    vertebrae = []
    for vertebra, one in zip(scan.vertebrae, called, strict=True):
        distance = float(np.linalg.norm(np.subtract(one.centre_ras_mm, vertebra.centre_ras_mm)))
        vertebrae.append(_vertebra(scan, vertebra, one, distance))
    return Comparison(tuple(vertebrae), ())


def _nearest(distances: np.ndarray, scan: TrueScan) -> tuple[int, float]:
    """Index of the nearest true vertebra and its distance; -1 and nan where the scan shows none."""
    if not len(scan.vertebrae):
        return -1, float("nan")
    return int(distances.argmin()), float(distances.min())


def _cut_level(scan: TrueScan, point_ras_mm: Point) -> str | None:
    """Level of the vertebra around a point, if its own centre is not in the scan; None otherwise, or without a mask."""
    if scan.mask is None:
        return None
    labels = scan.mask[block_around(scan.volume.grid, np.asarray(point_ras_mm), size_mm=CUT_MM)]
    counts = np.bincount(labels[labels > 0])
    label = int(counts.argmax()) if len(counts) else 0
    with_centre = {v.label for v in scan.vertebrae}
    return LEVELS[label] if label in LEVELS and label not in with_centre else None


def _level_at(scan: TrueScan, index: int) -> str | None:
    return scan.vertebrae[index].level if index >= 0 else None


def _vertebra(scan: TrueScan, true: TrueVertebra, called: Called | None, distance_mm: float) -> VertebraRecord:
    """What was made of one vertebra; ``called`` is None when it was missed."""
    if called is None:
        return VertebraRecord(true.level, true.grade, heights_mm=true.heights_mm)
    loss = None
    if called.height_loss is not None and true.height_loss is not None:
        loss = called.height_loss - true.height_loss
    errors = None
    if called.heights_mm is not None and true.heights_mm is not None:
        errors = tuple(float(e) for e in np.subtract(called.heights_mm, true.heights_mm))
    return VertebraRecord(
        true.level,
        true.grade,
        error_mm=distance_mm,
        found_level=called.level,
        found_grade=called.grade,
        probabilities=called.probabilities,
        height_errors_mm=errors,
        height_loss_error=loss,
        mask=_mask(scan, true, called),
        heights_mm=true.heights_mm,
        network=called.network,
        measured=called.measured,
    )


def _mask(scan: TrueScan, true: TrueVertebra, called: Called) -> MaskAgreement | None:
    if scan.mask is None or called.mask_in is None:
        return None
    grid = scan.volume.grid
    block = block_around(grid, true.centre_ras_mm, size_mm=BLOCK_MM)
    part = grid.sub_grid([s.start for s in block], [s.stop - s.start for s in block])
    return mask_agreement(called.mask_in(block, part), scan.mask[block] == true.label, part)


def mask_agreement(predicted: np.ndarray, true: np.ndarray, grid: Grid) -> MaskAgreement:
    """Two masks, bool (z, y, x) on ``grid``, compared; see MaskAgreement."""
    shared, called, real = int((predicted & true).sum()), int(predicted.sum()), int(true.sum())
    spacing_zyx_mm = grid.spacing_xyz_mm[::-1]
    return MaskAgreement(
        accuracy=1 - (called + real - 2 * shared) / predicted.size,
        precision=shared / called if called else None,
        recall=shared / real if real else None,
        dice=number(dice(predicted, true)),
        hausdorff_mm=number(average_hausdorff_mm(predicted, true, spacing_zyx_mm=spacing_zyx_mm)),
    )


def block_around(grid: Grid, point_ras_mm: np.ndarray, *, size_mm: float) -> Slices:
    """The voxels within ``size_mm / 2`` of a point along each of the grid's axes; the point's own at the least."""
    middle = np.clip(grid.to_index_zyx(point_ras_mm), 0, np.array(grid.shape_zyx) - 1)
    reach = size_mm / 2 / np.array(grid.spacing_xyz_mm[::-1])
    low = np.maximum(np.floor(middle - reach), 0).astype(int)
    high = np.minimum(np.ceil(middle + reach) + 1, grid.shape_zyx).astype(int)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x
