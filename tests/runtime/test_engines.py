import dataclasses
import logging
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runtime.engines as engines
from runtime.engines import ENGINES, EngineChoice, engine_module, open_session, preflights, select_engine
from runtime.engines.base import Preflight
from runtime.engines.cuda_probe import gpu_name, missing_libraries
from runtime.errors import EngineError

AVAILABLE = [name for name, found in preflights().items() if found.available]
COMBINATIONS = [(name, p) for name, found in preflights().items() for p in found.precisions]
TOLERANCE = {"fp32": 1e-5, "bf16": 0.05}
CHANNELS, SIZE = 3, 8


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(0, 0.3, (CHANNELS, 1, 3, 3, 3)).astype(np.float32),
        "b": rng.normal(0, 0.3, CHANNELS).astype(np.float32),
        "scale": rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32),
        "shift": rng.normal(0, 0.3, CHANNELS).astype(np.float32),
        "head": rng.normal(0, 1, (1, CHANNELS, 1, 1, 1)).astype(np.float32),
    }


def write_network(path):
    """A convolution, an instance normalisation, and two outputs: a sigmoid and what it was made from."""
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], pads=[1] * 6),
        helper.make_node("InstanceNormalization", ["c", "scale", "shift"], ["offsets"], epsilon=1e-5),
        helper.make_node("Conv", ["offsets", "head"], ["h"]),
        helper.make_node("Sigmoid", ["h"], ["heatmap"]),
    ]
    space = [SIZE] * 3
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, *space])],
        [
            helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, ["n", 1, *space]),
            helper.make_tensor_value_info("offsets", TensorProto.FLOAT, ["n", CHANNELS, *space]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights().items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def reference(image):
    """The same network in NumPy, float64."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    padded = np.pad(image.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)])
    patches = np.lib.stride_tricks.sliding_window_view(padded[:, 0], (3, 3, 3), axis=(1, 2, 3))
    conv = np.einsum("nzyxabc,kabc->nkzyx", patches, w["w"][:, 0]) + w["b"][:, None, None, None]
    mean, var = conv.mean((2, 3, 4), keepdims=True), conv.var((2, 3, 4), keepdims=True)
    normed = (conv - mean) / np.sqrt(var + 1e-5) * w["scale"][:, None, None, None] + w["shift"][:, None, None, None]
    head = np.einsum("nkzyx,k->nzyx", normed, w["head"][0, :, 0, 0, 0])[:, None]
    return 1 / (1 + np.exp(-head)), normed


def images(n, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (n, 1, SIZE, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    """What engines cache goes to the test's own folder."""
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    write_network(path)
    return path


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def choice(request):
    name, precision = request.param
    return select_engine(name, precision=precision)


@pytest.fixture
def session(choice, network):
    with open_session(choice, network, threads=1) as opened:
        yield opened


# Conformance: every engine, in every precision it offers here.


def test_outputs_are_those_of_the_network(session):
    image = images(2)
    outputs = session(image)
    assert session.output_names == ("heatmap", "offsets")
    for output, expected in zip(outputs, reference(image), strict=True):
        assert output.dtype == np.float32
        assert output.shape == expected.shape
        np.testing.assert_allclose(output, expected, atol=TOLERANCE[session.info.precision])


def test_the_precision_is_told_truly(session, choice):
    assert session.info.name == choice.name
    assert session.info.precision == choice.precision
    error = max(np.abs(o - r).max() for o, r in zip(session(images(4)), reference(images(4)), strict=True))
    # bf16 has 8 bits of mantissa: a result as exact as fp32 would betray that it wasn't used, and the reverse.
    assert (error < 1e-5) == (session.info.precision == "fp32")


def test_info_says_what_runs_where_and_why(session, choice):
    assert session.info.version
    assert session.info.device == "CPU" or gpu_name(0)
    assert session.info.reason == choice.reason != ""


def test_a_batch_equals_singles(session):
    image = images(5)
    together = session(image)
    for i in range(5):
        for whole, single in zip(together, session(image[i : i + 1].copy()), strict=True):
            np.testing.assert_allclose(whole[i : i + 1], single, atol=TOLERANCE[session.info.precision] / 10)


def test_running_again_gives_the_same_bits_and_leaves_earlier_results_alone(session):
    image, other = images(2), images(2, seed=9)
    before = image.copy()
    first = session(image)
    kept = [output.copy() for output in first]
    session(other)
    for output, copy, again in zip(first, kept, session(image), strict=True):
        np.testing.assert_array_equal(output, copy)
        np.testing.assert_array_equal(output, again)
        assert output.flags.writeable
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, SIZE, SIZE, SIZE + 1), np.float32),
        np.zeros((1, 2, SIZE, SIZE, SIZE), np.float32),
        np.zeros((1, SIZE, SIZE, SIZE), np.float32),
        np.zeros((0, 1, SIZE, SIZE, SIZE), np.float32),
        np.zeros((1, 1, SIZE, SIZE, SIZE), np.float64),
        np.zeros((1, 1, SIZE, SIZE, 2 * SIZE), np.float32)[..., ::2],
    ],
    ids=["size", "channels", "axes", "empty", "dtype", "layout"],
)
def test_another_input_is_refused(session, image):
    with pytest.raises(EngineError, match=r"tiny\.onnx takes"):
        session(image)


def test_nan_comes_through(session):
    image = images(2)
    image[1, 0, 4, 4, 4] = np.nan
    heatmap, offsets = session(image)
    assert np.isnan(heatmap[1]).any()
    assert np.isnan(offsets[1]).any()
    assert np.isfinite(heatmap[0]).all()


def test_closing_twice_is_fine_and_a_closed_session_says_so(choice, network):
    session = open_session(choice, network)
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session(images(1))


@pytest.mark.parametrize("content", [b"", b"not a network", b"\x08\x09" * 50], ids=["empty", "text", "bytes"])
def test_a_damaged_network_is_an_engine_error(choice, tmp_path, content, capfd):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"damaged\.onnx"):
        open_session(choice, path)
    assert capfd.readouterr() == ("", "")


def test_a_truncated_network_is_an_engine_error(choice, network, tmp_path, capfd):
    path = tmp_path / "cut.onnx"
    path.write_bytes(network.read_bytes()[:300])
    with pytest.raises(EngineError, match=r"cut\.onnx"):
        open_session(choice, path)
    assert capfd.readouterr() == ("", "")


def test_a_missing_network_is_an_engine_error(choice, tmp_path):
    with pytest.raises(EngineError, match=r"no network at .*none\.onnx"):
        open_session(choice, tmp_path / "none.onnx")


def test_opening_and_running_prints_nothing(choice, network, capfd):
    with open_session(choice, network) as session:
        session(images(1))
    assert capfd.readouterr() == ("", "")


# The cache of compiled networks.


@pytest.mark.skipif("openvino" not in AVAILABLE, reason="needs openvino")
def test_openvino_caches_by_content_and_does_without_a_cache_it_cannot_make(network, tmp_path, caplog):
    cache = tmp_path / "compiled"
    module = engine_module("openvino")
    options = {"precision": "fp32", "device": 0, "threads": 1, "reason": "test"}
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(network.read_bytes())
    for path in (network, copy):
        with module.open_session(path, cache=cache, **options) as session:
            np.testing.assert_allclose(session(images(1))[0], reference(images(1))[0], atol=1e-5)
    assert len(list(cache.glob("*.blob"))) == 1
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING), module.open_session(network, cache=blocked / "x", **options) as session:
        session(images(1))
    assert "not cached" in caplog.text


# Choosing.


def test_auto_takes_an_engine_that_can_run_and_says_so_once(caplog):
    with caplog.at_level(logging.INFO, logger="runtime.engines"):
        choice = select_engine()
    assert isinstance(choice, EngineChoice)
    assert choice.name in AVAILABLE
    assert choice.precision == "fp32"
    (record,) = caplog.records
    for word in (choice.name, choice.precision, choice.reason):
        assert word in record.getMessage()


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(EngineError, match=r"no engine 'tensorflow'.*auto, openvino, onnxruntime"):
        select_engine("tensorflow")
    with pytest.raises(EngineError, match=r"no precision 'int4'.*fp32, fp16, bf16"):
        select_engine(precision="int4")


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_named_engine_without_that_precision_is_refused(name):
    with pytest.raises(EngineError, match=f"{name} on .* not in fp16"):
        select_engine(name, precision="fp16")


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_device_that_is_not_there_is_refused(name, network):
    with pytest.raises(EngineError, match="97"):
        select_engine(name, device=97)
    with pytest.raises(EngineError, match="97"):
        engine_module(name).open_session(network, precision="auto", device=97, threads=None, reason="test")
    with pytest.raises(EngineError, match="No engine can run here"):
        select_engine(device=97)


class FakeModule:
    def __init__(self, found):
        self.found = found

    def preflight(self, *, device=0):
        return self.found


def pretend(monkeypatch, **found):
    monkeypatch.setattr(engines, "ENGINES", dict.fromkeys(found, ""))
    modules = {name: FakeModule(one) for name, one in found.items()}
    monkeypatch.setattr(engines, "engine_module", modules.__getitem__)


CPU = Preflight(True, "ok", "1", "CPU", ("fp32", "bf16"))
CPU_FP32 = Preflight(True, "ok", "2", "CPU", ("fp32",))
GPU = Preflight(True, "ok", "3", "NVIDIA X", ("fp16", "fp32"))
NONE = Preflight(False, "x is not installed; install it with: pip install x")


def test_auto_prefers_a_gpu_then_the_order_of_the_table(monkeypatch):
    pretend(monkeypatch, a=NONE, b=CPU, c=CPU_FP32, d=GPU)
    choice = select_engine()
    assert (choice.name, choice.precision) == ("d", "fp16")
    assert "GPU" in choice.reason
    assert "not possible: a" in choice.reason
    pretend(monkeypatch, a=NONE, b=CPU, c=CPU_FP32)
    assert (select_engine().name, select_engine().precision) == ("b", "fp32")


def test_auto_takes_the_first_engine_that_has_the_precision(monkeypatch):
    pretend(monkeypatch, a=CPU_FP32, b=CPU)
    assert select_engine(precision="bf16").name == "b"
    with pytest.raises(EngineError, match="in fp16"):
        select_engine(precision="fp16")


def test_a_named_engine_is_never_replaced(monkeypatch):
    pretend(monkeypatch, a=NONE, b=CPU)
    with pytest.raises(EngineError, match=r"a cannot be used: .*pip install x"):
        select_engine("a")


@pytest.mark.parametrize(("name", "library"), [("openvino", "openvino"), ("onnxruntime", "onnxruntime")])
def test_a_library_that_is_not_installed_is_named_with_its_package(monkeypatch, name, library):
    module = engine_module(name)
    monkeypatch.setattr(module, "find_spec", lambda asked: None)
    found = module.preflight()
    assert not found.available
    assert f"pip install {library}" in found.reason


def test_the_gpu_probe_answers_without_a_gpu():
    assert gpu_name(97) is None
    assert len(missing_libraries(3)) >= 3


def test_the_command_line_shows_the_engines_and_the_choice():
    done = subprocess.run([sys.executable, "-m", "runtime.engines"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    for name in ENGINES:
        assert f"\n{name} " in "\n" + done.stdout
    assert "auto -> " in done.stdout


def test_the_choice_is_a_value():
    choice = select_engine()
    with pytest.raises(dataclasses.FrozenInstanceError):
        choice.name = "other"
