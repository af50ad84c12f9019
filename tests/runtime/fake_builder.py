"""A stand-in for the module ``tensorrt``: what this software uses of its builder. An engine is the ONNX it was made of.

Names and signatures are those of the Python API of TensorRT 10.16 and 11, which share them with tensorrt_rtx 1.7.1.
"""

import enum
from types import SimpleNamespace

from runtime.engines.trt_network import expected_signature, expected_types

_KINDS = {"Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION", "InstanceNormalization": "NORMALIZATION"}


def names(*values):
    return SimpleNamespace(**{value: value for value in values})


class Flags(enum.IntEnum):
    STRONGLY_TYPED = 0


class FakeTensorRt:
    """The module. ``lie`` lets things go wrong; what it was told is kept in its lists."""

    __name__ = "tensorrt"
    ILogger = type("ILogger", (), dict(zip(("INTERNAL_ERROR", "ERROR", "WARNING", "INFO"), range(4), strict=True)))
    IProgressMonitor = type("IProgressMonitor", (), {})
    MemoryPoolType = names("WORKSPACE")
    BuilderFlag = names("TF32", "VERSION_COMPATIBLE")
    HardwareCompatibilityLevel = names("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
    LayerType = names("CONVOLUTION", "DECONVOLUTION", "NORMALIZATION", "QUANTIZE")

    def __init__(self, version="11.1"):
        self.__version__ = version
        self.NetworkDefinitionCreationFlag = Flags if version.startswith("10") else SimpleNamespace()
        self.lie, self.network_flags, self.configs, self.loaded, self.host_code_allowed = {}, [], [], [], []

    def Builder(self, log):  # noqa: N802
        return _Builder(self, log)

    def OnnxParser(self, network, log):  # noqa: N802
        return _Parser(self, network)

    def Runtime(self, log):  # noqa: N802
        return _Runtime(self, log)


class _Builder:
    def __init__(self, library, log):
        self.library, self.log = library, log

    def create_network(self, flags):
        self.library.network_flags.append(flags)
        return _Network()

    def create_builder_config(self):
        self.library.configs.append(_Config())
        return self.library.configs[-1]

    def create_optimization_profile(self):
        shapes = {}
        return SimpleNamespace(set_shape=lambda name, *sizes: shapes.update({name: sizes}), shapes=shapes)

    def build_serialized_network(self, network, config):
        for step in range(3):
            config.progress_monitor.step_complete("Building engine", step)
        return network.graph


class _Config:
    def __init__(self):
        self.cleared, self.set, self.limits, self.profiles, self.timing = [], [], {}, [], None
        self.hardware_compatibility_level, self.progress_monitor = "NONE", None

    def clear_flag(self, flag):
        self.cleared.append(flag)

    def set_flag(self, flag):
        self.set.append(flag)

    def set_memory_pool_limit(self, pool, size):
        self.limits[pool] = size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)

    def create_timing_cache(self, content):
        self.timing = content
        return SimpleNamespace(serialize=lambda: content + b"+")

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        return self.timing != b"of another GPU"


class _Tensor:
    def __init__(self, name, dtype, shape):
        self.name, self.dtype, self.shape = name, SimpleNamespace(name=dtype), shape


class _Network:
    def fill(self, graph):
        import onnx

        self.graph = graph
        model = onnx.load_from_string(graph)
        types = expected_types(graph)
        self.layers = [
            SimpleNamespace(
                name=n.name, type=_KINDS[n.op_type], get_output=lambda i, n=n: _Tensor("", types[n.name], ())
            )
            for n in model.graph.node
            if n.name in types
        ]
        self.num_layers = len(self.layers)
        inputs = {value.name for value in model.graph.input}
        tensors = [_Tensor(name, *one) for name, one in expected_signature(graph).items()]
        self.inputs = [t for t in tensors if t.name in inputs]
        self.outputs = [t for t in tensors if t.name not in inputs]
        self.num_inputs, self.num_outputs = len(self.inputs), len(self.outputs)
        self.get_layer, self.get_input, self.get_output = (
            self.layers.__getitem__, self.inputs.__getitem__, self.outputs.__getitem__,
        )  # fmt: skip


class _Parser:
    def __init__(self, library, network):
        self.library, self.network, self.num_errors = library, network, 0

    def parse(self, graph):
        if self.library.lie.get("unreadable"):
            self.num_errors = 1
            return False
        self.network.fill(graph)
        return True

    def get_error(self, i):
        return "no importer for Conv"


class _Runtime:
    def __init__(self, library, log):
        self.__dict__.update(library=library, log=log)

    def __setattr__(self, name, value):
        assert name == "engine_host_code_allowed"
        self.library.host_code_allowed.append(value)

    def deserialize_cuda_engine(self, content):
        lie = self.library.lie
        self.library.loaded.append(content)
        if lie.get("unloadable"):
            self.log.log(self.library.ILogger.ERROR, "no such thing")
            return None
        signature = {
            name: (lie.get("dtype", dtype), lie.get("shape", shape))
            for name, (dtype, shape) in expected_signature(content).items()
        }
        batches = lie.get("batch") or (1, 8, self._largest())
        return SimpleNamespace(
            num_io_tensors=len(signature),
            get_tensor_name=list(signature).__getitem__,
            get_tensor_dtype=lambda name: SimpleNamespace(name=signature[name][0]),
            get_tensor_shape=lambda name: signature[name][1],
            get_tensor_profile_shape=lambda name, profile: [(n, *signature[name][1][1:]) for n in batches],
        )

    def _largest(self):
        profiles = [p for config in self.library.configs[-1:] for p in config.profiles]
        return profiles[-1]["image"][2][0] if profiles else 8
