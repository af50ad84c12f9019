"""A stand-in for the modules ``tensorrt`` and ``tensorrt_rtx``: what this software uses of their Python API.

An engine is an ONNX file, which onnxruntime runs on the processor on what lies at the addresses that were bound, when
the stream comes to it. Names, signatures and answers were taken from tensorrt_rtx 1.7.1.
"""

from __future__ import annotations

import enum
import hashlib
import math
import weakref
from types import SimpleNamespace

import numpy as np

from runtime.engines import trt_engine
from runtime.engines.trt_cache import install_engine
from runtime.engines.trt_key import FORMAT, EngineBuild, EngineKey, Sidecar
from runtime.typed_graph import typed_graph

DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT32 INT8")
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
_TYPES = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF, "tensor(int32)": DataType.INT32}
_SIZES = {DataType.FLOAT: 4, DataType.HALF: 2, DataType.INT32: 4}


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Library:
    """The module. ``driver`` is what its work runs on; the other arguments let things go wrong."""

    ILogger, DataType, TensorIOMode, TensorLocation = ILogger, DataType, TensorIOMode, TensorLocation
    CudaGraphStrategy = CudaGraphStrategy
    __version__ = "1.7.1.116"

    def __init__(self, driver, *, profile=(1, 4, 4), contexts=10, location=TensorLocation.DEVICE):
        self.driver, self.profile, self.contexts, self.location = driver, profile, contexts, location
        self.alive, self.strategies = [], []
        self.fails_after = None
        self.failure = "IExecutionContext::executeV3: Cuda Runtime (an illegal access)"
        self.refuses_to_load = ""
        self.foreign_cache = False
        self.wants_host_code = False

    def Runtime(self, log):  # noqa: N802  the library's name
        return _Runtime(self, log)


_ORDER = ("runtime", "engine", "config", "context")


class _Part:
    """Something that the library made: it must be freed before what it was made from."""

    def __init__(self, library, kind, family):
        self.library, self._kind, self.family = library, kind, family
        family.append(kind)
        library.alive.append(kind)

    def __del__(self):
        self.family.remove(self._kind)
        if any(_ORDER.index(kind) > _ORDER.index(self._kind) for kind in self.family):
            self.library.alive.append(f"{self._kind} freed while {self.family} were there")
        self.library.alive.remove(self._kind)


class _Runtime(_Part):
    def __init__(self, library, log):
        super().__init__(library, "runtime", [])
        self._log, self.engine_host_code_allowed = log, False

    def deserialize_cuda_engine(self, content):
        import onnxruntime

        if self.library.wants_host_code != self.engine_host_code_allowed:
            self._log.log(
                ILogger.ERROR, "IRuntime::deserializeCudaEngine: engine_host_code_allowed is not as it should be"
            )
            return None
        if self.library.refuses_to_load:
            self._log.log(ILogger.ERROR, self.library.refuses_to_load)
            return None
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  its exceptions share no base class
            self._log.log(ILogger.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: {error}")
            return None
        return _Engine(self.library, self._log, session, self.family)


class _Engine(_Part):
    def __init__(self, library, log, session, family):
        super().__init__(library, "engine", family)
        self._log, self.session = log, session
        self._inputs = {tensor.name: tensor for tensor in session.get_inputs()}
        self._all = self._inputs | {tensor.name: tensor for tensor in session.get_outputs()}
        self.num_io_tensors = len(self._all)

    def get_tensor_name(self, index):
        return list(self._all)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return _TYPES[self._all[name].type]

    def get_tensor_location(self, name):
        return self.library.location

    def get_tensor_shape(self, name):
        return tuple(n if isinstance(n, int) else -1 for n in self._all[name].shape)

    def get_tensor_profile_shape(self, name, profile_index):
        assert profile_index == 0
        assert name in self._inputs
        return [(n, *self.get_tensor_shape(name)[1:]) for n in self.library.profile]

    def create_runtime_config(self):
        return _Config(self.library, self.family)

    def create_execution_context(self, runtime_config=None):
        if runtime_config is not None:
            self.library.strategies.append(runtime_config.cuda_graph_strategy)
        if self.library.contexts == 0:
            self._log.log(ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 999 bytes.)")
            return None
        self.library.contexts -= 1
        return _Context(self.library, self._log, self)


class _Config(_Part):
    def __init__(self, library, family):
        super().__init__(library, "config", family)
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def create_runtime_cache(self):
        return _RuntimeCache(self.library)

    def set_runtime_cache(self, cache):
        return True


class _RuntimeCache:
    def __init__(self, library):
        self._library, self.content = library, b""

    def deserialize(self, blob):
        self.content = bytes(blob)
        return not self._library.foreign_cache and self.content.startswith(b"kernels")

    def reset(self):
        self.content = b""
        return True

    def serialize(self):
        return memoryview(self.content or b"kernels compiled")


class _Context(_Part):
    def __init__(self, library, log, engine):
        super().__init__(library, "context", engine.family)
        self._log, self._shapes, self._addresses = log, {}, {}
        self._engine = weakref.proxy(engine)
        self._was_run_with = None

    def set_input_shape(self, name, shape):
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            self._log.log(ILogger.ERROR, f"IExecutionContext::setInputShape: Error Code 3: {shape} is out of profile")
            return False
        self._shapes = {name: tuple(shape)}
        return True

    def get_tensor_shape(self, name):
        batch = next(iter(self._shapes.values()))[0]
        shape = self._shapes.get(name) or self._engine.get_tensor_shape(name)
        return tuple(batch if n == -1 else n for n in shape)

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return memory % 256 == 0

    def execute_async_v3(self, stream_handle):
        library, driver = self.library, self.library.driver
        if library.fails_after is not None:
            library.fails_after -= 1
            if library.fails_after < 0:
                self._log.log(ILogger.ERROR, library.failure)
                return False
        shapes = {name: self.get_tensor_shape(name) for name in self._addresses}
        if stream_handle in driver.recording and shapes != self._was_run_with:
            self._log.log(ILogger.ERROR, "a shape must be run once before it is recorded")
            return False
        self._was_run_with = shapes
        engine, session = self._engine, self._engine.session
        places = {
            name: (address, shapes[name], _SIZES[engine.get_tensor_dtype(name)])
            for name, address in self._addresses.items()
        }
        batch = next(iter(self._shapes.values()))[0]
        driver.enqueue(stream_handle, f"run {batch}", lambda: _execute(driver, session, places))
        return True


def _execute(driver, session, places):
    def tensor(name):
        address, shape, size = places[name]
        return driver.view(address, math.prod(shape) * size).view(np.float32).reshape(shape)

    (given,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    for name, output in zip(names, session.run(names, {given.name: tensor(given.name).copy()}), strict=True):
        tensor(name)[...] = output


GPU = SimpleNamespace(
    index=0, name="NVIDIA RTX 4090", compute_capability=(8, 9), memory_mb=24564, driver="580.65", cuda=(13, 0), sm=89
)
"""What ``find_gpu`` would tell of a card that both libraries run on."""


def pretend_machine(monkeypatch, driver, stream, folder):
    """Let this be a machine with that card and both libraries; "engines" are typed graphs in ``folder``."""
    library = Library(driver)

    def engine_file(onnx, *, precision, **_):
        graph = typed_graph(onnx, precision)
        digest = hashlib.sha256(graph).hexdigest()
        path = folder / f"{onnx.stem}-{digest[:8]}.engine"
        key = EngineKey(onnx.name, "", precision, "", 4, "tensorrt", library.__version__)
        build = EngineBuild(("89",), version_compatible=library.wants_host_code)
        install_engine(graph, path, Sidecar(FORMAT, key, build, digest, len(graph), (), "2026-01-01", 1.0))
        return path

    monkeypatch.setattr(trt_engine, "find_gpu", lambda device=0: GPU if device == 0 else None)
    monkeypatch.setattr(trt_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(trt_engine, "load_library", lambda name: library)
    monkeypatch.setattr("runtime.engines.trt_build.engine_file", engine_file)
    monkeypatch.setattr("runtime.device.stream.Stream", stream)
    monkeypatch.setattr("runtime.device.scan.Stream", stream)
    return library
