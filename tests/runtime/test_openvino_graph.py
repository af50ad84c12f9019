"""Networks in fewer operations: the same numbers, and nothing touched that does not fit."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from runtime.bundle import open_bundle
from runtime.engines.openvino_cpu import open_session
from runtime.engines.openvino_graph import bias_seen_by, composed_kernel, simplified
from train.config import FracSegNetRun, LocNetRun
from train.weights import run_told

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


def decoder(rng, *, up=2, stride=2, parts=2, after=3, shape=(4, 6, 5), bias="channels", pad="explicit", second=False):
    """A model with what a U-Net does on its way up, and a head of four channels that are cut into one and three.

    Args:
        rng: of its weights.
        up: the upsampling's kernel, voxels.
        stride: and its stride.
        parts: how many tensors are concatenated.
        after: kernel of the convolution that reads them.
        shape: (z, y, x) of the coarse voxels.
        bias: ``"voxels"`` for one that differs along x, where there is one for each channel else.
        pad: how that convolution and the head pad.
        second: whether something else reads the concatenation too.
    """

    def constant(*sizes):
        return ops.constant(rng.normal(size=sizes).astype(np.float32))

    coarse = ops.parameter([-1, 3, *shape], np.float32, name="coarse")
    raised = ops.convolution_backprop_data(coarse, constant(3, 2, up, up, up), [stride] * 3, None, NONE, NONE, ONES)
    size = [(n - 1) * stride + up for n in shape]
    raised = ops.add(raised, constant(1, 2, 1, 1, 1) if bias == "channels" else constant(1, 1, 1, 1, size[2]))
    skips = [ops.parameter([-1, 2, *size], np.float32, name=f"skip{i}") for i in range(1, parts)]
    joined = ops.concat([raised, *skips], 1)
    found = ops.convolution(
        joined, constant(6, 2 * parts, after, after, after), ONES, [after // 2] * 3, [after // 2] * 3, ONES, pad
    )
    head = ops.convolution(ops.relu(found), constant(4, 6, 3, 3, 3), ONES, ONES, ONES, ONES, pad)
    head = ops.add(head, constant(1, 4, 1, 1, 1) if bias == "channels" else constant(1, 1, 1, 1, size[2]))
    results = []
    for name, first, end in (("heat", 0, 1), ("offsets", 1, 9)):
        one = ops.slice(head, *(ops.constant(np.array([v], np.int64)) for v in (first, end, 1, 1)))
        one.output(0).set_names({name})
        results.append(ops.result(one))
    if second:
        other = ops.relu(joined)
        other.output(0).set_names({"other"})
        results.append(ops.result(other))
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


OTHERS = {
    "kernel": {"up": 3}, "stride": {"stride": 1}, "three": {"parts": 3}, "one voxel": {"after": 1},
    "a bias along x": {"bias": "voxels"}, "as many voxels as channels": {"bias": "voxels", "shape": (2, 3, 1)},
    "padded by rule": {"pad": "same_upper"}, "read twice": {"second": True},
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_upsampling_stays_as_it_is(other):
    model = decoder(np.random.default_rng(3), **other)
    changed = simplified(model.clone())
    assert kinds(changed)["Concat"] == 1
    assert kinds(changed)["Slice"] == (2 if {"bias", "pad"} & set(other) else 0)
    before, after = (outputs(one, np.random.default_rng(4)) for one in (model, changed))
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-3)


def upsampling_head(rng, *, kernel=2, stride=2, third=False):
    """Heat and offsets cut out of what a transposed convolution gives; with a third reader, which wants all of it."""
    coarse = ops.parameter([-1, 5, 2, 3, 4], np.float32, name="coarse")
    weight = ops.constant(rng.normal(size=(5, 4, kernel, kernel, kernel)).astype(np.float32))
    head = ops.convolution_backprop_data(coarse, weight, [stride] * 3, None, NONE, NONE, ONES)
    head = ops.add(head, ops.constant(rng.normal(size=(1, 4, 1, 1, 1)).astype(np.float32)))
    results = []
    for name, first, end in (("heat", 0, 1), ("offsets", 1, 9)):
        one = ops.slice(head, *(ops.constant(np.array([v], np.int64)) for v in (first, end, 1, 1)))
        one.output(0).set_names({name})
        results.append(ops.result(one))
    if third:
        other = ops.relu(head)
        other.output(0).set_names({"other"})
        results.append(ops.result(other))
    return openvino.Model(results, [coarse])


@pytest.mark.parametrize("other", [{}, {"kernel": 3}, {"stride": 1}, {"third": True}], ids=str)
def test_a_head_that_doubles_the_size_is_parted_and_another_is_not(other):
    model = upsampling_head(np.random.default_rng(5), **other)
    changed = simplified(model.clone())
    assert kinds(changed)["Slice"] == kinds(changed)["ConvolutionBackpropData"] * 2 == (2 if other else 0)
    before, after = (outputs(one, np.random.default_rng(6)) for one in (model, changed))
    assert list(before) == list(after)
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-5)


def test_a_network_of_other_numbers_stays_as_it_is():
    coarse = ops.parameter([-1, 3, 4, 4, 4], np.float16)
    weight = ops.constant(np.ones((3, 2, 2, 2, 2), np.float16))
    raised = ops.convolution_backprop_data(coarse, weight, [2, 2, 2], None, NONE, NONE, ONES)
    raised = ops.add(raised, ops.constant(np.ones((1, 2, 1, 1, 1), np.float16)))
    joined = ops.concat([raised, ops.relu(raised)], 1)
    found = ops.convolution(joined, ops.constant(np.ones((1, 4, 3, 3, 3), np.float16)), ONES, ONES, ONES, ONES)
    model = openvino.Model([ops.result(found)], [coarse])
    assert kinds(simplified(model.clone())) == kinds(model)


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
    shape = run_told(bundle, network, LocNetRun if network == "locnet" else FracSegNetRun).network
    stem = getattr(shape, "stem", 0)
    nodes = simplified(_read_onnx(bundle.path_of(getattr(bundle.spec, network).file))).get_ordered_ops()
    kernels = [n.input_value(1).get_shape()[2:] for n in nodes if n.get_type_name() == "ConvolutionBackpropData"]
    assert [list(kernel) for kernel in kernels] == [[4, 4, 4]] * len(shape.unet.channels)
    outputs = [n.input_value(1).get_shape()[0] for n in nodes if n.get_type_name() == "Convolution"]
    each = 8 if stem else 1
    assert sorted(n for n in outputs if n in (each, 3 * each)) == ([each, 3 * each] if network == "locnet" else [])
