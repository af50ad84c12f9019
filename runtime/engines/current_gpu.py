"""Which GPU the CUDA libraries that are called from this thread use."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import EngineError


@contextmanager
def current_gpu(device: int) -> Iterator[None]:
    """GPU number ``device`` is the current one; 0 is that anyway, so for it nothing is done.

    Raises:
        EngineError: the driver is missing or refuses.
    """
    if device == 0:
        yield
        return
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        raise EngineError(f"GPU {device} cannot be used: there is no NVIDIA driver.") from error
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(handle), device),
        lambda: driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle),
    )
    if any(call() != 0 for call in calls):
        raise EngineError(f"GPU {device} cannot be used: the NVIDIA driver refuses it.")
    try:
        driver.cuCtxPushCurrent_v2(context)
        yield
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        driver.cuDevicePrimaryCtxRelease_v2(handle)
