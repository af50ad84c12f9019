"""Whole networks that go on from one shared start: what task weights, mask losses and grade heads do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from train.compare.crops import Crops, CropsSource
from train.config import FracSegNetRun
from train.loop import Trainer, evaluating, save_atomically
from train.networks import FracSegNet
from train.tasks import FracSegNetTask

_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of all crops: ``probabilities`` (n, 4) of the grades, and ``metrics`` of the masks and heights by name."""

    probabilities: np.ndarray
    metrics: dict[str, float]


def train_whole(run: FracSegNetRun, crops: Crops, folder: Path) -> FracSegNet:
    """The network of a run in ``folder``, trained to the end or read where it has been; its moving average."""
    trainer = Trainer(run, CropsSource(crops), folder, accelerator="cpu")
    trainer.network.module.to(memory_format=torch.channels_last_3d)  # a quarter faster here
    if trainer.step < run.loop.steps:
        trainer.fit(progress=False)
    network = trainer.evaluated
    assert isinstance(network, FracSegNet)
    return network


def fitting_start(start: Path, run: FracSegNetRun, folder: Path) -> None:
    """Write ``folder/best.ckpt``: the weights of ``start`` where they fit the run's network, new ones elsewhere."""
    state = torch.load(start / "best.ckpt", map_location="cpu", weights_only=True)
    torch.manual_seed(run.loop.seed)
    weights = FracSegNetTask(run).network().state_dict()
    known = {k: v for k, v in state["network"].items() if k in weights and weights[k].shape == v.shape}
    folder.mkdir(parents=True, exist_ok=True)
    save_atomically(state | {"network": weights | known}, folder / "best.ckpt")


class _InOrder(CropsSource):
    """The crops one after the other, as they are."""

    def __init__(self, crops: Crops) -> None:
        super().__init__(crops)
        self._next = iter(range(len(crops)))

    def draw(self, rng: np.random.Generator, run: FracSegNetRun) -> tuple[int, bool]:
        """See CropsSource."""
        return next(self._next), False


class _Recording(nn.Module):
    """A network that keeps the grade probabilities that it gave."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.probabilities = network, list[np.ndarray]()

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = self.network(image)
        self.probabilities.append(torch.softmax(out["grade"], dim=1).numpy())
        return out


def predict(network: nn.Module, crops: Crops, run: FracSegNetRun) -> Predictions:
    """Grades, masks and heights of all crops."""
    task, source, recording = FracSegNetTask(run), _InOrder(crops), _Recording(network)
    sizes = [min(_CHUNK, len(crops) - first) for first in range(0, len(crops), _CHUNK)]
    with evaluating(recording), torch.inference_mode():
        metrics = task.metrics(recording, (task.batch(source, (0,), size) for size in sizes))
    return Predictions(np.concatenate(recording.probabilities), metrics)
