"""An FP32 ONNX graph made into a strongly typed FP16, BF16 or INT8 one, whose precision is in the graph itself.

Convolutions, and what lies between them and only moves or clips numbers, are computed in the low type. All else stays
FP32: instance normalisation, whose sums of squares overflow FP16, sigmoid, softmax, pooling to vectors, fully connected
layers, and the inputs and outputs. Casts stand where the two meet. The same graph always gives the same bytes.

The package ``onnx`` is imported when a function is called: it comes with the extras of the engines that need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle_checks import BUNDLE_JSON
from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
TYPED_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
CONVERSION = 1
"""Goes up when the graph that is made of a file changes, so that engines built from the old one are built again."""
FP16_MAX = 65504.0
_BF16_OPSET = 22
"""The first in which convolutions and pooling take BF16."""


@dataclass(frozen=True)
class Rule:
    """Which node types are computed in the low type.

    Args:
        low: always, unless the plan keeps the node in FP32.
        follows: when what they give goes into such a node, directly or through others of these: in FP32 they would
            cost two casts and save nothing.
    """

    low: frozenset[str] = CONVOLUTIONS
    follows: frozenset[str] = frozenset(
        {"LeakyRelu", "Relu", "MaxPool", "Concat", "Slice", "Identity", "QuantizeLinear", "DequantizeLinear"}
    )


SAFE_RULE = Rule()
BF16_RULE = Rule(low=frozenset({"Conv"}))
"""TensorRT-RTX 1.7 builds no transposed convolution in BF16."""


def typed_graph(onnx: Path, precision: str, *, plan: PrecisionPlan | None = None) -> bytes:
    """The network of an FP32 ONNX file as a strongly typed graph, serialised.

    Args:
        onnx: the file, as bundles hold it.
        precision: ``"fp32"`` (the file's own bytes), ``"fp16"``, ``"bf16"``, or ``"int8"``: convolutions on quantised
            numbers by explicit Q/DQ nodes, the rest as in FP16.
        plan: what calibration found; None for the one in the ``bundle.json`` beside the file, or the rule alone where
            there is none.

    Returns:
        An ONNX model with the names, shapes, FP32 inputs and outputs and dynamic batch of the file.

    Raises:
        EngineError: no such precision or file, the file is no FP32 network, ``onnx`` is missing, or the plan doesn't
            offer INT8.
    """
    if precision not in TYPED_PRECISIONS:
        raise EngineError(f"There is no precision {precision!r}; there are {', '.join(TYPED_PRECISIONS)}.")
    model = load_graph(onnx)
    if precision == "fp32":
        return onnx.read_bytes()
    plan = plan_beside(onnx) if plan is None else plan
    if precision == "int8":
        from runtime.quantised_graph import quantise

        model = quantise(model, plan, name=onnx.name)
    keep = () if precision == "bf16" else plan.fp16_keep_fp32
    return serialise(typed_model(model, "bf16" if precision == "bf16" else "fp16", keep_fp32=keep))


def plan_beside(onnx: Path) -> PrecisionPlan:
    """The plan for a network by the ``bundle.json`` beside it; the empty plan where that has none.

    Raises:
        BundleError: there is a ``bundle.json``, which can't be read.
    """
    if not (onnx.parent / BUNDLE_JSON).is_file():
        return PrecisionPlan()
    from runtime.bundle import read_spec

    return read_spec(onnx.parent).precision.get(onnx.name, PrecisionPlan())


def load_graph(path: Path) -> Any:
    """The ONNX model in a file, checked.

    Raises:
        EngineError: there is no file, it is no sound ONNX model, or ``onnx`` is missing.
    """
    if find_spec("onnx") is None:
        raise EngineError("Typed graphs need the package onnx; install it with: pip install onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
    except OSError as error:
        raise EngineError(f"The network {path} cannot be read ({error.strerror}).") from error
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EngineError(f"{path} is no sound ONNX network: {str(error).strip().splitlines()[0]}.") from error
    return model


def serialise(model: Any) -> bytes:
    """The model as bytes, the same for the same model."""
    return bytes(model.SerializeToString(deterministic=True))


def typed_model(model: Any, low: str, *, keep_fp32: Iterable[str] = (), rule: Rule | None = None) -> Any:
    """A strongly typed copy of an FP32 model.

    Args:
        model: an ``onnx.ModelProto``.
        low: ``"fp16"`` or ``"bf16"``.
        keep_fp32: names of nodes that stay FP32 whatever the rule says.
        rule: which nodes get the low type; None for ``SAFE_RULE``, or ``BF16_RULE``.

    Raises:
        EngineError: a weight doesn't fit into the low type, or a node to keep isn't there.
    """
    import onnx

    low_type = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[low]
    rule = rule or (BF16_RULE if low == "bf16" else SAFE_RULE)
    model = _at_least(model, _BF16_OPSET) if low == "bf16" else model
    typed = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    for i, node in enumerate(typed.graph.node):
        node.name = node.name or f"{node.op_type}.{i}"
    _Casts(typed.graph, low_type, low_names(typed, keep_fp32=keep_fp32, rule=rule)).apply()
    del typed.graph.value_info[:]
    typed = onnx.shape_inference.infer_shapes(typed, check_type=True, strict_mode=True)
    onnx.checker.check_model(typed, full_check=True)
    return typed


def low_names(model: Any, *, keep_fp32: Iterable[str], rule: Rule) -> frozenset[str]:
    """Names of the nodes that get the low type.

    Raises:
        EngineError: ``keep_fp32`` names a node that isn't there: the plan is another network's.
    """
    nodes = list(model.graph.node)
    keep = set(keep_fp32)
    unknown = sorted(keep - {node.name for node in nodes})
    if unknown:
        raise EngineError(f"The precision plan is another network's: there is no node {', '.join(unknown[:3])}.")
    low = {node.name for node in nodes if node.op_type in rule.low and node.name not in keep}
    wanted_low: set[str] = set()
    for node in reversed(nodes):  # ONNX nodes stand in the order of computing, so users are met before makers
        if node.op_type in rule.follows and node.name not in keep and wanted_low & set(node.output):
            low.add(node.name)
        if node.name in low:
            wanted_low.update(node.input)
    return frozenset(low)


class _Casts:
    """Rewrites a graph in place: low nodes take and give the low type, the others FP32.

    Args:
        graph: of a model whose every value's type was inferred.
        low_type: of ``onnx.TensorProto``.
        low_nodes: names of the nodes that get it.
    """

    def __init__(self, graph: Any, low_type: int, low_nodes: frozenset[str]) -> None:
        from onnx import TensorProto

        self.graph, self.low_type, self.low_nodes, self.fp32 = graph, low_type, low_nodes, TensorProto.FLOAT
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.outputs = {output.name for output in graph.output}
        types = {name: weight.data_type for name, weight in self.weights.items()}
        for value in (*graph.input, *graph.value_info, *graph.output):
            types[value.name] = value.type.tensor_type.elem_type
        self.floats = {name for name, type_ in types.items() if type_ == self.fp32}
        self.low: set[str] = set()
        self.nodes: list[Any] = []
        self.made: dict[tuple[str, int], str] = {}

    def apply(self) -> None:
        """Rewrite the graph."""
        for node in list(self.graph.node):
            wanted = self.low_type if node.name in self.low_nodes else self.fp32
            for i, name in enumerate(node.input):
                if name in self.floats:
                    node.input[i] = self._as(name, wanted)
            self.nodes.append(node)
            if wanted != self.fp32:
                self._give_low(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [weight for weight in self.weights.values() if weight.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _give_low(self, node: Any) -> None:
        """Note that a node's outputs are in the low type; the graph's own outputs are cast back and keep their name."""
        for i, name in enumerate(node.output):
            if name in self.outputs:
                node.output[i] = self.made[name, self.low_type] = f"{name}.{_TAGS[self.low_type]}"
                self._cast(node.output[i], name, self.fp32)
            elif name in self.floats:
                self.low.add(name)

    def _as(self, name: str, wanted: int) -> str:
        """The name under which a tensor is there in the wanted type; a cast is added the first time."""
        if (self.low_type if name in self.low else self.fp32) == wanted:
            return name
        if (name, wanted) not in self.made:
            made = self.made[name, wanted] = f"{name}.{_TAGS[wanted]}"
            if name in self.weights:
                self.weights[made] = _cast_weight(self.weights[name], made, wanted)
            else:
                self._cast(name, made, wanted)
        return self.made[name, wanted]

    def _cast(self, name: str, made: str, wanted: int) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Cast", [name], [made], name=f"cast.{made}", to=wanted))


_TAGS: Mapping[int, str] = {1: "fp32", 10: "fp16", 16: "bf16"}


def _cast_weight(weight: Any, name: str, wanted: int) -> Any:
    """A weight in the low type, rounded to nearest even.

    Raises:
        EngineError: it has a value that the type can't hold.
    """
    import onnx
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(weight)
    if wanted == onnx.TensorProto.FLOAT16:
        largest = np.abs(values).max(initial=0.0)
        if largest > FP16_MAX:
            raise EngineError(
                f"The weight {weight.name} reaches {largest:.3g}, more than FP16's {FP16_MAX:g}: calibrate the bundle "
                "with python -m export.calibrate, or use fp32 or bf16."
            )
        return numpy_helper.from_array(values.astype(np.float16), name)
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(wanted)), name)


def _at_least(model: Any, opset: int) -> Any:
    """The model in that opset, or in its own where that is newer."""
    import onnx

    own = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return model if own >= opset else onnx.version_converter.convert_version(model, opset)
