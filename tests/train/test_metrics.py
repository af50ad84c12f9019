"""Metrics against hand-worked cases, scikit-learn, scipy and surface-distance."""

import numpy as np
import pytest
import sklearn.metrics as sklearn_metrics
import surface_distance
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from train.metrics import (
    auroc,
    auroc_interval,
    average_hausdorff_mm,
    boundary,
    calibration_error,
    confusion_matrix,
    dice,
    f1_of,
    f1_scores,
    match_centres,
    precisions,
    quadratic_kappa,
    ranked_probability_score,
    recalls,
    reliability,
    roc_curve,
)


def test_a_true_centre_is_found_once_by_the_nearest() -> None:
    true = [[0, 0, 0], [0, 0, 20]]
    predicted = [[0, 0, 4], [0, 0, 1], [0, 0, 27], [0, 0, 100]]
    assert match_centres(predicted, true, limit_mm=10) == [(1, 0, 1.0), (2, 1, 7.0)]
    assert match_centres(predicted, true, limit_mm=5) == [(1, 0, 1.0)]
    assert match_centres([], true, limit_mm=5) == []
    assert match_centres(predicted, [], limit_mm=5) == []


def test_confusion_and_f1_by_hand() -> None:
    true, called = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0]
    matrix = confusion_matrix(true, called, classes=4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    f1 = f1_scores(true, called, classes=4)
    assert f1[:3].tolist() == pytest.approx([4 / 7, 0.5, 0.0])
    assert np.isnan(f1[3])
    assert precisions(matrix)[:2].tolist() == pytest.approx([0.5, 0.5])
    assert np.isnan(precisions(matrix)[2:]).all(), "never called"
    assert recalls(matrix)[:3].tolist() == pytest.approx([2 / 3, 0.5, 0.0])
    assert np.isnan(recalls(matrix)[3]), "never met"


@pytest.mark.parametrize("seed", range(5))
def test_grades_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.integers(4, size=200)
    called = np.clip(true + rng.integers(-1, 2, 200), 0, 3)
    matrix = confusion_matrix(true, called, classes=4)
    labels = [0, 1, 2, 3]
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(true, called, labels=labels)
    np.testing.assert_array_equal(matrix, sklearn_metrics.confusion_matrix(true, called, labels=labels))
    np.testing.assert_allclose(precisions(matrix), precision)
    np.testing.assert_allclose(recalls(matrix), recall)
    np.testing.assert_allclose(f1_of(matrix), f1)
    np.testing.assert_array_equal(matrix.sum(axis=1), support)
    kappa = sklearn_metrics.cohen_kappa_score(true, called, weights="quadratic")
    assert quadratic_kappa(matrix) == pytest.approx(kappa)


def test_kappa_is_undefined_without_variety() -> None:
    assert np.isnan(quadratic_kappa(confusion_matrix([0, 0], [0, 0], classes=4)))
    assert np.isnan(quadratic_kappa(np.zeros((4, 4), np.int64)))
    assert quadratic_kappa(np.eye(4, dtype=np.int64)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_auroc_and_curve_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.random(150) < 0.3
    scores = np.round(np.clip(0.3 * positive + rng.random(150) * 0.7, 0, 1), 1 + seed % 3)  # with ties
    assert auroc(positive, scores) == pytest.approx(sklearn_metrics.roc_auc_score(positive, scores))
    false_rate, true_rate = roc_curve(positive, scores)
    expected = sklearn_metrics.roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(false_rate, expected[0])
    np.testing.assert_allclose(true_rate, expected[1])


def test_auroc_of_one_class_is_undefined() -> None:
    assert np.isnan(auroc([True, True], [0.1, 0.9]))
    assert np.isnan(auroc([], []))
    assert np.isnan(auroc_interval([], [], [])).all()
    assert np.isnan(auroc_interval([True] * 4, [0.1] * 4, ["a"] * 4)).all()


def test_the_interval_holds_the_estimate_and_widens_with_fewer_patients() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(400) < 0.3
    scores = positive * 0.2 + rng.normal(0, 0.2, 400)
    low, high = auroc_interval(positive, scores, [str(i) for i in range(400)])
    assert low < auroc(positive, scores) < high
    assert (low, high) == auroc_interval(positive, scores, [str(i) for i in range(400)]), "the same every time"
    # Copies of a patient say nothing new: the interval is that of the patients, not of their copies.
    copies = [np.concatenate([a, a, a, a]) for a in (positive[:100], scores[:100])]
    names = [str(i % 100) for i in range(400)]
    few = auroc_interval(*copies, names)
    assert few == pytest.approx(auroc_interval(positive[:100], scores[:100], names[:100]), abs=1e-9)
    assert few[1] - few[0] > 1.5 * (high - low)


def test_calibration_by_hand() -> None:
    bins = reliability([0.95, 0.95, 0.55, 0.6, 0.0, 1.0], [1, 0, 1, 1, 0, 1], bins=10)
    assert [b.count for b in bins] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert bins[5].mean_probability == pytest.approx(0.575)
    assert bins[5].share_right == 1
    assert bins[1].share_right is None
    # 2 of 6 are off by 1 - 0.575, 3 of 6 by |2/3 - 2.9/3|, 1 of 6 by nothing
    assert calibration_error(bins) == pytest.approx(2 / 6 * 0.425 + 3 / 6 * 0.3)
    assert np.isnan(calibration_error(reliability([], [])))


def test_dice() -> None:
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1
    assert np.isnan(dice(a & ~a, a & ~a))


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two ragged masks that overlap in part, one of them cut by the array's edge."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices((14, 18, 16))
    a = (z - 5) ** 2 + (y - 8) ** 2 + (x - 8) ** 2 < 22 + rng.integers(-9, 9, z.shape)
    b = (z - 8) ** 2 + (y - 10) ** 2 + (x - 13) ** 2 < 30 + rng.integers(-9, 9, z.shape)
    return a, b


@pytest.mark.parametrize("seed", range(3))
def test_boundaries_and_average_hausdorff_agree_with_scipy(seed: int) -> None:
    spacing = (3.0, 0.7, 1.1)
    a, b = blobs(seed)
    edges = []
    for mask in (a, b):
        expected = mask & ~binary_erosion(mask, border_value=0)
        np.testing.assert_array_equal(boundary(mask), expected)
        edges.append(np.argwhere(expected) * spacing)
    distance = cdist(*edges)
    expected = (distance.min(axis=1).mean() + distance.min(axis=0).mean()) / 2
    assert average_hausdorff_mm(a, b, spacing_zyx_mm=spacing) == pytest.approx(expected, abs=1e-4)
    assert average_hausdorff_mm(a, a, spacing_zyx_mm=spacing) == 0
    assert np.isnan(average_hausdorff_mm(a, a & ~a, spacing_zyx_mm=spacing))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of scipy's old names, in that package
def test_average_hausdorff_agrees_with_surface_distance() -> None:
    """Another definition (surfaces weighted by area, no voxels), so only to a part of a voxel."""
    z, y, x = np.indices((40, 40, 40))
    a = (z - 18) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 < 14**2
    b = (z - 22) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 < 12**2
    distances = surface_distance.compute_surface_distances(b, a, (1.0, 1.0, 1.0))
    expected = np.mean(surface_distance.compute_average_surface_distance(distances))
    assert average_hausdorff_mm(a, b, spacing_zyx_mm=(1, 1, 1)) == pytest.approx(expected, abs=0.5)
    assert dice(a, b) == pytest.approx(surface_distance.compute_dice_coefficient(a, b))


def test_the_ranked_probability_score_grows_with_how_far_off_a_sure_answer_is() -> None:
    sure = np.eye(4)
    scores = [[ranked_probability_score([true], sure[[called]]) for called in range(4)] for true in range(4)]
    np.testing.assert_allclose(scores, np.abs(np.subtract.outer(range(4), range(4))) / 3)


def test_no_other_answer_beats_the_true_probabilities_in_the_ranked_probability_score() -> None:
    rng = np.random.default_rng(0)
    true_shares = np.array([0.5, 0.1, 0.3, 0.1])
    grades = np.repeat(np.arange(4), (true_shares * 100).astype(int))
    best = ranked_probability_score(grades, np.tile(true_shares, (100, 1)))
    for other in rng.dirichlet(np.ones(4), 200):
        assert ranked_probability_score(grades, np.tile(other, (100, 1))) >= best
