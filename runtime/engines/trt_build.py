"""Engine files for TensorRT 10, TensorRT 11 and TensorRT-RTX: one code path, on strongly typed graphs.

TensorRT 11 has no precision flags, and 10's are not used: the precision is in the graph. What is looked at after the
build is what the library made of it.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from runtime.bundle_json import to_json
from runtime.engines.cuda_probe import Gpu, find_gpu
from runtime.engines.current_gpu import current_gpu
from runtime.engines.trt_cache import (
    FORMAT,
    EngineKey,
    Sidecar,
    engine_folder,
    find_engine,
    install_engine,
    lock_folder,
    replace_file,
)  # fmt: skip
from runtime.engines.trt_library import RTX_DEFAULT_TARGETS, RTX_TARGETS, load_library
from runtime.engines.trt_network import build_serialized, check_serialized
from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan
from runtime.progress import NoProgress, Progress
from runtime.typed_graph import CONVERSION, TYPED_PRECISIONS, plan_beside, typed_graph

logger = logging.getLogger(__name__)

HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")

Gate = Callable[[Path], None]
"""Called with a fresh engine before it is installed, or, where there is no GPU that it is for, with the typed ONNX file
that it was built from. Raises EngineError to refuse it."""


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Args:
        max_batch: the engine takes batches from 1 to this, and is tuned for this.
        workspace_mb: scratch memory that the builder may plan with, MiB.
        targets: compute capabilities to build for without their GPU, such as ``("86", "120")``, TensorRT-RTX only;
            ``()`` for the GPU that is there, or for ``RTX_DEFAULT_TARGETS`` where none is.
        hardware_compatibility: one of ``HARDWARE_COMPATIBILITY``.
        version_compatible: whether newer versions of the library may load it. Such an engine carries code for the
            host, so the runtime only loads it when its hash is in the bundle.
    """

    max_batch: int = 8
    workspace_mb: int = 2048
    targets: tuple[str, ...] = ()
    hardware_compatibility: str = "none"
    version_compatible: bool = False


@dataclass(frozen=True)
class _Job:
    """One engine to build. Args as of ``engine_file``."""

    onnx: Path
    key: EngineKey
    device: int
    plan: PrecisionPlan
    folder: Path
    progress: Progress
    gate: Gate | None


def engine_file(
    onnx: Path, *, precision: str, library: str, device: int = 0, options: BuildOptions | None = None,
    plan: PrecisionPlan | None = None, folder: Path | None = None, progress: Progress | None = None,
    gate: Gate | None = None,
) -> Path:  # fmt: skip
    """The engine for a network: the one in the cache, or else built now and put there.

    Safe when several processes ask at once: one builds, the others wait and take what it built. Files that are damaged,
    cut off, or were built for something else are built again.

    Args:
        onnx: the FP32 ONNX file, as bundles hold it.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``.
        library: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        device: GPU number.
        options: None for the defaults.
        plan: see ``runtime.typed_graph.typed_graph``.
        folder: where engines are kept; None for the user's cache.
        progress: told of the build's steps; a stage is named after the network.
        gate: see ``Gate``.

    Returns:
        The path of the engine; ``runtime.engines.trt_cache.check_engine`` verifies it before it is loaded.

    Raises:
        EngineError: it can't be built here, isn't what was asked for, or the gate refuses it; nothing is left then.
    """
    options, folder = options or BuildOptions(), folder or engine_folder()
    plan = plan_beside(onnx) if plan is None else plan
    key = engine_key(onnx, precision=precision, library=library, device=device, options=options, plan=plan)
    found = find_engine(folder, key)
    if found is None:
        with lock_folder(folder):
            # Another process may have built it while this one waited.
            found = find_engine(folder, key) or _build(
                _Job(onnx, key, device, plan, folder, progress or NoProgress(), gate)
            )
    return found


def engine_key(
    onnx: Path, *, precision: str, library: str, device: int, options: BuildOptions, plan: PrecisionPlan
) -> EngineKey:
    """All that the engine would depend on, on this machine as it is now.

    Raises:
        EngineError: no such precision, library or compatibility, the file can't be read, or the library can't build
            here.
    """
    if precision not in TYPED_PRECISIONS:
        raise EngineError(f"There is no precision {precision!r}; there are {', '.join(TYPED_PRECISIONS)}.")
    if options.hardware_compatibility not in HARDWARE_COMPATIBILITY:
        known = ", ".join(HARDWARE_COMPATIBILITY)
        raise EngineError(f"There is no hardware compatibility {options.hardware_compatibility!r}; there are {known}.")
    module, gpu = load_library(library), find_gpu(device)
    try:
        digest = hashlib.sha256(onnx.read_bytes()).hexdigest()
    except OSError as error:
        raise EngineError(f"The network {onnx} cannot be read ({error.strerror}).") from error
    targets = _targets(library, None if gpu is None else str(gpu.sm), options.targets)
    name, driver = _gpu_and_driver(gpu) if gpu is not None and targets == ("current",) else ("", "")
    return EngineKey(
        network=onnx.name,
        onnx_sha256=digest,
        precision=precision,
        conversion=hashlib.sha256(f"{CONVERSION}\n{to_json(plan)}".encode()).hexdigest()[:16],
        max_batch=options.max_batch,
        workspace_mb=options.workspace_mb,
        library=library,
        library_version=str(module.__version__),
        targets=targets,
        gpu=name,
        driver=driver,
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
    )


def why_stale(key: EngineKey) -> str:
    """Why this machine, as it is now, would not use an engine with that key; ``""`` when it would."""
    try:
        version = str(load_library(key.library).__version__)
    except EngineError as error:
        return str(error).rstrip(".")
    if version != key.library_version:
        return f"{key.library} {version} is installed, and it was built by {key.library_version}"
    gpu = find_gpu()
    if key.gpu and (gpu is None or (key.gpu, key.driver) != _gpu_and_driver(gpu)):
        now = "no GPU is there" if gpu is None else "this machine has {} with driver {}".format(*_gpu_and_driver(gpu))
        return f"it was built for {key.gpu} with driver {key.driver}, and {now}"
    return ""


def _gpu_and_driver(gpu: Gpu) -> tuple[str, str]:
    return f"{gpu.name} SM {gpu.sm}", f"{gpu.driver} CUDA {gpu.cuda[0]}.{gpu.cuda[1]}"


def _targets(library: str, sm: str | None, asked: tuple[str, ...]) -> tuple[str, ...]:
    """What to build for. Raises EngineError when the library can't."""
    if library != "tensorrt-rtx":
        if asked:
            raise EngineError("TensorRT builds for the GPU that is there; --targets is for tensorrt-rtx.")
        if sm is None:
            raise EngineError("TensorRT builds on the GPU that the engine is for, and the NVIDIA driver offers none.")
        return ("current",)
    known = ", ".join(RTX_TARGETS)
    unknown = [target for target in asked if target not in RTX_TARGETS]
    if unknown:
        raise EngineError(f"tensorrt-rtx builds for SM {known}, not for SM {', '.join(unknown)}.")
    if asked:
        return asked
    if sm is not None and sm not in RTX_TARGETS:
        raise EngineError(f"tensorrt-rtx builds for SM {known}; this GPU is SM {sm}: use the engine tensorrt.")
    return RTX_DEFAULT_TARGETS if sm is None else ("current",)


def _build(job: _Job) -> Path:
    """Build, check, gate and install."""
    key, path = job.key, job.folder / job.key.file_name
    library = load_library(key.library)
    job.progress.stage(f"build {job.onnx.stem} {key.precision} for {key.library}")
    logger.info("building %s for %s in %s", job.onnx.name, key.library, key.precision)
    graph = typed_graph(job.onnx, key.precision, plan=job.plan)
    gpu = find_gpu(job.device)
    runs_here = gpu is not None and (key.targets == ("current",) or str(gpu.sm) in key.targets)
    # Sessions don't load engines with code for the host, so of those the graph is judged.
    gates_engine = runs_here and not key.version_compatible
    if job.gate is not None and not gates_engine:
        _gate_graph(graph, job.onnx, job.gate)
    timing = _timing_file(job) if key.library == "tensorrt" else None
    started_s = time.monotonic()
    with current_gpu(job.device):
        built = build_serialized(library, graph, key, progress=job.progress, timing_cache=_read_timing(timing))
        if runs_here:
            check_serialized(library, built.engine, graph, key)
    gate = "not asked" if job.gate is None else f"passed by the {'engine' if gates_engine else 'typed graph'}"
    sidecar = Sidecar(
        format=FORMAT, key=key, sha256=hashlib.sha256(built.engine).hexdigest(), size=len(built.engine),
        host_code=key.version_compatible, gate=gate, built=datetime.now(UTC).isoformat(timespec="seconds"),
        build_s=round(time.monotonic() - started_s, 2),
    )  # fmt: skip
    install_engine(built.engine, path, sidecar, gate=job.gate if gates_engine else None)
    if timing is not None and built.timing_cache is not None:
        replace_file(timing, built.timing_cache)
    return path


def _gate_graph(graph: bytes, onnx: Path, gate: Gate) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / onnx.name
        path.write_bytes(graph)
        gate(path)


def _timing_file(job: _Job) -> Path:
    """Where this library's measurements on this GPU are kept: they help every network and precision alike."""
    gpu = hashlib.sha256(f"{job.key.library_version} {job.key.gpu} {job.key.driver}".encode()).hexdigest()[:16]
    return job.folder / f"timing-{gpu}.cache"


def _read_timing(path: Path | None) -> bytes | None:
    """The measurements, ``b""`` where there are none yet; None where none are to be used."""
    if path is None:
        return None
    return path.read_bytes() if path.is_file() else b""
