"""What numbers a network's tensors hold, measured in its FP32 graph, and which of them FP16 and INT8 can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from runtime.quantised_graph import INT8_MAX
from runtime.typed_graph import FP16_MAX, SAFE_RULE, low_names

MARGIN = 8.0
"""Numbers may be this many times larger, or smaller, than calibration met, and still be in FP16's range."""
ROUNDING_LIMIT = 1e-3
"""Largest relative error, root mean square, that rounding to FP16 may make in a tensor, a margin below what was met."""
CHUNK_BYTES = 256 * 2**20
"""Intermediate results that one run of the network is asked for, at most."""
KEPT_VALUES = 4096
"""Values of each tensor and image by which INT8's ranges are chosen."""
_STEP = 31
"""In large tensors every so many-th value is rounded to see what rounding does; no multiple of a row's length."""


@dataclass
class Range:
    """What was met of one tensor over all images.

    Args:
        largest: absolute value.
        rounding: worst relative error of rounding it to FP16, root mean square, ``MARGIN`` below what was met.
        values: some of its absolute values, drawn evenly.
    """

    largest: float = 0.0
    rounding: float = 0.0
    values: list[np.ndarray] = field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        """Take in the tensor's values on one more image."""
        flat = values.ravel()
        self.largest = float(np.maximum(self.largest, np.maximum(flat.max(initial=0.0), -flat.min(initial=0.0))))
        some = np.abs(flat[_STEP // 2 :: _STEP] if len(flat) > KEPT_VALUES * _STEP else flat)
        self.rounding = float(np.maximum(self.rounding, rounding_error(some / np.float32(MARGIN))))
        self.values.append(some[:: max(1, len(some) // KEPT_VALUES)].copy())

    @property
    def fits_fp16(self) -> bool:
        """Whether FP16 holds it, with a margin on both sides; written so that NaN doesn't."""
        return self.largest * MARGIN <= FP16_MAX and self.rounding <= ROUNDING_LIMIT


def rounding_error(values: np.ndarray) -> float:
    """Relative error, root mean square, of rounding float32 values to FP16; 0 for zeros alone."""
    with np.errstate(over="ignore", invalid="ignore"):
        wrong = values.astype(np.float16).astype(np.float32) - values
    size = float(np.linalg.norm(values.astype(np.float64)))
    return float(np.linalg.norm(wrong.astype(np.float64))) / size if size else 0.0


def low_tensors(model: onnx.ModelProto, keep: Sequence[str] = ()) -> frozenset[str]:
    """Names of the tensors and weights of an FP32 model that its FP16 graph holds in FP16."""
    low = low_names(model, keep_fp32=keep, rule=SAFE_RULE)
    floats = {weight.name for weight in model.graph.initializer if weight.data_type == TensorProto.FLOAT}
    floats |= {name for node in model.graph.node for name in node.output} | {i.name for i in model.graph.input}
    return frozenset(
        name for node in model.graph.node if node.name in low for name in (*node.input, *node.output) if name in floats
    )


def keep_fp32(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> tuple[str, ...]:
    """Names of the nodes that touch a tensor that FP16 can't hold, in the graph's order."""
    low = low_names(model, keep_fp32=(), rule=SAFE_RULE)
    return tuple(
        node.name
        for node in model.graph.node
        if node.name in low
        and any(name in ranges and not ranges[name].fits_fp16 for name in (*node.input, *node.output))
    )


def int8_inputs(model: onnx.ModelProto, keep: Sequence[str]) -> tuple[str, ...]:
    """Inputs of the convolutions that INT8 graphs quantise: those that a normalisation follows, but for the first.

    What reads the image itself and what gives the network's answer has no normalisation after it to take out an error
    of scale, or too few channels for one to average out.
    """
    normalised = {node.input[0] for node in model.graph.node if node.op_type == "InstanceNormalization"}
    image = model.graph.input[0].name
    return tuple(
        dict.fromkeys(
            node.input[0]
            for node in model.graph.node
            if node.op_type == "Conv"
            and node.output[0] in normalised
            and node.input[0] != image
            and node.name not in keep
        )
    )


def measure(model: onnx.ModelProto, tensors: frozenset[str], images: Sequence[np.ndarray]) -> dict[str, Range]:
    """What the named tensors of an FP32 model hold, over all images; weights once."""
    ranges = {name: Range() for name in sorted(tensors)}
    for weight in model.graph.initializer:
        if weight.name in ranges:
            ranges[weight.name].add(numpy_helper.to_array(weight))
    image_name = model.graph.input[0].name
    computed = {name for node in model.graph.node for name in node.output}
    for names, session in _sessions(model, sorted(tensors & computed)):
        for image in images:
            for name, values in zip(names, session.run(names, {image_name: image}), strict=True):
                ranges[name].add(values)
    if image_name in ranges:
        for image in images:
            ranges[image_name].add(image)
    return ranges


def clip_range(values: np.ndarray) -> float:
    """The absolute value that becomes 127: of all shares of the largest one that whose steps are least wrong.

    Args:
        values: absolute values, any number of them.
    """
    largest = float(values.max(initial=0.0))
    if largest == 0:
        return 1.0
    shares = np.linspace(0.1, 1.0, 46)

    def wrong(share: float) -> float:
        step = share * largest / INT8_MAX
        return float(np.mean((np.minimum(np.rint(values / step), INT8_MAX) * step - values) ** 2))

    return largest * float(min(shares, key=wrong))


def _sessions(model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """Sessions that give intermediate tensors as outputs, and which: so many at a time as ``CHUNK_BYTES`` allows."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.output)}
    sizes = {
        name: 4 * int(np.prod([max(1, d.dim_value) for d in values[name].type.tensor_type.shape.dim]))
        for name in tensors
    }
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    chunk: list[str] = []
    for i, name in enumerate(tensors):
        chunk.append(name)
        is_last = i + 1 == len(tensors)
        if is_last or sum(sizes[n] for n in chunk) + sizes[tensors[i + 1]] > CHUNK_BYTES:
            opened = onnx.ModelProto()
            opened.CopyFrom(model)
            own = {output.name for output in model.graph.output}
            extra = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in chunk if n not in own]
            opened.graph.output.extend(extra)
            yield (
                chunk,
                onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"]),
            )
            chunk = []
