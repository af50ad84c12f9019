"""onnxruntime on a GPU, by a stand-in: the same conformance suite, and what is particular to its providers."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.device.session import offers_device_tensors
from runtime.engines import (
    EngineChoice,
    engine_module,
    ort,
    ort_device,
    ort_gpu,
    ort_library,
    ort_tensorrt,
    select_engine,
)
from runtime.engines.cuda_probe import Gpu
from runtime.errors import EngineError, OutOfMemoryError
from runtime.locks import try_lock, unlock
from tests.runtime.engine_conformance import Conformance, images, redirect_caches, reference, write_network
from tests.runtime.fake_onnxruntime import CPU, CUDA, TENSORRT, HostStream, Library

ADA = Gpu(0, "NVIDIA RTX 6000 Ada", (8, 9), 49_140, "580.65.06", (13, 0))
TF32 = "NVIDIA_TF32_OVERRIDE"
OPTIONS = {"device": 0, "threads": 1, "reason": "test"}


@pytest.fixture
def machine(monkeypatch):
    """A machine with one GPU and all libraries; the test may take parts of it away."""
    there = SimpleNamespace(library=Library(), gpu=ADA, missing=[], missing_tensorrt=[])
    for module in (ort, ort_tensorrt):
        monkeypatch.setattr(module, "load", lambda: there.library)
        monkeypatch.setattr(module, "why_not_loadable", lambda: "")
    monkeypatch.setattr(ort_gpu, "find_gpu", lambda device: there.gpu if device == 0 else None)
    monkeypatch.setattr(ort_tensorrt, "find_gpu", lambda device: there.gpu)
    monkeypatch.setattr(ort, "gpu_name", lambda device: there.gpu.name)
    monkeypatch.setattr(ort_gpu, "missing_libraries", lambda major: there.missing)
    monkeypatch.setattr(ort_tensorrt, "not_loadable", lambda names: there.missing_tensorrt)
    monkeypatch.setattr(ort_tensorrt, "tensorrt_version", lambda: "10.13.3")
    monkeypatch.setattr(ort, "why_mixed", lambda: "")
    monkeypatch.setattr(ort, "why_not_on_device", lambda device: "numba-cuda is not installed")
    monkeypatch.setattr(ort, "Stream", HostStream)
    return there


@pytest.fixture
def on_device(machine, monkeypatch):
    """The machine has what the device path needs."""
    monkeypatch.setattr(ort, "why_not_on_device", lambda device: "")
    return machine


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    redirect_caches(monkeypatch, tmp_path)
    monkeypatch.setenv(TF32, "")  # so that what the engine sets is taken back
    monkeypatch.delenv(TF32)


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "tiny.onnx"
    write_network(path)
    return path


class TestOnAGpu(Conformance):
    """What every engine must do."""

    @pytest.fixture(params=["cuda", "cuda without graphs", "cuda on device", "tensorrt"])
    def engine(self, request, machine, monkeypatch):
        # The suite asks the driver whether there is a GPU; ours is not in it.
        monkeypatch.setattr("tests.runtime.engine_conformance.gpu_name", lambda device: ADA.name)
        machine.library.some_nodes_on_cpu = request.param == "cuda without graphs"
        if request.param == "cuda on device":
            request.getfixturevalue("on_device")
        return "onnxruntime-tensorrt" if request.param == "tensorrt" else "onnxruntime"

    @pytest.fixture(params=["fp32", "fp16"])
    def choice(self, request, engine):
        chosen = select_engine(engine, precision=request.param)
        assert isinstance(chosen, EngineChoice)
        return chosen


# The CUDA provider.


def test_the_preflight_names_the_gpu_and_prints_nothing(machine, capfd):
    found = ort.preflight()
    assert found.available
    assert (found.device, found.precisions, found.verify_only) == (ADA.name, ("fp32", "fp16"), ())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"missing": ["libcudnn.so.9"]}, r"libcudnn\.so\.9; install them with: pip install onnxruntime-gpu\[cuda"),
        ({"gpu": None}, "driver offers no GPU 0"),
        ({"gpu": Gpu(0, "Old", (6, 1), 1, "580", (13, 0))}, r"compute capability 6\.1, and CUDA 13 starts at 7\.5"),
        ({"gpu": Gpu(0, "Ada", (8, 9), 1, "535.1", (12, 2))}, r"needs CUDA 13, and the driver 535\.1 .* CUDA 12\.2"),
        ({"library": Library(providers=(CPU,))}, "no CUDA; .*pip install onnxruntime-gpu"),
    ],
)
def test_what_the_gpu_lacks_is_said_in_one_line_and_the_processor_named(machine, change, said):
    for name, value in change.items():
        setattr(machine, name, value)
    found = ort.preflight()
    assert found.device == "CPU"
    assert "\n" not in found.reason
    assert re.search(said, found.reason)
    tensorrt = ort_tensorrt.preflight()
    assert not tensorrt.available
    assert "\n" not in tensorrt.reason


def test_a_gpu_that_was_asked_for_is_never_replaced_by_the_processor(machine, network):
    with pytest.raises(EngineError, match="cannot use GPU 3"):
        ort.open_session(network, precision="fp32", **(OPTIONS | {"device": 3}))
    machine.library.providers_work = False
    with pytest.raises(EngineError, match="told to use CUDAExecutionProvider but uses CPUExecutionProvider"):
        ort.open_session(network, precision="fp32", **OPTIONS)


def test_each_batch_size_has_a_graph_and_buffers_of_its_own(machine, network):
    """A graph that replays another size's addresses, or is captured anew, would show in the results or the runs."""
    with ort.open_session(network, precision="fp32", **OPTIONS) as session:
        for seed in range(4):
            for n in (1, 4, 3):
                image = images(n, seed=seed)
                for output, right in zip(session(image), reference(image), strict=True):
                    np.testing.assert_allclose(output, right, atol=1e-5)
    assert set(machine.library.graph_runs) == {1, 2, 3}
    assert len(machine.library.graph_runs) == 12


def test_what_is_kept_on_the_gpu_is_bounded(machine, network):
    with ort.open_session(network, precision="fp32", **OPTIONS) as session:
        for n in (*range(1, 9), *range(8, 0, -1)):
            image = images(n, seed=n)
            np.testing.assert_allclose(session(image)[0], reference(image)[0], atol=1e-5)
        assert len(session._bound) == ort_gpu.MOST_BOUND
    assert set(machine.library.graph_runs) == set(range(1, ort_gpu.MOST_BOUND + 1)), "others are not captured"


def test_networks_that_cannot_be_captured_run_without_graphs_and_the_log_says_so(machine, network, caplog):
    machine.library.some_nodes_on_cpu = True
    with caplog.at_level("INFO"), ort.open_session(network, precision="fp32", **OPTIONS) as session:
        session(images(2))
    assert "without CUDA graphs" in caplog.text
    assert machine.library.graph_runs == []


def test_networks_of_varying_size_run_too(machine, level_bundle):
    model = level_bundle / "locnet.onnx"
    with ort.open_session(model, precision="fp32", **OPTIONS) as session, on_the_processor(model) as right:
        for size in (20, 24, 20):
            image = np.random.default_rng(size).uniform(0, 1, (2, 1, size, size, size)).astype(np.float32)
            np.testing.assert_array_equal(session(image)[0], right(image)[0])
    assert machine.library.graph_runs == []
    with pytest.raises(EngineError, match="sizes that vary"):
        ort_tensorrt.open_session(model, precision="fp32", **OPTIONS)


def on_the_processor(model):
    return engine_module("openvino").open_session(model, precision="fp32", device=0, threads=1, reason="test")


def test_tf32_is_off(machine, network):
    with ort.open_session(network, precision="fp32", **OPTIONS):
        name, settings = machine.library.sessions[-1].providers[0]
    assert (name, settings["use_tf32"]) == (CUDA, "0")


def test_a_failure_in_mid_run_is_one_sentence(machine, network):
    with ort.open_session(network, precision="fp32", **OPTIONS) as session:
        machine.library.breaks = True
        with pytest.raises(EngineError, match=r"failed on tiny\.onnx, .* on NVIDIA RTX.*EXECUTION_FAILED\.$"):
            session(images(1))


FULL = (
    "Non-zero status code returned while running Conv node.\nbfc_arena.cc:376 Failed to allocate memory for requested "
    "buffer of size 999"
)


@pytest.mark.parametrize("said", [FULL, "CUDA failure 2: out of memory ; GPU=0", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_full_gpu_is_told_as_that(on_device, network, said, monkeypatch):
    on_device.library.failure = said
    for why_not in ("", "numba-cuda is not installed"):
        monkeypatch.setattr(ort, "why_not_on_device", lambda device, why_not=why_not: why_not)
        on_device.library.breaks = False
        with ort.open_session(network, precision="fp32", **OPTIONS) as session:
            on_device.library.breaks = True
            with pytest.raises(OutOfMemoryError, match="crop the scan to the spine"):
                session(images(1))


# Tensors that stay on the GPU.


def test_a_session_takes_and_gives_arrays_where_they_lie(on_device, network):
    with ort.open_session(network, precision="fp32", **OPTIONS) as session:
        assert offers_device_tensors(session)
        stream = HostStream()
        for n in (2, 4, 1, 2, 2, 2, 3):
            image = images(n, seed=n)
            place = session.device_input(n)
            place[...] = image
            before = stream.waits
            outputs = session.enqueue(n, stream)
            assert stream.waits > before, "the network waits for what was enqueued before it"
            for output, right in zip(outputs, reference(image), strict=True):
                assert output.shape == right.shape
                np.testing.assert_allclose(output, right, atol=1e-5)
            assert np.shares_memory(session.device_input(n), place), "always the same place"
        for n in (0, session.max_batch + 1):
            with pytest.raises(EngineError, match=f"met {n}"):
                session.device_input(n)
            with pytest.raises(EngineError, match=f"met {n}"):
                session.enqueue(n, stream)
        on_device.library.breaks = True
        with pytest.raises(EngineError, match="EXECUTION_FAILED"):
            session.enqueue(1, stream)
    with pytest.raises(EngineError, match="closed"):
        session.device_input(1)
    assert session._stream.is_closed


def test_without_numba_cuda_or_with_varying_sizes_batches_go_by_way_of_the_host(machine, on_device, level_bundle):
    with ort.open_session(level_bundle / "locnet.onnx", precision="fp32", **OPTIONS) as session:
        assert not offers_device_tensors(session)


def test_what_the_device_path_lacks_is_said(monkeypatch):
    monkeypatch.setattr(ort_device, "find_spec", lambda name: None)
    assert "pip install 'vertscan[gpu]'" in ort_device.why_not_on_device(0)
    monkeypatch.setattr(ort_device, "find_spec", lambda name: object())
    monkeypatch.setattr(ort_device, "find_gpu", lambda device: Gpu(0, "Ada", (8, 9), 1, "535.1", (12, 2)))
    monkeypatch.setattr(ort_device, "cuda_of_toolkit", lambda: 13)
    assert "CUDA 13, and the driver 535.1 runs CUDA 12" in ort_device.why_not_on_device(0)
    monkeypatch.setattr(ort_device, "cuda_of_toolkit", lambda: 12)
    assert ort_device.why_not_on_device(0) == ""


# The TensorRT provider.


def test_tensorrt_is_told_shapes_and_caches_and_keeps_its_hands_off_the_precision(machine, network, tmp_path):
    with ort_tensorrt.open_session(network, precision="fp16", cache=tmp_path / "c", **OPTIONS):
        (tensorrt, settings), (cuda, _) = machine.library.sessions[-1].providers
    assert (tensorrt, cuda) == (TENSORRT, CUDA)
    assert (settings["trt_fp16_enable"], settings["trt_int8_enable"]) == ("0", "0")
    assert settings["trt_profile_min_shapes"] == "image:1x1x8x8x8"
    assert settings["trt_profile_max_shapes"] == "image:4x1x8x8x8"
    (folder,) = (tmp_path / "c").iterdir()
    assert settings["trt_engine_cache_path"] == settings["trt_timing_cache_path"] == str(folder)


def test_tensorrt_is_kept_from_tf32_before_anything_is_loaded(machine, monkeypatch):
    loaded = []
    monkeypatch.setattr(machine.library, "preload_dlls", lambda: loaded.append(os.environ[TF32]))
    assert ort_tensorrt.preflight().precisions == ("fp32", "fp16")
    assert loaded == ["0"]


def test_fp32_is_not_offered_where_it_would_be_tf32(machine, network, monkeypatch):
    plain = ort_tensorrt.cache_key(b"graph", "fp16", ort_tensorrt.preflight(), 0)
    monkeypatch.setenv(TF32, "1")
    found = ort_tensorrt.preflight()
    assert found.precisions == ("fp16",)
    assert "not in fp32, since NVIDIA_TF32_OVERRIDE=1 makes it TF32: unset it" in found.reason
    assert ort_tensorrt.cache_key(b"graph", "fp16", found, 0) != plain
    with pytest.raises(EngineError, match="in fp16, not in fp32"):
        ort_tensorrt.open_session(network, precision="fp32", **OPTIONS)
    monkeypatch.setattr(ort_tensorrt, "find_spec", lambda name: None)
    assert not ort_tensorrt.preflight().available
    machine.gpu = Gpu(0, "NVIDIA T4", (7, 5), 16_000, "580.65.06", (13, 0))
    assert ort_tensorrt.preflight().precisions == ("fp32",), "Turing has no TF32"


def test_a_damaged_engine_of_the_providers_is_built_again(machine, network, tmp_path, caplog):
    for _ in range(2):
        ort_tensorrt.open_session(network, precision="fp32", cache=tmp_path / "c", **OPTIONS).close()
    assert machine.library.builds == 1
    (engine,) = (tmp_path / "c").glob("*/*.engine")
    engine.write_bytes(b"eng")
    with ort_tensorrt.open_session(network, precision="fp32", cache=tmp_path / "c", **OPTIONS) as session:
        np.testing.assert_allclose(session(images(2))[0], reference(images(2))[0], atol=1e-5)
    assert machine.library.builds == 2
    assert "a cached engine is built again" in caplog.text


def test_one_process_at_a_time_builds_the_providers_engine(machine, network, tmp_path, monkeypatch):
    held, real = [], ort_tensorrt.library_session

    def opening(*arguments, **options):
        held.extend(locked(path) for path in (tmp_path / "c").glob("*/.lock"))
        return real(*arguments, **options)

    monkeypatch.setattr(ort_tensorrt, "library_session", opening)
    ort_tensorrt.open_session(network, precision="fp32", cache=tmp_path / "c", **OPTIONS).close()
    assert held == [True]
    assert not any(locked(path) for path in (tmp_path / "c").glob("*/.lock"))


def locked(path):
    with open(path, "a+b") as stream:
        if not try_lock(stream.fileno()):
            return True
        unlock(stream.fileno())
        return False


def test_a_network_of_which_tensorrt_runs_nothing_is_refused(machine, network, tmp_path):
    machine.library.takes_nodes = False
    with pytest.raises(EngineError, match="TensorRT runs no part of the network"):
        ort_tensorrt.open_session(network, precision="fp32", cache=tmp_path / "c", **OPTIONS)


def test_what_an_engine_depends_on_is_in_its_folder_name(machine, monkeypatch):
    found = ort_tensorrt.preflight()
    keys = [ort_tensorrt.cache_key(b"graph", "fp16", found, 0), ort_tensorrt.cache_key(b"other", "fp16", found, 0)]
    keys.append(ort_tensorrt.cache_key(b"graph", "fp32", found, 0))
    machine.gpu = Gpu(0, "NVIDIA RTX 6000 Ada", (8, 9), 49_140, "581.0", (13, 0))
    keys.append(ort_tensorrt.cache_key(b"graph", "fp16", found, 0))
    monkeypatch.setattr(ort_tensorrt, "tensorrt_version", lambda: "10.14.0")
    keys.append(ort_tensorrt.cache_key(b"graph", "fp16", found, 0))
    assert len(set(keys)) == 5
    assert keys[-1] == ort_tensorrt.cache_key(b"graph", "fp16", found, 0)


def test_without_tensorrt_10_the_package_is_named(machine):
    machine.missing_tensorrt = ["libnvinfer.so.10"]
    found = ort_tensorrt.preflight()
    assert not found.available
    assert "libnvinfer.so.10" in found.reason
    assert "pip install 'tensorrt<11'" in found.reason


def test_a_cache_that_cannot_be_made_is_said(machine, network, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be made"):
        ort_tensorrt.open_session(network, precision="fp32", cache=tmp_path / "file", **OPTIONS)


# The package itself.


def test_two_distributions_of_one_module_are_told_of(monkeypatch):
    versions = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}

    def version(name):
        if name not in versions:
            raise ort_library.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(ort_library.metadata, "version", version)
    assert ort_library.installed() == ("onnxruntime", "onnxruntime-gpu")
    assert "pip uninstall onnxruntime onnxruntime-gpu" in ort_library.why_mixed()
    assert "overwrite each other's files" in ort.preflight().reason
    del versions["onnxruntime"]
    assert ort_library.why_mixed() == ""


def test_nothing_is_collected_or_left_in_the_users_home(tmp_path):
    """The library's own default makes a device identifier and a data base there as soon as it is imported."""
    program = (
        "import os, pathlib; from runtime.engines import ort; assert ort.preflight().version\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    )
    environment = {"HOME": str(tmp_path), "PATH": "", "LOCALAPPDATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.rglob("*")) == []


def test_what_native_code_says_at_import_goes_to_the_log(tmp_path):
    (tmp_path / "onnxruntime.py").write_text(
        "import os\nos.write(2, b'[W:onnxruntime] GPU device discovery failed')\n"
        "def set_default_logger_severity(level): assert level == 4\n"
    )
    program = (
        f"import sys, logging; sys.path.insert(0, {str(tmp_path)!r})\n"
        "logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)\n"
        "from runtime.engines import ort_library; ort_library.load(); print('after', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == "after\n"
    assert "GPU device discovery failed" in done.stdout
