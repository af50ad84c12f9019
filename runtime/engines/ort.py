"""onnxruntime: on an NVIDIA GPU where onnxruntime-gpu and the CUDA libraries are there, else on the processor."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from runtime.device.stream import Stream
from runtime.engines.base import EngineInfo, Preflight, Session
from runtime.engines.checks import check_image, check_model_file, check_signature, resolve_precision, usable_cores
from runtime.engines.cuda_probe import gpu_name
from runtime.engines.failures import failure
from runtime.engines.ort_device import OnnxRuntimeDeviceSession, why_not_on_device
from runtime.engines.ort_gpu import OnnxRuntimeGpuSession, cuda_provider, shapes_are_fixed, sizes, why_no_cuda
from runtime.engines.ort_library import ONLY_FATAL, first_line, library_errors, load, why_mixed, why_not_loadable
from runtime.errors import EngineError

logger = logging.getLogger(__name__)

_NAME = "onnxruntime"
_CPU = "CPUExecutionProvider"
_MOST_ON_DEVICE = 4
"""Images at once: as many as the pipeline runs where scans are not kept on the GPU."""


def preflight(*, device: int = 0) -> Preflight:
    """Whether onnxruntime is installed, and whether it would run on GPU number ``device`` or on the processor.

    On the processor all but FP32 is for verification alone: numbers are rounded as on a GPU, slower than FP32.
    """
    unusable = why_not_loadable()
    if unusable:
        return Preflight(False, unusable)
    library = load()
    version, mixed = str(library.__version__), why_mixed()
    remark = f"; {mixed}" if mixed else ""
    without_cuda = why_no_cuda(library, device)
    can_type = find_spec("onnx") is not None
    if not without_cuda:
        gpu = gpu_name(device) or "CUDA"
        precisions = ("fp32", "fp16") if can_type else ("fp32",)
        said = f"onnxruntime {version} runs on {gpu} in {' or '.join(precisions)}{remark}"
        return Preflight(True, said, version, gpu, precisions)
    if device != 0:
        return Preflight(False, f"onnxruntime {version} cannot use GPU {device}: {without_cuda}{remark}", version)
    said = f"onnxruntime {version} runs on the CPU in fp32 ({without_cuda}{remark})"
    return Preflight(True, said, version, "CPU", ("fp32",), verify_only=("fp16", "bf16", "int8") if can_type else ())


def open_session(model: Path, *, precision: str, device: int, threads: int | None, reason: str) -> Session:
    """Load an ONNX file; it computes in the precision of its graph, which other than in fp32 is made here.

    Args:
        model: the ONNX file.
        precision: ``"fp32"``, or ``"auto"``, which means it; with the package onnx also ``"fp16"``, and on the
            processor ``"bf16"`` and ``"int8"``.
        device: GPU number; 0 also means the processor where no GPU can be used.
        threads: on the processor; None for as many as this process may use.
        reason: why this engine was chosen; goes into the session's info.

    Raises:
        EngineError: onnxruntime can't be had, or can't read the model.
    """
    check_model_file(model)
    found = preflight(device=device)
    if not found.available:
        raise EngineError(found.reason + ".")
    precision = resolve_precision(precision, found, engine=_NAME, verification=True)
    info = EngineInfo(_NAME, found.version, precision, found.device, reason)
    graph = graph_of(model, precision)
    if found.device == "CPU":
        graph = _rounded(graph)
        return OnnxRuntimeSession(library_session(graph, model, [_CPU], threads=threads), info, model.name)
    session, graphs = _cuda_session(graph, model, device, threads)
    without = "its sizes vary" if not shapes_are_fixed(session) else why_not_on_device(device)
    if without:
        logger.info("%s is fed by way of the host: %s", model.name, without)
        return OnnxRuntimeGpuSession(session, load(), info, model.name, device=device, graphs=graphs, most=None)
    return OnnxRuntimeDeviceSession(
        session, load(), info, model.name, device=device, graphs=graphs, most=_MOST_ON_DEVICE, stream=Stream(device)
    )


def processor_session(model: Path, *, reason: str, threads: int | None = None) -> Session:
    """A file as it is, whatever its types, on the processor, also where there is a GPU: the reference to compare with.

    Raises:
        EngineError: onnxruntime can't read it.
    """
    check_model_file(model)
    session = library_session(model, model, [_CPU], threads=threads)
    info = EngineInfo(_NAME, str(load().__version__), "fp32", "CPU", reason)
    return OnnxRuntimeSession(session, info, model.name)


def graph_of(model: Path, precision: str) -> Path | bytes:
    """What onnxruntime is to load: the file itself, or its strongly typed graph in another precision than fp32."""
    if precision == "fp32":
        return model
    from runtime.typed_graph import typed_graph

    return typed_graph(model, precision)


def _rounded(graph: Path | bytes) -> Path | bytes:
    """A typed graph as the processor must be given it: left as it is, the library would compute it in FP32 throughout
    and leave out most of the rounding, so that what overflows on a GPU would not here."""
    if isinstance(graph, Path):
        return graph
    from runtime.rounded_graph import rounded_graph

    return rounded_graph(graph)


def library_session(graph: Path | bytes, model: Path, providers: Sequence[Any], *, threads: int | None) -> Any:
    """The library's session, on the first of the providers and no other.

    Args:
        graph: what to load.
        model: the file it came from, for messages.
        providers: the library's names, with options or without.
        threads: on the processor; None for as many as this process may use.

    Raises:
        EngineError: it can't be loaded, has other inputs than one image, or the provider can't be had.
        OutOfMemoryError: there is no memory left for it.
    """
    library = load()
    options = library.SessionOptions()
    options.log_severity_level = ONLY_FATAL
    # Said always: left to itself the library pins its threads to cores, which fails loudly inside containers.
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    try:
        # Left to itself the library goes on with another provider when one fails, also in mid-run, and prints that.
        session = library.InferenceSession(graph, options, providers=list(providers), enable_fallback=0)
    except library_errors() as error:
        said = f"onnxruntime cannot load the network {model}: {first_line(error)}."
        raise failure(said, library_said=str(error)) from error
    check_signature(model, inputs=len(session.get_inputs()), outputs=len(session.get_outputs()))
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    used = session.get_providers()[0]
    if used != wanted:
        raise EngineError(f"onnxruntime was told to use {wanted} but uses {used}.")
    return session


def _cuda_session(graph: Path | bytes, model: Path, device: int, threads: int | None) -> tuple[Any, bool]:
    """A session on the CUDA provider, and whether it captures CUDA graphs.

    The library refuses to capture a network of which it would run any part on the processor; such a one is opened
    without, and the log says so. Networks of varying size can't be captured.
    """
    try:
        session = library_session(graph, model, [cuda_provider(device, graphs=True), _CPU], threads=threads)
    except EngineError as error:
        logger.info("%s runs without CUDA graphs: %s", model.name, error)
    else:
        if shapes_are_fixed(session):
            return session, True
    return library_session(graph, model, [cuda_provider(device, graphs=False), _CPU], threads=threads), False


class OnnxRuntimeSession:
    """A network on the processor; fulfils ``runtime.engines.base.Session``."""

    def __init__(self, session: Any, info: EngineInfo, model: str) -> None:
        self.info = info
        self.output_names: tuple[str, ...] = tuple(output.name for output in session.get_outputs())
        self._model = model
        self._session = session
        self._input = session.get_inputs()[0].name
        self._declared = sizes(session.get_inputs()[0].shape)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network; see ``runtime.engines.base.Session``."""
        if self._session is None:
            raise EngineError(f"The session of {self._model} is closed.")
        check_image(image, self._declared, model=self._model)
        try:
            outputs = self._session.run(self.output_names, {self._input: image})
        except library_errors() as error:
            said = f"onnxruntime failed on {self._model}, {image.shape}: {first_line(error)}."
            raise failure(said, library_said=str(error)) from error
        return tuple(np.asarray(output, dtype=np.float32) for output in outputs)

    def close(self) -> None:
        """Free the network."""
        self._session = None

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
