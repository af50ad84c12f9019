"""What is lost and measured: unknown truths cost nothing, the truth itself scores highest."""

import numpy as np
import pytest
import torch

from train.config import FracSegNetRun, LocNetRun
from train.losses import MASK_LOSSES
from train.networks import HEIGHT_UNIT_MM
from train.sources import PhantomSource
from train.tasks import FracSegNetTask, LocNetTask


class Says(torch.nn.Module):
    """A network that returns what it was given."""

    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def forward(self, image: torch.Tensor):
        return self.output


def test_the_true_maps_score_highest_and_lose_least() -> None:
    task = LocNetTask(LocNetRun(negative_fraction=0.0))
    batch = task.batch(PhantomSource(), (5,), 2)
    truth = Says((batch["heatmap"], batch["offsets"]))
    metrics = task.metrics(truth, [batch])
    inside = sum(len(c) for c in batch["centres"])
    assert inside > 4
    assert metrics["recall"] > 0.9
    assert metrics["precision"] > 0.9
    assert metrics["error_mm"] < 0.5 * 3**0.5 * 3.0, "votes are rounded to a voxel of 3 mm: at most half its diagonal"
    right = task.losses(truth, batch)["loss"]
    wrong = task.losses(Says((batch["heatmap"].roll(3, 2), batch["offsets"])), batch)["loss"]
    assert right < 0.1 * wrong


def test_samples_without_truth_cost_nothing() -> None:
    task = FracSegNetTask(FracSegNetRun())
    batch = task.batch(PhantomSource(), (6,), 2)
    out = {"mask": torch.randn(2, 2, 48, 48, 48), "grade": torch.randn(2, 4), "heights": torch.randn(2, 6)}
    unknown = batch | {
        "mask_known": torch.zeros(2, 2, dtype=torch.bool),
        "grade": torch.tensor([-1, -1]),
        "heights": torch.full((2, 6), torch.nan),
    }
    assert task.losses(Says(out), unknown)["loss"].item() == 0
    half = batch | {"mask_known": torch.tensor([[True, False], [True, False]])}
    other = half | {"mask": torch.cat([batch["mask"][:, :1], 1 - batch["mask"][:, 1:]], dim=1)}
    assert torch.equal(task.losses(Says(out), half)["mask"], task.losses(Says(out), other)["mask"])


@pytest.mark.parametrize("mask_loss", sorted(MASK_LOSSES))
def test_a_mask_costs_the_same_beside_one_that_is_not_known(mask_loss: str) -> None:
    """Of each sample, in a batch of samples that know different ones."""
    task = FracSegNetTask(FracSegNetRun(mask_loss=mask_loss))
    torch.manual_seed(0)
    logits, target = torch.randn(3, 2, 8, 8, 8), (torch.rand(3, 2, 8, 8, 8) > 0.5).float()
    alone = [float(task._mask_loss(logits[i:i+1, c:c+1], target[i:i+1, c:c+1], torch.ones(1, 1, dtype=torch.bool)))
             for i, c in ((0, 0), (1, 1))]  # fmt: skip
    known = torch.tensor([[True, False], [False, True], [True, True]])
    both = float(task._mask_loss(logits[2:], target[2:], known[2:]))
    assert float(task._mask_loss(logits[:1], target[:1], known[:1])) == pytest.approx(alone[0])
    assert float(task._mask_loss(logits, target, known)) == pytest.approx(np.mean([*alone, both]))


def test_without_grades_the_masks_decide() -> None:
    task = FracSegNetTask(FracSegNetRun())
    batch = task.batch(PhantomSource(), (8,), 2) | {"grade": torch.tensor([-1, -1])}
    out = {"mask": batch["mask"] * 20 - 10, "grade": torch.zeros(2, 4), "heights": torch.zeros(2, 6)}
    assert task.metrics(Says(out), [batch])["score"] == 1


def test_true_masks_grades_and_heights_score_one() -> None:
    task = FracSegNetTask(FracSegNetRun())
    batch = task.batch(PhantomSource(), (7,), 6)
    heights = torch.cat([batch["heights"][:, :3] / HEIGHT_UNIT_MM, batch["heights"][:, 3:]], dim=1)
    truth = {
        "mask": batch["mask"] * 20 - 10,
        "grade": torch.nn.functional.one_hot(batch["grade"], 4).float() * 100,
        "heights": heights,
    }
    metrics = task.metrics(Says(truth), [batch])
    assert metrics["score"] == pytest.approx(2)
    assert metrics["dice_vertebra"] == 1
    assert metrics["grade_macro_f1"] == 1
    np.testing.assert_allclose(metrics["height_error_mm"], 0, atol=1e-5)
