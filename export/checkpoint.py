"""From a training run's folder to the network as it is deployed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from runtime.errors import InputError
from train import config as configuration
from train.config import FracSegNetRun, LocNetRun
from train.networks import FracSegNet, FracSegNetOutputs, LocNet


@dataclass(frozen=True)
class Trained:
    """A trained network, ready to run: in evaluation mode, on the CPU, FP32, with probabilities as outputs.

    Args:
        run: the configuration that trained it.
        network: takes (n, 1, z, y, x) float32 and returns a tuple in the order of ``outputs``.
        outputs: names of its outputs.
        example_zyx: the input size that it is exported and checked at.
        step: optimiser steps behind these weights.
        metrics: figures of the validation that chose them.
    """

    run: LocNetRun | FracSegNetRun
    network: nn.Module
    outputs: tuple[str, ...]
    example_zyx: tuple[int, int, int]
    step: int
    metrics: dict[str, float]


def load_trained(folder: Path) -> Trained:
    """The best weights of the run in ``folder``. Raises InputError when there are none."""
    best = folder / "best.ckpt"
    if not best.is_file():
        raise InputError(f"{folder} holds no best.ckpt: train it first, e.g. python -m train locnet -o {folder}.")
    run = configuration.load(folder / "config.json")
    state = torch.load(best, map_location="cpu", weights_only=True)
    if isinstance(run, LocNetRun):
        network: nn.Module = LocNet(run.network)
        network.load_state_dict(state["network"])
        outputs: tuple[str, ...] = ("heatmap", "offsets") if run.network.variant == "F" else ("heatmap",)
        example = run.crop_shapes[0]
    else:
        plain = FracSegNet(run.network)
        plain.load_state_dict(state["network"])
        network = FracSegNetOutputs(plain)
        outputs = ("mask", "grade", "heights") if run.network.heights else ("mask", "grade")
        example = (run.network.crop,) * 3
    return Trained(run, network.eval(), outputs, example, int(state["step"]), dict(state["metrics"]))
