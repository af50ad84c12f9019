"""``kernel`` and ``device_function`` decorators, and products that round as a processor's do.

A GPU's compiler joins a product and the sum that follows it into one operation which rounds once. It is as exact as
the processor's two, but not the same number; the functions here keep them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numba
from numba import cuda

from runtime.kernels.jit import njit  # noqa: F401  settles where Numba may cache before anything is decorated

SIMULATED: bool = bool(numba.config.ENABLE_CUDASIM)
"""Whether kernels run in Numba's simulator, thread by thread in Python (``NUMBA_ENABLE_CUDASIM=1``)."""


def kernel(function: Callable[..., None]) -> Any:
    """A kernel, compiled when first launched and kept in Numba's cache."""
    return cuda.jit(cache=True)(function)


def device_function(function: Callable[..., Any]) -> Any:
    """A function that kernels call; the simulator needs none of its machinery for it."""
    return function if SIMULATED else cuda.jit(device=True)(function)


if SIMULATED:

    def product32(a: Any, b: Any) -> Any:
        """``a * b``, both float32, rounded by itself."""
        return a * b

    def product64(a: Any, b: Any) -> Any:
        """``a * b``, both float64, rounded by itself."""
        return a * b

else:
    from numba.cuda import libdevice

    if find_spec("numba_cuda") is not None:  # without it nothing can be launched, but everything imported
        from numba.cuda.core import config

        # numba-cuda reads a configuration of its own.
        config.CACHE_DIR = config.CACHE_DIR or numba.config.CACHE_DIR

    @device_function
    def product32(a: Any, b: Any) -> Any:
        """``a * b``, both float32, rounded by itself."""
        return libdevice.fmul_rn(a, b)

    @device_function
    def product64(a: Any, b: Any) -> Any:
        """``a * b``, both float64, rounded by itself."""
        return libdevice.dmul_rn(a, b)
