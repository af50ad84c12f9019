"""Typed graphs for Turing (SM 75), for which TensorRT-RTX has neither convolutions nor matrix products in FP32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runtime.errors import EngineError

_PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0}


def without_matrix_products(graph: bytes) -> bytes:
    """A typed graph whose fully connected layers are products and sums of single numbers, still in FP32.

    The layers are small, so what that costs is not seen; in FP16 they would round what grades are read from.

    Args:
        graph: what ``runtime.typed_graph.typed_graph`` gave, in FP16 or INT8.

    Raises:
        EngineError: a matrix product in it is none of a fully connected layer.
    """
    import onnx

    model = onnx.load_from_string(graph)
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes = [one for node in model.graph.node for one in _rewritten(node, weights)]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    model.graph.initializer.extend(weight for weight in weights.values() if weight.name in used)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _rewritten(node: Any, weights: dict[str, Any]) -> Iterator[Any]:
    """The nodes in a node's place: of x (n, i) and weights (o, i) the sum over i of x (n, 1, i) times weights."""
    import numpy as np
    from onnx import helper, numpy_helper

    if node.op_type != "Gemm":
        yield node
        return
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    is_layer = len(node.input) == 3 and node.input[1] in weights
    if not is_layer or any(attributes.get(name, value) != value for name, value in _PLAIN.items()):
        raise EngineError(f"{node.name} is no fully connected layer, so it cannot be computed on Turing (SM 75).")
    matrix = numpy_helper.to_array(weights[node.input[1]])
    rows = np.ascontiguousarray(matrix if attributes.get("transB") else matrix.T)[None]
    out = node.output[0]
    for name, value in (("rows", rows), ("1", np.array([1])), ("2", np.array([2]))):
        weights[f"{out}.{name}"] = numpy_helper.from_array(value, f"{out}.{name}")
    yield helper.make_node("Unsqueeze", [node.input[0], f"{out}.1"], [f"{out}.column"], name=f"{node.name}.column")
    yield helper.make_node("Mul", [f"{out}.column", f"{out}.rows"], [f"{out}.products"], name=f"{node.name}.products")
    sums = [f"{out}.products", f"{out}.2"]
    yield helper.make_node("ReduceSum", sums, [f"{out}.sums"], name=f"{node.name}.sums", keepdims=0)
    yield helper.make_node("Add", [f"{out}.sums", node.input[2]], [out], name=node.name)
