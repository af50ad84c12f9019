"""Which NVIDIA GPU, driver and libraries this machine has, asked through ctypes so that nothing is printed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

_WINDOWS = sys.platform == "win32"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
_CUFFT_OF_CUDA = {12: 11, 13: 12}
"""cuFFT counts for itself; from 12 on it is one version behind CUDA."""
_LINUX_NAMES = ("libcublasLt.so.{cuda}", "libcublas.so.{cuda}", "libcurand.so.10", "libcufft.so.{cufft}",
                "libcudart.so.{cuda}", "libcudnn.so.9")  # fmt: skip
_WINDOWS_NAMES = ("cublasLt64_{cuda}.dll", "cublas64_{cuda}.dll", "cufft64_{cufft}.dll", "cudart64_{cuda}.dll",
                  "cudnn64_9.dll")  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as its driver describes it.

    Args:
        index: number of the device, as ``--device`` takes it.
        name: such as ``"NVIDIA H200"``.
        compute_capability: (major, minor); SM 89 is (8, 9).
        memory_mb: in all, MiB.
        driver: version of the driver, such as ``"580.65.06"``; ``""`` where NVML does not tell.
        cuda: newest CUDA (major, minor) that the driver runs.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory_mb: int
    driver: str
    cuda: tuple[int, int]

    @property
    def sm(self) -> int:
        """The compute capability as one number: 89 for (8, 9)."""
        return 10 * self.compute_capability[0] + self.compute_capability[1]


def find_gpu(device: int = 0) -> Gpu | None:
    """GPU number ``device``, or None where the driver or that GPU is missing. Makes no context on it."""
    driver = _library("nvcuda.dll" if _WINDOWS else "libcuda.so.1")
    if driver is None or driver.cuInit(0) != 0:
        return None
    handle, cuda, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    calls = (
        lambda: driver.cuDeviceGet(ctypes.byref(handle), ctypes.c_int(device)),
        lambda: driver.cuDeviceGetName(name, ctypes.c_int(len(name)), handle),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), ctypes.c_int(_MAJOR), handle),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), ctypes.c_int(_MINOR), handle),
        lambda: driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle),
        lambda: driver.cuDriverGetVersion(ctypes.byref(cuda)),
    )
    if any(call() != 0 for call in calls):
        return None
    return Gpu(
        index=device,
        name=name.value.decode(errors="replace"),
        compute_capability=(major.value, minor.value),
        memory_mb=memory.value // 2**20,
        driver=driver_version(),
        cuda=(cuda.value // 1000, cuda.value % 1000 // 10),
    )


def gpu_name(device: int) -> str | None:
    """The name of GPU number ``device``, or None where the driver or that GPU is missing."""
    found = find_gpu(device)
    return None if found is None else found.name


def driver_version() -> str:
    """Version of the NVIDIA driver, such as ``"580.65.06"``; ``""`` where there is none, or NVML does not tell."""
    nvml = _library("nvml.dll" if _WINDOWS else "libnvidia-ml.so.1")
    text = ctypes.create_string_buffer(96)
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return ""
    try:
        status = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
    finally:
        nvml.nvmlShutdown()
    return text.value.decode(errors="replace") if status == 0 else ""


def cuda_of_toolkit() -> int | None:
    """The CUDA version whose compiler numba-cuda was installed with; None where pip did not bring it."""
    try:
        return int(metadata.version("cuda-toolkit").split(".")[0])
    except metadata.PackageNotFoundError:
        return None


def missing_libraries(cuda_major: int) -> list[str]:
    """The CUDA and cuDNN libraries that the loader doesn't find.

    Args:
        cuda_major: major version of CUDA that they must belong to, such as 12.
    """
    names = _WINDOWS_NAMES if _WINDOWS else _LINUX_NAMES
    cufft = _CUFFT_OF_CUDA.get(cuda_major, cuda_major - 1)
    return not_loadable(name.format(cuda=cuda_major, cufft=cufft) for name in names)


def not_loadable(libraries: Iterable[str]) -> list[str]:
    """Those of the shared libraries that the loader doesn't find, or can't load; the others stay loaded."""
    return [name for name in libraries if _library(name) is None]


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
