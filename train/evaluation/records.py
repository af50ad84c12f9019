"""What is kept of every evaluated scan: enough for all figures, small enough for one JSON file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class MaskAgreement:
    """A predicted mask against the true one.

    Args:
        accuracy: share of equal voxels in the block of 128 mm around the true centre (where the scan reaches).
        precision: None where nothing was predicted.
        recall: None where the true mask is empty.
        dice: None where both masks are empty.
        hausdorff_mm: average Hausdorff distance; None where one mask is empty.
    """

    accuracy: float
    precision: float | None
    recall: float | None
    dice: float | None
    hausdorff_mm: float | None


@dataclass(frozen=True)
class Opinion:
    """What one witness alone says of a vertebra: the network, or the measurement on its mask.

    Args:
        grade: Genant 0..3, or None.
        probabilities: of grades 0..3, or None. A measurement has none: it ranks by its height loss, which stands in
            them as (1 - loss, 0, 0, loss).
        heights_mm: anterior, middle, posterior, or None.
        height_loss: 0..1 or None.
    """

    grade: int | None
    probabilities: tuple[float, ...] | None
    heights_mm: tuple[float, ...] | None
    height_loss: float | None


@dataclass(frozen=True)
class VertebraRecord:
    """A true vertebra and what was made of it; everything from ``error_mm`` on is None when it was missed.

    Args:
        level: its true level.
        grade: its true grade, None where that isn't known.
        detected: VerSe: some predicted centre less than 20 mm away has this one as its nearest true centre.
        identified: VerSe: such a centre carries the right level.
        error_mm: distance of the centre that was matched to it (one to one, within 10 mm).
        found_level: the level it was given.
        found_grade: the grade it was given.
        probabilities: of grades 0..3.
        height_errors_mm: anterior, middle, posterior: found minus true.
        height_loss_error: found minus true, as a fraction.
        mask: None where the truth has no mask.
        heights_mm: its true heights, None where they aren't known.
        network: what the network alone said, None where it was missed or nothing can be said.
        measured: what was measured on its mask alone, likewise.
    """

    level: str
    grade: int | None
    detected: bool = False
    identified: bool = False
    error_mm: float | None = None
    found_level: str | None = None
    found_grade: int | None = None
    probabilities: tuple[float, ...] | None = None
    height_errors_mm: tuple[float, ...] | None = None
    height_loss_error: float | None = None
    mask: MaskAgreement | None = None
    heights_mm: tuple[float, ...] | None = None
    network: Opinion | None = None
    measured: Opinion | None = None

    @property
    def found(self) -> bool:
        """Whether a centre lies within 10 mm."""
        return self.error_mm is not None

    @property
    def region(self) -> str:
        """``"C"``, ``"T"`` or ``"L"``."""
        return self.level[0]

    @property
    def dice(self) -> float | None:
        """Of the mask, where there is one."""
        return None if self.mask is None else self.mask.dice


@dataclass(frozen=True)
class CentreRecord:
    """A predicted centre.

    Args:
        confidence: 0..1.
        matched: whether it belongs to a true vertebra (one to one, within 10 mm).
        nearest_mm: distance to the nearest true centre, matched or not (the thesis's error); None without any.
        nearest_level: of that true vertebra.
        grade: the grade it was given, if any.
        probabilities: of grades 0..3, None where no grade was given.
        cut_level: level of the vertebra it lies in, where the scan shows that one in part and its centre not at all:
            such a centre is neither found nor false.
        network: what the network alone said.
        measured: what was measured alone.
    """

    confidence: float
    matched: bool
    nearest_mm: float | None
    nearest_level: str | None
    grade: int | None
    probabilities: tuple[float, ...] | None
    cut_level: str | None = None
    network: Opinion | None = None
    measured: Opinion | None = None

    @property
    def is_false(self) -> bool:
        """Whether it lies in no vertebra, or is a second one of a vertebra."""
        return not self.matched and self.cut_level is None


@dataclass(frozen=True)
class Comparison:
    """One way of finding vertebrae against the truth of one scan: every true vertebra, every predicted centre."""

    vertebrae: tuple[VertebraRecord, ...]
    centres: tuple[CentreRecord, ...]

    @property
    def false_positives(self) -> int:
        """Predicted centres that belong to no true vertebra, not even to one that the scan cuts."""
        return sum(centre.is_false for centre in self.centres)


def as_by(comparison: Comparison, witness: Callable[[VertebraRecord | CentreRecord], Opinion | None]) -> Comparison:
    """The comparison with the grades and heights of one witness alone in place of what was reported."""
    return Comparison(
        tuple(_vertebra_by(v, witness(v)) for v in comparison.vertebrae),
        tuple(_centre_by(c, witness(c)) for c in comparison.centres),
    )


def _vertebra_by(vertebra: VertebraRecord, said: Opinion | None) -> VertebraRecord:
    bare = replace(vertebra, found_grade=None, probabilities=None, height_errors_mm=None, height_loss_error=None)
    if said is None:
        return bare
    errors = None
    if said.heights_mm is not None and vertebra.heights_mm is not None:
        errors = tuple(found - true for found, true in zip(said.heights_mm, vertebra.heights_mm, strict=True))
    return replace(bare, found_grade=said.grade, probabilities=said.probabilities, height_errors_mm=errors)


def _centre_by(centre: CentreRecord, said: Opinion | None) -> CentreRecord:
    if said is None:
        return replace(centre, grade=None, probabilities=None)
    return replace(centre, grade=said.grade, probabilities=said.probabilities)


@dataclass(frozen=True)
class ScanRecord:
    """One evaluated scan.

    Args:
        name: of the scan.
        patient: whom it shows; scans of one patient are resampled together.
        shows_junction: whether its truth shows where counting can start: C2, a thoracic with a lumbar vertebra, or
            L5 (L6) with the sacrum below.
        seconds: the pipeline's.
        code_version: of the software that made this record.
        whole: the whole pipeline, centres as found.
        alone: the second network on the true centres, where it was asked for.
        voted: LocNet-F, centres of the vote map, before any mask refines them, where it was asked for.
        heatmap: LocNet-H, peaks of the same network's heatmap, where it was asked for.
        voxel_mm: the scan's largest voxel side.
        has_mask: whether its truth has a mask, also where nothing was found to hold against it.
    """

    name: str
    patient: str
    shows_junction: bool
    seconds: float
    code_version: str
    whole: Comparison
    alone: Comparison | None = None
    voted: Comparison | None = None
    heatmap: Comparison | None = None
    voxel_mm: float = 0.0
    has_mask: bool = False

    @property
    def vertebrae(self) -> tuple[VertebraRecord, ...]:
        """The true vertebrae and what the whole pipeline made of them."""
        return self.whole.vertebrae

    @property
    def false_positives(self) -> int:
        """Of the whole pipeline."""
        return self.whole.false_positives
