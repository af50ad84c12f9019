"""The gate bites: what is safe passes it on drawn windows, the naive conversion does not once its norms overflow."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from runtime.bundle import DEFAULT_BUNDLE, open_bundle
from runtime.engines import openvino_cpu, ort_library
from runtime.engines.parity import LIMITS, compare_crops, compare_maps, faults, probe_images, rounding_session
from runtime.engines.trt_gate import gate_for
from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan
from runtime.rounded_graph import rounded_graph
from runtime.typed_graph import load_graph, serialise, typed_graph, typed_model
from runtime.volume import Grid
from tests.runtime.naive_graph import naive_fp16, scaled

SPEC = open_bundle().spec
OVERFLOW = 2000.0
"""Convolutions then give some thousands: in FP16's range, whose squares are not."""


def first_weight(model):
    """The name of the weights of the convolution that reads the image."""
    return next(node.input[1] for node in model.graph.node if node.op_type == "Conv")


def run(tmp_path, content, image):
    """What a graph gives, by name."""
    (tmp_path / "network.onnx").write_bytes(content)
    with rounding_session(tmp_path / "network.onnx") as session:
        return dict(zip(session.output_names, session(image), strict=True))


def judge(name, right, met):
    """Figures and faults of one network's outputs on one image, by the gate's own measures."""
    spec = getattr(SPEC, name)
    if name == "locnet":
        grid = Grid(spec.window_zyx, np.diag([*[spec.spacing_mm] * 3, 1.0]))
        ours, theirs = ((maps["heatmap"][0, 0], maps["offsets"][0]) for maps in (right, met))
        found = compare_maps(ours, theirs, grid, spec)
    else:
        found = compare_crops(right, met, threshold=spec.mask_threshold)
    return found, faults(found, LIMITS["fp16"])


@pytest.mark.parametrize("name", ["locnet", "fracsegnet"])
def test_fp32_norms_pass_the_gate_that_fp16_norms_fail_once_they_overflow(name, tmp_path):
    image = probe_images(getattr(SPEC, name))[0]
    model = load_graph(DEFAULT_BUNDLE / f"{name}.onnx")
    model = scaled(model, first_weight(model), OVERFLOW)
    right = run(tmp_path, serialise(model), image)
    found, wrong = judge(name, right, run(tmp_path, rounded_graph(serialise(typed_model(model, "fp16"))), image))
    assert wrong == ()
    assert found.centres + found.masks > 0, "there was something to lose"
    found, wrong = judge(name, right, run(tmp_path, rounded_graph(naive_fp16(model)), image))
    assert wrong != ()
    assert found.not_finite or found.centres_lost or found.dice < 0.999


def test_the_factor_changes_nothing_in_fp32():
    original = load_graph(DEFAULT_BUNDLE / "locnet.onnx")
    model = scaled(original, first_weight(original), OVERFLOW)
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    before = {w.name: numpy_helper.to_array(w) for w in original.graph.initializer}
    first = first_weight(original)
    np.testing.assert_allclose(weights[first], OVERFLOW * before[first], rtol=1e-6)
    assert all((weights[n] == before[n]).all() for n in before if n != first)


def test_rounding_is_not_left_to_an_engine_that_leaves_it_out(monkeypatch, tmp_path):
    """OpenVINO gives what FP32 gives: the gate would pass whatever overflows."""
    image = probe_images(SPEC.fracsegnet)[0]
    model = load_graph(DEFAULT_BUNDLE / "fracsegnet.onnx")
    model = scaled(model, first_weight(model), OVERFLOW)
    naive = tmp_path / "naive.onnx"
    naive.write_bytes(rounded_graph(naive_fp16(model)))
    with openvino_cpu.open_session(naive, precision="fp32", device=0, threads=None, reason="") as session:
        unrounded = dict(zip(session.output_names, session(image), strict=True))
    assert judge("fracsegnet", run(tmp_path, serialise(model), image), unrounded)[1] == ()

    monkeypatch.setattr(ort_library, "find_spec", lambda name: None)
    gate = gate_for(DEFAULT_BUNDLE / "fracsegnet.onnx", precision="fp16", library="tensorrt-rtx")
    (tmp_path / "typed.onnx").write_bytes(serialise(typed_model(model, "fp16")))
    with pytest.raises(EngineError, match=r"pip install onnxruntime\."):
        gate(tmp_path / "typed.onnx")


@pytest.mark.parametrize("name", ["locnet", "fracsegnet"])
def test_what_is_typed_fp16_is_in_range_on_every_drawn_window(name, tmp_path):
    """Every tensor of the FP16 graph, looked at in its rounded twin: none infinite, and far from the end."""
    content = rounded_graph(typed_graph(DEFAULT_BUNDLE / f"{name}.onnx", "fp16", plan=PrecisionPlan()))
    model = onnx.load_from_string(content)
    rounded = [node.output[0] for node in model.graph.node if node.name.startswith("widen.")]
    largest = [f"{tensor}.largest" for tensor in rounded]
    for tensor in rounded:
        model.graph.node.extend(
            [
                onnx.helper.make_node("Abs", [tensor], [f"{tensor}.abs"]),
                onnx.helper.make_node("ReduceMax", [f"{tensor}.abs"], [f"{tensor}.largest"], keepdims=0),
            ]
        )
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"{tensor}.largest", 1, []))
    (tmp_path / "watched.onnx").write_bytes(model.SerializeToString())
    assert len(rounded) > 40
    with rounding_session(tmp_path / "watched.onnx") as session:
        for image in probe_images(getattr(SPEC, name)):
            met = dict(zip(session.output_names, session._session.run(None, {"image": image}), strict=True))
            assert max(float(met[one]) for one in largest) < 65504 / 8
