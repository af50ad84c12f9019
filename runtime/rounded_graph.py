"""What a typed graph says, told by a processor: the same graph in FP32, rounded to the low type at every step.

Engines for processors don't run FP16 graphs as they are written: onnxruntime computes them in FP32 and leaves out
rounding on the way, so what overflows FP16 on a GPU does not there, and a check by it could not fail. Here every tensor
that is FP16 or BF16 in the typed graph is computed in FP32, then cast to that type and back. So do tensor cores: they
add up in FP32 and round what they store.
"""

from __future__ import annotations

from typing import Any

_EXACT_MOVES = frozenset({"MaxPool", "Concat", "Slice", "Identity", "Reshape", "Relu"})
"""Nodes that give numbers that they were given, or 0: nothing to round."""


def rounded_graph(typed: bytes) -> bytes:
    """The FP32 graph that computes what a typed graph means.

    Args:
        typed: what ``runtime.typed_graph.typed_graph`` gave.

    Returns:
        An ONNX model with the same inputs, outputs and node names, in which infinities appear where the low type
        overflows.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(typed)
    graph = model.graph
    low_types = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    for weight in graph.initializer:
        if weight.data_type in low_types:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype("float32"), weight.name))
    nodes: list[Any] = []
    for node in graph.node:
        (out, *_), low = node.output, types.get(node.output[0])
        nodes.append(node)
        if node.op_type == "Cast" and low not in low_types and types.get(node.input[0]) in low_types:
            nodes[-1] = helper.make_node("Identity", node.input, node.output, name=node.name)
        elif low in low_types and node.op_type not in _EXACT_MOVES:
            node.output[0] = exact = f"{out}.exact"
            if node.op_type == "Cast":
                nodes[-1] = helper.make_node("Identity", node.input, [exact], name=node.name)
            nodes.append(helper.make_node("Cast", [exact], [f"{out}.rounded"], name=f"round.{out}", to=low))
            nodes.append(helper.make_node("Cast", [f"{out}.rounded"], [out], name=f"widen.{out}", to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
