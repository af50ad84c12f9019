"""Engines are built for real by TensorRT-RTX, which needs no GPU; TensorRT's side of the path runs on a stand-in."""

import errno
import json
import logging
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

from runtime.bundle import DEFAULT_BUNDLE, open_bundle
from runtime.console import interrupted_by_sigterm
from runtime.engines import trt_build, trt_network
from runtime.engines.cuda_probe import Gpu, find_gpu
from runtime.engines.trt_build import BuildOptions, engine_build, engine_file, engine_key, why_stale
from runtime.engines.trt_cache import check_engine, list_engines, read_sidecar
from runtime.engines.trt_gate import gate_for
from runtime.engines.trt_key import EngineBuild, Sidecar
from runtime.engines.trt_library import RTX_DEFAULT_TARGETS, load_library
from runtime.engines.trt_network import check_engine_types, expected_types
from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan
from runtime.progress import NoProgress
from runtime.typed_graph import typed_graph
from tests.runtime.fake_builder import FakeTensorRt
from tests.runtime.test_typed_graph import small_network

needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
RTX = {"precision": "fp16", "library": "tensorrt-rtx", "options": BuildOptions(targets=("86", "120"))}
GPU = Gpu(0, "NVIDIA X", (8, 9), 1000, "580.1", (13, 0))


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(small_network(), path)
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "engines"


# TensorRT-RTX, for real.


@needs_rtx
@pytest.mark.parametrize("file", ["locnet.onnx", "fracsegnet.onnx"])
def test_both_networks_of_the_default_bundle_become_fp16_engines_in_seconds(file, folder, monkeypatch):
    onnx_file = DEFAULT_BUNDLE / file
    checked = []
    real = trt_network.check_network
    monkeypatch.setattr(trt_network, "check_network", lambda *a, **k: (real(*a, **k), checked.append(a[0])))
    start = time.process_time()
    path = engine_file(onnx_file, precision="fp16", library="tensorrt-rtx", folder=folder)
    assert time.process_time() - start < 30
    assert len(checked) == 1
    sidecar = check_engine(path)
    gpu = find_gpu()
    assert sidecar.build.targets == (RTX_DEFAULT_TARGETS if gpu is None else (str(gpu.sm),))
    assert sidecar.key.max_batch > 1
    # The weights are in it once, as FP16: about half of the file of FP32.
    assert 0.5 * onnx_file.stat().st_size < sidecar.size < 0.95 * onnx_file.stat().st_size
    monkeypatch.setattr(trt_build, "build_serialized", None)
    start = time.perf_counter()
    assert engine_file(onnx_file, precision="fp16", library="tensorrt-rtx", folder=folder) == path
    assert time.perf_counter() - start < 5


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_other_precisions_are_built_too_and_are_what_they_are_called(small, folder, precision):
    plan = PrecisionPlan(int8_ranges={"p1": 4.0})
    path = engine_file(small, **{**RTX, "precision": precision}, plan=plan, folder=folder)
    types = expected_types(typed_graph(small, precision, plan=plan))
    assert types["conv2"] == {"fp32": "FLOAT", "bf16": "BF16", "int8": "HALF"}[precision]
    assert types["norm1"] == "FLOAT"
    assert check_engine(path).key.precision == precision


@needs_rtx
def test_the_dynamic_batch_is_in_the_network_that_is_built(small, folder, monkeypatch):
    shapes = []
    real = trt_network._add_profile

    def spy(builder, config, image, max_batch):
        shapes.append((tuple(image.shape), max_batch))
        real(builder, config, image, max_batch)

    monkeypatch.setattr(trt_network, "_add_profile", spy)
    engine_file(small, **{**RTX, "options": BuildOptions(max_batch=5, targets=("86",))}, folder=folder)
    assert shapes == [((-1, 1, 8, 8, 8), 5)]


@needs_rtx
def test_an_engine_of_another_precision_than_asked_for_is_an_error(small, folder, monkeypatch):
    monkeypatch.setattr(trt_build, "typed_graph", lambda path, precision, plan: path.read_bytes())
    with pytest.raises(EngineError, match="not be what was asked for: no layer of it is fp16"):
        engine_file(small, **RTX, folder=folder)
    monkeypatch.setattr(trt_build, "typed_graph", lambda path, precision, plan: typed_graph(path, "fp16", plan=plan))
    with pytest.raises(EngineError, match="not be what was asked for: not all of its layers are fp32"):
        engine_file(small, **{**RTX, "precision": "fp32"}, folder=folder)
    with pytest.raises(EngineError, match="not be what was asked for: nothing in it is quantised"):
        engine_file(small, **{**RTX, "precision": "int8"}, folder=folder)
    assert list(list_engines(folder)) == []


@needs_rtx
def test_layers_that_the_library_made_something_else_of_are_an_error(small, folder, monkeypatch):
    """The library is shown one graph and what it made of it is held against another."""
    real = trt_network.expected_types
    monkeypatch.setattr(trt_network, "expected_types", lambda graph: {**real(graph), "norm1": "HALF"})
    with pytest.raises(EngineError, match=r"norm1 is FLOAT, not HALF \(1 of \d+ layers\)"):
        engine_file(small, **RTX, folder=folder)
    monkeypatch.setattr(trt_network, "expected_types", lambda graph: {**real(graph), "gone": "HALF"})
    with pytest.raises(EngineError, match="gone is missing, not HALF"):
        engine_file(small, **RTX, folder=folder)
    monkeypatch.setattr(trt_network, "expected_types", real)
    monkeypatch.setattr(trt_network, "expected_signature", lambda graph: {"image": ("FLOAT", (-1, 1, 9, 9, 9))})
    with pytest.raises(EngineError, match=r"would take and give .*8, 8, 8.* the network takes and gives .*9, 9, 9"):
        engine_file(small, **RTX, folder=folder)


@needs_rtx
@pytest.mark.parametrize("harm", ["cut off", "changed", "foreign"])
def test_a_harmed_engine_is_built_again(small, folder, harm, caplog):
    path = engine_file(small, **RTX, folder=folder)
    good = read_sidecar(path)
    if harm == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == "changed":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        sidecar = json.loads(path.with_suffix(".json").read_text())
        sidecar["key"]["library_version"] = "1.6.0"
        path.with_suffix(".json").write_text(json.dumps(sidecar))
        harm = "library version 1.6.0, not"
    assert engine_file(small, **RTX, folder=folder) == path
    assert check_engine(path).key == good.key
    assert harm in caplog.text


@needs_rtx
def test_another_network_plan_option_or_version_is_another_engine(small, folder, monkeypatch):
    paths = [engine_file(small, **RTX, folder=folder)]
    paths.append(engine_file(small, **RTX, plan=PrecisionPlan(fp16_keep_fp32=("conv2",)), folder=folder))
    paths.append(engine_file(small, **{**RTX, "options": BuildOptions(max_batch=2, targets=("86",))}, folder=folder))
    monkeypatch.setattr(trt_build, "CONVERSION", 99)
    paths.append(engine_file(small, **RTX, folder=folder))
    onnx.save(small_network(seed=5), small)
    paths.append(engine_file(small, **RTX, folder=folder))
    assert len({*paths}) == len(paths) == len(list(list_engines(folder)))


def _build_once(args):
    onnx_file, folder, started = args
    real = trt_build.build_serialized
    built = []
    trt_build.build_serialized = lambda *a, **k: (built.append(1), real(*a, **k))[1]
    time.sleep(max(0.0, started - time.time()))
    path = engine_file(Path(onnx_file), **RTX, folder=Path(folder))
    return str(path), len(built)


@needs_rtx
def test_two_builders_at_once_leave_one_good_engine_and_one_builds(small, folder):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        jobs = [(str(small), str(folder), time.time() + 5.0)] * 2
        results = pool.map(_build_once, jobs, chunksize=1)
    assert {path for path, _ in results} == {str(next(p for p, _ in list_engines(folder)))}
    assert sorted(count for _, count in results) == [0, 1]
    assert sorted(p.suffix for p in folder.iterdir()) == ["", ".engine", ".json"]
    check_engine(Path(results[0][0]))


@needs_rtx
def test_a_killed_builder_leaves_nothing_that_is_taken_for_an_engine(small, folder):
    code = f"""
import os, sys
from pathlib import Path
from runtime.engines import trt_cache
from runtime.engines.trt_build import BuildOptions, engine_file
write = trt_cache._write
def die(path, data):
    write(path, data[:100])
    if path.suffix == ".engine":
        os._exit(9)
trt_cache._write = die
engine_file(Path({str(small)!r}), precision="fp16", library="tensorrt-rtx", folder=Path({str(folder)!r}),
            options=BuildOptions(targets=("86", "120")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert list(list_engines(folder)) == []
    check_engine(engine_file(small, **RTX, folder=folder))


@needs_rtx
def test_a_gate_that_refuses_keeps_the_engine_out(small, folder):
    seen = []

    def refuse(candidate):
        seen.append(expected_types(candidate.read_bytes())["conv1"])
        raise EngineError("centre shift 3 mm, limit 0.5")

    with pytest.raises(EngineError, match="centre shift 3 mm"):
        engine_file(small, **RTX, folder=folder, gate=refuse)
    assert seen == ["HALF"], "without a GPU the typed graph is judged"
    assert list(list_engines(folder)) == []
    path = engine_file(small, **RTX, folder=folder, gate=lambda candidate: None)
    assert read_sidecar(path).gates == ("the typed graph",)


@needs_rtx
def test_a_full_temporary_folder_is_told_where_the_typed_graph_is_judged(small, folder, monkeypatch):
    write = Path.write_bytes

    def full(path, data):
        if path.suffix == ".onnx":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    said = r"small\.onnx .* cannot be written to the temporary folder /.* \(No space left on device\): .* TMPDIR\.$"
    with pytest.raises(EngineError, match=said):
        engine_file(small, **RTX, folder=folder, gate=Gate())
    assert list(list_engines(folder)) == []


def test_a_full_temporary_folder_is_told_where_its_rounding_is_judged(small, monkeypatch):
    typed = small.with_name("typed.onnx")
    typed.write_bytes(typed_graph(small, "fp16"))

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EngineError, match=r"typed\.onnx .* cannot be written .* \(No space left on device\)"):
        gate_for(small, precision="fp16", library="tensorrt-rtx")(typed)


# An engine of the cache that was not gated.


class Gate:
    """Lets pass or refuses, and keeps what it was asked of."""

    def __init__(self, verdict=None):
        self.verdict, self.seen = verdict, []

    def __call__(self, candidate):
        self.seen.append(candidate.suffix)
        if self.verdict is not None:
            raise EngineError(self.verdict)


@needs_rtx
def test_an_engine_that_was_not_gated_is_gated_where_a_gated_one_is_wanted(small, folder, caplog):
    path = engine_file(small, **RTX, folder=folder)
    assert read_sidecar(path).gates == ()
    refusing = Gate("centre shift 3 mm, limit 0.5")
    for _ in range(2):
        with pytest.raises(EngineError, match="centre shift 3 mm"):
            engine_file(small, **RTX, folder=folder, gate=refusing)
    assert refusing.seen == [".onnx", ".onnx"]
    assert read_sidecar(path).gates == ()
    passing = Gate()
    for _ in range(2):
        assert engine_file(small, **RTX, folder=folder, gate=passing) == path
    assert passing.seen == [".onnx"], "once it is known, nobody asks again"
    assert read_sidecar(path).gates == ("the typed graph",)


@needs_rtx
def test_that_it_passed_may_be_forgotten_but_not_that_it_is_asked(small, folder, monkeypatch, caplog):
    path = engine_file(small, **RTX, folder=folder)

    def full(*_):
        raise EngineError("the disk is full")

    monkeypatch.setattr(trt_build, "note_gate", full)
    gate = Gate()
    for _ in range(2):
        assert engine_file(small, **RTX, folder=folder, gate=gate) == path
    assert len(gate.seen) == 2
    assert "is not kept: the disk is full" in caplog.text


# An engine that was built before, without the GPU.


def with_gpu(monkeypatch, sm, *, name="NVIDIA X"):
    gpu = Gpu(0, name, divmod(sm, 10), 8000, "580.1", (13, 0))
    monkeypatch.setattr(trt_build, "find_gpu", lambda device=0: gpu if device == 0 else None)


@needs_rtx
def test_what_was_built_without_a_gpu_is_what_the_runtime_finds_on_it(small, folder, monkeypatch):
    monkeypatch.setattr(trt_build, "find_gpu", lambda device=0: None)
    path = engine_file(small, **{**RTX, "options": BuildOptions(targets=("120", "86"))}, folder=folder)
    monkeypatch.setattr(trt_build, "build_serialized", None)
    gate = Gate()
    for sm in (120, 86):
        with_gpu(monkeypatch, sm)
        for _ in range(2):
            assert engine_file(small, precision="fp16", library="tensorrt-rtx", folder=folder, gate=gate) == path
    assert gate.seen == [".engine"] * 2, "once on each GPU, where it could not be run when it was built"
    assert read_sidecar(path).gates == (
        "NVIDIA X SM 120, driver 580.1 CUDA 13.0",
        "NVIDIA X SM 86, driver 580.1 CUDA 13.0",
    )
    with_gpu(monkeypatch, 89)
    with pytest.raises(TypeError, match="not callable"):  # it would be built again
        engine_file(small, precision="fp16", library="tensorrt-rtx", folder=folder)


@needs_rtx
def test_what_was_built_elsewhere_and_fails_on_the_gpu_gives_way_to_one_that_is_built_on_it(small, folder, monkeypatch):
    monkeypatch.setattr(trt_build, "find_gpu", lambda device=0: None)
    elsewhere = engine_file(small, **RTX, folder=folder)
    with_gpu(monkeypatch, 120)
    monkeypatch.setattr(trt_build, "check_serialized", lambda *_: None)  # needs the GPU

    def gate(candidate):
        if read_sidecar(candidate).build.gpu == "":
            raise EngineError("centre shift 3 mm, limit 0.5")

    usual = {"precision": "fp16", "library": "tensorrt-rtx", "folder": folder}
    path = engine_file(small, **usual, gate=gate)
    assert path != elsewhere
    assert read_sidecar(path).build.gpu == "NVIDIA X SM 120"
    monkeypatch.setattr(trt_build, "build_serialized", None)
    assert engine_file(small, **usual, gate=gate) == path
    with pytest.raises(EngineError, match="centre shift"):
        engine_file(small, **usual, gate=Gate("centre shift"), options=RTX["options"])


@needs_rtx
def test_what_was_built_with_other_options_is_found_and_what_says_something_else_is_not(small, folder, monkeypatch):
    monkeypatch.setattr(trt_build, "find_gpu", lambda device=0: None)
    options = BuildOptions(targets=("120",), workspace_mb=512)
    path = engine_file(small, **{**RTX, "options": options}, folder=folder)
    with_gpu(monkeypatch, 120)
    monkeypatch.setattr(trt_build, "build_serialized", None)
    usual = {"precision": "fp16", "library": "tensorrt-rtx", "folder": folder}
    assert engine_file(small, **usual) == path
    for other in ({"precision": "fp32"}, {"plan": PrecisionPlan(fp16_keep_fp32=("conv2",))}):
        with pytest.raises(TypeError, match="not callable"):
            engine_file(small, **{**usual, **other})
    onnx.save(small_network(seed=5), small)
    with pytest.raises(TypeError, match="not callable"):
        engine_file(small, **usual)


@needs_rtx
def test_the_same_targets_in_any_order_are_the_same_engine(small, folder):
    orders = (("86", "120"), ("120", "86"), ("120", "86", "120"))
    paths = {engine_file(small, **{**RTX, "options": BuildOptions(targets=o)}, folder=folder) for o in orders}
    assert len(paths) == len(list(list_engines(folder))) == 1
    assert read_sidecar(paths.pop()).build.targets == ("86", "120")


@needs_rtx
def test_progress_is_told_and_an_interrupt_ends_the_build(small, folder):
    class Steps:
        def __init__(self, stop_at):
            self.told, self.stop_at = [], stop_at

        def stage(self, name):
            self.told.append(name)

        def step(self, done, total):
            self.told.append((done, total))
            if done == self.stop_at:
                raise KeyboardInterrupt

    steps = Steps(stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        engine_file(small, **RTX, folder=folder, progress=steps)
    assert list(list_engines(folder)) == []
    steps = Steps(stop_at=None)
    engine_file(small, **RTX, folder=folder, progress=steps)
    assert steps.told[0] == "build small fp16 for tensorrt-rtx"
    done, total = steps.told[-1]
    assert done == total > 2


class Sends(logging.Handler):
    """Sends a signal when the library first says something: while it is at work, in its callback."""

    def __init__(self, number):
        super().__init__()
        self.number, self.sent = number, False

    def emit(self, record):
        if not self.sent:
            self.sent = True
            signal.raise_signal(self.number)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as a person at a terminal has it: what runs in the background may have begun with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@needs_rtx
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_meets_the_library_at_work_ends_the_build(small, folder, number, ctrl_c, caplog, capfd):
    """The bindings swallow what is raised in a callback, and would finish the engine."""
    caplog.set_level(logging.DEBUG, "runtime.engines.trt_library")
    sends, said = Sends(number), logging.getLogger("runtime.engines.trt_library")
    said.addHandler(sends)
    try:
        with interrupted_by_sigterm(), pytest.raises(KeyboardInterrupt):
            engine_file(small, **RTX, folder=folder)
    finally:
        said.removeHandler(sends)
    assert sends.sent
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert list(list_engines(folder)) == []
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_a_signal_between_two_callbacks_ends_the_build(small, folder, ctrl_c):
    """As a person's Ctrl-C comes: from outside, at any time."""
    begun = threading.Event()

    class Begun(NoProgress):
        def step(self, done, total):
            begun.set()

    def press():
        begun.wait()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        engine_file(DEFAULT_BUNDLE / "fracsegnet.onnx", **RTX, folder=folder, progress=Begun())
    presser.join()
    assert list(list_engines(folder)) == []


@needs_rtx
def test_building_prints_nothing_and_failures_are_one_line(small, folder, capfd):
    engine_file(small, **RTX, folder=folder)
    options = BuildOptions(targets=("86",), version_compatible=True)
    with pytest.raises(EngineError, match=r"cannot build the engine: .*lean") as caught:
        engine_file(small, precision="fp16", library="tensorrt-rtx", options=options, folder=folder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


# Turing, for which TensorRT-RTX has less.

TURING = BuildOptions(targets=("75", "86"))


@needs_rtx
@pytest.mark.parametrize("file", ["locnet.onnx", "fracsegnet.onnx", "levelnet.onnx"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_network_is_built_for_turing_in_what_its_preflight_offers(file, precision, folder):
    if precision == "int8" and not open_bundle().spec.precision[file].int8_ranges:
        pytest.skip("the default bundle does not offer it")
    path = engine_file(
        DEFAULT_BUNDLE / file, precision=precision, library="tensorrt-rtx", options=TURING, folder=folder
    )
    assert check_engine(path).build.targets == ("75", "86")


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_the_library_has_not_for_turing_is_said_before_anything_is_built(small, folder, precision, monkeypatch):
    options = {"library": "tensorrt-rtx", "precision": precision, "folder": folder}
    said = rf"fp16 or int8 on Turing \(SM 75\), not in {precision}"
    with pytest.raises(EngineError, match=said):
        engine_file(small, **options, options=TURING)
    with_gpu(monkeypatch, 75)
    with pytest.raises(EngineError, match=said):
        engine_file(small, **options)
    # That the library itself refuses is why.
    monkeypatch.setattr(trt_build, "RTX_TURING_PRECISIONS", ("fp16", "fp32", "bf16", "int8"))
    with pytest.raises(EngineError, match=r"cannot build the engine: .*(SM75|sm75)"):
        engine_file(small, **options, options=TURING)


@needs_rtx
@pytest.mark.parametrize("sm", [75, 86])
def test_tensorrt_rtx_builds_for_the_gpu_that_is_there_and_for_no_other(small, folder, sm, monkeypatch):
    """With no compute capability named, it builds for all from Ampere on, and not for Turing."""
    configs = []
    real = trt_network._configure
    monkeypatch.setattr(trt_network, "_configure", lambda *a: (real(*a), configs.append(a[1])))
    monkeypatch.setattr(trt_build, "check_serialized", lambda *_: None)  # needs the GPU
    with_gpu(monkeypatch, sm)
    path = engine_file(small, precision="fp16", library="tensorrt-rtx", folder=folder)
    (config,) = configs
    told = [config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)]
    assert told == [f"SM{sm}"]
    assert read_sidecar(path).build.targets == (str(sm),)


@needs_rtx
def test_matrix_products_are_what_the_library_has_not_for_turing(folder, monkeypatch):
    monkeypatch.setattr(trt_build, "without_matrix_products", lambda graph: graph)
    with pytest.raises(EngineError, match="FP32 GEMM is not supported"):
        engine_file(
            DEFAULT_BUNDLE / "levelnet.onnx", precision="fp16", library="tensorrt-rtx", options=TURING, folder=folder
        )


# What can be asked for.


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"library": "tensorrt-lite"}, "no engine library 'tensorrt-lite'; there are tensorrt, tensorrt-rtx"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"options": BuildOptions(hardware_compatibility="all")}, "no hardware compatibility 'all'"),
        ({"options": BuildOptions(targets=("90",))}, "builds for SM 75, 80, 86, 89, 120, 121, not for SM 90"),
    ],
)
@needs_rtx
def test_what_there_is_not_is_refused(small, asked, said):
    values = {"precision": "fp16", "library": "tensorrt-rtx", "options": BuildOptions(), **asked}
    with pytest.raises(EngineError, match=said):
        engine_file(small, plan=PrecisionPlan(), **values)


def build_on(gpu, *, library="tensorrt", **options):
    return engine_build(library, "fp16", gpu, BuildOptions(**options))


def test_gpu_and_driver_are_written_down_of_engines_that_are_built_on_it():
    build = build_on(GPU)
    assert (build.targets, build.gpu, build.driver) == (("89",), "NVIDIA X SM 89", "580.1 CUDA 13.0")
    assert build_on(GPU, library="tensorrt-rtx").gpu == "NVIDIA X SM 89"
    elsewhere = build_on(GPU, library="tensorrt-rtx", targets=("120",))
    assert (elsewhere.targets, elsewhere.gpu, elsewhere.driver) == (("120",), "", "")


def test_gpus_that_a_library_cannot_build_for_are_refused():
    hopper = Gpu(0, "NVIDIA H200", (9, 0), 1000, "580.1", (13, 0))
    with pytest.raises(EngineError, match=r"this GPU is SM 90: use the engine tensorrt"):
        build_on(hopper, library="tensorrt-rtx")
    assert build_on(hopper).gpu == "NVIDIA H200 SM 90"
    with pytest.raises(EngineError, match="the NVIDIA driver offers none"):
        build_on(None)
    with pytest.raises(EngineError, match="--targets is for tensorrt-rtx"):
        build_on(GPU, targets=("89",))


def machine(monkeypatch, *gpus, version="11.1"):
    monkeypatch.setattr(trt_build, "find_gpu", lambda device=0: gpus[device] if device < len(gpus) else None)
    monkeypatch.setattr(trt_build, "load_library", lambda name: FakeTensorRt(version=version))


def sidecar_of(small, build):
    key = engine_key(small, precision="fp16", library="tensorrt", plan=PrecisionPlan(), max_batch=8)
    return Sidecar(2, key, build, "0" * 64, 1, (), "2026-11-21T00:00:00", 1.0)


def test_engines_of_other_versions_gpus_and_drivers_are_stale(monkeypatch, small):
    machine(monkeypatch, GPU)
    one = sidecar_of(small, build_on(GPU))
    assert why_stale(one) == ""
    newer, other = replace(GPU, driver="590.2", cuda=(13, 1)), replace(GPU, name="NVIDIA Y")
    machine(monkeypatch, newer)
    assert "this machine has NVIDIA X SM 89 with driver 590.2" in why_stale(one)
    machine(monkeypatch, other, GPU)
    assert why_stale(one) == "", "it is for the second GPU"
    machine(monkeypatch)
    assert "no GPU is there" in why_stale(one)
    assert why_stale(replace(one, build=EngineBuild(("120",)))) == "", "it is for other machines"
    machine(monkeypatch, GPU, version="11.2")
    assert "11.2 is installed, and it was built by 11.1" in why_stale(one)
    assert why_stale(replace(one, build=replace(one.build, version_compatible=True))) == ""


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("runtime.engines.trt_library.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="tensorrt is not installed; install it with: pip install tensorrt"):
        load_library("tensorrt")


# TensorRT 10 and 11, on a stand-in.


@pytest.fixture(params=["10.16", "11.1"])
def fake(request, monkeypatch):
    library = FakeTensorRt(version=request.param)
    monkeypatch.setattr(trt_build, "load_library", lambda name: library)
    monkeypatch.setattr(trt_build, "find_gpu", lambda device=0: GPU if device == 0 else None)
    return library


def build(small, folder, **options):
    values = {"precision": "fp16", "library": "tensorrt", "folder": folder}
    return engine_file(small, **values, options=BuildOptions(**options))


def test_tensorrt_10_and_11_build_through_the_same_path(fake, small, folder):
    path = build(small, folder, max_batch=4, workspace_mb=512)
    config = fake.configs[0]
    # TensorRT 10 must be told to keep to the graph's types; 11 has no flag for it.
    assert fake.network_flags == ([1] if fake.__version__ == "10.16" else [0])
    assert config.cleared == ["TF32"]
    assert config.set == []
    assert config.limits == {"WORKSPACE": 512 * 2**20}
    assert config.profiles == [{"image": ((1, 1, 8, 8, 8), (4, 1, 8, 8, 8), (4, 1, 8, 8, 8))}]
    assert config.hardware_compatibility_level == "NONE"
    assert read_sidecar(path).build.gpu == "NVIDIA X SM 89"
    assert fake.loaded == [path.read_bytes()], "it is loaded once to read its types back"


def test_tensorrts_timing_cache_goes_from_build_to_build(fake, small, folder):
    build(small, folder)
    (cache,) = folder.glob("timing-*.cache")
    build(small, folder, max_batch=2)
    assert [config.timing for config in fake.configs] == [b"", cache.read_bytes()[:-1]]


def test_timings_that_cannot_be_kept_or_read_cost_no_engine(fake, small, folder, monkeypatch, caplog):
    def full(*_):
        raise EngineError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(trt_build, "replace_file", full)
        check_engine(build(small, folder))
    assert "is not kept for later ones: the disk is full" in caplog.text
    build(small, folder, max_batch=2)
    read_bytes = Path.read_bytes

    def unreadable(path):
        if path.suffix == ".cache":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    check_engine(build(small, folder, max_batch=3))
    assert fake.configs[-1].timing == b""
    assert "cannot be read (Permission denied)" in caplog.text


def test_timings_that_the_library_does_not_take_are_measured_anew(fake, small, folder):
    build(small, folder)
    (cache,) = folder.glob("timing-*.cache")
    cache.write_bytes(b"of another GPU")
    build(small, folder, max_batch=2)
    assert fake.configs[-1].timing == b""
    assert cache.read_bytes() == b"+"


def test_compatibility_is_asked_for_and_written_down(fake, small, folder):
    path = build(small, folder, hardware_compatibility="ampere_plus", version_compatible=True)
    assert fake.configs[0].hardware_compatibility_level == "AMPERE_PLUS"
    assert fake.configs[0].set == ["VERSION_COMPATIBLE"]
    assert fake.host_code_allowed == [True]
    with pytest.raises(EngineError, match="carries code"):
        check_engine(path)
    assert build(small, folder, hardware_compatibility="ampere_plus", version_compatible=True) == path


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"dtype": "HALF"}, r"takes and gives .*HALF"),
        ({"shape": (-1, 1, 4, 4, 4)}, r"takes and gives .*4, 4, 4"),
        ({"batch": (1, 1, 4)}, r"batches from 1 to 4, not from 1 to 8"),
        ({"unloadable": True}, r"cannot load the engine that it built: no such thing"),
    ],
)
def test_an_engine_that_reads_back_otherwise_is_refused(fake, small, folder, lie, said):
    fake.lie = lie
    with pytest.raises(EngineError, match=said):
        build(small, folder)
    assert list(list_engines(folder)) == []


def test_a_gate_judges_the_engine_itself_where_its_gpu_is(fake, small, folder):
    seen = []
    path = engine_file(
        small, precision="fp16", library="tensorrt", folder=folder, gate=lambda candidate: seen.append(candidate.name)
    )
    assert seen == [path.name]
    assert read_sidecar(path).gates == ("NVIDIA X SM 89, driver 580.1 CUDA 13.0",)


def test_an_ungated_engine_is_judged_itself_where_its_gpu_is(fake, small, folder):
    path, gate = build(small, folder), Gate()
    for _ in range(2):
        assert engine_file(small, precision="fp16", library="tensorrt", folder=folder, gate=gate) == path
    assert gate.seen == [".engine"]
    assert len(fake.configs) == 1


def test_code_for_the_host_is_run_for_a_gate_only_where_the_bundle_vouches_for_it(fake, small, folder):
    path, gate = build(small, folder, version_compatible=True), Gate()
    usual = {"precision": "fp16", "library": "tensorrt", "folder": folder, "gate": gate}
    assert engine_file(small, **usual, options=BuildOptions(version_compatible=True)) == path
    assert gate.seen == [".onnx"]
    known = {read_sidecar(path).sha256}
    assert engine_file(small, **usual, trusted=known) == path
    assert gate.seen == [".onnx", ".engine"]
    assert engine_file(small, **usual) != path, "without the bundle's word another one is built"


def test_a_graph_that_the_library_cannot_read_is_told(fake, small, folder):
    fake.lie = {"unreadable": True}
    with pytest.raises(EngineError, match=r"cannot read the network: no importer for Conv"):
        build(small, folder)


def test_check_engine_types_wants_what_the_graph_says(fake, small):
    engine = fake.Runtime(None).deserialize_cuda_engine(typed_graph(small, "fp16"))
    check_engine_types(engine, typed_graph(small, "fp16"), max_batch=8)
    other = small.with_name("other.onnx")
    onnx.save(onnx.compose.add_prefix(small_network(), "x_"), other)
    with pytest.raises(EngineError, match="the network takes and gives"):
        check_engine_types(engine, typed_graph(other, "fp16"), max_batch=8)
