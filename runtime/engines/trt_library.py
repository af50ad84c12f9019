"""TensorRT 10, TensorRT 11 and TensorRT-RTX, loaded on demand: one Python API under two names."""

from __future__ import annotations

import importlib
import logging
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from runtime.engines.failures import failure
from runtime.errors import EngineError, VertscanError

logger = logging.getLogger(__name__)

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Engine name to the module that its package brings."""
RTX_TARGETS = ("75", "80", "86", "89", "120", "121")
"""Compute capabilities that TensorRT-RTX 1.x builds for."""
TURING = "75"
RTX_TURING_PRECISIONS = ("fp16", "int8")
"""What TensorRT-RTX has 3D convolutions of on Turing; FP32 and BF16 it refuses."""
RTX_DEFAULT_TARGETS = tuple(target for target in RTX_TARGETS if target != TURING)
"""Those of an engine that is built without its GPU: for Turing the graph is another one, and it is named if wanted."""


def load_library(name: str) -> ModuleType:
    """The module of ``"tensorrt"`` or ``"tensorrt-rtx"``.

    Raises:
        EngineError: there is no such library, it is not installed, or can't be loaded.
    """
    if name not in MODULES:
        raise EngineError(f"There is no engine library {name!r}; there are {', '.join(MODULES)}.")
    if find_spec(MODULES[name]) is None:
        raise EngineError(f"{name} is not installed; install it with: pip install {name}")
    try:
        return importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:
        raise EngineError(f"{name} is installed but cannot be loaded ({error}); reinstall it.") from error


def new_log(library: ModuleType) -> Any:
    """What the library writes its messages to: this module's logger. Its ``errors`` are those it met, oldest first."""

    class Log(library.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.errors.append(message)
            level = logging.DEBUG if severity != library.ILogger.WARNING else logging.INFO
            logger.log(level, "%s", message)

    return Log()


def failed(message: str, log: Any) -> VertscanError:
    """The error to raise where the library refuses something: ``message``, and the first thing that went wrong.

    The log begins anew: what is told once is no reason for what fails later.
    """
    error = failure(f"{message}: {first_error(log)}.", library_said="\n".join(map(str, log.errors)))
    log.errors.clear()
    return error


def first_error(log: Any) -> str:
    """The first thing that went wrong, in one line."""
    return " ".join(str(log.errors[0]).split())[:300].rstrip(". ") if log.errors else "it does not say why"
