"""Networks in fewer operations: the same numbers, and nothing touched that does not fit."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from runtime.bundle import open_bundle
from runtime.engines.openvino_cpu import open_session
from runtime.engines.openvino_graph import bias_seen_by, composed_kernel, simplified

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
from openvino import opset13 as ops  # noqa: E402

ONES, NONE = [1, 1, 1], [0, 0, 0]


def upsampled(coarse: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """A transposed convolution of (i, z, y, x), voxel by voxel."""
    kernel = np.array(weight.shape[2:])
    out = np.zeros((weight.shape[1], *((np.array(coarse.shape[1:]) - 1) * stride + kernel)))
    for z, y, x in np.ndindex(*coarse.shape[1:]):
        block = tuple(slice(stride * n, stride * n + k) for n, k in zip((z, y, x), kernel, strict=True))
        out[(slice(None), *block)] += np.einsum("i,iodef->odef", coarse[:, z, y, x], weight)
    inner = slice(padding, -padding or None)
    return out[:, inner, inner, inner]


def convolved(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A 3x3x3 convolution of (c, z, y, x), padded by a voxel of zeros."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (1, 1)))
    size = image.shape[1:]
    parts = [
        np.einsum("oc,czyx->ozyx", weight[..., d, e, f], padded[:, d : d + size[0], e : e + size[1], f : f + size[2]])
        for d, e, f in product(range(3), repeat=3)
    ]
    return np.sum(parts, axis=0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (4, 3, 2)])
def test_one_transposed_convolution_and_a_bias_are_what_the_two_operations_say(shape):
    rng = np.random.default_rng(sum(shape))
    coarse, up, after = rng.normal(size=(3, *shape)), rng.normal(size=(3, 2, 2, 2, 2)), rng.normal(size=(4, 2, 3, 3, 3))
    bias = rng.normal(size=2)
    fine = upsampled(coarse, up, 2, 0) + bias[:, None, None, None]
    at_once = upsampled(coarse, composed_kernel(up, after), 2, 1)
    doubled = tuple(2 * n for n in shape)
    np.testing.assert_allclose(at_once + bias_seen_by(after, bias, doubled)[0], convolved(fine, after), atol=1e-12)


def decoder(rng, *, up=2, stride=2, parts=2, after=3, axis=1, shape=(4, 6, 5)):
    """A model with what a U-Net does on its way up, and a head of four channels that are cut into one and three."""
    coarse = ops.parameter([-1, 3, *shape], np.float32, name="coarse")
    raised = ops.convolution_backprop_data(
        coarse,
        ops.constant(rng.normal(size=(3, 2, up, up, up)).astype(np.float32)),
        [stride] * 3,
        None,
        NONE,
        NONE,
        ONES,
    )
    raised = ops.add(raised, ops.constant(rng.normal(size=(1, 2, 1, 1, 1)).astype(np.float32)))
    size = [(n - 1) * stride + up for n in shape]
    skips = [ops.parameter([-1, 2, *size], np.float32, name=f"skip{i}") for i in range(1, parts)]
    joined = ops.concat([raised, *skips], axis)
    channels = 2 * parts if axis == 1 else 2
    weight = rng.normal(size=(6, channels, after, after, after)).astype(np.float32)
    found = ops.convolution(joined, ops.constant(weight), ONES, [after // 2] * 3, [after // 2] * 3, ONES)
    head = ops.convolution(
        ops.relu(found), ops.constant(rng.normal(size=(4, 6, 1, 1, 1)).astype(np.float32)), ONES, NONE, NONE, ONES
    )
    head = ops.add(head, ops.constant(rng.normal(size=(1, 4, 1, 1, 1)).astype(np.float32)))
    results = []
    for name, first, end in (("heat", 0, 1), ("offsets", 1, 9)):
        one = ops.slice(head, *(ops.constant(np.array([v], np.int64)) for v in (first, end, 1, 1)))
        one.output(0).set_names({name})
        results.append(ops.result(one))
    return openvino.Model(results, [coarse, *skips])


def outputs(model, rng):
    """By name, of a batch of two."""
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    sizes = [[axis.get_length() for axis in list(port.get_partial_shape())[1:]] for port in compiled.inputs]
    given = {i: rng.normal(size=(2, *size)).astype(np.float32) for i, size in enumerate(sizes)}
    return {port.get_any_name(): value for port, value in compiled(given).items()}


def kinds(model):
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 6, 5)])
def test_a_decoder_says_the_same_with_its_upsampling_folded_and_its_head_parted(shape):
    model = decoder(np.random.default_rng(1), shape=shape)
    changed = simplified(model.clone())
    assert kinds(changed)["Concat"] == kinds(changed)["Slice"] == 0
    assert kinds(changed)["ConvolutionBackpropData"] == 1
    before, after = (outputs(one, np.random.default_rng(2)) for one in (model, changed))
    assert list(before) == list(after) == ["heat", "offsets"]
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "other", [{"up": 3}, {"stride": 1}, {"parts": 3}, {"after": 1}], ids=["kernel", "stride", "three", "one voxel"]
)
def test_another_upsampling_stays_as_it_is(other):
    model = decoder(np.random.default_rng(3), **other)
    changed = simplified(model.clone())
    assert kinds(changed)["Concat"] == 1
    before, after = (outputs(one, np.random.default_rng(4)) for one in (model, changed))
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("network", ["locnet", "fracsegnet", "levelnet"])
def test_the_default_networks_say_in_fp32_what_they_said(network, monkeypatch, tmp_path):
    bundle = open_bundle(None)
    spec = getattr(bundle.spec, network)
    shape = spec.window_zyx if network == "locnet" else spec.crop_zyx
    image = np.random.default_rng(5).uniform(0, 1, (1, 1, *shape)).astype(np.float32)
    said = []
    for change in (simplified, lambda model: model):
        monkeypatch.setattr("runtime.engines.openvino_cpu.simplified", change)
        path, cache = bundle.path_of(spec.file), tmp_path / str(len(said))
        with open_session(path, precision="fp32", device=0, threads=1, reason="", cache=cache) as session:
            said.append(dict(zip(session.output_names, session(image), strict=True)))
    assert list(said[0]) == list(said[1])
    for name, expected in said[1].items():
        np.testing.assert_allclose(said[0][name], expected, atol=1e-4)


@pytest.mark.parametrize("network", ["locnet", "fracsegnet"])
def test_the_default_networks_decoders_are_folded(network):
    from runtime.engines.openvino_cpu import _read_onnx

    bundle = open_bundle(None)
    nodes = simplified(_read_onnx(bundle.path_of(getattr(bundle.spec, network).file))).get_ordered_ops()
    kernels = [n.input_value(1).get_shape()[2:] for n in nodes if n.get_type_name() == "ConvolutionBackpropData"]
    assert [list(kernel) for kernel in kernels] == [[4, 4, 4]] * 4
    heads = [n for n in nodes if n.get_type_name() == "Convolution" and n.input_value(1).get_shape()[0] in (1, 3)]
    assert len(heads) == (2 if network == "locnet" else 0)
