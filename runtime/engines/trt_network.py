"""From a strongly typed ONNX graph to a serialised engine, and what the library made of it, read back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from runtime.engines.held_interrupts import Held, held_interrupts
from runtime.engines.trt_key import EngineBuild, EngineKey
from runtime.engines.trt_library import failed, first_error, new_log
from runtime.errors import EngineError
from runtime.progress import Progress

logger = logging.getLogger(__name__)

_LOW = {"fp32": None, "fp16": "HALF", "bf16": "BF16", "int8": "HALF"}
"""The library's name for the type that convolutions have in an engine of each precision, besides FLOAT."""
_ELEMENT_TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16"}
"""ONNX's numbers of the types, and the library's names."""


@dataclass(frozen=True)
class Built:
    """A serialised engine.

    Args:
        engine: its bytes.
        timing_cache: what the builder measured, for later builds; None where it was not used.
    """

    engine: bytes
    timing_cache: bytes | None


def build_serialized(
    library: ModuleType,
    graph: bytes,
    key: EngineKey,
    build: EngineBuild,
    *,
    progress: Progress,
    timing_cache: bytes | None = None,
) -> Built:
    """Build an engine and check that its types, names and shapes are those of the graph.

    Args:
        library: what ``load_library`` gave.
        graph: typed ONNX model.
        key: precision and profile.
        build: targets, compatibility, memory.
        progress: told of the build's steps.
        timing_cache: what earlier builds measured, ``b""`` for nothing yet; None where none is to be used, since it
            keeps TensorRT-RTX from building without a GPU.

    Raises:
        EngineError: the library can't read or build it, or made something else of it.
        OutOfMemoryError: the GPU's memory is full.
        KeyboardInterrupt: after Ctrl-C, which ends the build after the step at hand.
    """
    with held_interrupts() as held:
        return _build_serialized(library, graph, key, build, progress, timing_cache, held)


def _build_serialized(
    library: ModuleType, graph: bytes, key: EngineKey, build: EngineBuild, progress: Progress,
    timing_cache: bytes | None, held: Held,
) -> Built:  # fmt: skip
    log = new_log(library)
    builder = library.Builder(log)
    network = builder.create_network(_strongly_typed(library))
    parser = library.OnnxParser(network, log)
    if not parser.parse(graph):
        said = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)) or first_error(log)
        raise EngineError(f"{library.__name__} cannot read the network: {said[:300]}.")
    check_network(network, graph, precision=key.precision, layer_type=library.LayerType)
    config = builder.create_builder_config()
    _configure(library, config, build)
    if key.library == "tensorrt-rtx":
        _set_targets(library, config, build)
    _add_profile(builder, config, network.get_input(0), key.max_batch)
    cache = _timing_cache(config, timing_cache)
    config.progress_monitor = _monitor(library, progress, held)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise failed(f"{library.__name__} {library.__version__} cannot build the engine", log)
    return Built(bytes(engine), bytes(cache.serialize()) if cache is not None else None)


def check_network(network: Any, graph: bytes, *, precision: str, layer_type: Any) -> None:
    """Refuse a parsed network whose types, names or shapes aren't the graph's, or whose precision isn't as asked.

    Raises:
        EngineError: says which layer, input or output is which.
    """
    wanted, signature = expected_types(graph), expected_signature(graph)
    met = {
        layer.name: layer.get_output(0).dtype.name
        for layer in (network.get_layer(i) for i in range(network.num_layers))
        if layer.type in (layer_type.CONVOLUTION, layer_type.DECONVOLUTION, layer_type.NORMALIZATION)
    }
    wrong = [name for name in wanted if met.get(name) != wanted[name]]
    if wrong:
        raise EngineError(
            f"The engine would not be what was asked for: {wrong[0]} is {met.get(wrong[0], 'missing')}, not "
            f"{wanted[wrong[0]]} ({len(wrong)} of {len(wanted)} layers)."
        )
    low = _LOW[precision]
    if low is None and set(met.values()) != {"FLOAT"}:
        raise EngineError("The engine would not be what was asked for: not all of its layers are fp32.")
    if low is not None and low not in wanted.values():
        raise EngineError(f"The engine would not be what was asked for: no layer of it is {precision}.")
    if precision == "int8" and not any(
        network.get_layer(i).type == layer_type.QUANTIZE for i in range(network.num_layers)
    ):
        raise EngineError("The engine would not be what was asked for: nothing in it is quantised.")
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    found = {t.name: (t.dtype.name, tuple(t.shape)) for t in tensors}
    if found != signature:
        raise EngineError(f"The engine would take and give {found}; the network takes and gives {signature}.")


def expected_types(graph: bytes) -> dict[str, str]:
    """The type, by the library's name, of each convolution and normalisation in a typed ONNX graph that has a name."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
    values = (*model.graph.value_info, *model.graph.output)
    types = {value.name: _ELEMENT_TYPES.get(value.type.tensor_type.elem_type, "other") for value in values}
    kinds = ("Conv", "ConvTranspose", "InstanceNormalization")
    return {node.name: types[node.output[0]] for node in model.graph.node if node.op_type in kinds and node.name}


def expected_signature(graph: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type and shape, -1 where it is free, of each input and output of an ONNX graph."""
    import onnx

    model = onnx.load_from_string(graph)
    return {
        value.name: (
            _ELEMENT_TYPES.get(value.type.tensor_type.elem_type, "other"),
            tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim),
        )
        for value in (*model.graph.input, *model.graph.output)
    }


def check_serialized(library: ModuleType, engine: bytes, graph: bytes, key: EngineKey, build: EngineBuild) -> None:
    """Load a fresh engine on the GPU that is there and refuse one that isn't what was asked for.

    Raises:
        EngineError: it can't be loaded, or see ``check_engine_types``.
        OutOfMemoryError: the GPU's memory is full.
    """
    log = new_log(library)
    runtime = library.Runtime(log)
    if build.version_compatible:
        runtime.engine_host_code_allowed = True  # it was built in this very process
    with held_interrupts():
        loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise failed(f"{library.__name__} cannot load the engine that it built", log)
    check_engine_types(loaded, graph, max_batch=key.max_batch)


def check_engine_types(engine: Any, graph: bytes, *, max_batch: int) -> None:
    """Refuse a loaded engine whose inputs, outputs or batch sizes aren't those that were asked for.

    Args:
        engine: an ``ICudaEngine``.
        graph: that it was built from.
        max_batch: the largest batch that it must take.

    Raises:
        EngineError: says what is there instead.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    met = {name: (engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))) for name in names}
    wanted = expected_signature(graph)
    if met != wanted:
        raise EngineError(f"The engine takes and gives {met}; the network takes and gives {wanted}.")
    name = next(iter(wanted))
    smallest, _, largest = (next(iter(shape)) for shape in engine.get_tensor_profile_shape(name, 0))
    if (smallest, largest) != (1, max_batch):
        raise EngineError(f"The engine takes batches from {smallest} to {largest}, not from 1 to {max_batch}.")


def _strongly_typed(library: ModuleType) -> int:
    """The creation flag: needed by TensorRT 10, without effect in 11, where there is nothing else."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _configure(library: ModuleType, config: Any, build: EngineBuild) -> None:
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, build.workspace_mb * 2**20)
    # TF32 rounds like FP16: what is called FP32 here is FP32.
    config.clear_flag(library.BuilderFlag.TF32)
    if build.version_compatible:
        config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
    if build.hardware_compatibility != "none":
        level = getattr(library.HardwareCompatibilityLevel, build.hardware_compatibility.upper())
        config.hardware_compatibility_level = level


def _set_targets(library: ModuleType, config: Any, build: EngineBuild) -> None:
    """Name the compute capabilities, also the one of the GPU that is there: with none named TensorRT-RTX builds for all
    from Ampere on, and not for Turing."""
    config.num_compute_capabilities = len(build.targets)
    for i, target in enumerate(build.targets):
        if not config.set_compute_capability(getattr(library.ComputeCapability, f"SM{target}"), i):
            raise EngineError(f"{library.__name__} {library.__version__} cannot build for SM {target}.")


def _add_profile(builder: Any, config: Any, image: Any, max_batch: int) -> None:
    sample = tuple(image.shape)[1:]
    if -1 in sample:
        raise EngineError(f"The network's input {image.name} has free sizes beside its batch ({tuple(image.shape)}).")
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, (1, *sample), (max_batch, *sample), (max_batch, *sample))
    config.add_optimization_profile(profile)


def _timing_cache(config: Any, stored: bytes | None) -> Any:
    if stored is None:
        return None
    cache = config.create_timing_cache(stored)
    if not config.set_timing_cache(cache, ignore_mismatch=False) and stored:
        logger.info("what earlier builds measured is of another GPU or damaged; it is measured anew")
        return _timing_cache(config, b"")
    return cache


def _monitor(library: ModuleType, progress: Progress, held: Held) -> Any:
    """Tells the progress of the outermost phase that has steps; Ctrl-C ends the build after the step at hand."""

    class Monitor(library.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(phase_name, step + 1)
            return not held.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self.tell(phase_name, self.steps.get(phase_name, 0))

        def tell(self, phase_name: str, done: int) -> None:
            # The library calls from C++, through which no exception may pass.
            try:
                if phase_name in self.steps and not held.interrupted:
                    progress.step(done, self.steps[phase_name])
            except KeyboardInterrupt:
                held.interrupted = True

    return Monitor()
