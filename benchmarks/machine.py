"""The machine that was measured: processor, memory, versions, how busy it was, and how many threads are used."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime.kernels.threads import limit_threads

VERSIONS_OF = (
    "vertscan", "numpy", "numba", "openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch",
    "monai", "scikit-image", "scipy", "SimpleITK", "nibabel",
)  # fmt: skip
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve")


def usable_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine(*, gpu: int = 0) -> dict[str, Any]:
    """Hardware with the GPU of that number, system and load; what can't be told is left out or None."""
    info = _cpuinfo()
    return {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "instruction_sets": [flag for flag in _FLAGS if flag in info.get("flags", info.get("Features", "")).split()],
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "gpu": _gpu(gpu),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": load_average(),
    }


def versions() -> dict[str, str]:
    """Of the packages that matter here, as far as they are installed."""
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def load_average() -> float | None:
    """Processes that wanted to run in the last minute, or None on systems that don't tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch, SimpleITK and this software's kernels use so many threads meanwhile; engines are told at opening.

    scipy and scikit-image use one thread, whatever is asked for; they have no other way.
    """
    import numba
    import torch

    kept = numba.config.NUMBA_NUM_THREADS, torch.get_num_threads()
    limit_threads(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        limit_threads(kept[0])
        torch.set_num_threads(kept[1])


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = (line.split(":", 1) for line in path.read_text().split("\n\n", 1)[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in lines}


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpu(number: int) -> str | None:
    import torch

    return torch.cuda.get_device_name(number) if number < torch.cuda.device_count() else None
