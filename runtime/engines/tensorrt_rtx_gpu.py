"""TensorRT-RTX on an NVIDIA GPU; all of it is in ``runtime.engines.trt_engine``."""

from __future__ import annotations

from pathlib import Path

from runtime.engines import trt_engine
from runtime.engines.base import Preflight, Session

_NAME = "tensorrt-rtx"


def preflight(*, device: int = 0) -> Preflight:
    """Whether TensorRT-RTX can run on GPU number ``device``."""
    return trt_engine.preflight(_NAME, device=device)


def open_session(model: Path, *, precision: str, device: int, threads: int | None, reason: str) -> Session:
    """Load the engine of an ONNX file, which is built if it isn't in the cache; ``threads`` has no meaning here.

    Raises:
        EngineError: the library can't be had, or can't build, load or run the engine.
    """
    return trt_engine.open_session(_NAME, model, precision=precision, device=device, reason=reason)
