"""Graphs for Turing say what the graphs they were made of say, without a matrix product."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from runtime.bundle import DEFAULT_BUNDLE, open_bundle
from runtime.engines.parity import network_spec, probe_images, processor_session
from runtime.errors import EngineError
from runtime.rounded_graph import rounded_graph
from runtime.turing_graph import without_matrix_products
from runtime.typed_graph import typed_graph

FILES = [network.file for network in open_bundle().spec.networks]


def run(content, image, folder):
    path = folder / "network.onnx"
    path.write_bytes(content)
    with processor_session(path) as session:
        return dict(zip(session.output_names, session(image), strict=True))


@pytest.mark.parametrize("file", FILES)
def test_the_default_bundles_networks_say_the_same(file, tmp_path):
    typed = typed_graph(DEFAULT_BUNDLE / file, "fp16")
    rewritten = without_matrix_products(typed)
    operations = {node.op_type for node in onnx.load_from_string(rewritten).graph.node}
    assert "Gemm" not in operations
    assert ("ReduceSum" in operations) == (file != "locnet.onnx")
    image = probe_images(network_spec(DEFAULT_BUNDLE / file))[1]
    for graph, other in ((typed, rewritten), (rounded_graph(typed), rounded_graph(rewritten))):
        expected, met = run(graph, image, tmp_path), run(other, image, tmp_path)
        assert list(met) == list(expected)
        for name in expected:
            np.testing.assert_allclose(met[name], expected[name], atol=1e-4)


def layer(**attributes):
    """y = x w + b, or by its attributes something else."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("y", 3)))
    rng = np.random.default_rng(0)
    shape = (3, 4) if attributes.get("transB") else (4, 3)
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(size=3).astype(np.float32), "b"),
    ]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", **attributes)
    graph = helper.make_graph([node], "layer", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 1.0, "beta": 1.0}])
def test_a_layer_is_the_same_sum(attributes):
    model = layer(**attributes)
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    w, b = (numpy_helper.to_array(weight) for weight in model.graph.initializer)
    rewritten = onnx.load_from_string(without_matrix_products(model.SerializeToString()))
    (y,) = ReferenceEvaluator(rewritten).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ (w.T if attributes.get("transB") else w) + b, rtol=1e-5, atol=1e-6)
    assert {weight.name for weight in rewritten.graph.initializer} == {"b", "y.rows", "y.1", "y.2"}


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"beta": 0.5}])
def test_what_is_no_fully_connected_layer_is_refused(attributes):
    with pytest.raises(EngineError, match="layer is no fully connected layer"):
        without_matrix_products(layer(**attributes).SerializeToString())
