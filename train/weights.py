"""Weights to begin with: the best of another run, or those of a bundle's ONNX files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from runtime.bundle import open_bundle
from runtime.bundle_checks import BUNDLE_JSON
from runtime.errors import BundleError, InputError

_DEPLOYED = "network."
"""What the parameters' names begin with where a network was exported inside the module that deploys it."""


def weights_to_start_from(folder: Path, network: str) -> dict[str, Tensor]:
    """The state of ``network`` (``"locnet"``, ``"fracsegnet"``, ``"levelnet"``) in a run's folder or a bundle.

    Raises InputError when there is none, BundleError when the bundle is damaged or lacks that network.
    """
    if (folder / BUNDLE_JSON).is_file() or folder.suffix == ".zip":
        bundle = open_bundle(folder)
        spec = getattr(bundle.spec, network)
        if spec is None:
            raise BundleError(f"The bundle in {folder} has no {network} to start from.")
        weights = onnx_weights(bundle.path_of(spec.file))
        return {name.removeprefix(_DEPLOYED): weight for name, weight in weights.items()}
    try:
        state = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{folder} holds no best.ckpt to start from, nor a bundle ({error.strerror}).") from error
    best: dict[str, Tensor] = state["network"]
    return best


def onnx_weights(path: Path) -> dict[str, Tensor]:
    """A graph's initialisers by name, which for a graph that was exported here are the torch parameters' names."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    return {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in model.graph.initializer}


def fitting(weights: dict[str, Tensor], wanted: dict[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Of ``weights`` those that a network's state ``wanted`` names; an exported graph holds constants as well.

    Raises InputError when one is missing or has another shape.
    """
    missing = [name for name in wanted if name not in weights]
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(f"The weights in {source} are of a network of another shape: they lack {names}.")
    for name, value in wanted.items():
        if weights[name].shape != value.shape:
            raise InputError(
                f"The weights in {source} are of a network of another shape: {name} is "
                f"{tuple(weights[name].shape)}, not {tuple(value.shape)}."
            )
    return {name: weights[name] for name in wanted}
