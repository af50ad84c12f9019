"""Which NVIDIA GPU and CUDA libraries this machine has, asked through ctypes so that nothing is printed."""

from __future__ import annotations

import ctypes
import sys

_LINUX = ("libcublasLt.so.{cublas}", "libcublas.so.{cublas}", "libcudart.so.{cuda}", "libcudnn.so.9")
_WINDOWS = ("cublasLt64_{cublas}.dll", "cublas64_{cublas}.dll", "cudart64_{cuda}.dll", "cudnn64_9.dll")


def gpu_name(device: int) -> str | None:
    """The name of GPU number ``device``, or None where the driver or that GPU is missing."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(handle), device),
        lambda: driver.cuDeviceGetName(name, len(name), handle),
    )
    if any(call() != 0 for call in calls):
        return None
    return name.value.decode(errors="replace")


def missing_libraries(cuda_major: int) -> list[str]:
    """The CUDA and cuDNN libraries that the loader doesn't find.

    Args:
        cuda_major: major version of CUDA that they must belong to, such as 12.
    """
    names = _WINDOWS if sys.platform == "win32" else _LINUX
    return [n for n in (name.format(cuda=cuda_major, cublas=cuda_major) for name in names) if not _loads(n)]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
