"""INT8 by explicit Q/DQ nodes: symmetric, weights per output channel, activations per tensor at calibrated ranges."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan

INT8_MAX = 127


def quantise(model: Any, plan: PrecisionPlan, *, name: str) -> Any:
    """A copy of an FP32 model whose convolutions read quantised numbers, where the plan has a range for their input.

    Args:
        model: an ``onnx.ModelProto``, FP32.
        plan: its ``int8_ranges`` say which tensors.
        name: the network's, for the message.

    Raises:
        EngineError: the plan has no ranges, or ranges for tensors that no convolution reads.
    """
    import onnx

    check_offered(plan, name=name)
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    read = {node.input[0] for node in graph.node if node.op_type == "Conv"}
    unknown = sorted(set(plan.int8_ranges) - read)
    if unknown:
        raise EngineError(f"The precision plan is another network's: no convolution reads {', '.join(unknown[:3])}.")
    nodes: list[Any] = []
    done: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv" and node.input[0] in plan.int8_ranges:
            source, weight = node.input[0], node.input[1]
            if source not in done:
                done.add(source)
                nodes += _quantised_tensor(graph, source, plan.int8_ranges[source])
            nodes.append(_quantised_weight(graph, weight))
            node.input[0], node.input[1] = f"{source}.dq", f"{weight}.dq"
        nodes.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {tensor for node in graph.node for tensor in node.input}
    kept = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return quantised


def check_offered(plan: PrecisionPlan, *, name: str) -> None:
    """Raise EngineError where a network may not be run in INT8."""
    if plan.why_no_int8:
        raise EngineError(
            f"{name} is not offered in int8: {plan.why_no_int8}. Use fp16, or calibrate it: python -m export.calibrate."
        )


def quantised_convolutions(model: Any, plan: PrecisionPlan) -> int:
    """How many convolutions of an FP32 model read quantised numbers by a plan."""
    return sum(node.op_type == "Conv" and node.input[0] in plan.int8_ranges for node in model.graph.node)


def weight_scales(weight: np.ndarray) -> np.ndarray:
    """Per output channel of (out, in, z, y, x) weights, what one step is worth; float32, positive."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    return np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(INT8_MAX)


def _quantised_tensor(graph: Any, name: str, limit: float) -> list[Any]:
    """Nodes that round a tensor to 255 steps between -limit and limit."""
    from onnx import helper, numpy_helper

    scale, zero = f"{name}.scale", f"{name}.zero"
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(limit / INT8_MAX), scale),
            numpy_helper.from_array(np.int8(0), zero),
        ]
    )
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.q"], name=f"quantize.{name}"),
        helper.make_node("DequantizeLinear", [f"{name}.q", scale, zero], [f"{name}.dq"], name=f"dequantize.{name}"),
    ]


def _quantised_weight(graph: Any, name: str) -> Any:
    """Replaces a weight by whole numbers and their scales; the node that widens them."""
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(next(weight for weight in graph.initializer if weight.name == name))
    scales = weight_scales(values)
    steps = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
    graph.initializer.extend(
        [
            numpy_helper.from_array(steps, f"{name}.q"),
            numpy_helper.from_array(scales, f"{name}.scale"),
            numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{name}.zero"),
        ]
    )
    inputs = [f"{name}.q", f"{name}.scale", f"{name}.zero"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], name=f"dequantize.{name}", axis=0)
