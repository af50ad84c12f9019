"""onnxruntime: on an NVIDIA GPU where onnxruntime-gpu and the CUDA libraries are there, else on the processor."""

from __future__ import annotations

import contextlib
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.base import EngineInfo, Preflight
from runtime.engines.checks import check_image, check_model_file, check_signature, resolve_precision, usable_cores
from runtime.engines.cuda_probe import gpu_name, missing_libraries
from runtime.errors import EngineError

_NAME = "onnxruntime"
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_FATAL_ONLY = 4


def preflight(*, device: int = 0) -> Preflight:
    """Whether onnxruntime is installed, and whether it would run on GPU number ``device`` or on the processor.

    The CUDA libraries are looked for here, because a session for which they are missing prints long errors and then
    runs on the processor.
    """
    if find_spec("onnxruntime") is None:
        return Preflight(False, "onnxruntime is not installed; install it with: pip install onnxruntime")
    try:
        import onnxruntime
    except ImportError as error:
        hint = "reinstall it: pip install onnxruntime"
        return Preflight(False, f"onnxruntime is installed but cannot be loaded ({error}); {hint}")
    version = str(onnxruntime.__version__)
    without_cuda = _why_no_cuda(onnxruntime, device)
    if not without_cuda:
        gpu = gpu_name(device) or "CUDA"
        return Preflight(True, f"onnxruntime {version} runs on {gpu} in fp32", version, gpu, ("fp32",))
    if device != 0:
        return Preflight(False, f"onnxruntime {version} cannot use GPU {device}: {without_cuda}", version)
    return Preflight(True, f"onnxruntime {version} runs on the CPU in fp32 ({without_cuda})", version, "CPU", ("fp32",))


def open_session(model: Path, *, precision: str, device: int, threads: int | None, reason: str) -> OnnxRuntimeSession:
    """Load an ONNX file; it computes in the precision of its graph, which is fp32.

    Args:
        model: the ONNX file.
        precision: ``"fp32"`` or ``"auto"``.
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
    precision = resolve_precision(precision, found, engine=_NAME)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    # Said always: left to itself the library pins its threads to cores, which fails loudly inside containers.
    options.intra_op_num_threads = threads or usable_cores()
    try:
        session = onnxruntime.InferenceSession(model, options, providers=_providers(found, device))
    except _library_errors() as error:
        raise EngineError(f"onnxruntime cannot load the network {model}: {_first_line(error)}.") from error
    check_signature(model, inputs=len(session.get_inputs()), outputs=len(session.get_outputs()))
    wanted = _CPU if found.device == "CPU" else _CUDA
    if session.get_providers()[0] != wanted:
        raise EngineError(f"onnxruntime was told to use {wanted} but uses {session.get_providers()[0]}.")
    return OnnxRuntimeSession(session, EngineInfo(_NAME, found.version, precision, found.device, reason), model.name)


class OnnxRuntimeSession:
    """A loaded network; fulfils ``runtime.engines.base.Session``."""

    def __init__(self, session: Any, info: EngineInfo, model: str) -> None:
        self.info = info
        self.output_names: tuple[str, ...] = tuple(output.name for output in session.get_outputs())
        self._model = model
        self._session = session
        self._input = session.get_inputs()[0].name
        self._declared = [size if isinstance(size, int) else None for size in session.get_inputs()[0].shape]

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network; see ``runtime.engines.base.Session``."""
        if self._session is None:
            raise EngineError(f"The session of {self._model} is closed.")
        check_image(image, self._declared, model=self._model)
        try:
            outputs = self._session.run(self.output_names, {self._input: image})
        except _library_errors() as error:
            raise EngineError(f"onnxruntime failed on {self._model}, {image.shape}: {_first_line(error)}.") from error
        return tuple(np.asarray(output, dtype=np.float32) for output in outputs)

    def close(self) -> None:
        """Free the network."""
        self._session = None

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _why_no_cuda(onnxruntime: Any, device: int) -> str:
    """Why CUDA can't be used, or the empty text when it can."""
    if _CUDA not in onnxruntime.get_available_providers():
        return "this build has no CUDA; for an NVIDIA GPU: pip uninstall onnxruntime, pip install onnxruntime-gpu"
    if gpu_name(device) is None:
        return f"the NVIDIA driver offers no GPU {device}"
    if hasattr(onnxruntime, "preload_dlls"):
        # Loads what pip's nvidia packages brought. It reports what it doesn't find on stdout, which isn't ours to use.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    major = int(str(getattr(onnxruntime, "cuda_version", "") or "12").split(".")[0])
    missing = missing_libraries(major)
    return f"missing libraries: {', '.join(missing)}; pip install onnxruntime-gpu[cuda,cudnn]" if missing else ""


def _providers(found: Preflight, device: int) -> list[Any]:
    if found.device == "CPU":
        return [_CPU]
    # TF32 rounds like fp16: with it on, calling the result fp32 would not be true.
    return [(_CUDA, {"device_id": str(device), "use_tf32": "0"}), _CPU]


def _library_errors() -> tuple[type[Exception], ...]:
    """The library's exceptions, which share no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel")
    more = ("NoSuchFile", "NotImplemented", "RuntimeException")
    return tuple(getattr(state, name) for name in (*names, *more) if hasattr(state, name))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
