"""Convolutions of concatenations taken apart: the same numbers, also in INT8 on the processor."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime.engines import openvino_cpu, preflights
from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan
from runtime.quantised_graph import quantise
from runtime.split_graph import without_concatenations

SIZE = 6
RANGES = {"encoded": 4.0, "joined": 4.0}


def u_net_step(sizes=(3, 5), seed=0, *, known=True, also_output=False):
    """Branches of ``sizes`` channels from one tensor, concatenated and convolved: a U-Net's skip connection."""
    rng = np.random.default_rng(seed)
    values = {"w0": rng.normal(0, 0.5, (4, 1, 3, 3, 3)), "b0": rng.normal(0, 0.5, 4)}
    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], pads=[1] * 6),
        helper.make_node("LeakyRelu", ["c0"], ["encoded"], alpha=0.01),
    ]
    for i, size in enumerate(sizes):
        values[f"wb{i}"] = rng.normal(0, 0.3, (size, 4, 3, 3, 3))
        nodes.append(helper.make_node("Conv", ["encoded", f"wb{i}"], [f"branch{i}"], pads=[1] * 6))
    values["w1"] = rng.normal(0, 0.3, (2, sum(sizes), 3, 3, 3))
    values["b1"] = rng.normal(0, 1, 2)
    nodes += [
        helper.make_node("Concat", [f"branch{i}" for i in range(len(sizes))], ["joined"], axis=1),
        helper.make_node("Conv", ["joined", "w1", "b1"], ["result"], pads=[1] * 6),
    ]
    space = [SIZE] * 3 if known else ["z", "y", "x"]
    outputs = [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["n", 2, *space])]
    if also_output:
        outputs.append(helper.make_tensor_value_info("joined", TensorProto.FLOAT, ["n", sum(sizes), *space]))
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, *space])],
        outputs,
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def run(model, image):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )  # fmt: skip
    return session.run(None, {"image": image})


def image_of(seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (2, 1, SIZE, SIZE, SIZE)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 2**16), known=st.booleans())
def test_the_network_says_the_same(sizes, seed, known):
    model = u_net_step(sizes, seed, known=known)
    split, plan = without_concatenations(model, PrecisionPlan(int8_ranges=RANGES), name="step")
    onnx.checker.check_model(split)
    assert not [node for node in split.graph.node if node.op_type == "Concat"]
    assert "joined" not in plan.int8_ranges
    np.testing.assert_allclose(run(split, image_of())[0], run(model, image_of())[0], atol=1e-4)


def test_rounding_is_no_coarser_than_it_was():
    model, plan = u_net_step(), PrecisionPlan(int8_ranges=RANGES)
    whole = run(quantise(model, plan, name="step"), image_of())[0]
    apart = run(quantise(*without_concatenations(model, plan, name="step"), name="step"), image_of())[0]
    exact = run(model, image_of())[0]
    # The parts' weights have steps of their own, finer where a part's weights are smaller: near, and no coarser.
    rounding = np.abs(whole - exact).mean()
    assert 0 < np.abs(apart - exact).mean() < 1.2 * rounding
    assert np.abs(apart - whole).mean() < 2 * rounding


def test_what_is_not_quantised_and_what_else_reads_the_concatenation_stays():
    unquantised = PrecisionPlan(int8_ranges={"encoded": 4.0})
    model = u_net_step()
    split, plan = without_concatenations(model, unquantised, name="step")
    assert [node.op_type for node in split.graph.node] == [node.op_type for node in model.graph.node]
    assert plan == unquantised
    model = u_net_step(also_output=True)
    split, _ = without_concatenations(model, PrecisionPlan(int8_ranges=RANGES), name="step")
    for ours, right in zip(run(split, image_of()), run(model, image_of()), strict=True):
        np.testing.assert_allclose(ours, right, atol=1e-4)


def test_unknown_channels_are_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setattr("runtime.split_graph._channels", lambda model: {})
    with pytest.raises(EngineError, match=r"step can't be run in int8.*branch0, branch1.*--precision fp32"):
        without_concatenations(u_net_step(), PrecisionPlan(int8_ranges=RANGES), name="step")


@pytest.mark.skipif("int8" not in preflights()["openvino"].precisions, reason="this processor offers no int8")
def test_openvino_computes_quantised_skip_connections_rightly(tmp_path, monkeypatch):
    path = tmp_path / "step.onnx"
    model, plan = u_net_step((64, 64), seed=3), PrecisionPlan(int8_ranges=RANGES)
    onnx.save(model, path)
    monkeypatch.setattr(openvino_cpu, "plan_beside", lambda file: plan)
    options = {"precision": "int8", "device": 0, "threads": 1, "reason": "test", "cache": tmp_path / "cache"}
    with openvino_cpu.open_session(path, **options) as session:
        (integers,) = session(image_of())
    rounded = run(quantise(*without_concatenations(model, plan, name="step"), name="step"), image_of())[0]
    step = np.abs(rounded - run(model, image_of())[0]).mean()
    assert np.abs(integers - rounded).mean() < step
