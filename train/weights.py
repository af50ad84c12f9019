"""Weights to begin with: the best of another run, or those of a bundle's ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from runtime.bundle import Bundle, open_bundle, sha256_of
from runtime.bundle_checks import BUNDLE_JSON
from runtime.bundle_json import from_json
from runtime.errors import BundleError, InputError
from train import config as configuration
from train.config import Run, with_later_settings

R = TypeVar("R", bound=Run)

_DEPLOYED = "network."
"""What the parameters' names begin with where a network was exported inside the module that deploys it."""


def weights_to_start_from(folder: Path, network: str) -> dict[str, Tensor]:
    """The state of ``network`` (``"locnet"``, ``"fracsegnet"``, ``"levelnet"``) in a run's folder or a bundle.

    Raises InputError when there is none, BundleError when the bundle is damaged or lacks that network.
    """
    if _is_bundle(folder):
        weights = onnx_weights(_file_in_bundle(folder, network))
        return {name.removeprefix(_DEPLOYED): weight for name, weight in weights.items()}
    try:
        state = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{folder} holds no best.ckpt to start from, nor a bundle ({error.strerror}).") from error
    best: dict[str, Tensor] = state["network"]
    return best


def digest_of_weights(folder: Path, network: str) -> str:
    """SHA-256 of the file that ``weights_to_start_from`` reads, in hexadecimal digits; raises what that raises."""
    path = _file_in_bundle(folder, network) if _is_bundle(folder) else folder / "best.ckpt"
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"{folder} holds no best.ckpt to start from, nor a bundle ({error.strerror}).") from error


def run_in(folder: Path, network: str, kind: type[R]) -> R:
    """How the ``network`` in a run's folder or a bundle was trained.

    Raises InputError where that is another network or isn't told, BundleError where a bundle can't be read or does not
    tell.
    """
    if _is_bundle(folder):
        return run_told(open_bundle(folder), network, kind)
    run = configuration.load(folder / "config.json")
    if not isinstance(run, kind):
        raise InputError(f"{folder} holds no {network}; met a run of {type(run).__name__.removesuffix('Run')}.")
    return run


def run_told(bundle: Bundle, network: str, kind: type[R]) -> R:
    """How a bundle says that its ``network`` was trained. Raises BundleError where it doesn't."""
    try:
        values = bundle.spec.training[network]["run"]
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"The bundle in {bundle.folder} does not say how its {network} was trained (no {error})."
        ) from error
    at = f"{bundle.folder}: training: {network}: run"
    try:
        return from_json(kind, with_later_settings(values), at=at)
    except ValueError as error:
        raise BundleError(f"{at} holds what no run of this software has: {error}") from error


def _is_bundle(folder: Path) -> bool:
    return (folder / BUNDLE_JSON).is_file() or folder.suffix == ".zip"


def _file_in_bundle(folder: Path, network: str) -> Path:
    bundle = open_bundle(folder)
    spec = getattr(bundle.spec, network)
    if spec is None:
        raise BundleError(f"The bundle in {folder} has no {network} to start from.")
    return bundle.path_of(spec.file)


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
