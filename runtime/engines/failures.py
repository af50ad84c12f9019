"""Which error a failure of a library becomes: what fills the memory is told apart, by the library's own words."""

from __future__ import annotations

import re

from runtime.errors import EngineError, OutOfMemoryError, VertscanError

_FULL = re.compile(r"out[ _]?of[ _]?memory|failed to allocate memory|_ALLOC_FAILED", re.IGNORECASE)
"""CUDA, cuBLAS and cuDNN, TensorRT's "Error Code 2: OutOfMemory" and "Cuda Runtime (out of memory)", onnxruntime's
arena."""


def failure(message: str, *, library_said: str) -> VertscanError:
    """OutOfMemoryError where the library says that there is no memory left, else EngineError.

    Args:
        message: what went wrong, a sentence.
        library_said: all that the library says of it.
    """
    if _FULL.search(library_said):
        return OutOfMemoryError(
            f"{message} The memory is full: close other programs that use it, crop the scan to the spine, or use "
            "--engine openvino."
        )
    return EngineError(message)
