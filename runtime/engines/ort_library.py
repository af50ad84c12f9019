"""The package onnxruntime: imported without telemetry and without a word, and which distributions brought it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import Any

logger = logging.getLogger(__name__)

ONLY_FATAL = 4
"""The library's severity for what ends the process; all else reaches us as an exception."""
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-rocm")
"""What can be installed; all of them own the module ``onnxruntime``."""
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


def refuse_telemetry() -> None:
    """Keep the library from collecting and sending anything, by the variable that it documents for that.

    From 1.29 on the published builds make a device identifier and a data base in the user's home and send events over
    HTTPS, on every platform, unless the variable is set before the first import. It is set for this process and its
    children; somebody who has set it to anything is left alone.
    """
    os.environ.setdefault(_NO_TELEMETRY, "1")


def load() -> Any:
    """The module ``onnxruntime``; see ``refuse_telemetry``. Its native code prints nothing.

    On machines whose first graphics device is virtual, as in containers, importing it prints a warning below Python's
    ``sys.stderr``; that goes to our log at debug level. Who has imported it before keeps their own settings.

    Raises:
        ImportError: it is not installed, or can't be loaded.
    """
    if "onnxruntime" in sys.modules:
        return sys.modules["onnxruntime"]
    refuse_telemetry()
    with _native_stderr_logged():
        import onnxruntime
    onnxruntime.set_default_logger_severity(ONLY_FATAL)
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def why_not_loadable() -> str:
    """Why the library can't be used, with what to install, or the empty text when it can."""
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; install it with: pip install onnxruntime"
    try:
        load()
    except ImportError as error:
        return f"onnxruntime is installed but cannot be loaded ({error}); reinstall it: pip install onnxruntime"
    return ""


def installed() -> tuple[str, ...]:
    """The distributions that are installed, such as ``("onnxruntime-gpu",)``; sound installations have one."""
    found = []
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            found.append(name)
    return tuple(found)


def why_mixed() -> str:
    """What is wrong when several distributions are installed, and what to do; else the empty text."""
    found = installed()
    if len(found) < 2:
        return ""
    return (
        f"{' and '.join(found)} are installed together and overwrite each other's files; "
        f"keep one: pip uninstall {' '.join(found)}, then pip install one of them"
    )


def library_errors() -> tuple[type[Exception], ...]:
    """The library's exceptions, which share no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel")
    more = ("NoSuchFile", "NotFound", "NotImplemented", "RuntimeException")
    return tuple(getattr(state, name) for name in (*names, *more) if hasattr(state, name))


def first_line(error: Exception) -> str:
    """What a library's message says first, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]


@contextlib.contextmanager
def _native_stderr_logged() -> Iterator[None]:
    """Send what native code writes to the process's stderr meanwhile to the log."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr, as under pythonw.exe
        yield
        return
    with tempfile.TemporaryFile() as written:
        try:
            os.dup2(written.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            said = written.read().decode(errors="replace").strip()
            if said:
                logger.debug("onnxruntime said while it was imported: %s", said)
