"""What the engines ``tensorrt`` and ``tensorrt-rtx`` have in common, which is everything but a name."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from runtime.bundle_checks import BUNDLE_JSON
from runtime.engines.base import EngineInfo, Preflight, Session
from runtime.engines.checks import check_model_file, resolve_precision
from runtime.engines.cuda_probe import Gpu, cuda_of_toolkit, find_gpu
from runtime.engines.trt_cache import read_engine
from runtime.engines.trt_key import KERNELS
from runtime.engines.trt_library import MODULES, RTX_TARGETS, RTX_TURING_PRECISIONS, load_library
from runtime.errors import EngineError

_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_EXTRAS = {"tensorrt": "gpu", "tensorrt-rtx": "rtx"}
_NEEDED = {"numba_cuda": "numba-cuda[cu13]", "onnx": "onnx"}
"""Modules besides the library, and the packages that bring them."""
_OLDEST_SM = 75
"""TensorRT 10 and later leave older GPUs out."""
_OLDEST_SM_OF_BF16 = 80
_CUDA_PACKAGES = {"cu12": 12, "cu13": 13}


def preflight(name: str, *, device: int) -> Preflight:
    """Whether an engine can run here: library, packages, driver and GPU are looked at, in that order.

    Nothing is opened on the GPU.

    Args:
        name: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        device: GPU number.
    """
    title = _TITLES[name]
    if find_spec(MODULES[name]) is None:
        return Preflight(False, f"{title} is not installed; install it with: pip install {name}")
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        again = f"pip install {' '.join(missing)}, or vertscan[{_EXTRAS[name]}]"
        return Preflight(False, f"{title} also needs {' and '.join(missing)}; install with: {again}")
    gpu = find_gpu(device)
    if gpu is None:
        return Preflight(False, f"{title} needs an NVIDIA GPU, and the driver offers no GPU {device}")
    reason = _why_not_on(gpu, name)
    if reason:
        return Preflight(False, reason, device=gpu.name)
    try:
        version = str(load_library(name).__version__)
    except EngineError as error:
        return Preflight(False, str(error).rstrip("."), device=gpu.name)
    precisions = _precisions(gpu, name)
    said = f"{title} {version} runs on {gpu.name} (SM {gpu.sm}, driver {gpu.driver}) in {' or '.join(precisions)}"
    return Preflight(True, said, version, gpu.name, precisions)


def _precisions(gpu: Gpu, name: str) -> tuple[str, ...]:
    """What the library computes in on a GPU, FP16 first: it is what these libraries are for."""
    if gpu.sm >= _OLDEST_SM_OF_BF16:
        return "fp16", "fp32", "bf16", "int8"
    return RTX_TURING_PRECISIONS if name == "tensorrt-rtx" else ("fp16", "fp32", "int8")


def _why_not_on(gpu: Gpu, name: str) -> str:
    """Why the library can't use a GPU, or the empty text when it can."""
    title = _TITLES[name]
    if name == "tensorrt-rtx" and str(gpu.sm) not in RTX_TARGETS:
        return (
            f"{title} runs on SM {', '.join(RTX_TARGETS)}; {gpu.name} is SM {gpu.sm}: use the engine tensorrt, "
            "pip install tensorrt"
        )
    if gpu.sm < _OLDEST_SM:
        return f"{title} runs on GPUs from SM {_OLDEST_SM} on; {gpu.name} is SM {gpu.sm}"
    for what, needs in ((title, _cuda_of_package(name)), ("numba-cuda's compiler", cuda_of_toolkit())):
        if needs and gpu.cuda[0] < needs:
            return (
                f"{what} is for CUDA {needs}, and the driver {gpu.driver} runs CUDA {gpu.cuda[0]}.{gpu.cuda[1]}: "
                f"update the driver, or pip install {name}-cu{gpu.cuda[0]} numba-cuda[cu{gpu.cuda[0]}]"
            )
    return ""


def _cuda_of_package(name: str) -> int | None:
    """The CUDA version that pip's package was built for; None where it does not say, or pip did not bring it."""
    for suffix, cuda in _CUDA_PACKAGES.items():
        try:
            distribution(f"{name}-{suffix}")
        except PackageNotFoundError:
            continue
        return cuda
    return None


def open_session(name: str, model: Path, *, precision: str, device: int, reason: str) -> Session:
    """Load the engine of an ONNX file, which is built if it isn't in the cache; see ``EngineModule.open_session``.

    Raises:
        EngineError: the library can't be had, or can't build, load or run the engine.
    """
    from runtime.bundle import read_spec
    from runtime.device.stream import Stream
    from runtime.engines.trt_build import engine_file
    from runtime.engines.trt_gate import gate_for
    from runtime.engines.trt_session import TensorRtSession

    check_model_file(model)
    found = preflight(name, device=device)
    if not found.available:
        raise EngineError(f"The engine {name} cannot be used: {found.reason}.")
    precision = resolve_precision(precision, found, engine=name)
    gate, trusted = None, frozenset[str]()
    if (model.parent / BUNDLE_JSON).is_file():  # what a network must say is known of a bundle's networks alone
        trusted = frozenset(read_spec(model.parent).trusted_engines.values())
        gate = gate_for(model, precision=precision, library=name, device=device, trusted=trusted)
    path = engine_file(model, precision=precision, library=name, device=device, gate=gate, trusted=trusted)
    sidecar, content = read_engine(path, trusted=trusted)
    return TensorRtSession(
        load_library(name),
        content,
        Stream(device),
        info=EngineInfo(name, found.version, precision, found.device, reason),
        model=model.name,
        device=device,
        runtime_cache=_runtime_cache_of(path, device) if name == "tensorrt-rtx" else None,
        host_code=sidecar.host_code,
    )


def _runtime_cache_of(engine: Path, device: int) -> Path:
    """Where the kernels that TensorRT-RTX compiles for an engine on this GPU are kept."""
    gpu = find_gpu(device)
    where = hashlib.sha256(repr(gpu).encode()).hexdigest()[:8]
    return engine.with_name(f"{engine.stem}-{where}{KERNELS}")
