"""What an engine file is, and where it may run: its key, how it was built, and its sidecar."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.engines.cuda_probe import Gpu

ENGINE, KERNELS = ".engine", ".kernels"
FORMAT = 2
"""Of sidecars. 1 had the GPU in the key."""
TYPED_GRAPH = "the typed graph"
"""What the parity gate judged where no GPU was there that the engine is for."""
_OLDEST_AMPERE = 80
_JETSONS = frozenset({87, 101, 110})
"""Hardware compatibility is not for these."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine computes, and by which library: another value of any of these is another engine.

    Args:
        network: name of the ONNX file.
        onnx_sha256: hex digest of that FP32 file.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``.
        conversion: digest of the precision plan and of the version of the conversion to typed graphs.
        max_batch: the profile allows batches from 1 to this, at the input size of the file.
        library: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        library_version: exact; engines don't move between releases, unless they were built to.
    """

    network: str
    onnx_sha256: str
    precision: str
    conversion: str
    max_batch: int
    library: str
    library_version: str


@dataclass(frozen=True)
class EngineBuild:
    """How an engine was built, and so where it may run; engines of one key say the same, however they were built.

    Args:
        targets: compute capabilities that it was built for, such as ``("86", "120")``, rising, each once.
        gpu: name of the GPU that it was built on and tuned for, ``""`` where it was built without one.
        driver: the driver's version, ``""`` likewise.
        hardware_compatibility: ``"none"``, ``"ampere_plus"`` or ``"same_compute_capability"``.
        version_compatible: whether newer versions of the library may load it. Such engines carry code for the host.
        workspace_mb: scratch memory that the builder could plan with, MiB.
    """

    targets: tuple[str, ...]
    gpu: str = ""
    driver: str = ""
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    workspace_mb: int = 2048


@dataclass(frozen=True)
class Sidecar:
    """What stands beside an engine file.

    Args:
        format: ``FORMAT``.
        key: what it computes.
        build: how it was built, and for which GPUs.
        sha256: hex digest of the engine file.
        size: its bytes.
        gates: what the parity gate judged and let pass: ``TYPED_GRAPH``, and each GPU, as ``gpu_and_driver`` names it,
            that the engine itself was judged on. Empty where the gate was not asked.
        built: when, UTC, ISO 8601.
        build_s: how long the library took, seconds.
    """

    format: int
    key: EngineKey
    build: EngineBuild
    sha256: str
    size: int
    gates: tuple[str, ...]
    built: str
    build_s: float

    @property
    def host_code(self) -> bool:
        """Whether loading it runs code for the host that it carries."""
        return self.build.version_compatible


def engine_name(key: EngineKey, build: EngineBuild) -> str:
    """The name of an engine's file in its folder; another key or build has another."""
    digest = hashlib.sha256(json.dumps([asdict(key), asdict(build)], sort_keys=True).encode()).hexdigest()
    return f"{Path(key.network).stem}-{key.precision}-{key.library}-{digest[:16]}{ENGINE}"


def gpu_and_driver(gpu: Gpu) -> tuple[str, str]:
    """How a GPU and its driver are called in ``EngineBuild``."""
    return f"{gpu.name} SM {gpu.sm}", f"{gpu.driver} CUDA {gpu.cuda[0]}.{gpu.cuda[1]}"


def why_other_version(key: EngineKey, build: EngineBuild, version: str) -> str:
    """Why that version of the library can't load an engine, or the empty text when it can."""
    if version == key.library_version:
        return ""
    said = f"{key.library} {version} is installed, and it was built by {key.library_version}"
    if not build.version_compatible:
        return said
    built_by, here = _numbers(key.library_version), _numbers(version)
    may_move = built_by[:1] == here[:1] and built_by <= here
    return "" if may_move else f"{said}: only newer ones of the same major version load it"


def why_other_gpu(build: EngineBuild, gpu: Gpu) -> str:
    """Why an engine is not for a GPU, or the empty text when it is.

    What was built on a GPU is for GPUs of that name with that driver, unless it was built to be compatible with others;
    what was built without one is for the compute capabilities that it was built for.
    """
    name, driver = gpu_and_driver(gpu)
    if not build.gpu:
        covers = str(gpu.sm) in build.targets
        return "" if covers else f"it was built for SM {', '.join(build.targets)}, and {name} is none of them"
    if (build.gpu, build.driver) == (name, driver):
        return ""
    built_sm = max(int(target) for target in build.targets)
    if build.hardware_compatibility == "same_compute_capability" and gpu.sm == built_sm:
        return ""
    is_after_ampere = min(gpu.sm, built_sm) >= _OLDEST_AMPERE and not {gpu.sm, built_sm} & _JETSONS
    if build.hardware_compatibility == "ampere_plus" and is_after_ampere:
        return ""
    return f"it was built for {build.gpu} with driver {build.driver}, and this machine has {name} with driver {driver}"


def preference(build: EngineBuild, gpu: Gpu) -> tuple[bool, int]:
    """Sorts engines that may run on a GPU, best first: of this version alone, built on it, for it, for others too."""
    on_it = (build.gpu, build.driver) == gpu_and_driver(gpu)
    return build.version_compatible, 0 if on_it else 1 if not build.gpu else 2


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
