"""Each loss against a value worked out by hand, its gradient against finite differences, and its limits."""

import math

import pytest
import torch

from train import losses


def mask(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, 1, -1)


def test_adaptive_wing_by_hand() -> None:
    # y = 0, error 0.3 < theta: 10 ln(1 + (0.3 / 3)^2.1); y = 1, error 0.8: the linear piece with power 1.1.
    predicted, target = torch.tensor([0.3, 0.2], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    curved = 10 * math.log(1 + 0.1**2.1)
    ratio = (0.5 / 3) ** 1.1
    slope = 10 / (1 + ratio) * 1.1 * (0.5 / 3) ** 0.1 / 3
    linear = slope * 0.8 - (0.5 * slope - 10 * math.log(1 + ratio))
    assert losses.adaptive_wing(predicted, target).item() == pytest.approx((curved + linear) / 2, rel=1e-12)


@pytest.mark.parametrize("y", [0.0, 0.4, 1.0])
def test_adaptive_wing_is_smooth_where_the_pieces_meet(y: float) -> None:
    def value_and_slope(error: float) -> tuple[float, float]:
        p = torch.tensor(y + error, dtype=torch.float64, requires_grad=True)
        loss = losses.adaptive_wing(p, torch.tensor(y, dtype=torch.float64))
        loss.backward()
        assert p.grad is not None
        return loss.item(), p.grad.item()

    below, above = value_and_slope(0.5 - 1e-7), value_and_slope(0.5 + 1e-7)
    assert above[0] == pytest.approx(below[0], abs=1e-5)
    assert above[1] == pytest.approx(below[1], abs=1e-5)


def test_adaptive_wing_is_zero_and_flat_at_the_truth() -> None:
    y = torch.linspace(0, 1, 11, dtype=torch.float64)
    p = y.clone().requires_grad_()
    loss = losses.adaptive_wing(p, y)
    loss.backward()
    assert loss.item() < 1e-9
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()


def test_masked_smooth_l1_by_hand() -> None:
    predicted = torch.zeros(1, 3, 1, 1, 2, dtype=torch.float64)
    target = predicted.clone()
    target[0, :, 0, 0, 0] = torch.tensor([0.5, 2.0, 0.0])  # 0.125 + 1.5 + 0
    target[0, :, 0, 0, 1] = 100.0  # not in the mask
    where = torch.tensor([True, False]).reshape(1, 1, 1, 1, 2)
    assert losses.masked_smooth_l1(predicted, target, where).item() == pytest.approx(1.625)
    assert losses.masked_smooth_l1(predicted, target, torch.zeros_like(where)).item() == 0


def test_chamfer_by_hand_and_without_points() -> None:
    a = torch.tensor([[0.0, 0, 0], [0, 0, 3]], dtype=torch.float64)
    b = torch.tensor([[0.0, 0, 1]], dtype=torch.float64)
    assert losses.chamfer_distance(a, b).item() == pytest.approx((1 + 4) / 2 + 1)
    assert losses.chamfer_distance(a, b).item() == losses.chamfer_distance(b, a).item()
    assert losses.chamfer_distance(a[:0], b).item() == 0
    assert losses.chamfer_distance(a, b[:0]).item() == 0


def test_vote_candidates_are_the_means_of_the_votes_in_a_voxel() -> None:
    heat = torch.zeros(1, 1, 6, dtype=torch.float64)
    heat[0, 0, 1], heat[0, 0, 4], heat[0, 0, 5] = 0.8, 0.9, 0.95
    offsets = torch.zeros(3, 1, 1, 6, dtype=torch.float64)
    offsets[2, 0, 0] = torch.tensor([0, 1.9, 0, 0, -0.8, 9.0])  # to 2.9, 3.2, and outside
    offsets.requires_grad_()
    found = losses.vote_candidates(heat, offsets, heatmap_threshold=0.7, vote_threshold=0.6)
    assert found.tolist() == [[0.0, 0.0, pytest.approx((0.8 * 2.9 + 0.9 * 3.2) / 1.7)]]
    losses.chamfer_distance(found, torch.tensor([[0.0, 0, 0]], dtype=torch.float64)).backward()
    assert offsets.grad is not None
    assert (offsets.grad[2, 0, 0] > 0).tolist() == [False, True, False, False, True, False]
    assert len(losses.vote_candidates(heat, offsets, heatmap_threshold=0.99, vote_threshold=0.6)) == 0


def test_cross_entropy_and_focal_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1]], dtype=torch.float64))
    grades = torch.tensor([0, 2])
    expected = -(math.log(0.7) + math.log(0.2)) / 2
    assert losses.cross_entropy(logits, grades).item() == pytest.approx(expected)
    focal = -(0.3**2 * math.log(0.7) + 0.8**2 * math.log(0.2)) / 2
    assert losses.focal(logits, grades).item() == pytest.approx(focal)
    alpha = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    weighted = -(0.1 * 0.3**2 * math.log(0.7) + 0.3 * 0.8**2 * math.log(0.2)) / 2
    assert losses.focal(logits, grades, class_weights=alpha).item() == pytest.approx(weighted)
    by_weight = -(0.1 * math.log(0.7) + 0.3 * math.log(0.2)) / 2
    assert losses.weighted_cross_entropy(logits, grades, class_weights=alpha).item() == pytest.approx(by_weight)
    assert losses.cross_entropy(logits, grades, class_weights=alpha).item() == pytest.approx(expected), "has no weights"


def test_weights_count_in_a_batch_of_one_and_average_one_over_the_classes() -> None:
    counts, logits = torch.tensor([591, 63, 50, 22]), torch.zeros(1, 4)
    weights = losses.weights_of_mean_one(counts)
    assert ((weights * counts).sum() / counts.sum()).item() == pytest.approx(1)
    severe, healthy = (
        losses.weighted_cross_entropy(logits, torch.tensor([grade]), class_weights=weights).item() for grade in (3, 0)
    )
    assert severe / healthy == pytest.approx(591 / 22)


def test_unified_focal_of_grades_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1]], dtype=torch.float64))
    focal = -(0.4 * 0.3**0.5 * math.log(0.7) + 0.6 * math.log(0.5)) / 2
    zero = 1 - 0.7 / (0.7 + 0.6 * 0.3 + 0.4 * 0.2)
    one = (1 - 0.5 / (0.5 + 0.6 * 0.5 + 0.4 * 0.1)) ** 0.5
    expected = 0.5 * focal + 0.5 * (zero + one) / 2
    found = losses.unified_focal_grades(logits, torch.tensor([0, 1]))
    assert found.item() == pytest.approx(expected), "grades 2 and 3 are not in the batch"


def test_focal_without_alpha_is_cross_entropy_where_nothing_is_known() -> None:
    logits, grades = torch.zeros(3, 4), torch.tensor([0, 1, 3])
    expected = 0.75**2 * losses.cross_entropy(logits, grades)
    ignored = torch.tensor([1.0, 9.0, 9.0, 9.0])
    torch.testing.assert_close(losses.focal_unweighted(logits, grades, class_weights=ignored), expected)


@pytest.mark.parametrize(
    "loss", [losses.cross_entropy, losses.weighted_cross_entropy, losses.focal, losses.unified_focal_grades]
)
def test_unknown_grades_cost_nothing(loss) -> None:
    logits = torch.randn(3, 4, dtype=torch.float64)
    assert loss(logits, torch.tensor([-1, 2, -1])).item() == pytest.approx(loss(logits[1:2], torch.tensor([2])).item())
    assert loss(logits, torch.tensor([-1, -1, -1])).item() == 0


def test_inverse_frequency_of_verse() -> None:
    weights = losses.inverse_frequency(torch.tensor([591, 63, 50, 22]))
    assert weights.sum().item() == pytest.approx(1)
    assert weights[3].item() / weights[0].item() == pytest.approx(591 / 22)


def test_two_term_dice_by_hand() -> None:
    p, t = mask([1, 0.5, 0, 0]), mask([1, 1, 0, 0])
    foreground = 2 * 1.5 / (1.5 + 2)
    background = 2 * 2 / (2.5 + 2)
    expected = 1 - 0.5 * (foreground + background)
    assert losses.two_term_dice(p, t, smooth=0).item() == pytest.approx(expected)
    assert losses.two_term_dice(t, t).item() == pytest.approx(0, abs=1e-12)


def test_focal_tversky_by_hand() -> None:
    p, t = mask([1, 0.5, 0.25, 0]), mask([1, 1, 0, 0])  # overlap 1.5, missed 0.5, false 0.25
    index = 1.5 / (1.5 + 0.7 * 0.5 + 0.3 * 0.25)
    assert losses.tversky_index(p, t, delta=0.7, smooth=0).item() == pytest.approx(index)
    assert losses.focal_tversky(p, t).item() == pytest.approx((1 - index) ** 0.75, rel=1e-4)


def test_unified_focal_by_hand() -> None:
    p, t = mask([0.8, 0.3]), mask([1, 0])
    focal = (-0.6 * math.log(0.8) - 0.4 * 0.3**0.5 * math.log(0.7)) / 2
    foreground = 0.8 / (0.8 + 0.6 * 0.2 + 0.4 * 0.3)
    background = 0.7 / (0.7 + 0.6 * 0.3 + 0.4 * 0.2)
    tversky = 0.5 * ((1 - foreground) ** 0.5 + (1 - background))
    assert losses.unified_focal(p, t).item() == pytest.approx(0.5 * focal + 0.5 * tversky, rel=1e-4)


def probabilities(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.rand(*shape, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()


@pytest.mark.parametrize("loss", sorted(losses.MASK_LOSSES))
def test_mask_losses_gradcheck(loss: str) -> None:
    target = (probabilities(2, 2, 2, 2, 2) > 0.5).double()
    assert torch.autograd.gradcheck(lambda p: losses.MASK_LOSSES[loss](p, target), (probabilities(2, 2, 2, 2, 2),))


@pytest.mark.parametrize("loss", sorted(losses.GRADE_LOSSES))
def test_grade_losses_gradcheck(loss: str) -> None:
    grades, weights = torch.tensor([0, 3, -1]), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    function = losses.GRADE_LOSSES[loss]
    assert torch.autograd.gradcheck(lambda x: function(x, grades, class_weights=weights), (probabilities(3, 4),))


def test_heatmap_and_offset_losses_gradcheck() -> None:
    torch.manual_seed(1)
    target = torch.rand(1, 1, 2, 3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: losses.adaptive_wing(p, target), (probabilities(1, 1, 2, 3, 2),))
    offsets = torch.randn(1, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    where = torch.rand(1, 1, 2, 2, 2) > 0.4
    true = torch.randn(1, 3, 2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda o: losses.masked_smooth_l1(o, true, where), (offsets,))
    points = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: losses.chamfer_distance(p, true[0, :, 0, 0].T), (points,))
