"""The torch networks of a bundle, rebuilt from its configuration and its ONNX weights: the reference to verify by."""

from __future__ import annotations

from typing import TypeVar

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from export.checkpoint import Trained
from runtime.bundle import Bundle
from runtime.bundle_json import from_json
from runtime.errors import BundleError
from train.config import FracSegNetRun, LocNetRun
from train.networks import FracSegNet, FracSegNetOutputs, LocNet

R = TypeVar("R", LocNetRun, FracSegNetRun)


def torch_locnet(bundle: Bundle) -> Trained:
    """LocNet as torch module, FP32, in evaluation mode.

    Raises BundleError when the bundle doesn't say how it was trained, or its weights bear other names.
    """
    run = _run(bundle, "locnet", LocNetRun)
    network = LocNet(run.network)
    _load(network, bundle, bundle.spec.locnet.file)
    outputs = ("heatmap", "offsets") if run.network.variant == "F" else ("heatmap",)
    return Trained(run, network.eval(), outputs, bundle.spec.locnet.window_zyx, 0, {})


def torch_fracsegnet(bundle: Bundle) -> Trained:
    """FracSegNet as torch module with probabilities as outputs, FP32, in evaluation mode.

    Raises BundleError when the bundle doesn't say how it was trained, or its weights bear other names.
    """
    run = _run(bundle, "fracsegnet", FracSegNetRun)
    network = FracSegNetOutputs(FracSegNet(run.network))
    _load(network, bundle, bundle.spec.fracsegnet.file)
    outputs = ("mask", "grade", "heights") if run.network.heights else ("mask", "grade")
    return Trained(run, network.eval(), outputs, bundle.spec.fracsegnet.crop_zyx, 0, {})


def _run(bundle: Bundle, name: str, kind: type[R]) -> R:
    try:
        values = bundle.spec.training[name]["run"]
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"The bundle in {bundle.folder} does not say how its {name} was trained (no {error})."
        ) from error
    return from_json(kind, values, at=f"{bundle.folder}: training: {name}: run")


def _load(network: nn.Module, bundle: Bundle, file: str) -> None:
    """Fill the module with the graph's weights, which bear the module's own parameter names."""
    model = onnx.load(bundle.path_of(file))
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in model.graph.initializer}
    missing = [name for name in network.state_dict() if name not in weights]
    if missing:
        raise BundleError(f"{file} lacks the weights {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}.")
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
