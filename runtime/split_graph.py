"""Convolutions of concatenated tensors as sums of convolutions of each: the same numbers without the copy.

OpenVINO 2026.4 computes a quantised convolution wrongly where it reads a concatenation of tensors (values off by half
their spread); the sums it computes rightly, and faster than what it makes of the concatenation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan


@dataclass(frozen=True)
class _Part:
    """One of the tensors that a convolution reads, by its name in the new graph, and the weights for its channels."""

    source: str
    name: str
    weight: np.ndarray


def without_concatenations(model: Any, plan: PrecisionPlan, *, name: str) -> tuple[Any, PrecisionPlan]:
    """A copy of an FP32 model whose quantised convolutions read no concatenation, and the plan for it.

    Args:
        model: an ``onnx.ModelProto``, FP32.
        plan: its ``int8_ranges`` say which tensors are quantised. Each part of a concatenation gets the whole's range,
            so that its numbers are rounded as they were; each part's weights get steps of their own, never coarser.
        name: the network's, for the message.

    Raises:
        EngineError: a part's number of channels is not known before the network runs.
    """
    import onnx
    from onnx import numpy_helper

    split = onnx.ModelProto()
    split.CopyFrom(model)
    graph = split.graph
    concatenations = {node.output[0]: list(node.input) for node in graph.node if node.op_type == "Concat"}
    weights = {weight.name: weight for weight in graph.initializer}
    channels = _channels(model)
    ranges = dict(plan.int8_ranges)
    nodes: list[Any] = []
    for node in graph.node:
        whole = node.input[0] if node.op_type == "Conv" else ""
        if whole not in concatenations or whole not in ranges:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])
        parts = _parts(concatenations[whole], weight, channels, node.output[0], name=name)
        graph.initializer.extend(numpy_helper.from_array(part.weight, f"{part.name}.weight") for part in parts)
        ranges |= {part.name: ranges[whole] for part in parts}
        nodes += _sum_of_convolutions(node, parts)
    _keep_what_is_read(graph, nodes)
    convolved = {node.input[0] for node in graph.node if node.op_type == "Conv"}
    return split, replace(plan, int8_ranges={tensor: limit for tensor, limit in ranges.items() if tensor in convolved})


def _keep_what_is_read(graph: Any, nodes: list[Any]) -> None:
    """Give a graph these nodes, but for concatenations that nothing reads any more, and the weights that they read."""
    read = {tensor for node in nodes for tensor in node.input} | {output.name for output in graph.output}
    kept = [node for node in nodes if node.op_type != "Concat" or node.output[0] in read]
    read = {tensor for node in kept for tensor in node.input}
    weights = [weight for weight in graph.initializer if weight.name in read]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)


def _channels(model: Any) -> dict[str, int]:
    """How many channels each tensor has, where that is fixed."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*inferred.value_info, *inferred.input)}
    return {name: axes[1].dim_value for name, axes in shapes.items() if len(axes) > 1}


def _parts(
    sources: list[str], weight: np.ndarray, channels: Mapping[str, int], result: str, *, name: str
) -> list[_Part]:
    """What each of the concatenated tensors contributes to the convolution that gives ``result``."""
    sizes = [channels.get(source, 0) for source in sources]
    if 0 in sizes or sum(sizes) != weight.shape[1]:
        raise EngineError(
            f"{name} can't be run in int8: a convolution of {weight.shape[1]} channels reads {', '.join(sources)}, "
            f"of which the numbers of channels are not known; use --precision fp32."
        )
    pieces = np.split(weight, np.cumsum(sizes)[:-1], axis=1)
    return [
        _Part(source, f"{source}.for.{result}", np.ascontiguousarray(piece))
        for source, piece in zip(sources, pieces, strict=True)
    ]


def _sum_of_convolutions(node: Any, parts: list[_Part]) -> list[Any]:
    """Nodes that give the same as ``node``, whose bias the first convolution adds."""
    import onnx
    from onnx import helper

    nodes, result = [], node.output[0]
    outputs = [f"{result}.{i}" for i in range(len(parts))]
    sums = [outputs[0], *(f"{result}.sum{i}" for i in range(1, len(parts) - 1)), result]
    for i, part in enumerate(parts):
        one = onnx.NodeProto()
        one.CopyFrom(node)
        one.name, one.output[0] = f"{node.name}.{i}", outputs[i]
        one.input[0], one.input[1] = part.name, f"{part.name}.weight"
        if i:
            del one.input[2:]
        nodes += [helper.make_node("Identity", [part.source], [part.name]), one]
    if len(parts) == 1:
        nodes[-1].output[0] = result
    adds = zip(sums, outputs[1:], sums[1:], strict=False)
    return nodes + [helper.make_node("Add", [so_far, output], [total]) for so_far, output, total in adds]
