"""Compiled networks of OpenVINO on disk: loaded only when they are what was written, for this network and processor.

The library's own cache leaves out what is needed to trust it: it loads a file of which bits have changed (weights
among them) without a word, and it reads the ONNX file each time, which takes as long as loading.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtime.cache import write_whole

logger = logging.getLogger(__name__)

_HASH_BYTES = 32
_FORMAT = 2


def key_of(model: Path, *, version: str, processor: str, options: Mapping[str, Any], variant: str = "") -> str:
    """What a compiled network depends on, as a file name: the network, what was made of it before it was compiled, the
    library, the processor and the options."""
    parts = [str(_FORMAT), hashlib.sha256(model.read_bytes()).hexdigest(), version, processor, variant]
    return hashlib.sha256(json.dumps([*parts, sorted(options.items())]).encode()).hexdigest()


def compiled_network(
    core: Any,
    model: Path,
    options: Mapping[str, Any],
    *,
    folder: Path,
    version: str,
    read: Callable[[Path], Any],
    variant: str = "",
) -> Any:
    """The network compiled for the processor, from ``folder`` where it is there, else made and put there.

    Args:
        core: of OpenVINO.
        model: the ONNX file.
        options: to compile with.
        folder: of compiled networks; it is made.
        version: of the library, the whole of it.
        read: makes the library's model of the ONNX file.
        variant: what ``read`` makes besides, told from what else it could make of that file.

    Raises:
        RuntimeError: the library can't compile it.
        OSError: the ONNX file can't be read.
    """
    processor = (
        f"{core.get_property('CPU', 'FULL_DEVICE_NAME')} {core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')}"
    )
    key = key_of(model, version=version, processor=processor, options=options, variant=variant)
    place = folder / f"{key}.blob"
    blob = _read_checked(place)
    if blob is not None:
        try:
            return core.import_model(io.BytesIO(blob), "CPU", dict(options))
        except RuntimeError as error:  # the file is as it was written, so this is the library's change of mind
            logger.warning("the compiled network %s is made anew: %s", place.name, str(error).splitlines()[-1][:200])
    compiled = core.compile_model(read(model), "CPU", dict(options))
    exported = io.BytesIO()
    compiled.export_model(exported)
    _write_checked(place, exported.getvalue())
    return compiled


def _read_checked(place: Path) -> bytes | None:
    """What was written, None where there is nothing or something else."""
    try:
        content = place.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("the compiled network %s can't be read (%s): it is made anew", place, error.strerror)
        return None
    blob = content[_HASH_BYTES:]
    if hashlib.sha256(blob).digest() != content[:_HASH_BYTES]:
        logger.warning("the compiled network %s is damaged: it is made anew", place)
        return None
    return blob


def _write_checked(place: Path, blob: bytes) -> None:
    """Keep it for the next start, which is slower where it can't be kept."""
    try:
        write_whole(place, hashlib.sha256(blob).digest(), blob)
    except OSError as error:
        logger.warning("compiled networks are not cached: %s can't be written (%s)", place.parent, error.strerror)
