"""onnxruntime's TensorRT provider: TensorRT 10 without its Python package, engines built and kept by onnxruntime."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.cache import user_cache_folder
from runtime.engines.base import EngineInfo, Preflight
from runtime.engines.checks import check_model_file, resolve_precision
from runtime.engines.cuda_probe import Gpu, find_gpu, not_loadable
from runtime.engines.file_lock import file_lock
from runtime.engines.ort import graph_of, library_session
from runtime.engines.ort_gpu import OnnxRuntimeGpuSession, cuda_provider, shapes_are_fixed, why_no_cuda
from runtime.engines.ort_library import load, why_not_loadable
from runtime.errors import EngineError

logger = logging.getLogger(__name__)

_NAME = "onnxruntime-tensorrt"
_TENSORRT = "TensorrtExecutionProvider"
_LINUX = ("libnvinfer.so.10", "libnvonnxparser.so.10")
_WINDOWS = ("nvinfer_10.dll", "nvonnxparser_10.dll")
_TF32 = "NVIDIA_TF32_OVERRIDE"
_OLDEST_SM_OF_TF32 = 80
_DAMAGED = "could not deserialize engine from cache"
"""How the provider fails, at every start, where it finds half an engine."""
_LOCK = ".lock"
MOST = 4
"""Images that an engine is built for at once: the pipeline's batch on a GPU."""


def preflight(*, device: int = 0) -> Preflight:
    """Whether onnxruntime-gpu, the CUDA libraries and those of TensorRT 10 are there for GPU number ``device``."""
    unusable = why_not_loadable()
    if unusable:
        return Preflight(False, unusable.replace("pip install onnxruntime", "pip install onnxruntime-gpu"))
    library = load()
    version = str(library.__version__)
    if _TENSORRT not in library.get_available_providers():
        needs = "pip uninstall onnxruntime, pip install onnxruntime-gpu"
        return Preflight(False, f"this build of onnxruntime {version} has no TensorRT; {needs}", version)
    refuse_tf32()
    without_cuda = why_no_cuda(library, device)
    if without_cuda:
        return Preflight(False, f"onnxruntime {version} cannot use TensorRT: {without_cuda}", version)
    missing = _missing()
    if missing:
        needs = "install TensorRT 10, such as: pip install 'tensorrt<11'"
        return Preflight(False, f"onnxruntime {version} misses {', '.join(missing)}; {needs}", version)
    gpu = find_gpu(device)
    name = gpu.name if gpu else "CUDA"
    tf32 = _why_tf32(gpu)
    typed = ("fp16",) if find_spec("onnx") is not None else ()
    precisions = typed if tf32 else ("fp32", *typed)
    if not precisions:
        return Preflight(
            False, f"onnxruntime {version} cannot use TensorRT: {tf32}, and fp16 needs onnx", version, name
        )
    said = f"onnxruntime {version} runs TensorRT {tensorrt_version()} on {name} in {' or '.join(precisions)}"
    return Preflight(True, said + (f"; {tf32}" if tf32 else ""), version, name, precisions)


def refuse_tf32() -> None:
    """Keep TensorRT from computing FP32 in TF32, which rounds as FP16 does, by the variable that NVIDIA has for that.

    The provider leaves TensorRT's flag for it on, and has no option (microsoft/onnxruntime issue 26029); TensorRT reads
    the variable when it first builds and keeps to it, so it is set before any engine is opened. It is set for this
    process and its children; somebody who has set it to anything is left alone, and not offered FP32.
    """
    os.environ.setdefault(_TF32, "0")


def _why_tf32(gpu: Gpu | None) -> str:
    """Why FP32 would be computed in TF32, or the empty text when it would not."""
    if os.environ.get(_TF32) == "0" or (gpu is not None and gpu.sm < _OLDEST_SM_OF_TF32):
        return ""
    return f"not in fp32, since {_TF32}={os.environ.get(_TF32)} makes it TF32: unset it"


def open_session(
    model: Path, *, precision: str, device: int, threads: int | None, reason: str, cache: Path | None = None
) -> OnnxRuntimeGpuSession:
    """Load an ONNX file; the first time on a machine TensorRT builds an engine, which takes minutes and is kept.

    Args:
        model: the ONNX file.
        precision: ``"fp32"``, ``"fp16"`` where the package onnx is installed, or ``"auto"``, the preflight's first.
        device: GPU number.
        threads: for what stays on the processor; None for as many as this process may use.
        reason: why this engine was chosen; goes into the session's info.
        cache: folder for engines and timings; None for the one in the user's cache.

    Raises:
        EngineError: it can't run here, can't read the model, or the model's sizes vary.
        OutOfMemoryError: the GPU's memory is full.
    """
    check_model_file(model)
    found = preflight(device=device)
    if not found.available:
        raise EngineError(found.reason + ".")
    precision = resolve_precision(precision, found, engine=_NAME)
    graph = graph_of(model, precision)
    content = graph if isinstance(graph, bytes) else graph.read_bytes()
    key = cache_key(content, precision, found, device)
    folder = _made(cache or user_cache_folder(_NAME)) / key
    image, zyx = _image_of(model)
    provider = tensorrt_provider(_made(folder), image=image, size_zyx=zyx, device=device)
    providers = [provider, cuda_provider(device, graphs=False)]
    with file_lock(folder / _LOCK, is_needed=False):  # one builds, the others take what it built
        session = _built_or_found(partial(library_session, graph, model, providers, threads=threads), folder)
    if not shapes_are_fixed(session):
        raise EngineError(f"{model.name} has sizes that vary; TensorRT engines are built for fixed ones.")
    info = EngineInfo(_NAME, found.version, precision, found.device, reason)
    return OnnxRuntimeGpuSession(session, load(), info, model.name, device=device, graphs=False, most=MOST)


def _built_or_found(opened: Callable[[], Any], folder: Path) -> Any:
    """The library's session; where the engine in its folder is damaged, it is removed and built anew, once.

    Raises:
        EngineError: it can't be opened, or TensorRT runs no part of it.
    """
    try:
        session = opened()
    except EngineError as error:
        if _DAMAGED not in str(error):
            raise
        logger.warning("a cached engine is built again: %s", error)
        _empty(folder)
        session = opened()
    # The library lists a provider also where that takes no part of the network, and CUDA then runs it all.
    if next(folder.glob("*.engine"), None) is None:
        raise EngineError(f"TensorRT runs no part of the network, or its engine could not be written to {folder}.")
    return session


def _empty(folder: Path) -> None:
    try:
        for path in folder.iterdir():
            if path.name != _LOCK:
                path.unlink()
    except OSError as error:
        raise EngineError(f"The damaged engine in {folder} cannot be removed ({error.strerror}): remove it.") from error


def tensorrt_provider(
    folder: Path, *, image: str, size_zyx: tuple[int, int, int], device: int
) -> tuple[str, dict[str, str]]:
    """The TensorRT provider with its settings.

    Its own precision flags stay off: with them off the provider builds strongly typed networks, so that the precision
    is that of the graph, normalisations in FP32 included. It captures one CUDA graph at most, of one shape: so none.

    Args:
        folder: where engines and timings are kept.
        image: name of the network's input.
        size_zyx: of one image, voxels.
        device: GPU number.
    """
    space = "x".join(str(n) for n in size_zyx)
    return _TENSORRT, {
        "device_id": str(device),
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": f"{image}:1x1x{space}",
        "trt_profile_opt_shapes": f"{image}:{MOST}x1x{space}",
        "trt_profile_max_shapes": f"{image}:{MOST}x1x{space}",
    }


def cache_key(graph: bytes, precision: str, found: Preflight, device: int) -> str:
    """Name of the folder for one engine: onnxruntime's own key leaves out weights, versions, driver and GPU's name."""
    gpu = find_gpu(device)
    parts = {
        "graph": hashlib.sha256(graph).hexdigest(),
        "precision": precision,
        "most": MOST,
        "onnxruntime": found.version,
        "tensorrt": tensorrt_version(),
        "tf32": os.environ.get(_TF32),
        "gpu": [gpu.name, gpu.compute_capability, gpu.driver] if gpu else [],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def tensorrt_version() -> str:
    """Version of the TensorRT 10 library that the loader finds, such as ``"10.13.3"``; ``""`` for none."""
    for name in (*_LINUX[:1], *_WINDOWS[:1]):
        if not not_loadable([name]):
            number = int(ctypes.CDLL(name).getInferLibVersion())
            return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    return ""


def _missing() -> list[str]:
    """Libraries that the loader doesn't find, once those of pip's package ``tensorrt`` are loaded."""
    import sys

    names = _WINDOWS if sys.platform == "win32" else _LINUX
    spec = find_spec("tensorrt_libs")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        not_loadable(str(Path(folder) / name) for name in names)
    return not_loadable(names)


def _image_of(model: Path) -> tuple[str, tuple[int, int, int]]:
    """Name and size of the network's input, read by a session that runs nothing."""
    session = library_session(model, model, ["CPUExecutionProvider"], threads=1)
    image: Any = session.get_inputs()[0]
    z, y, x = (size if isinstance(size, int) else 0 for size in image.shape[2:])
    if not (z and y and x):
        raise EngineError(f"{model.name} has sizes that vary; TensorRT engines are built for fixed ones.")
    return str(image.name), (z, y, x)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"The folder {folder} for engines cannot be made ({error.strerror}).") from error
    return folder
