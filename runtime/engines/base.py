"""What an inference engine is: the contract that every module of this package fulfils."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class EngineInfo:
    """Which engine runs a network, as the findings report it.

    Args:
        name: key of the engine table: ``"openvino"``, ``"onnxruntime"``, ...
        version: of the library.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``: what the library was told to compute in.
        device: such as ``"CPU"`` or the GPU's name.
        reason: one sentence: why this engine was chosen.
    """

    name: str
    version: str
    precision: str
    device: str
    reason: str


@dataclass(frozen=True)
class Preflight:
    """Whether an engine can run on this machine, found out without opening a session.

    Args:
        available: whether it can.
        reason: one line: what was found, or what is missing and which package brings it.
        version: of the library, ``""`` when it is not installed.
        device: where it would run: ``"CPU"`` or the GPU's name.
        precisions: what it can compute in on that device; the first is what ``"auto"`` means where the
            bundle was not verified in another. Whether a bundle's networks are offered in INT8 is theirs to say
            (``BundleSpec.why_not_in``).
        verify_only: what it can compute in besides, for comparisons alone: right, but slower than ``precisions``.
    """

    available: bool
    reason: str
    version: str = ""
    device: str = "CPU"
    precisions: tuple[str, ...] = ()
    verify_only: tuple[str, ...] = ()


class Session(Protocol):
    """One network, ready to run. Close it, or use it as a context manager.

    Calling takes a C-contiguous float32 array (n, 1, z, y, x), n at least 1, normalised intensities, and returns the
    network's outputs in the order of ``output_names``, each a float32 array whose first axis is n. The caller owns the
    returned arrays. A session may be called from one thread at a time. Raises EngineError when the array is not as
    said, when the library fails, and when the session is closed, and OutOfMemoryError when there is no memory left;
    closing twice is fine.
    """

    info: EngineInfo
    output_names: tuple[str, ...]

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network on a batch."""
        ...

    def close(self) -> None:
        """Free the network."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(self, *exc_info: object) -> None: ...


def release_memory(session: Session) -> None:
    """Free what an engine's session keeps between two runs and makes anew in the next, where it offers that.

    Such sessions have a method ``release_memory()``. What they compute is the same afterwards.
    """
    offered = getattr(session, "release_memory", None)
    if offered is not None:
        offered()


class EngineModule(Protocol):
    """What each module behind the engine table offers."""

    def preflight(self, *, device: int = 0) -> Preflight:
        """Whether it can run here, on GPU number ``device`` where it runs on GPUs. Prints nothing, opens nothing."""
        ...

    def open_session(self, model: Path, *, precision: str, device: int, threads: int | None, reason: str) -> Session:
        """Load an ONNX file. ``precision`` is one of the preflight's, or auto. Raises EngineError without it."""
        ...
