"""The conversion that others make: every node in FP16, instance normalisation too. Here to show that the gate bites."""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from runtime.typed_graph import Rule, serialise, typed_model


def naive_fp16(model):
    """The typed graph, serialised, with normalisations written out and computed in FP16 like the rest."""
    written_out = with_norms_written_out(model)
    kinds = frozenset(node.op_type for node in written_out.graph.node)
    return serialise(typed_model(written_out, "fp16", rule=Rule(low=kinds)))


def with_norms_written_out(model):
    """A copy whose instance normalisations are means, differences and squares, as FP16 kernels compute them."""
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes = [part for node in copy.graph.node for part in _written_out(node)]
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.graph.node.extend(nodes)
    constants = {"naive.axes": np.array([2, 3, 4]), "naive.shape": np.array([1, -1, 1, 1, 1])}
    constants["naive.epsilon"] = np.float32(1e-5)
    copy.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    return copy


def _written_out(node):
    if node.op_type != "InstanceNormalization":
        return [node]
    x, scale, shift = node.input
    (out,) = node.output
    steps = [
        ("ReduceMean", [x, "naive.axes"], "mean"),
        ("Sub", [x, "mean"], "centred"),
        ("Mul", ["centred", "centred"], "square"),
        ("ReduceMean", ["square", "naive.axes"], "variance"),
        ("Add", ["variance", "naive.epsilon"], "sum"),
        ("Sqrt", ["sum"], "deviation"),
        ("Div", ["centred", "deviation"], "normal"),
        ("Reshape", [scale, "naive.shape"], "scale"),
        ("Reshape", [shift, "naive.shape"], "shift"),
        ("Mul", ["normal", "scale"], "scaled"),
        ("Add", ["scaled", "shift"], out),
    ]
    own = {name for _, _, name in steps[:-1]}

    def at(name):
        return f"{out}.{name}" if name in own else name

    return [
        helper.make_node(kind, [at(name) for name in inputs], [at(name)], name=f"{out}.{kind}.{i}")
        for i, (kind, inputs, name) in enumerate(steps)
    ]


def scaled(model, weight, factor):
    """A copy with one weight multiplied: before a normalisation that changes nothing in exact arithmetic."""
    copy = ModelProto()
    copy.CopyFrom(model)
    (found,) = (w for w in copy.graph.initializer if w.name == weight)
    found.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found) * np.float32(factor), weight))
    return copy


def types_of(model):
    """Node name to the type of its first output."""
    values = (*model.graph.value_info, *model.graph.output, *model.graph.input)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    return {node.name: TensorProto.DataType.Name(types[node.output[0]]) for node in model.graph.node}
