"""Grade heads that read true thickness: the grade loss and the sampling, and nothing else.

How thick a vertebral body is at every place, from front to back and side to side, tells its three heights and so its
grade. A head that is given the thickness of the true mask learns within seconds what a whole network needs hours for,
so several seeds of every combination can be paid for, and what is left of the errors is the grades' own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.balance import balancer_of
from train.compare.crops import Crops, CropsSource
from train.config import FracSegNetRun
from train.loop import evaluating, learning_rate, make_optimiser
from train.networks import HEIGHT_UNIT_MM, FracSegNet, FracSegNetConfig, SpatialGradeFeatures, initialise
from train.tasks import FracSegNetTask

SHIFTED_VIEWS = 4
"""Of every crop and its mirror image: as it is, and shifted by up to two voxels sideways and forwards."""
_MARGIN = 4
"""Voxels that are cut off on each side of the map, where no body reaches."""


@dataclass(frozen=True, eq=False)
class Thickness:
    """What the heads read of every crop.

    Args:
        values: (2, views, n, y, x) float32, as it is and mirrored; the first view is not shifted. The body's thickness
            along z in units of ``HEIGHT_UNIT_MM``, averaged over blocks of 2x2 voxels.
        crops: whose they are.
    """

    values: Tensor
    crops: Crops


class ThicknessGrader(nn.Module):
    """FracSegNet's fully connected layers and heights behind one layer that reads the map; all drawn by the seed.

    Raises ValueError where such a network has no heights.
    """

    def __init__(self, config: FracSegNetConfig, *, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        whole = FracSegNet(config)
        if whole.height_head is None:
            raise ValueError("Heads are compared for networks with heights.")
        self.read = nn.Linear(((config.crop - 2 * _MARGIN) // 2) ** 2, SpatialGradeFeatures.OUTPUTS)
        initialise(self.read, config.unet.leak)
        self.fully_connected, self.grade_head = whole.fully_connected, whole.grade_head
        self.height_head = whole.height_head

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those that grade and heights both depend on."""
        return list(self.read.parameters())

    def forward(self, thickness: Tensor) -> dict[str, Tensor]:
        """Maps (n, y, x) to ``grade`` logits (n, 4) and ``heights`` (n, 6), as FracSegNet's."""
        vector = F.leaky_relu(self.read(thickness.flatten(1)), 0.01)
        return {"grade": self.grade_head(self.fully_connected(vector)), "heights": self.height_head(vector)}


def thickness_of(crops: Crops, run: FracSegNetRun) -> Thickness:
    """The maps of all crops; shifts are drawn by a fixed seed."""
    rng = np.random.default_rng(0)
    body = run.network.mask_channels.index("body")
    thickness = torch.from_numpy(crops.masks[:, body].sum(axis=1)).float() * (run.spacing_mm / HEIGHT_UNIT_MM)
    views = []
    for view in range(SHIFTED_VIEWS):
        shift = rng.integers(-2, 3, 2).tolist() if view else [0, 0]
        shifted = thickness.roll(shift, dims=(1, 2))[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
        views.append(F.avg_pool2d(shifted, 2))
    plain = torch.stack(views)
    return Thickness(torch.stack([plain, plain.flip(-1)]), crops)


def train_head(maps: Thickness, run: FracSegNetRun) -> ThicknessGrader:
    """A head trained as the run says; determined by its seed."""
    head, task, source = ThicknessGrader(run.network, seed=run.loop.seed), FracSegNetTask(run), CropsSource(maps.crops)
    optimiser, balancer = make_optimiser(run.loop, head), balancer_of(run, devices=1)
    for step in range(run.loop.steps):
        rng = np.random.default_rng([run.loop.seed, step])
        drawn = [source.draw(rng, run) for _ in range(run.loop.batch)]
        index = [i for i, _ in drawn]
        shifted = rng.integers(SHIFTED_VIEWS, size=len(drawn)).tolist()
        batch = {
            "image": maps.values[[int(mirrored) for _, mirrored in drawn], shifted, index],
            "grade": torch.from_numpy(maps.crops.grades[index]),
            "heights": torch.from_numpy(maps.crops.heights[index]),
        }
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(run.loop, step)
        optimiser.zero_grad(set_to_none=True)
        balancer.total(head, task.losses(head, batch)).backward()
        nn.utils.clip_grad_norm_(head.parameters(), run.loop.clip_norm)
        optimiser.step()
    return head


def head_height_error_mm(head: ThicknessGrader, maps: Thickness) -> float:
    """Mean absolute error of the three heights of all crops, as they are."""
    with evaluating(head), torch.inference_mode():
        heights = head(maps.values[0, 0])["heights"][:, :3].numpy() * HEIGHT_UNIT_MM
    return float(np.abs(heights - maps.crops.heights[:, :3]).mean())


def head_probabilities(head: ThicknessGrader, maps: Thickness) -> np.ndarray:
    """(n, 4) probabilities of the grades of all crops, as they are."""
    with evaluating(head), torch.inference_mode():
        return torch.softmax(head(maps.values[0, 0])["grade"], dim=1).numpy()
