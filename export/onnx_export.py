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
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.checkpoint import Trained
from runtime.errors import VertscanError

OPSET = 20
TOLERANCES = {"heatmap": 1e-4, "offsets": 1e-3, "mask": 1e-3, "grade": 1e-3, "heights": 5e-2, "level": 1e-3}
"""Largest absolute difference from torch that is let through: probabilities, voxels, and millimetres for heights."""
OFFSET_HEAT = 0.1
"""Offsets are compared where the heatmap exceeds this: elsewhere nobody reads them."""


class ExportError(VertscanError):
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
        model = onnx.load(temporary)
        drop_traces(model)
        onnx.save(model, temporary)
        check_nodes(model, trained.network)
        differences = compare(trained, temporary, random_images(trained.example_zyx))
        check_differences(differences)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return differences


def drop_traces(model: onnx.ModelProto) -> None:
    """Take out what the exporter notes for debugging: stack traces, and so paths of the machine it ran on."""
    graph = model.graph
    for annotated in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del annotated.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""


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
    """Largest absolute difference between torch FP32 and the graph per output, over all images.

    The graph is run by onnxruntime with its normalisations written out in double precision: what is checked is the
    graph and its weights, not the rounding of one engine's normalisation kernel (decision 0005; export.verify measures
    that).
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    accurate = with_exact_norms(onnx.load(model)).SerializeToString()
    session = onnxruntime.InferenceSession(accurate, options, providers=["CPUExecutionProvider"])
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


def with_exact_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every InstanceNormalization over (n, c, z, y, x) is written out in double precision."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = [part for node in copy.graph.node for part in _exact(node)]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    constants = {"exact.axes": [2, 3, 4], "exact.shape": [1, -1, 1, 1, 1]}
    copy.graph.initializer.extend(numpy_helper.from_array(np.array(v), name) for name, v in constants.items())
    return copy


def _exact(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if node.op_type != "InstanceNormalization":
        return [node]
    x, scale, bias = node.input
    (out,) = node.output
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)

    def at(step: str) -> str:
        return f"exact.{out}.{step}"

    return [
        helper.make_node("Cast", [x], [at("x")], to=TensorProto.DOUBLE),
        helper.make_node("ReduceMean", [at("x"), "exact.axes"], [at("mean")]),
        helper.make_node("Sub", [at("x"), at("mean")], [at("centred")]),
        helper.make_node("Mul", [at("centred"), at("centred")], [at("square")]),
        helper.make_node("ReduceMean", [at("square"), "exact.axes"], [at("variance")]),
        helper.make_node("Constant", [], [at("epsilon")], value=numpy_helper.from_array(np.array(epsilon, np.float64))),
        helper.make_node("Add", [at("variance"), at("epsilon")], [at("sum")]),
        helper.make_node("Sqrt", [at("sum")], [at("deviation")]),
        helper.make_node("Div", [at("centred"), at("deviation")], [at("normal")]),
        helper.make_node("Cast", [at("normal")], [at("float")], to=TensorProto.FLOAT),
        helper.make_node("Reshape", [scale, "exact.shape"], [at("scale")]),
        helper.make_node("Reshape", [bias, "exact.shape"], [at("bias")]),
        helper.make_node("Mul", [at("float"), at("scale")], [at("scaled")]),
        helper.make_node("Add", [at("scaled"), at("bias")], [out]),
    ]


def check_differences(differences: dict[str, float]) -> None:
    """Raises ExportError when an output differs from torch by more than its tolerance, or is not a number."""
    for name, value in differences.items():
        if not value <= TOLERANCES[name]:
            raise ExportError(
                f"The exported {name} differs from torch by {value:.2e}; the limit is {TOLERANCES[name]:.0e}."
            )
