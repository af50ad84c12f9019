"""Fully connected grade heads on the frozen features of one network: the grade loss and the sampling, and nothing else.

The masks, the features read from them and the steps are the same for all, so that a run costs seconds and many seeds
of every combination can be paid for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from runtime.intensity import normalise
from train.compare.crops import Crops, CropsSource
from train.compare.variants import SMALL
from train.config import FracSegNetRun
from train.loop import evaluating, learning_rate, make_optimiser
from train.networks import FracSegNet
from train.tasks import FracSegNetTask

_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Features:
    """What the fully connected layers read of every crop: (2, n, c) float32, as it is and mirrored."""

    values: Tensor
    crops: Crops


class HeadOnly(nn.Module):
    """The fully connected layers of a FracSegNet: those of the grade as the seed drew them, the heights' as they were.

    Raises ValueError where the network has no spatial head or no heights.
    """

    def __init__(self, network: FracSegNet, *, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        fresh = FracSegNet(network.config)
        if fresh.height_head is None or network.height_head is None or network.spatial is None:
            raise ValueError("Heads are compared for networks with a spatial head and heights.")
        self.fully_connected, self.grade_head = fresh.fully_connected, fresh.grade_head
        self.height_head = fresh.height_head
        self.height_head.load_state_dict(network.height_head.state_dict())

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """``features`` (n, c) to ``grade`` logits (n, 4) and ``heights`` (n, 6), as FracSegNet's."""
        return {"grade": self.grade_head(self.fully_connected(features)), "heights": self.height_head(features)}


def features_of(network: FracSegNet, crops: Crops) -> Features:
    """The features of all crops, by the network as it is."""
    views = []
    with evaluating(network), torch.inference_mode():
        for mirrored in (False, True):
            parts = [_chunk_features(network, crops, i, mirrored) for i in range(0, len(crops), _CHUNK)]
            views.append(torch.cat(parts))
    return Features(torch.stack(views).clone(), crops)


def _chunk_features(network: FracSegNet, crops: Crops, first: int, mirrored: bool) -> Tensor:
    samples = [crops.sample(i, mirrored=mirrored) for i in range(first, min(first + _CHUNK, len(crops)))]
    image = torch.from_numpy(np.stack([normalise(s.hu, SMALL.intensity) for s in samples])[:, None])
    seen: list[Tensor] = []
    hook = network.fully_connected.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        network(image)
    finally:
        hook.remove()
    return seen[0]


def train_head(network: FracSegNet, features: Features, run: FracSegNetRun) -> HeadOnly:
    """A head for ``network``, trained as the run says; determined by its seed."""
    head, task, source = HeadOnly(network, seed=run.loop.seed), FracSegNetTask(run), CropsSource(features.crops)
    optimiser = make_optimiser(run.loop, head)
    for step in range(run.loop.steps):
        rng = np.random.default_rng([run.loop.seed, step])
        drawn = [source.draw(rng, run) for _ in range(run.loop.batch)]
        index = [i for i, _ in drawn]
        batch = {
            "image": features.values[[int(mirrored) for _, mirrored in drawn], index],
            "grade": torch.from_numpy(features.crops.grades[index]),
            "heights": torch.from_numpy(features.crops.heights[index]),
        }
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(run.loop, step)
        optimiser.zero_grad(set_to_none=True)
        task.losses(head, batch)["loss"].backward()
        nn.utils.clip_grad_norm_(head.parameters(), run.loop.clip_norm)
        optimiser.step()
    return head


def head_probabilities(head: HeadOnly, features: Features) -> np.ndarray:
    """(n, 4) probabilities of the grades of all crops."""
    with evaluating(head), torch.inference_mode():
        return torch.softmax(head(features.values[0])["grade"], dim=1).numpy()
