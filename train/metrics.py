"""How close predictions are to the truth: centres, grades, masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def match_centres(predicted: npt.ArrayLike, true: npt.ArrayLike, *, limit_mm: float) -> list[tuple[int, int, float]]:
    """One-to-one pairs (predicted index, true index, distance mm) nearer than ``limit_mm``, nearest pairs first.

    Both are points (n, 3) in mm. A true centre is found at most once: a second prediction on it is a false one.
    """
    a, b = np.asarray(predicted, float).reshape(-1, 3), np.asarray(true, float).reshape(-1, 3)
    if not len(a) or not len(b):
        return []
    distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
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


def confusion_matrix(true: Sequence[int], predicted: Sequence[int], *, classes: int) -> npt.NDArray[np.int64]:
    """(classes, classes) counts: row the true class, column the predicted one."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (np.asarray(true, int), np.asarray(predicted, int)), 1)
    return matrix


def f1_scores(true: Sequence[int], predicted: Sequence[int], *, classes: int) -> npt.NDArray[np.float64]:
    """F1 per class; nan where the class neither occurs nor is predicted."""
    matrix = confusion_matrix(true, predicted, classes=classes)
    support, called, hits = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
    total = support + called
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), np.nan)


def dice(predicted: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> float:
    """Dice of two masks of equal shape; nan when both are empty."""
    total = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / total if total else float("nan")
