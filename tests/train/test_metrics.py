"""Metrics against hand-worked cases and definitions."""

import numpy as np
import pytest

from train.metrics import confusion_matrix, dice, f1_scores, match_centres


def test_a_true_centre_is_found_once_by_the_nearest() -> None:
    true = [[0, 0, 0], [0, 0, 20]]
    predicted = [[0, 0, 4], [0, 0, 1], [0, 0, 27], [0, 0, 100]]
    assert match_centres(predicted, true, limit_mm=10) == [(1, 0, 1.0), (2, 1, 7.0)]
    assert match_centres(predicted, true, limit_mm=5) == [(1, 0, 1.0)]
    assert match_centres([], true, limit_mm=5) == []
    assert match_centres(predicted, [], limit_mm=5) == []


def test_confusion_and_f1_by_hand() -> None:
    true, called = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0]
    assert confusion_matrix(true, called, classes=4).tolist() == [
        [2, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    f1 = f1_scores(true, called, classes=4)
    assert f1[:3].tolist() == pytest.approx([4 / 7, 0.5, 0.0])
    assert np.isnan(f1[3])


def test_dice() -> None:
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1
    assert np.isnan(dice(a & ~a, a & ~a))
