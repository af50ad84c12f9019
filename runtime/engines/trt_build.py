"""Engine files for TensorRT 10, TensorRT 11 and TensorRT-RTX: one code path, on strongly typed graphs.

TensorRT 11 has no precision flags, and 10's are not used: the precision is in the graph. What is looked at after the
build is what the library made of it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from runtime.bundle_json import to_json
from runtime.engines.cuda_probe import Gpu, find_gpu
from runtime.engines.current_gpu import current_gpu
from runtime.engines.trt_cache import (
    TIMINGS,
    engine_folder,
    find_engine,
    find_engine_for,
    install_engine,
    lock_folder,
    note_gate,
    read_sidecar,
    replace_file,
    temporary_file,
)
from runtime.engines.trt_key import (
    FORMAT,
    TYPED_GRAPH,
    EngineBuild,
    EngineKey,
    Sidecar,
    engine_name,
    gpu_and_driver,
    why_other_gpu,
    why_other_version,
)
from runtime.engines.trt_library import (
    RTX_DEFAULT_TARGETS,
    RTX_TARGETS,
    RTX_TURING_PRECISIONS,
    TURING,
    load_library,
)
from runtime.engines.trt_network import build_serialized, check_serialized
from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan
from runtime.progress import NoProgress, Progress
from runtime.turing_graph import without_matrix_products
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
    """One engine to find or build. Args as of ``engine_file``; ``gpu`` is None where none is there."""

    onnx: Path
    key: EngineKey
    options: BuildOptions | None
    device: int
    gpu: Gpu | None
    plan: PrecisionPlan
    folder: Path
    progress: Progress
    gate: Gate | None
    trusted: Collection[str]

    @property
    def build(self) -> EngineBuild:
        """How the engine is to be built here. Raises EngineError when the library can't."""
        return engine_build(self.key.library, self.key.precision, self.gpu, self.options or BuildOptions())


def engine_file(
    onnx: Path, *, precision: str, library: str, device: int = 0, options: BuildOptions | None = None,
    plan: PrecisionPlan | None = None, folder: Path | None = None, progress: Progress | None = None,
    gate: Gate | None = None, trusted: Collection[str] = (),
) -> Path:  # fmt: skip
    """The engine for a network: one in the cache, or else built now and put there.

    Safe when several processes ask at once: one builds, the others wait and take what it built. Files that are damaged,
    cut off, or were built for something else are built again. One that was not gated for this GPU is gated now.

    Args:
        onnx: the FP32 ONNX file, as bundles hold it.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``.
        library: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        device: GPU number.
        options: how it must have been built; None for the best that may run on this GPU, wherever it was built, and
            the defaults where there is none.
        plan: see ``runtime.typed_graph.typed_graph``.
        folder: where engines are kept; None for the user's cache.
        progress: told of the build's steps; a stage is named after the network.
        gate: see ``Gate``; None to take an engine as it is.
        trusted: SHA-256 digests of the engines with code for the host that may be used.

    Returns:
        The path of the engine; ``runtime.engines.trt_cache.read_engine`` verifies it when it is loaded.

    Raises:
        EngineError: it can't be built here, isn't what was asked for, or the gate refuses it; nothing is left then.
    """
    plan = plan_beside(onnx) if plan is None else plan
    max_batch = (options or BuildOptions()).max_batch
    key = engine_key(onnx, precision=precision, library=library, plan=plan, max_batch=max_batch)
    job = _Job(
        onnx, key, options, device, find_gpu(device), plan, folder or engine_folder(), progress or NoProgress(), gate,
        trusted,
    )  # fmt: skip
    found = _find(job)
    if found is not None and _passes(job, found):
        return found
    with lock_folder(job.folder):
        # Another process may have built it while this one waited.
        found = find_engine(job.folder, key, job.build)
        if found is None:
            return _build(job, job.build)
    _gate_found(job, found)
    return found


def engine_key(onnx: Path, *, precision: str, library: str, plan: PrecisionPlan, max_batch: int) -> EngineKey:
    """What the engine of a network computes, by the library that is installed.

    Raises:
        EngineError: no such precision or library, or the file can't be read.
    """
    if precision not in TYPED_PRECISIONS:
        raise EngineError(f"There is no precision {precision!r}; there are {', '.join(TYPED_PRECISIONS)}.")
    module = load_library(library)
    try:
        digest = hashlib.sha256(onnx.read_bytes()).hexdigest()
    except OSError as error:
        raise EngineError(f"The network {onnx} cannot be read ({error.strerror}).") from error
    return EngineKey(
        network=onnx.name,
        onnx_sha256=digest,
        precision=precision,
        conversion=hashlib.sha256(f"{CONVERSION}\n{to_json(plan)}".encode()).hexdigest()[:16],
        max_batch=max_batch,
        library=library,
        library_version=str(module.__version__),
    )


def engine_build(library: str, precision: str, gpu: Gpu | None, options: BuildOptions) -> EngineBuild:
    """How an engine is built on this machine; ``gpu`` is the one that is here, if any.

    Raises:
        EngineError: no such compatibility, or the library can't build for that GPU, those targets or that precision.
    """
    if options.hardware_compatibility not in HARDWARE_COMPATIBILITY:
        known = ", ".join(HARDWARE_COMPATIBILITY)
        raise EngineError(f"There is no hardware compatibility {options.hardware_compatibility!r}; there are {known}.")
    targets = _targets(library, None if gpu is None else str(gpu.sm), options.targets)
    if library == "tensorrt-rtx" and TURING in targets and precision not in RTX_TURING_PRECISIONS:
        raise EngineError(
            f"tensorrt-rtx computes in {' or '.join(RTX_TURING_PRECISIONS)} on Turing (SM {TURING}), not in "
            f"{precision}: it has no such 3D convolution for it. Use fp16, or the engine tensorrt."
        )
    is_for_this = gpu is not None and not options.targets
    name, driver = gpu_and_driver(gpu) if gpu is not None and is_for_this else ("", "")
    return EngineBuild(
        targets, name, driver, options.hardware_compatibility, options.version_compatible, options.workspace_mb
    )


def why_stale(sidecar: Sidecar) -> str:
    """Why this machine, as it is now, would not use an engine; ``""`` when it would.

    Engines that were built without a GPU are for other machines as well, and only as old as their library.
    """
    key, build = sidecar.key, sidecar.build
    try:
        version = str(load_library(key.library).__version__)
    except EngineError as error:
        return str(error).rstrip(".")
    other = why_other_version(key, build, version)
    if other or not build.gpu:
        return other
    gpus = list(iter_gpus())
    if not gpus:
        return f"it was built for {build.gpu} with driver {build.driver}, and no GPU is there"
    reasons = [why_other_gpu(build, gpu) for gpu in gpus]
    return "" if "" in reasons else reasons[0]


def iter_gpus() -> Iterator[Gpu]:
    """The GPUs of this machine, as their driver numbers them."""
    device = 0
    while (gpu := find_gpu(device)) is not None:
        yield gpu
        device += 1


def _targets(library: str, sm: str | None, asked: tuple[str, ...]) -> tuple[str, ...]:
    """What to build for, rising and each once. Raises EngineError when the library can't."""
    if library != "tensorrt-rtx":
        if asked:
            raise EngineError("TensorRT builds for the GPU that is there; --targets is for tensorrt-rtx.")
        if sm is None:
            raise EngineError("TensorRT builds on the GPU that the engine is for, and the NVIDIA driver offers none.")
        return (sm,)
    known = ", ".join(RTX_TARGETS)
    unknown = [target for target in asked if target not in RTX_TARGETS]
    if unknown:
        raise EngineError(f"tensorrt-rtx builds for SM {known}, not for SM {', '.join(unknown)}.")
    if asked:
        return tuple(target for target in RTX_TARGETS if target in asked)
    if sm is not None and sm not in RTX_TARGETS:
        raise EngineError(f"tensorrt-rtx builds for SM {known}; this GPU is SM {sm}: use the engine tensorrt.")
    return RTX_DEFAULT_TARGETS if sm is None else (sm,)


def _find(job: _Job) -> Path | None:
    """The engine in the cache that will do, if there is one."""
    if job.options is None and job.gpu is not None:
        return find_engine_for(job.folder, job.key, job.gpu, trusted=job.trusted)
    return find_engine(job.folder, job.key, job.build)


def _judged_on(job: _Job, build: EngineBuild, sha256: str = "") -> str:
    """What the gate can judge of an engine here: the engine on this GPU, as it is called in ``Sidecar.gates``, or the
    graph. Code for the host that nobody vouches for is not run for a gate."""
    runs_here = job.gpu is not None and not why_other_gpu(build, job.gpu)
    if job.gpu is None or not runs_here or (build.version_compatible and sha256 not in job.trusted):
        return TYPED_GRAPH
    return ", driver ".join(gpu_and_driver(job.gpu))


def _passes(job: _Job, engine: Path) -> bool:
    """Whether an engine of the cache may be used: one that was built otherwise may not where the gate refuses it.

    Raises:
        EngineError: the gate refuses one that would be built just so again.
    """
    try:
        _gate_found(job, engine)
    except EngineError as error:
        if engine.name == engine_name(job.key, job.build):
            raise
        logger.warning("%s is not used, and another engine is built: %s", engine.name, error)
        return False
    return True


def _gate_found(job: _Job, engine: Path) -> None:
    """Put an engine of the cache to the gate, unless it passed it where it will run.

    Raises:
        EngineError: the gate refuses it.
    """
    if job.gate is None:
        return
    sidecar = read_sidecar(engine)
    judged = _judged_on(job, sidecar.build, sidecar.sha256)
    if judged in sidecar.gates or (judged == TYPED_GRAPH and sidecar.gates):
        return
    before = f"passed by {' and '.join(sidecar.gates)} so far" if sidecar.gates else "never asked"
    logger.info("the gate judges %s, %s of %s", engine.name, before, job.onnx.name)
    if judged == TYPED_GRAPH:
        _gate_graph(_graph(job, sidecar.build), job.onnx, job.gate)
    else:
        job.gate(engine)
    try:
        note_gate(engine, sidecar, judged)
    except EngineError as error:
        logger.warning("that %s passed the gate is not kept: %s", engine.name, error)


def _graph(job: _Job, build: EngineBuild) -> bytes:
    """The strongly typed graph that the engine is built from."""
    graph = typed_graph(job.onnx, job.key.precision, plan=job.plan)
    needs_sums = job.key.library == "tensorrt-rtx" and TURING in build.targets
    return without_matrix_products(graph) if needs_sums else graph


def _build(job: _Job, build: EngineBuild) -> Path:
    """Build, check, gate and install."""
    key, path = job.key, job.folder / engine_name(job.key, build)
    library = load_library(key.library)
    job.progress.stage(f"build {job.onnx.stem} {key.precision} for {key.library}")
    logger.info("building %s for %s in %s", job.onnx.name, key.library, key.precision)
    graph, judged = _graph(job, build), _judged_on(job, build)
    if job.gate is not None and judged == TYPED_GRAPH:
        _gate_graph(graph, job.onnx, job.gate)
    timing = _timing_file(job, build) if key.library == "tensorrt" else None
    started_s = time.monotonic()
    with current_gpu(job.device):
        built = build_serialized(library, graph, key, build, progress=job.progress, timing_cache=_read_timing(timing))
        if job.gpu is not None and not why_other_gpu(build, job.gpu):
            check_serialized(library, built.engine, graph, key, build)
    sidecar = Sidecar(
        format=FORMAT, key=key, build=build, sha256=hashlib.sha256(built.engine).hexdigest(), size=len(built.engine),
        gates=() if job.gate is None else (judged,), built=datetime.now(UTC).isoformat(timespec="seconds"),
        build_s=round(time.monotonic() - started_s, 2),
    )  # fmt: skip
    install_engine(built.engine, path, sidecar, gate=None if judged == TYPED_GRAPH else job.gate)
    if timing is not None and built.timing_cache is not None:
        try:
            replace_file(timing, built.timing_cache)
        except EngineError as error:
            logger.warning("what the build measured is not kept for later ones: %s", error)
    return path


def _gate_graph(graph: bytes, onnx: Path, gate: Gate) -> None:
    with temporary_file(onnx.name, graph) as path:
        gate(path)


def _timing_file(job: _Job, build: EngineBuild) -> Path:
    """Where this library's measurements on this GPU are kept: they help every network and precision alike."""
    gpu = hashlib.sha256(f"{job.key.library_version} {build.gpu} {build.driver}".encode()).hexdigest()[:16]
    return job.folder / f"{TIMINGS}{gpu}.cache"


def _read_timing(path: Path | None) -> bytes | None:
    """The measurements, ``b""`` where there are none yet; None where none are to be used."""
    if path is None:
        return None
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError as error:
        logger.warning("what earlier builds measured is not used: %s cannot be read (%s)", path, error.strerror)
        return b""
