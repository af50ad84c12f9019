"""The engines tensorrt and tensorrt-rtx on a stand-in of library and driver; on a GPU tests/gpu runs them for real."""

import functools
import gc
import hashlib
import logging
import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.bundle import write_bundle
from runtime.device import graph
from runtime.device.session import offers_device_tensors
from runtime.engines import EngineChoice, engine_module, trt_engine
from runtime.engines.base import EngineInfo
from runtime.engines.trt_session import TensorRtSession
from runtime.errors import EngineError, OutOfMemoryError
from runtime.typed_graph import typed_graph
from tests.runtime import engine_conformance
from tests.runtime.device import fake_tensorrt
from tests.runtime.device.fake_driver import Driver, FakeStream, MisuseError
from tests.runtime.engine_conformance import Conformance, images, reference, write_network
from tests.runtime.test_bundle import SPEC

INFO = EngineInfo("tensorrt", "1", "fp32", "NVIDIA RTX 4090", "test")
NAMES = ("tensorrt", "tensorrt-rtx")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with an RTX 4090 and both libraries; engines are typed graphs, which the stand-in runs."""
    driver = Driver()
    library = fake_tensorrt.pretend_machine(monkeypatch, driver, lambda device: FakeStream(driver, device), tmp_path)
    return SimpleNamespace(driver=driver, library=library, folder=tmp_path)


class TestConformance(Conformance):
    @pytest.fixture(params=[(name, precision) for name in NAMES for precision in ("fp32", "fp16")], ids="-".join)
    def choice(self, request, machine, monkeypatch):
        monkeypatch.setattr(engine_conformance, "gpu_name", lambda device: fake_tensorrt.GPU.name)
        name, precision = request.param
        return EngineChoice(engine_module(name), name, precision, 0, "a test")


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "tiny.onnx"
    write_network(path)
    return path


def opened(machine, network, name="tensorrt"):
    return engine_module(name).open_session(network, precision="fp32", device=0, threads=None, reason="test")


def close_to(outputs, image):
    for output, right in zip(outputs, reference(image), strict=True):
        np.testing.assert_allclose(output, right, atol=1e-5)


# Code for the host.


def in_bundle(network, **changes):
    """The network as one of a bundle's."""
    files = dict.fromkeys(("locnet.onnx", "fracsegnet.onnx"), network)
    return write_bundle(replace(SPEC, **changes), files, network.parent / "b").path_of("locnet.onnx")


def test_a_version_compatible_engine_is_loaded_only_where_the_bundle_lists_its_hash(machine, network):
    machine.library.wants_host_code = True
    listed = {"x.engine": hashlib.sha256(network.read_bytes()).hexdigest()}
    for known, is_loaded in (({}, False), ({"x.engine": "0" * 64}, False), (listed, True)):
        path = in_bundle(network, trusted_engines=known)
        if is_loaded:
            with opened(machine, path) as session:
                close_to(session(images(2)), images(2))
        else:
            with pytest.raises(EngineError, match=r"carries code .* and its hash is not in the bundle"):
                opened(machine, path)
    with pytest.raises(EngineError, match="it is not loaded"):
        opened(machine, network)


# Memory, order, recordings.


def test_tensors_stay_on_the_gpu_between_two_networks_of_one_stream(machine, network):
    with opened(machine, network) as session, FakeStream(machine.driver) as stream, stream.active():
        assert offers_device_tensors(session)
        for n in (4, 4, 4, 2, 4, 1, 4):
            image = images(n, seed=n)
            stream.copy_in(session.device_input(n), image)
            outputs = session.enqueue(n, stream)
            close_to([stream.download(output) for output in outputs], image)


def test_nothing_waits_and_nothing_is_copied_when_work_is_enqueued(machine, network):
    with opened(machine, network) as session, FakeStream(machine.driver) as stream, stream.active():
        stream.copy_in(session.device_input(2), images(2))
        session.enqueue(2, stream)
        assert machine.driver.log == []
        stream.synchronise()
        assert machine.driver.log == ["upload", "run 2"]


@pytest.mark.parametrize("records", [True, False])
def test_a_size_that_comes_again_is_recorded_and_others_do_not_disturb_the_recording(machine, network, records):
    machine.driver.records = records
    with opened(machine, network) as session:
        for n in (4, 4, 4, 2, 4, 2, 2, 4, 4):
            close_to(session(images(n, seed=n)), images(n, seed=n))
    runs = [entry for entry in machine.driver.log if entry != "upload"]
    graph = "graph" if records else "run 4"
    # The second time in a context of its own, once plainly and then as a graph.
    assert runs == ["run 4", "run 4", graph, "run 2", graph, "run 2", "run 2", graph, graph]


def test_tensorrt_rtx_is_told_to_record_by_itself(machine, network):
    with opened(machine, network, "tensorrt-rtx") as session:
        for _ in range(4):
            close_to(session(images(4)), images(4))
    assert machine.library.strategies == [fake_tensorrt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE]
    assert "graph" not in machine.driver.log


def test_tensorrt_rtx_is_not_recorded_here_without_a_place_for_its_kernels_either(machine, network):
    info, stream = replace(INFO, name="tensorrt-rtx"), FakeStream(machine.driver)
    graph = typed_graph(network, "fp32")
    with TensorRtSession(machine.library, graph, stream, info=info, model="tiny.onnx") as session:
        for _ in range(3):
            close_to(session(images(2)), images(2))
    assert "graph" not in machine.driver.log


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_freed_in_the_order_that_the_library_wants(machine, network, name):
    with opened(machine, network, name) as session:
        for n in (4, 4, 4, 1):
            session(images(n))
        assert machine.driver.used_bytes > 0
        assert "context" in machine.library.alive
    gc.collect()
    assert machine.library.alive == []
    assert machine.driver.used_bytes == 0
    assert machine.driver.queues == {}


def everything_is_freed(machine):
    gc.collect()
    return machine.library.alive == [] and machine.driver.memory == {} and machine.driver.queues == {}


def refused(machine, network, match, error=EngineError):
    with pytest.raises(error, match=match) as caught:
        opened(machine, network)
    assert str(caught.value).count("\n") == 0
    caught.value.__traceback__ = None
    del caught
    assert everything_is_freed(machine)


def test_a_full_gpu_is_told_and_leaves_nothing(machine, network):
    machine.driver.limit_bytes = 10_000
    refused(machine, network, "memory of GPU 0 is full", OutOfMemoryError)


def test_a_context_that_cannot_be_made_is_told_and_leaves_nothing(machine, network):
    machine.library.contexts = 0
    refused(machine, network, "cannot be made ready: Error Code 2: OutOfMemory", OutOfMemoryError)


def test_a_run_that_finds_the_gpu_full_is_told_as_that(machine, network):
    machine.library.failure = "IExecutionContext::executeV3: Error Code 1: Cuda Runtime (out of memory)"
    with opened(machine, network) as session:
        machine.library.fails_after = 0
        with pytest.raises(OutOfMemoryError, match=r"refuses to run with .*out of memory.*crop the scan to the spine"):
            session(images(4))


def test_an_engine_that_does_not_fit_into_the_gpu_is_told_as_that(machine, network):
    machine.library.refuses_to_load = "IRuntime::deserializeCudaEngine: Error Code 2: OutOfMemory (no further ...)"
    refused(machine, network, "cannot load the engine of tiny.onnx: .*OutOfMemory", OutOfMemoryError)


def test_an_engine_of_other_types_or_places_is_refused(machine, network, monkeypatch):
    monkeypatch.setitem(fake_tensorrt._TYPES, "tensor(float)", fake_tensorrt.DataType.HALF)
    refused(machine, network, "HALF, not FLOAT")
    monkeypatch.undo()


def test_an_engine_in_the_hosts_memory_is_refused(machine, network):
    machine.library.location = fake_tensorrt.TensorLocation.HOST
    refused(machine, network, "lies in the host's memory")


def test_an_engine_that_takes_no_single_image_is_refused(machine, network):
    machine.library.profile = (2, 4, 4)
    refused(machine, network, "takes batches from 2")


@pytest.mark.parametrize("count", [0, 5, -1])
def test_a_batch_beyond_the_profile_is_refused_on_the_gpu(machine, network, count):
    with opened(machine, network) as session, pytest.raises(EngineError, match="batches of 1 to 4"):
        session.device_input(count)


def test_a_failure_in_mid_run_is_one_sentence_and_all_is_freed_after_it(machine, network):
    session = opened(machine, network)
    session(images(4))
    machine.library.fails_after = 0
    with pytest.raises(EngineError, match=r"tiny\.onnx refuses to run with .*: IExecutionContext::executeV3"):
        session(images(4))
    session.close()
    del session
    assert everything_is_freed(machine)


def test_a_failure_while_recording_falls_back_to_plain_runs(machine, network, caplog):
    with opened(machine, network) as session:
        session(images(4))
        session(images(4))
        machine.library.fails_after = 0
        with pytest.raises(EngineError, match="illegal access"):
            session(images(4))
        machine.library.fails_after = None
        close_to(session(images(4)), images(4))


def test_a_closed_session_gives_no_tensors(machine, network):
    session = opened(machine, network)
    session.close()
    for call in (lambda: session.device_input(1), lambda: session.enqueue(1, None)):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_the_stand_in_notices_what_would_go_wrong_on_a_gpu(machine, network):
    driver = machine.driver
    with FakeStream(driver) as stream:
        with pytest.raises(MisuseError, match="not current"):
            stream.empty((1,), np.float32)
        with stream.active():
            array = stream.empty((2, 2), np.float32)
            assert np.isnan(stream.download(array)).all()
            address = array.address
            with pytest.raises(MisuseError, match="not allocated"):
                driver.view(address, 17)
            with pytest.raises(MisuseError, match="copied while"):
                stream.record(functools.partial(stream.copy_in, array, np.zeros((2, 2), np.float32)))
            array = None
            gc.collect()
            with pytest.raises(MisuseError, match="not allocated"):
                driver.view(address, 1)


# What TensorRT-RTX compiled is kept.


def kernels(machine):
    return sorted(machine.folder.glob("*.kernels*"))


def test_what_was_compiled_is_kept_beside_the_engine_and_used_again(machine, network):
    for _ in range(2):
        with opened(machine, network, "tensorrt-rtx") as session:
            session(images(1))
        (path,) = kernels(machine)
        assert path.read_bytes() == b"kernels compiled"
    opened(machine, network, "tensorrt").close()
    assert kernels(machine) == [path]


def test_a_damaged_or_foreign_file_is_not_used_and_written_anew(machine, network, caplog):
    opened(machine, network, "tensorrt-rtx").close()
    (path,) = kernels(machine)
    path.write_bytes(b"rubbish")
    with (
        caplog.at_level(logging.INFO, logger="runtime"),
        opened(machine, network, "tensorrt-rtx") as session,
    ):
        close_to(session(images(1)), images(1))
    assert "made anew" in caplog.text
    assert path.read_bytes() == b"kernels compiled"


def test_a_file_that_cannot_be_written_is_told_and_costs_nothing_else(machine, network, caplog):
    session = opened(machine, network, "tensorrt-rtx")
    session(images(1))
    path = session._cache._path
    path.mkdir()
    session.close()
    assert "not kept" in caplog.text
    assert kernels(machine) == [path]


# Preflight: nothing is opened, one line says what is missing.


@pytest.fixture
def without(machine, monkeypatch):
    """The machine without one of its modules."""

    def hide(*modules):
        monkeypatch.setattr(trt_engine, "find_spec", lambda name: None if name in modules else object())

    return hide


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("tensorrt", "tensorrt", "pip install tensorrt"),
        ("tensorrt-rtx", "tensorrt_rtx", "pip install tensorrt-rtx"),
        ("tensorrt", "numba_cuda", r"pip install numba-cuda\[cu13\], or vertscan\[gpu\]"),
        ("tensorrt-rtx", "onnx", r"pip install onnx, or vertscan\[rtx\]"),
    ],
)
def test_a_missing_package_is_named(without, name, module, package):
    without(module)
    found = engine_module(name).preflight()
    assert not found.available
    assert "\n" not in found.reason
    assert re.search(package, found.reason)


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_without_a_gpu_is_told_so(machine, name):
    found = engine_module(name).preflight(device=1)
    assert not found.available
    assert "no GPU 1" in found.reason


def with_gpu(monkeypatch, **other):
    gpu = SimpleNamespace(**{**vars(fake_tensorrt.GPU), **other})
    monkeypatch.setattr(trt_engine, "find_gpu", lambda device=0: gpu)


@pytest.mark.parametrize("sm", [70, 87, 90, 100, 103, 110])
def test_tensorrt_rtx_is_refused_where_it_does_not_run(machine, monkeypatch, sm):
    with_gpu(monkeypatch, sm=sm)
    found = engine_module("tensorrt-rtx").preflight()
    assert not found.available
    assert f"is SM {sm}: use the engine tensorrt" in found.reason
    assert engine_module("tensorrt").preflight().available == (sm >= 75)


@pytest.mark.parametrize("sm", [75, 80, 86, 89, 120, 121])
def test_tensorrt_rtx_runs_on_its_targets_with_fp16_first(machine, monkeypatch, sm):
    with_gpu(monkeypatch, sm=sm)
    found = engine_module("tensorrt-rtx").preflight()
    assert found.available
    assert found.precisions == (("fp16", "int8") if sm < 80 else ("fp16", "fp32", "bf16", "int8"))
    assert engine_module("tensorrt").preflight().precisions[:2] == ("fp16", "fp32")
    assert found.version == "1.7.1.116"
    assert found.device == "NVIDIA RTX 4090"


@pytest.mark.parametrize(("package", "compiler"), [(12, 12), (13, 13), (12, 13), (13, None), (None, None)])
@pytest.mark.parametrize("driver", [(12, 4), (13, 0)])
def test_a_driver_older_than_the_packages_cuda_is_told(machine, monkeypatch, package, compiler, driver):
    def distribution(name):
        if name != f"tensorrt-rtx-cu{package}":
            raise PackageNotFoundError(name)

    monkeypatch.setattr(trt_engine, "distribution", distribution)
    monkeypatch.setattr(trt_engine, "cuda_of_toolkit", lambda: compiler)
    with_gpu(monkeypatch, cuda=driver)
    found = engine_module("tensorrt-rtx").preflight()
    assert found.available == (driver[0] >= max(package or 0, compiler or 0))
    if not found.available:
        assert "update the driver, or pip install tensorrt-rtx-cu12 numba-cuda[cu12]" in found.reason


def test_a_library_that_cannot_be_loaded_is_told(machine, monkeypatch):
    def broken(name):
        raise EngineError("tensorrt is installed but cannot be loaded (libnvinfer.so.10); reinstall it.")

    monkeypatch.setattr(trt_engine, "load_library", broken)
    found = engine_module("tensorrt").preflight()
    assert not found.available
    assert "cannot be loaded" in found.reason
    with pytest.raises(EngineError, match=r"tensorrt cannot be used: .*reinstall it"):
        trt_engine.open_session("tensorrt", Path(__file__), precision="auto", device=0, reason="")


def test_a_session_made_from_rubbish_leaves_nothing(machine):
    with pytest.raises(EngineError, match=r"cannot load the engine of x\.onnx: IRuntime::deserialize") as caught:
        TensorRtSession(machine.library, b"rubbish", FakeStream(machine.driver), info=INFO, model="x.onnx")
    caught.value.__traceback__ = None
    del caught
    assert everything_is_freed(machine)


# The stand-in has no more than the library has.


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
def test_what_the_stand_in_offers_is_there_in_the_library():
    import tensorrt_rtx

    pairs = {
        "Runtime": fake_tensorrt._Runtime,
        "ICudaEngine": fake_tensorrt._Engine,
        "IExecutionContext": fake_tensorrt._Context,
        "IRuntimeConfig": fake_tensorrt._Config,
        "IRuntimeCache": fake_tensorrt._RuntimeCache,
    }
    for name, stand_in in pairs.items():
        offered = {member for member in vars(stand_in) if not member.startswith("_")}
        assert offered <= set(dir(getattr(tensorrt_rtx, name))), name
        assert offered
    for name in ("TensorIOMode", "TensorLocation", "CudaGraphStrategy"):
        there = getattr(tensorrt_rtx, name)
        assert all(hasattr(there, member.name) for member in getattr(fake_tensorrt, name)), name
    assert all(hasattr(tensorrt_rtx.DataType, member.name) for member in fake_tensorrt.DataType)
    assert hasattr(tensorrt_rtx.IRuntimeConfig, "cuda_graph_strategy")
    assert hasattr(tensorrt_rtx.ICudaEngine, "num_io_tensors")


@pytest.mark.skipif(find_spec("cuda") is None or find_spec("cuda.bindings") is None, reason="needs cuda-python")
def test_the_calls_of_cuda_graphs_are_there_in_the_binding():
    from cuda.bindings import driver

    calls = re.findall(r"driver\.(\w+)", Path(graph.__file__).read_text())
    assert len(calls) >= 8
    assert [call for call in calls if not hasattr(driver, call)] == []
