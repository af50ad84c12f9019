"""What every engine checks in the same way."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from runtime.engines.base import Preflight
from runtime.errors import EngineError


def check_image(image: np.ndarray, declared: Sequence[int | None], *, model: str) -> None:
    """Refuse an input that the network wasn't exported for.

    Args:
        image: what a session was called with.
        declared: the sizes that the network's input has, None where any will do.
        model: the network's name, for the message.

    Raises:
        EngineError: another dtype, memory layout, number of axes, size or an empty batch.
    """
    if image.dtype != np.float32 or not image.flags.c_contiguous:
        raise EngineError(f"{model} takes a C-contiguous float32 array; met {image.dtype}, strides {image.strides}.")
    fits = image.ndim == len(declared) and all(
        want in (None, size) for want, size in zip(declared, image.shape, strict=True)
    )
    if not fits or image.size == 0:
        wanted = ", ".join("any" if size is None else str(size) for size in declared)
        raise EngineError(f"{model} takes an image of shape ({wanted}); met {image.shape}.")


def resolve_precision(
    precision: str, found: Preflight, *, engine: str, verification: bool = False, verified: Collection[str] = ()
) -> str:
    """The precision that ``precision`` (which may be ``"auto"``) means for an engine, by its preflight.

    Args:
        precision: ``"auto"`` or one of the engine's.
        found: what the engine's preflight says.
        engine: its name, for the message.
        verification: whether what serves comparisons alone will do.
        verified: those in which the networks were seen to say the same: ``"auto"`` means the first of them that the
            processor has, else the engine's first.

    Raises:
        EngineError: the engine can't compute in it here.
    """
    if precision == "auto":
        on_processor = found.precisions if found.device == "CPU" else ()
        return next((one for one in on_processor if one in verified), found.precisions[0])
    if precision not in found.precisions and not (verification and precision in found.verify_only):
        raise EngineError(
            f"The engine {engine} on {found.device} computes in {' or '.join(found.precisions)}, not in {precision}."
        )
    return precision


def check_model_file(model: Path) -> None:
    """Refuse a path at which there is no file.

    Raises:
        EngineError: there is none.
    """
    if not model.is_file():
        raise EngineError(f"There is no network at {model}.")


def check_signature(model: Path, *, inputs: int, outputs: int) -> None:
    """Refuse a network that isn't one image in, something out: an empty or damaged file can load as one of nothing.

    Raises:
        EngineError: it has no or several inputs, or no outputs.
    """
    if inputs != 1 or outputs < 1:
        raise EngineError(f"A network has one input and some outputs; {model} has {inputs} and {outputs}.")


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
