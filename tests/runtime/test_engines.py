import dataclasses
import json
import logging
import subprocess
import sys

import numpy as np
import pytest

import runtime.engines as engines
from runtime import typed_graph
from runtime.engines import (
    ENGINES,
    EngineChoice,
    engine_module,
    open_session,
    openvino_cpu,
    ort_library,
    preflights,
    select_engine,
)
from runtime.engines.__main__ import NEEDS
from runtime.engines.__main__ import main as command
from runtime.engines.base import Preflight
from runtime.engines.cuda_probe import Gpu
from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan
from tests.runtime.engine_conformance import Conformance, images, redirect_caches, reference, write_network

AVAILABLE = [name for name, found in preflights().items() if found.available]
COMBINATIONS = [
    (name, p)
    for name, found in preflights().items()
    if found.available
    for p in found.precisions + found.verify_only
    if p != "int8"  # needs a network that was calibrated for it: a suite of its own
]


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    redirect_caches(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    write_network(path)
    return path


class TestEnginesOfThisMachine(Conformance):
    """Every engine that can run here, in every precision that it offers here."""

    @pytest.fixture(params=COMBINATIONS, ids="-".join)
    def choice(self, request):
        name, precision = request.param
        return select_engine(name, precision=precision, verification=True)


class TestInt8OnTheProcessor(Conformance):
    """A network that was calibrated: its INT8 graph as onnxruntime rounds it step by step, and OpenVINO's integers."""

    @pytest.fixture
    def network(self, tmp_path, monkeypatch):
        path = tmp_path / "tiny.onnx"
        write_network(path)
        calibrated = PrecisionPlan(int8_ranges={"image": 1.0, "offsets": 5.0})
        for module in (typed_graph, openvino_cpu):
            monkeypatch.setattr(module, "plan_beside", lambda onnx: calibrated if onnx == path else PrecisionPlan())
        return path

    @pytest.fixture(params=["openvino", "onnxruntime"])
    def choice(self, request):
        found = preflights()[request.param]
        if "int8" not in found.precisions + found.verify_only:
            pytest.skip(f"no int8: {found.reason}")
        return select_engine(request.param, precision="int8", verification=True)

    def test_nan_comes_through(self, session):
        """It doesn't: integers know none, so what is not finite has to be met before (the readers refuse it)."""
        image = images(2)
        clean = [output.copy() for output in session(image)]
        image[1, 0, 4, 4, 4] = np.nan
        for output, before in zip(session(image), clean, strict=True):
            assert np.isfinite(output).all()
            np.testing.assert_array_equal(output[0], before[0])


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


# Integers on the processor.


@pytest.mark.skipif("openvino" not in AVAILABLE, reason="needs openvino")
@pytest.mark.parametrize(
    ("machine", "has", "offered"),
    [
        ("x86_64", {"avx512vnni": True}, True),
        ("AMD64", {"avxvnni": True}, True),
        ("x86_64", {"avx512f": True, "avx512vnni": False}, False),
        ("aarch64", {"avx512vnni": True}, False),
    ],
)
def test_openvino_offers_int8_only_where_sums_of_bytes_do_not_overflow(monkeypatch, machine, has, offered):
    monkeypatch.setattr(openvino_cpu.platform, "machine", lambda: machine)
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda: has)
    precisions = openvino_cpu.preflight().precisions
    assert ("int8" in precisions) == offered
    assert precisions[0] == "fp32"


@pytest.mark.skipif("openvino" not in AVAILABLE, reason="needs openvino")
def test_int8_without_onnx_says_what_to_install(monkeypatch):
    monkeypatch.setattr(openvino_cpu, "has_integer_dot_products", lambda: True)
    monkeypatch.setattr(openvino_cpu, "find_spec", lambda name: None if name == "onnx" else object())
    found = openvino_cpu.preflight()
    assert "int8" not in found.precisions
    assert "pip install onnx" in found.reason


@pytest.mark.skipif("int8" not in preflights()["openvino"].precisions, reason="this processor offers no int8")
def test_a_network_that_was_not_calibrated_is_refused_in_int8_and_one_computed_otherwise_as_well(network, monkeypatch):
    with open_session(select_engine("openvino"), network):  # which leaves a compiled network in the same cache
        pass
    choice = select_engine("openvino", precision="int8")
    with pytest.raises(EngineError, match=r"tiny\.onnx is not offered in int8: it was not calibrated"):
        open_session(choice, network)
    monkeypatch.setattr(openvino_cpu, "plan_beside", lambda onnx: PrecisionPlan(int8_ranges={"image": 1.0}))
    with open_session(choice, network):
        pass
    monkeypatch.setattr(openvino_cpu, "_integer_convolutions", lambda compiled: 0)
    with pytest.raises(EngineError, match=r"1 convolutions of tiny\.onnx in int8 but computes 0"):
        open_session(choice, network)


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
    with pytest.raises(EngineError, match=r"no engine .tensorflow.*auto, .*openvino, .*onnxruntime"):
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


def test_a_processor_computes_in_what_the_bundle_was_verified_in_where_it_has_that(monkeypatch):
    pretend(monkeypatch, a=CPU, b=CPU_FP32)
    choice = select_engine(verified=("fp16", "bf16"))
    assert (choice.name, choice.precision) == ("a", "bf16")
    assert choice.reason.endswith("; in bf16, in which the bundle was verified")
    assert select_engine("a", verified=("bf16",)).precision == "bf16"
    assert select_engine("b", verified=("bf16",)).precision == "fp32"
    assert select_engine(verified=("fp16",)).precision == "fp32"
    assert select_engine(precision="fp32", verified=("bf16",)).precision == "fp32"
    pretend(monkeypatch, a=CPU, d=GPU)
    assert select_engine(verified=("bf16", "fp32")).precision == "fp16"


def test_a_named_engine_is_never_replaced(monkeypatch):
    pretend(monkeypatch, a=NONE, b=CPU)
    with pytest.raises(EngineError, match=r"a cannot be used: .*pip install x"):
        select_engine("a")


@pytest.mark.parametrize("package", ["runtime", "train"])
def test_openvino_sends_nothing_and_leaves_nothing_in_the_users_home(tmp_path, package):
    """Its own default writes an identifier there as soon as it is imported, and sends it to Google Analytics."""
    imported = {
        "runtime": "from runtime.engines import openvino_cpu; openvino_cpu.preflight()",
        "train": "import train",
    }
    program = (
        f"import sys; {imported[package]}; import openvino; print(openvino.__version__)\n"
        "assert sys.modules['openvino_telemetry'] is None"
    )
    environment = {"HOME": str(tmp_path), "PATH": "", "LOCALAPPDATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(("name", "library"), [("openvino", "openvino"), ("onnxruntime", "onnxruntime")])
def test_a_library_that_is_not_installed_is_named_with_its_package(monkeypatch, name, library):
    module = engine_module(name)
    monkeypatch.setattr(module if name == "openvino" else ort_library, "find_spec", lambda asked: None)
    found = module.preflight()
    assert not found.available
    assert f"pip install {library}" in found.reason


def test_the_command_line_shows_the_engines_and_the_choice():
    done = subprocess.run([sys.executable, "-m", "runtime.engines"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    for name in ENGINES:
        assert f"\n{name} " in "\n" + done.stdout
    assert "auto -> " in done.stdout
    assert "never chosen by auto: triton" in done.stdout


def test_the_command_line_says_all_of_it_as_json_too(capsys):
    assert list(NEEDS) == list(ENGINES)
    assert command(["--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["engines"]) == list(ENGINES)
    assert said["chosen"]["engine"] in AVAILABLE
    assert said["refusal"] is None
    assert all(one["available"] or one["reason"] for one in said["engines"].values())
    assert {name for name, one in said["engines"].items() if one["available"]} == set(AVAILABLE)


@pytest.mark.parametrize(
    ("engines", "asked", "said"),
    [
        ({"a": CPU, "b": CPU_FP32}, [], "unless b was measured to be clearly faster"),
        ({"openvino": CPU, "b": CPU_FP32}, ["--engine", "openvino"], ""),
        ({"a": CPU, "b": CPU_FP32}, ["--precision", "bf16"], ""),
        ({"a": CPU, "b": CPU_FP32, "c": GPU}, [], ""),
        ({"a": CPU, "b": NONE}, [], ""),
    ],
)
def test_the_command_line_says_where_a_measurement_may_choose_otherwise(monkeypatch, capsys, engines, asked, said):
    pretend(monkeypatch, **engines)
    monkeypatch.setattr("runtime.engines.__main__.NEEDS", dict.fromkeys(engines, ""))
    command([*asked, "--json"])
    reason = json.loads(capsys.readouterr().out)["chosen"]["reason"]
    assert said in reason if said else "unless" not in reason


def test_the_command_line_refuses_what_cannot_be_used(capsys):
    assert command(["--engine", "triton", "--json"]) == 3
    output = capsys.readouterr()
    assert json.loads(output.out)["chosen"] is None
    assert json.loads(output.out)["refusal"] in output.err
    assert "--url" in output.err


def test_the_command_line_describes_the_gpu(monkeypatch, capsys):
    gpu = Gpu(0, "NVIDIA RTX 6000 Ada", (8, 9), 49_140, "580.65.06", (13, 0))
    monkeypatch.setattr("runtime.engines.__main__.find_gpu", lambda device: gpu)
    command(["--json"])
    assert json.loads(capsys.readouterr().out)["gpu"]["driver"] == "580.65.06"
    command([])
    first = capsys.readouterr().out.splitlines()[0]
    for said in ("RTX 6000 Ada", "8.9", "580.65.06", "CUDA 13.0"):
        assert said in first


def test_the_choice_is_a_value():
    choice = select_engine()
    with pytest.raises(dataclasses.FrozenInstanceError):
        choice.name = "other"
