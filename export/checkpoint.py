"""From a training run's folder to the network as it is deployed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from runtime.errors import InputError
from train import config as configuration
from train.config import LevelNetRun, LocNetRun, Run
from train.networks import FracSegNet, FracSegNetOutputs, LevelNet, LevelNetOutputs, LocNet


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

    run: Run
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
    network, deployed = new_network(run)
    network.load_state_dict(state["network"])
    return Trained(run, deployed.eval(), outputs_of(run), example_zyx(run), int(state["step"]), dict(state["metrics"]))


def new_network(run: Run) -> tuple[nn.Module, nn.Module]:
    """A new network as it is trained, and the module around it as it is deployed: weights go into the first."""
    if isinstance(run, LocNetRun):
        locnet = LocNet(run.network)
        return locnet, locnet
    if isinstance(run, LevelNetRun):
        levelnet = LevelNet(run.network)
        return levelnet, LevelNetOutputs(levelnet)
    fracsegnet = FracSegNet(run.network)
    return fracsegnet, FracSegNetOutputs(fracsegnet)


def outputs_of(run: Run) -> tuple[str, ...]:
    """Names of a deployed network's outputs."""
    if isinstance(run, LocNetRun):
        return ("heatmap", "offsets") if run.network.variant == "F" else ("heatmap",)
    if isinstance(run, LevelNetRun):
        return ("level",)
    return ("mask", "grade", "heights") if run.network.heights else ("mask", "grade")


def example_zyx(run: Run) -> tuple[int, int, int]:
    """The input size that a network is exported at, voxels."""
    if isinstance(run, LocNetRun):
        return run.crop_shapes[0]
    if isinstance(run, LevelNetRun):
        return run.network.crop_zyx
    return (run.network.crop, run.network.crop, run.network.crop)
