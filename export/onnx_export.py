"""Torch to ONNX: dynamic batch, current opset, every normalisation still a normalisation; checked before it is kept."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from export.checkpoint import Trained

OPSET = 20
TOLERANCES = {"heatmap": 1e-4, "offsets": 1e-3, "mask": 1e-3, "grade": 1e-3, "heights": 5e-2}
"""Largest absolute difference from torch that is let through: probabilities, voxels, and millimetres for heights."""
OFFSET_HEAT = 0.1
"""Offsets are compared where the heatmap exceeds this: elsewhere nobody reads them."""


class ExportError(RuntimeError):
    """The exported graph is not what the torch network is."""


def export_onnx(trained: Trained, path: Path) -> dict[str, float]:
    """Write the ONNX file (atomically) and return the largest difference from torch per output, on random inputs.

    Raises ExportError when a node type is not the expected one or an output differs too much.
    """
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.onnx")
    example = torch.randn(2, 1, *trained.example_zyx)
    batch = torch.export.Dim("batch", min=1, max=64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                trained.network, (example,), temporary, input_names=["image"], output_names=list(trained.outputs),
                dynamic_shapes={"image": {0: batch}}, opset_version=OPSET, dynamo=True, external_data=False,
                verbose=False,
            )  # fmt: skip
        check_nodes(onnx.load(temporary), trained.network)
        differences = compare(trained, temporary, random_images(trained.example_zyx))
        check_differences(differences)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return differences


def node_counts(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes there are of each type."""
    return Counter(node.op_type for node in model.graph.node)


def check_nodes(model: onnx.ModelProto, network: nn.Module) -> None:
    """Every convolution, transposed convolution and normalisation of the torch module is one node of its own kind."""
    onnx.checker.check_model(model, full_check=True)
    counts = node_counts(model)
    expected = {
        "Conv": nn.Conv3d,
        "ConvTranspose": nn.ConvTranspose3d,
        "InstanceNormalization": nn.InstanceNorm3d,
    }
    for node, layer in expected.items():
        wanted = sum(isinstance(module, layer) for module in network.modules())
        if counts[node] != wanted:
            raise ExportError(
                f"The graph has {counts[node]} {node} nodes for {wanted} {layer.__name__} layers: {counts}."
            )
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise ExportError(f"The graph's batch is fixed to {batch.dim_value}; it must be dynamic.")


def random_images(shape_zyx: tuple[int, int, int]) -> list[np.ndarray]:
    """Batches of noise, a constant and a step: (n, 1, z, y, x) float32 in 0..1, of batch sizes 1 and 3."""
    rng = np.random.default_rng(0)
    step = np.zeros((1, 1, *shape_zyx), np.float32)
    step[..., : shape_zyx[2] // 2] = 0.6
    return [
        rng.uniform(0, 1, (1, 1, *shape_zyx)).astype(np.float32),
        rng.normal(0.5, 0.2, (3, 1, *shape_zyx)).clip(0, 1).astype(np.float32),
        step,
    ]


def compare(trained: Trained, model: Path, images: list[np.ndarray]) -> dict[str, float]:
    """Largest absolute difference between torch FP32 and onnxruntime FP32 per output, over all images."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    worst = dict.fromkeys(trained.outputs, 0.0)
    for image in images:
        with torch.inference_mode():
            reference = [output.numpy() for output in trained.network(torch.from_numpy(image))]
        met = session.run(None, {"image": image})
        for name, a, b in zip(trained.outputs, reference, met, strict=True):
            difference = np.abs(a - b)
            if name == "offsets":
                difference = difference * (reference[0] > OFFSET_HEAT)
            worst[name] = max(worst[name], float(difference.max()))
    return worst


def check_differences(differences: dict[str, float]) -> None:
    """Raises ExportError when an output differs from torch by more than its tolerance, or is not a number."""
    for name, value in differences.items():
        if not value <= TOLERANCES[name]:
            raise ExportError(
                f"The exported {name} differs from torch by {value:.2e}; the limit is {TOLERANCES[name]:.0e}."
            )
