"""Training of LevelNet: what a sample is, what is lost, and how good the network has become."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.intensity import normalise
from train.config import LevelNetRun
from train.level_crops import NONE, LevelSample
from train.networks import LevelNet
from train.sources import Source


class LevelNetTask:
    """Name the vertebra in the middle of a crop, or say that there is none."""

    name = "levelnet"

    def __init__(self, run: LevelNetRun) -> None:
        self.run = run

    def network(self) -> LevelNet:
        """A new, initialised network."""
        return LevelNet(self.run.network)

    def batch(self, source: Source, seed: tuple[int, ...], size: int) -> dict[str, Any]:
        """``size`` crops: image (n, 1, z, y, x), level (n,) int64, an index into ``LEVEL_NAMES``."""
        rng = np.random.default_rng(seed)
        samples: list[LevelSample] = []
        while len(samples) < size:
            samples += source.levels(rng, self.run)
        samples = samples[:size]
        return {
            "image": torch.from_numpy(np.stack([normalise(s.hu, self.run.intensity) for s in samples])[:, None]),
            "level": torch.tensor([s.level for s in samples]),
        }

    def losses(self, network: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Cross entropy."""
        logits = network(batch["image"])
        loss = nn.functional.cross_entropy(logits, batch["level"], label_smoothing=self.run.label_smoothing)
        return {"loss": loss}

    def metrics(self, network: nn.Module, batches: Iterable[dict[str, Any]]) -> dict[str, float]:
        """Shares: vertebrae named right, within one level, called none; other places that were seen through."""
        true, called = [], []
        for batch in batches:
            true += batch["level"].tolist()
            called += network(batch["image"]).argmax(dim=1).tolist()
        t, c = np.array(true), np.array(called)
        vertebra = t != NONE
        right, within_one = t == c, (np.abs(t - c) <= 1) & (c != NONE)
        return {
            "score": float(right.mean()),
            "level": _share(right[vertebra]),
            "within_one": _share(within_one[vertebra]),
            "lost": _share(c[vertebra] == NONE),
            "seen_through": _share(right[~vertebra]),
        }


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
