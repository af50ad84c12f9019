"""What is kept of every evaluated scan: enough for all figures, small enough for one JSON file each."""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    confidence: float
    matched: bool
    nearest_mm: float | None
    nearest_level: str | None
    grade: int | None
    probabilities: tuple[float, ...] | None
    cut_level: str | None = None

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

    @property
    def vertebrae(self) -> tuple[VertebraRecord, ...]:
        """The true vertebrae and what the whole pipeline made of them."""
        return self.whole.vertebrae

    @property
    def false_positives(self) -> int:
        """Of the whole pipeline."""
        return self.whole.false_positives
