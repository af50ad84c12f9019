"""A smaller LocNet that learns from a larger one: its weights to begin with, and what it is to say beside the truth.

The smaller one sees voxels of twice the size, so its levels are the larger one's from the second on. Source: knowledge
distillation after Hinton et al. 2015, with the features between as hints (Romero et al. 2015).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import openvino
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import InputError
from train.config import Distillation, LocNetRun
from train.data_seen import data_seen
from train.networks import LocNet, LocNetConfig
from train.processor import processor_has_bf16
from train.run_differences import differences_in_images
from train.weights import digest_of_weights, fitting, run_in, weights_to_start_from

SEEN_HEAT = 0.1
"""Offsets are compared where either network is this hot: elsewhere nobody reads them."""
HOT = 20.0
"""How much more a voxel counts where the teacher is as hot as can be."""


_HALF_PRECISION = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Teacher:
    """A LocNet that another one learns from; it learns nothing itself.

    Args:
        run: the student's training, whose ``distillation`` names the teacher.

    Raises:
        InputError: there is none, or one that sees other images than the student, or has a stem, or no offsets.
    """

    def __init__(self, run: LocNetRun) -> None:
        self._settings, self._precision = run.distillation, run.loop.precision
        folder = Path(run.distillation.teacher)
        theirs = run_in(folder, "locnet", LocNetRun)
        if theirs.network.stem or theirs.network.variant != "F":
            raise InputError(
                f"The LocNet in {folder} can't be learnt from: that takes one of variant F without a stem, as "
                "python -m train locnet -o RUN makes it."
            )
        if run.distillation.weights_sha256 not in ("", digest_of_weights(folder, "locnet")):
            raise InputError(
                f"The LocNet in {folder} is not the one that this run began to learn from: its weights are others. "
                "Put those back, or name the new ones with --teacher under another path."
            )
        for name in differences_in_images(theirs, run):
            raise InputError(
                f"The LocNet in {folder} has {name} {getattr(theirs, name)}, what is to learn from it "
                f"{getattr(run, name)}; give both the same, with --set {name}=..."
            )
        self.network = LocNet(theirs.network).eval().requires_grad_(False)
        weights = weights_to_start_from(folder, "locnet")
        self.network.load_state_dict(fitting(weights, self.network.state_dict(), source=str(folder)))

    def begin(self, student: LocNet) -> None:
        """Give a network of half the resolution the weights of the levels that both have; the rest stays as it is.

        Raises InputError where its levels are others.
        """
        theirs, own = self.network.config.unet, student.config
        wanted = LocNetConfig(theirs.without_first(), "F", own.heatmap_prior, stem=theirs.channels[0])
        if own != wanted:
            raise InputError(f"What learns from {self._settings.teacher} must be a {wanted}; met a {own}.")
        mine, unet = student.unet, self.network.unet
        mine.bottleneck.load_state_dict(unet.bottleneck.state_dict())
        for i in range(len(own.unet.channels)):
            mine.encoder[i].load_state_dict(unet.encoder[i + 1].state_dict())
            mine.up[i].load_state_dict(unet.up[i].state_dict())
            mine.decoder[i].load_state_dict(unet.decoder[i].state_dict())

    def losses(self, image: Tensor, said: tuple[Tensor, Tensor], features: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """What sets a student apart from this network, weighted by the settings, by name.

        Args:
            image: (n, 1, z, y, x) that both see.
            said: the student's heatmap (n, 1, z, y, x) and offsets (n, 3, z, y, x).
            features: what enters and what leaves its U-Net, at half the resolution.
        """
        (heat, offsets), hints = self.says(image)
        mine, own_offsets = said
        seen = ((heat > SEEN_HEAT) | (mine.detach() > SEEN_HEAT)).to(mine.dtype)
        apart = F.smooth_l1_loss(own_offsets, offsets, reduction="none").sum(dim=1, keepdim=True)
        hinted = [F.smooth_l1_loss(one.float(), other.float()) for one, other in zip(features, hints, strict=True)]
        settings = self._settings
        return {
            "heat_apart": settings.heat_weight * ((mine - heat) ** 2 * (1 + HOT * heat)).mean(),
            "offsets_apart": settings.offset_weight * (apart * seen).sum() / seen.sum().clamp_min(1),
            "features_apart": settings.feature_weight * torch.stack(hinted).sum(),
        }

    def says(self, image: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """This network's heatmap and offsets of an image (n, 1, z, y, x), and its features, as in ``losses``."""
        kind, dtype = image.device.type, self._dtype(image.device.type)
        if kind == "cpu" and dtype is None:
            heat, offsets, *hints = map(torch.from_numpy, self._compiled(image.numpy()).to_tuple())
            return (heat, offsets), (hints[0], hints[1])
        self.network.to(image.device)
        with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
            said: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] = self.network(image, with_features=True)
        return said

    @cached_property
    def _compiled(self) -> Any:
        """The network by OpenVINO, which takes a third of torch's time in fp32 on a processor."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the tracing that OpenVINO reads deprecated
            model = openvino.convert_model(_InOneTuple(self.network), example_input=torch.zeros(1, 1, 32, 32, 32))
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        return openvino.compile_model(model, "CPU", settings)

    def _dtype(self, kind: str) -> torch.dtype | None:
        """As the student computes, where the device does so itself; None for fp32."""
        if kind == "cpu" and not processor_has_bf16():
            return None
        return _HALF_PRECISION.get(self._precision)


class _InOneTuple(nn.Module):
    """A LocNet with its features, all outputs side by side: what can be converted."""

    def __init__(self, network: LocNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        said, features = self.network(image, with_features=True)
        return (*said, *features)


def taught_by(folder: Path, settings: Distillation) -> Distillation:
    """Settings for learning from the LocNet in a run's folder or a bundle, with all data that its weights come from."""
    data = data_seen(run_in(folder, "locnet", LocNetRun))
    return replace(settings, teacher=str(folder), weights_sha256=digest_of_weights(folder, "locnet"), data=data)
