"""The torch networks of a bundle, rebuilt from its configuration and its ONNX weights: the reference to verify by."""

from __future__ import annotations

from torch import nn

from export.checkpoint import Trained, new_network, outputs_of
from runtime.bundle import Bundle
from runtime.errors import BundleError, InputError
from train.config import FracSegNetRun, LevelNetRun, LocNetRun, Run
from train.weights import fitting, onnx_weights, run_told


def torch_locnet(bundle: Bundle) -> Trained:
    """LocNet as torch module, FP32, in evaluation mode.

    Raises BundleError when the bundle doesn't say how it was trained, or its weights bear other names.
    """
    spec = bundle.spec.locnet
    return _reloaded(bundle, "locnet", run_told(bundle, "locnet", LocNetRun), spec.file, spec.window_zyx)


def torch_fracsegnet(bundle: Bundle) -> Trained:
    """FracSegNet as torch module with probabilities as outputs, FP32, in evaluation mode.

    Raises BundleError when the bundle doesn't say how it was trained, or its weights bear other names.
    """
    spec = bundle.spec.fracsegnet
    return _reloaded(bundle, "fracsegnet", run_told(bundle, "fracsegnet", FracSegNetRun), spec.file, spec.crop_zyx)


def torch_levelnet(bundle: Bundle) -> Trained | None:
    """LevelNet as torch module with probabilities as outputs, FP32, in evaluation mode; None where there is none.

    Raises BundleError when the bundle doesn't say how it was trained, or its weights bear other names.
    """
    spec = bundle.spec.levelnet
    if spec is None:
        return None
    return _reloaded(bundle, "levelnet", run_told(bundle, "levelnet", LevelNetRun), spec.file, spec.crop_zyx)


def _reloaded(bundle: Bundle, name: str, run: Run, file: str, example_zyx: tuple[int, int, int]) -> Trained:
    _, network = new_network(run)
    _load(network, bundle, file)
    told = bundle.spec.training[name]
    steps, metrics = int(told.get("steps", 0)), dict(told.get("validation", {}))
    return Trained(run, network.eval(), outputs_of(run), example_zyx, steps, metrics)


def _load(network: nn.Module, bundle: Bundle, file: str) -> None:
    """Fill the module with the graph's weights, which bear the module's own parameter names."""
    try:
        weights = fitting(onnx_weights(bundle.path_of(file)), network.state_dict(), source=file)
    except InputError as error:
        raise BundleError(str(error)) from error
    network.load_state_dict(weights)
