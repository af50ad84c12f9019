"""A stand-in for the module ``onnxruntime`` of onnxruntime-gpu on a machine with a GPU.

It computes with the real library on the processor, and is as strict as the real one on a GPU: buffers are device
memory that only copies reach, a captured CUDA graph replays on the addresses it was captured with and the numbers it
finds there, an unknown provider option is an error, and a session that can't have its provider takes another.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as real

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
KNOWN = {
    CUDA: {"device_id", "use_tf32", "enable_cuda_graph", "arena_extend_strategy"},
    TENSORRT: {
        "device_id", "trt_fp16_enable", "trt_int8_enable", "trt_engine_cache_enable", "trt_engine_cache_path",
        "trt_timing_cache_enable", "trt_timing_cache_path", "trt_profile_min_shapes", "trt_profile_opt_shapes",
        "trt_profile_max_shapes",
    },
    CPU: set(),
}  # fmt: skip


class Memory:
    """Device memory: what lies there is reached by copies alone, and freed when nobody holds it."""

    def __init__(self, shape, dtype):
        self.content = np.full(shape, np.nan, dtype)


class OrtValue:
    def __init__(self, memory):
        self.memory = memory

    @classmethod
    def ortvalue_from_shape_and_type(cls, shape, element_type, device_type="cpu", device_id=0):
        assert device_type == "cuda"
        assert all(isinstance(size, int) and size > 0 for size in shape)
        return cls(Memory(shape, element_type))

    def update_inplace(self, data):
        assert data.flags.c_contiguous
        assert data.shape == self.memory.content.shape, "copies don't change a buffer's size"
        assert data.dtype == self.memory.content.dtype
        self.memory.content[...] = data

    def numpy(self):
        return self.memory.content.copy()


class IOBinding:
    def __init__(self, session):
        self.session, self.inputs, self.outputs, self.made = session, {}, {}, {}

    def bind_ortvalue_input(self, name, value):
        self.inputs[name] = value

    def bind_ortvalue_output(self, name, value):
        self.outputs[name] = value

    def bind_output(self, name, device_type="cpu", device_id=0, element_type=None, shape=None, buffer_ptr=None):
        assert device_type == "cuda"
        given = buffer_ptr is not None
        self.outputs[name] = at_address(device_type, element_type, shape, buffer_ptr) if given else None

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        self.inputs[name] = at_address(device_type, element_type, shape, buffer_ptr)

    def get_outputs(self):
        return [self.made[name] if value is None else value for name, value in self.outputs.items()]


def at_address(device_type, element_type, shape, address):
    """What lies at an address: the device's memory is the host's here."""
    assert device_type == "cuda"
    value = OrtValue(Memory((1,), element_type))
    size = int(np.prod(shape)) * np.dtype(element_type).itemsize
    value.memory.content = np.frombuffer((ctypes.c_char * size).from_address(address), element_type).reshape(shape)
    return value


class HostStream:
    """``runtime.device.stream.Stream`` with its arrays in the host's memory; what is not there yet is NaN."""

    def __init__(self, device=0):
        self.is_active = self.is_closed = False
        self.waits = 0

    @contextmanager
    def active(self):
        self.is_active = True
        try:
            yield self
        finally:
            self.is_active = False

    def empty(self, shape, dtype):
        assert self.is_active
        assert not self.is_closed
        return np.full(shape, np.nan, dtype)

    def copy_in(self, target, host):
        assert self.is_active
        target[...] = host

    def download(self, array):
        assert self.is_active
        return array.copy()

    def address(self, array):
        return array.ctypes.data

    def synchronise(self):
        self.waits += 1

    def close(self):
        self.is_closed = True

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


class RunOptions:
    def __init__(self):
        self.entries = {}

    def add_run_config_entry(self, key, value):
        self.entries[key] = value


class InferenceSession:
    def __init__(self, library, model, options, providers, enable_fallback=1):
        assert not enable_fallback, "with it, the library would go on elsewhere and print that"
        named = [(one, {}) if isinstance(one, str) else one for one in providers]
        for name, settings in named:
            unknown = set(settings) - KNOWN[name]
            if unknown:
                raise library.Fail(f"Unknown provider option: {unknown}")
        if dict(named).get(CUDA, {}).get("enable_cuda_graph") == "1" and library.some_nodes_on_cpu:
            raise library.Fail("This session cannot use the graph capture feature as requested by the user")
        self.library, self.providers = library, named
        if library.takes_nodes and (folder := dict(named).get(TENSORRT, {}).get("trt_engine_cache_path")):
            engine = Path(folder) / "TensorrtExecutionProvider_TRTKernel_graph_0_0_sm89.engine"
            if engine.exists() and engine.read_bytes() != b"engine":
                raise library.Fail(f"TensorRT EP could not deserialize engine from cache: {engine}")
            library.builds += not engine.exists()
            engine.write_bytes(b"engine")
        # Of the real library: a session on its processor.
        self.session = real.InferenceSession(model, options, providers=[CPU])
        self.captured = {}
        library.sessions.append(self)

    def get_providers(self):
        names = [name for name, _ in self.providers]
        return names if self.library.providers_work else [CPU]

    def get_inputs(self):
        return self.session.get_inputs()

    def get_outputs(self):
        return self.session.get_outputs()

    def run(self, names, feeds):
        assert self.get_providers()[0] == CPU, "on a GPU buffers are bound"
        return self.session.run(names, feeds)

    def io_binding(self):
        return IOBinding(self)

    def run_with_iobinding(self, binding, options):
        assert binding.session is self
        if self.library.breaks:
            raise self.library.Fail(self.library.failure)
        graphs = dict(self.providers).get(CUDA, {}).get("enable_cuda_graph") == "1"
        number = int(options.entries.get("gpu_graph_id", 0))
        used = binding
        if graphs and number != -1:
            self.library.graph_runs.append(number)
            # The first run warms up, the second is captured; from then on the addresses are those.
            runs, captured = self.captured.get(number, (0, None))
            captured = binding if runs == 1 else captured
            self.captured[number] = runs + 1, captured
            used = captured or binding
        self._compute(used)

    def _compute(self, binding):
        feeds = {name: value.memory.content for name, value in binding.inputs.items()}
        limit = dict(self.providers).get(TENSORRT, {}).get("trt_profile_max_shapes")
        if limit:
            ((name, image),) = feeds.items()
            wanted = [int(n) for n in limit.removeprefix(f"{name}:").split("x")]
            assert image.shape[0] <= wanted[0]
            assert list(image.shape[1:]) == wanted[1:]
        outputs = self.session.run(list(binding.outputs), feeds)
        for (name, bound), output in zip(binding.outputs.items(), outputs, strict=True):
            if bound is None:
                made = binding.made[name] = OrtValue(Memory(output.shape, output.dtype))
                made.memory.content[...] = output
            else:
                bound.update_inplace(output)


class Library:
    """The module; the arguments let things go wrong."""

    __version__ = "1.31.1"
    cuda_version = "13.0"
    OrtValue, RunOptions, SessionOptions = OrtValue, RunOptions, real.SessionOptions
    Fail = real.capi.onnxruntime_pybind11_state.Fail

    def __init__(self, *, providers=(TENSORRT, CUDA, CPU), some_nodes_on_cpu=False, providers_work=True):
        self.available, self.some_nodes_on_cpu, self.providers_work = providers, some_nodes_on_cpu, providers_work
        self.sessions, self.graph_runs = [], []
        self.breaks = False
        self.takes_nodes, self.builds = True, 0
        self.failure = "CUDNN failure 4: CUDNN_STATUS_EXECUTION_FAILED\n  at file.cc:1"

    def get_available_providers(self):
        return list(self.available)

    def preload_dlls(self):
        print("Failed to load /usr/lib/libcudnn.so.9: not found")  # as the real one does

    def InferenceSession(self, model, options, providers, **more):  # noqa: N802  the library's name
        return InferenceSession(self, model, options, providers, **more)
