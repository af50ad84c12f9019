"""How close predictions are to the truth: centres, grades, probabilities, masks. Undefined figures are nan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.masks import filled_block

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def match_centres(predicted: npt.ArrayLike, true: npt.ArrayLike, *, limit_mm: float) -> list[tuple[int, int, float]]:
    """One-to-one pairs (predicted index, true index, distance mm) nearer than ``limit_mm``, nearest pairs first.

    Both are points (n, 3) in mm. A true centre is found at most once: a second prediction on it is a false one.
    """
    distance = distances_mm(predicted, true)
    pairs, used_a, used_b = [], set(), set()
    for flat in np.argsort(distance, axis=None, kind="stable"):
        i, j = (int(k) for k in np.unravel_index(flat, distance.shape))
        if distance[i, j] > limit_mm:
            break
        if i not in used_a and j not in used_b:
            pairs.append((i, j, float(distance[i, j])))
            used_a.add(i)
            used_b.add(j)
    return pairs


def distances_mm(a: npt.ArrayLike, b: npt.ArrayLike) -> Float64:
    """(n, m) distances between points (n, 3) and (m, 3); either may be empty."""
    first, second = np.asarray(a, float).reshape(-1, 3), np.asarray(b, float).reshape(-1, 3)
    found: Float64 = np.linalg.norm(first[:, None] - second[None], axis=-1)
    return found


def confusion_matrix(true: Sequence[int], predicted: Sequence[int], *, classes: int) -> Int64:
    """(classes, classes) counts: row the true class, column the predicted one."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (np.asarray(true, int), np.asarray(predicted, int)), 1)
    return matrix


def ranked_probability_score(true: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean over samples of the ranked probability score (Epstein 1969), 0 (sure and right) to 1; lower is better.

    ``true`` (n,) are ordered classes, ``probabilities`` (n, classes). Wrong by two classes costs more than by one.
    """
    table = np.asarray(probabilities, np.float64)
    reached = np.asarray(true)[:, None] <= np.arange(table.shape[1] - 1)
    return float(((np.cumsum(table, axis=1)[:, :-1] - reached) ** 2).mean())


def precisions(matrix: Int64) -> Float64:
    """Per class of a confusion matrix; nan where the class was never predicted."""
    return _ratio(np.diag(matrix), matrix.sum(axis=0))


def recalls(matrix: Int64) -> Float64:
    """Per class of a confusion matrix; nan where the class does not occur."""
    return _ratio(np.diag(matrix), matrix.sum(axis=1))


def f1_scores(true: Sequence[int], predicted: Sequence[int], *, classes: int) -> Float64:
    """F1 per class; nan where the class neither occurs nor is predicted."""
    return f1_of(confusion_matrix(true, predicted, classes=classes))


def f1_of(matrix: Int64) -> Float64:
    """F1 per class of a confusion matrix; nan where the class neither occurs nor is predicted."""
    return _ratio(2 * np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1))


def _ratio(part: npt.ArrayLike, whole: Int64) -> Float64:
    return np.where(whole > 0, np.asarray(part) / np.maximum(whole, 1), np.nan)


def quadratic_kappa(matrix: Int64) -> float:
    """Cohen's kappa with quadratic weights; nan where chance alone would agree always, or nothing was counted."""
    size, total = len(matrix), int(matrix.sum())
    weights = np.subtract.outer(np.arange(size), np.arange(size)) ** 2
    expected = np.outer(matrix.sum(axis=1), matrix.sum(axis=0)) / max(total, 1)
    chance = float((weights * expected).sum())
    return 1 - float((weights * matrix).sum()) / chance if chance > 0 else float("nan")


def auroc(positive: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties half; nan without one of the two."""
    wanted, values = np.asarray(positive, bool), np.asarray(scores, float)
    count = int(wanted.sum())
    if count in (0, len(wanted)):
        return float("nan")
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[place]
    return float((ranks[wanted].sum() - count * (count + 1) / 2) / (count * (len(wanted) - count)))


def roc_curve(positive: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Float64, Float64]:
    """False and true positive rates, from (0, 0) to (1, 1), one point for each distinct score."""
    wanted, values = np.asarray(positive, bool), np.asarray(scores, float)
    order = np.argsort(-values, kind="stable")
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1) if len(values) else np.zeros(0, int)
    hits = np.cumsum(wanted[order])[last]
    alarms = last + 1 - hits
    true_rate = np.append(0.0, hits / max(int(wanted.sum()), 1))
    return np.append(0.0, alarms / max(int((~wanted).sum()), 1)), true_rate


def auroc_interval(
    positive: npt.ArrayLike, scores: npt.ArrayLike, groups: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the AUROC; whole groups (patients) are drawn, since their members are alike.

    Draws without one of the two classes are left out; (nan, nan) when fewer than half of them remain.
    """
    wanted, values = np.asarray(positive, bool), np.asarray(scores, float)
    _, group = np.unique(np.asarray(groups, str), return_inverse=True)
    members = [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)] if len(group) else []
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws if members else 0):
        drawn = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        found.append(auroc(wanted[drawn], values[drawn]))
    known = [value for value in found if not np.isnan(value)]
    if len(known) < max(draws / 2, 1):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions whose probability lies in (low, high]: how many, their mean probability, how often they were right.

    The last two are None for an empty bin; the first bin holds 0 itself as well.
    """

    low: float
    high: float
    count: int
    mean_probability: float | None
    share_right: float | None


def reliability(probability: npt.ArrayLike, right: npt.ArrayLike, *, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Predictions sorted into ``bins`` equal ranges of their probability."""
    p, is_right = np.asarray(probability, float), np.asarray(right, bool)
    place = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for b in range(bins):
        members = place == b
        met = bool(members.any())
        found.append(
            ReliabilityBin(
                b / bins,
                (b + 1) / bins,
                int(members.sum()),
                float(p[members].mean()) if met else None,
                float(is_right[members].mean()) if met else None,
            )
        )
    return tuple(found)


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error: the bins' |share right - mean probability|, weighted by their counts (Guo 2017)."""
    total = sum(b.count for b in bins)
    gaps = [
        b.count * abs(b.share_right - b.mean_probability)
        for b in bins
        if b.share_right is not None and b.mean_probability is not None
    ]
    return sum(gaps) / total if total else float("nan")


def dice(predicted: Bool, true: Bool) -> float:
    """Dice of two masks of equal shape; nan when both are empty."""
    total = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / total if total else float("nan")


def boundary(mask: Bool) -> Bool:
    """The voxels of a mask that share a face with one outside it, or with the end of the array."""
    inner = np.pad(mask, 1)
    core = inner[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        for step in (slice(0, -2), slice(2, None)):
            window = [slice(1, -1)] * 3
            window[axis] = step
            core &= inner[tuple(window)]
    return mask & ~core


def average_hausdorff_mm(predicted: Bool, true: Bool, *, spacing_zyx_mm: Sequence[float]) -> float:
    """Mean distance between the boundaries of two masks (z, y, x), mm; nan when one of them is empty.

    (mean over x of min over y + mean over y of min over x) / 2 over boundary voxels (thesis 4.2). Only the smallest
    block that holds both masks is worked on.
    """
    if not predicted.any() or not true.any():
        return float("nan")
    block = filled_block(predicted | true)
    a, b = boundary(predicted[block]), boundary(true[block])
    return (_mean_distance_mm(a, b, spacing_zyx_mm) + _mean_distance_mm(b, a, spacing_zyx_mm)) / 2


def _mean_distance_mm(points: Bool, target: Bool, spacing_zyx_mm: Sequence[float]) -> float:
    """Mean distance of the voxels ``points`` to the nearest voxel of ``target``."""
    import SimpleITK as sitk  # noqa: N813  the name all of its users know

    image = sitk.GetImageFromArray(np.pad(target, 1).astype(np.uint8))
    image.SetSpacing([float(s) for s in reversed(list(spacing_zyx_mm))])
    distance = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    return float(np.maximum(sitk.GetArrayViewFromImage(distance)[np.pad(points, 1)], 0).mean(dtype=np.float64))
