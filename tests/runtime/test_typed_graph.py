"""Typed graphs: which type each node gets, that nothing else changes, and what rounding and overflow then do."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle import DEFAULT_BUNDLE, open_bundle
from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan
from runtime.quantised_graph import quantise, weight_scales
from runtime.rounded_graph import rounded_graph
from runtime.typed_graph import CONVERSION, CONVOLUTIONS, load_graph, plan_beside, serialise, typed_graph, typed_model
from tests.runtime.naive_graph import naive_fp16, scaled, types_of

NETWORKS = ("locnet.onnx", "fracsegnet.onnx", "levelnet.onnx")
LOW = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}
FP32_KINDS = {"InstanceNormalization", "Sigmoid", "Softmax", "Gemm", "AveragePool"}


def small_network(seed=0, scale=1.0):
    """Convolution, normalisation, pooling, the way up again with a skip, and a sigmoid: (n, 1, 8, 8, 8)."""
    rng = np.random.default_rng(seed)

    def weight(name, *shape):
        return numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), name)

    weights = [weight("w1", 4, 1, 3, 3, 3), weight("w2", 6, 4, 3, 3, 3), weight("up", 6, 4, 2, 2, 2)]
    weights += [weight("w3", 2, 8, 1, 1, 1), weight("b3", 2)]
    for i, n in ((1, 4), (2, 6)):
        weights += [weight(f"g{i}", n), weight(f"h{i}", n)]
    weights[0] = numpy_helper.from_array(numpy_helper.to_array(weights[0]) * np.float32(scale), "w1")
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], name="conv1", pads=[1] * 6),
        helper.make_node("InstanceNormalization", ["c1", "g1", "h1"], ["n1"], name="norm1"),
        helper.make_node("LeakyRelu", ["n1"], ["a1"], name="act1", alpha=0.01),
        helper.make_node("MaxPool", ["a1"], ["p1"], name="pool1", kernel_shape=[2] * 3, strides=[2] * 3),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], name="conv2", pads=[1] * 6),
        helper.make_node("InstanceNormalization", ["c2", "g2", "h2"], ["n2"], name="norm2"),
        helper.make_node("LeakyRelu", ["n2"], ["a2"], name="act2", alpha=0.01),
        helper.make_node("ConvTranspose", ["a2", "up"], ["u"], name="up1", strides=[2] * 3),
        helper.make_node("Concat", ["u", "a1"], ["cat"], name="cat1", axis=1),
        helper.make_node("Conv", ["cat", "w3", "b3"], ["offsets"], name="head"),
        helper.make_node("Sigmoid", ["offsets"], ["heatmap"], name="sigmoid"),
    ]
    size = ["n", 2, 8, 8, 8]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name in ("heatmap", "offsets")],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model, image):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(
        None, {"image": image}
    )


def image_of(seed=1, n=1):
    return np.random.default_rng(seed).uniform(0, 1, (n, 1, 8, 8, 8)).astype(np.float32)


def signature(model):
    return [
        (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*model.graph.input, *model.graph.output)
    ]


# Types.


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("file", NETWORKS)
def test_convolutions_are_low_and_norms_sigmoids_and_vectors_are_fp32(file, precision):
    path = DEFAULT_BUNDLE / file
    content = typed_graph(path, precision, plan=PrecisionPlan())
    assert content == typed_graph(path, precision, plan=PrecisionPlan())
    original, typed = onnx.load(path), onnx.load_from_string(content)
    onnx.checker.check_model(typed, full_check=True)
    assert signature(typed) == signature(original)
    types, kinds = types_of(typed), {node.name: node.op_type for node in typed.graph.node}
    low = {"Conv"} if precision == "bf16" else CONVOLUTIONS
    for name, kind in kinds.items():
        if kind in low:
            assert types[name] == LOW[precision], name
        elif kind in FP32_KINDS or kind in CONVOLUTIONS:
            assert types[name] == "FLOAT", name
    counts = Counter(node.op_type for node in typed.graph.node)
    assert counts - Counter(Cast=counts["Cast"]) == Counter(node.op_type for node in original.graph.node)
    # A cast where types meet and nowhere else: fewer than two for every normalisation, input, and output.
    assert counts["Cast"] <= 2 * (counts["InstanceNormalization"] + counts["ConvTranspose"] + 4)


def test_the_weights_are_the_files_own_rounded_once():
    path = DEFAULT_BUNDLE / "locnet.onnx"
    original = {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    typed = onnx.load_from_string(typed_graph(path, "fp16", plan=PrecisionPlan()))
    for weight in typed.graph.initializer:
        values = numpy_helper.to_array(weight)
        source = original[weight.name.removesuffix(".fp16")]
        np.testing.assert_array_equal(values, source.astype(np.float16) if weight.name.endswith(".fp16") else source)
    norms = [n for n in typed.graph.node if n.op_type == "InstanceNormalization"]
    assert all(not name.endswith(".fp16") for node in norms for name in node.input[1:])


@pytest.mark.parametrize("kept", [(), ("conv1",), ("conv2", "up1"), ("head",), ("cat1",), ("act1", "pool1"),
                                  ("conv1", "conv2", "up1", "head")])  # fmt: skip
def test_any_nodes_can_be_kept_in_fp32(kept):
    typed = typed_model(small_network(), "fp16", keep_fp32=kept)
    types = types_of(typed)
    assert all(types[name] == "FLOAT" for name in kept)
    for name in {"conv1", "conv2", "up1"} - set(kept):
        assert types[name] == "FLOAT16"
    met, right = run(rounded_graph(serialise(typed)), image_of(n=3)), run(small_network(), image_of(n=3))
    for a, b in zip(met, right, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02)


def test_with_every_node_kept_nothing_changes():
    model = small_network()
    typed = typed_model(model, "fp16", keep_fp32=[node.name for node in model.graph.node])
    assert [(n.name, n.op_type) for n in typed.graph.node] == [(n.name, n.op_type) for n in model.graph.node]
    np.testing.assert_array_equal(run(typed, image_of())[0], run(model, image_of())[0])


def test_nodes_without_names_are_typed_too():
    model = small_network()
    for node in model.graph.node:
        node.name = ""
    kinds = {name.split(".")[0]: kind for name, kind in types_of(typed_model(model, "fp16")).items()}
    assert kinds["Conv"] == "FLOAT16"
    assert kinds["InstanceNormalization"] == "FLOAT"


def test_the_conversion_has_a_new_number_when_its_graphs_change():
    """If this fails, raise CONVERSION: engines built from the old graphs must be built again. Then enter the digest."""
    graphs = [typed_model(small_network(), "fp16"), typed_model(small_network(), "bf16", keep_fp32=["conv2"])]
    plan = PrecisionPlan(int8_ranges={"p1": 1.0})
    graphs.append(typed_model(quantise(small_network(), plan, name="small"), "fp16"))
    shape = [[(n.op_type, list(n.input), list(n.output), types_of(g)[n.name]) for n in g.graph.node] for g in graphs]
    digest = hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]
    assert (CONVERSION, digest) == (1, "b6ae8422976fd7f0")


# Rounding.


def fp16_by_hand(image):
    """The small network in NumPy, rounded to FP16 wherever the typed graph is FP16."""
    weights = {w.name: numpy_helper.to_array(w) for w in small_network().graph.initializer}

    def low(values):
        return values.astype(np.float16).astype(np.float64)

    def conv(x, w):
        reach = w.shape[-1] // 2
        x = np.pad(x, [(0, 0), (0, 0), *[(reach, reach)] * 3])
        patches = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3, 4))
        return np.einsum("nizyxabc,oiabc->nozyx", patches, low(w))

    def norm(x, i):
        mean, variance = x.mean((2, 3, 4), keepdims=True), x.var((2, 3, 4), keepdims=True)
        g, h = (weights[f"{kind}{i}"].reshape(1, -1, 1, 1, 1) for kind in "gh")
        return (x - mean) / np.sqrt(variance + 1e-5) * g + h

    def leaky(x):
        return low(np.where(x > 0, x, low(0.01 * x)))

    a1 = leaky(low(norm(low(conv(low(image), weights["w1"])), 1)))
    p1 = a1.reshape(len(a1), 4, 4, 2, 4, 2, 4, 2).max((3, 5, 7))
    a2 = leaky(low(norm(low(conv(p1, weights["w2"])), 2)))
    up = np.einsum("nizyx,ioabc->nozaybxc", a2, low(weights["up"])).reshape(len(a1), 4, 8, 8, 8)
    head = conv(np.concatenate([low(up), a1], axis=1), weights["w3"]) + low(weights["b3"]).reshape(1, -1, 1, 1, 1)
    return low(head)


def test_the_rounded_graph_rounds_where_the_typed_one_is_fp16():
    image = image_of(n=2)
    _, met = run(rounded_graph(serialise(typed_model(small_network(), "fp16"))), image)
    by_hand, exact = fp16_by_hand(image), run(small_network(), image)[1]
    np.testing.assert_array_equal(met, met.astype(np.float16))
    wrong = np.abs(met - by_hand)
    # Sums in another order fall on another side of a rounding here and there, by one step at most a few times.
    assert np.median(wrong) == 0
    assert wrong.mean() < np.abs(met - exact).mean() / 4


def test_rounding_to_bf16_is_coarser_than_to_fp16():
    image = image_of(n=2)
    right = run(small_network(), image)[1]
    fp16, bf16 = (
        np.abs(run(rounded_graph(serialise(typed_model(small_network(), low))), image)[1] - right).mean()
        for low in ("fp16", "bf16")
    )
    assert 0 < 4 * fp16 < bf16


@pytest.mark.parametrize("scale", [3e4, 1e5])
def test_what_overflows_fp16_shows(scale):
    """The factor goes away in the normalisation, so FP32 says the same as without; FP16 can't."""
    image = image_of()
    right = run(small_network(), image)
    for met, expected in zip(run(small_network(scale=scale), image), right, strict=True):
        np.testing.assert_allclose(met, expected, atol=1e-4)
    if scale == 1e5:
        with pytest.raises(EngineError, match=r"weight w1 reaches .* more than FP16's 65504.*export\.calibrate"):
            typed_model(small_network(scale=scale), "fp16")
    else:
        met = run(rounded_graph(serialise(typed_model(small_network(scale=scale), "fp16"))), image)
        assert not np.isfinite(met[1]).all()
    kept = typed_model(small_network(scale=scale), "fp16", keep_fp32=["conv1"])
    np.testing.assert_allclose(run(rounded_graph(serialise(kept)), image)[1], right[1], atol=0.02)
    bf16 = typed_model(small_network(scale=scale), "bf16")
    np.testing.assert_allclose(run(rounded_graph(serialise(bf16)), image)[1], right[1], atol=0.2)


def test_norms_in_fp16_overflow_where_norms_in_fp32_do_not():
    """Convolutions that give some hundreds: no trouble for FP16, but their squares are."""
    model, image = scaled(small_network(), "w1", 500), image_of()
    right = run(model, image)[1]
    assert np.abs(run(rounded_graph(naive_fp16(small_network())), image)[1] - right).max() < 0.05
    safe = run(rounded_graph(serialise(typed_model(model, "fp16"))), image)[1]
    assert np.abs(safe - right).max() < 0.02
    naive = run(rounded_graph(naive_fp16(model)), image)[1]
    assert not np.abs(naive - right).max() < 0.5


# INT8.


def test_quantised_weights_are_within_half_a_step_of_their_own():
    model = small_network()
    quantised = quantise(model, PrecisionPlan(int8_ranges={"p1": 3.0}), name="small")
    onnx.checker.check_model(quantised, full_check=True)
    weights = {w.name: numpy_helper.to_array(w) for w in quantised.graph.initializer}
    original = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    assert "w2" not in weights
    assert weights["w2.q"].dtype == np.int8
    assert np.abs(weights["w2.q"]).max() == 127
    scales = weight_scales(original["w2"]).reshape(-1, 1, 1, 1, 1)
    assert (np.abs(weights["w2.q"] * scales - original["w2"]) <= scales / 2 * 1.0001).all()
    np.testing.assert_array_equal(weights["w1"], original["w1"])
    types = types_of(typed_model(quantised, "fp16"))
    assert types["quantize.p1"] == "INT8"
    assert types["dequantize.p1"] == types["dequantize.w2"] == types["conv2"] == "FLOAT16"


def test_int8_is_near_and_rounding_is_as_coarse_as_its_steps():
    model, image = small_network(), image_of(n=2)
    plan = PrecisionPlan(int8_ranges={"p1": 4.0})
    right = run(model, image)[1]
    met = run(rounded_graph(serialise(typed_model(quantise(model, plan, name="small"), "fp16"))), image)[1]
    fp16 = run(rounded_graph(serialise(typed_model(model, "fp16"))), image)[1]
    assert np.abs(met - right).mean() > 4 * np.abs(fp16 - right).mean()
    assert np.abs(met - right).max() < 0.3


def test_int8_without_ranges_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(small_network(), path)
    with pytest.raises(EngineError, match=r"small\.onnx is not offered in int8: .*not calibrated.*export\.calibrate"):
        typed_graph(path, "int8")
    failed = PrecisionPlan(gates={"int8": {"dice": 0.9, "centres_lost": 7.0}})
    with pytest.raises(EngineError, match=r"did not pass its accuracy gate \(dice 0\.9, centres_lost 7\)"):
        typed_graph(path, "int8", plan=failed)


# Plans and files.


def test_the_plan_is_the_one_of_the_bundle_around_the_file(tmp_path):
    path = tmp_path / "locnet.onnx"
    onnx.save(small_network(), path)
    assert plan_beside(path) == PrecisionPlan()
    data = json.loads((DEFAULT_BUNDLE / "bundle.json").read_text())
    data.pop("precision", None)
    (tmp_path / "bundle.json").write_text(json.dumps(data))
    assert plan_beside(path) == PrecisionPlan(), "a bundle of before there were plans"
    plan = PrecisionPlan("phantoms", 3, ("conv1",), 5.0, "c1", 1e-4, "c2", {"p1": 2.0}, {"fp16": {"dice": 1.0}})
    (tmp_path / "bundle.json").write_text(json.dumps({**data, "precision": {"locnet.onnx": asdict(plan)}}))
    assert plan_beside(path) == plan
    types = types_of(onnx.load_from_string(typed_graph(path, "fp16")))
    assert (types["conv1"], types["conv2"]) == ("FLOAT", "FLOAT16")
    assert types_of(onnx.load_from_string(typed_graph(path, "bf16")))["conv1"] == "BFLOAT16", "BF16 has FP32's range"


def test_the_plan_of_another_network_is_refused(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(small_network(), path)
    with pytest.raises(EngineError, match="plan is another network's: there is no node conv9"):
        typed_graph(path, "fp16", plan=PrecisionPlan(fp16_keep_fp32=("conv9",)))
    with pytest.raises(EngineError, match="no convolution reads a9"):
        typed_graph(path, "int8", plan=PrecisionPlan(int8_ranges={"a9": 1.0}))


def test_fp32_is_the_file_itself_and_other_names_are_refused(tmp_path):
    path = DEFAULT_BUNDLE / "levelnet.onnx"
    assert typed_graph(path, "fp32") == path.read_bytes()
    with pytest.raises(EngineError, match="no precision 'fp8'; there are fp32, fp16, bf16, int8"):
        typed_graph(path, "fp8")
    with pytest.raises(EngineError, match=r"none\.onnx cannot be read"):
        typed_graph(tmp_path / "none.onnx", "fp16")
    for content in (b"no network", b""):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(EngineError, match=r"bad\.onnx is no sound ONNX network"):
            load_graph(tmp_path / "bad.onnx")


def test_the_default_bundle_opens_whether_it_was_calibrated_or_not():
    assert set(open_bundle().spec.precision) <= set(NETWORKS)
    assert isinstance(plan_beside(Path(DEFAULT_BUNDLE / "locnet.onnx")), PrecisionPlan)
