"""Engine files in the user's cache: each with a sidecar that says what it was built from and for.

``NAME.engine`` is the engine as the library serialised it; ``NAME.json`` states the key (network, precision, shapes,
library, GPU, driver), size and SHA-256. An engine without its sidecar is none. Both are written under temporary names
and renamed, the sidecar last, so that nothing half-written is ever found.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.bundle_json import from_json, parse_json, to_json
from runtime.cache import user_cache_folder
from runtime.engines.file_lock import file_lock
from runtime.errors import BundleError, EngineError

logger = logging.getLogger(__name__)

ENGINE, SIDECAR, TEMPORARY = ".engine", ".json", ".build-"
FORMAT = 1


@dataclass(frozen=True)
class EngineKey:
    """All that an engine file depends on: another value of any of these is another engine.

    Args:
        network: name of the ONNX file.
        onnx_sha256: hex digest of that FP32 file.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``.
        conversion: digest of the precision plan and of the version of the conversion to typed graphs.
        max_batch: the profile allows batches from 1 to this, at the input size of the file.
        workspace_mb: scratch memory that the builder may plan with, MiB.
        library: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        library_version: exact; engines don't move between releases.
        targets: compute capabilities that it was built for, such as ``("86", "120")``; ``("current",)``, where it was
            built on its GPU.
        gpu: the GPU's name, ``""`` where it was built without one.
        driver: the driver's version, ``""`` likewise.
        hardware_compatibility: ``"none"``, ``"ampere_plus"`` or ``"same_compute_capability"``.
        version_compatible: whether newer versions of the library may load it. Such engines carry code for the host.
    """

    network: str
    onnx_sha256: str
    precision: str
    conversion: str
    max_batch: int
    workspace_mb: int
    library: str
    library_version: str
    targets: tuple[str, ...]
    gpu: str
    driver: str
    hardware_compatibility: str
    version_compatible: bool

    @property
    def digest(self) -> str:
        """SHA-256 of the key, hex."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def file_name(self) -> str:
        """Where the engine lies in its folder."""
        return f"{Path(self.network).stem}-{self.precision}-{self.library}-{self.digest[:16]}{ENGINE}"


@dataclass(frozen=True)
class Sidecar:
    """What stands beside an engine file.

    Args:
        format: ``FORMAT``.
        key: what it was built from and for.
        sha256: hex digest of the engine file.
        size: its bytes.
        host_code: whether loading it runs code for the host that it carries.
        gate: what the parity gate said: ``"passed"``, or why it was not asked.
        built: when, UTC, ISO 8601.
        build_s: how long the library took, seconds.
    """

    format: int
    key: EngineKey
    sha256: str
    size: int
    host_code: bool
    gate: str
    built: str
    build_s: float


def engine_folder() -> Path:
    """The folder of the engines in the user's cache."""
    return user_cache_folder("engines")


def check_engine(engine: Path, *, key: EngineKey | None = None, trusted: Collection[str] = ()) -> Sidecar:
    """Refuse an engine file that isn't whole, isn't what was asked for, or carries code that nobody vouches for.

    Args:
        engine: the file.
        key: what it must have been built from and for; None for anything.
        trusted: SHA-256 digests of the bundle's files: engines with host code are only let through if theirs is among
            them.

    Raises:
        EngineError: says which of these it is, and what to do.
    """
    again = "Build it again: python -m export.engine build"
    sidecar = read_sidecar(engine)
    try:
        size = engine.stat().st_size
        met = _sha256(engine) if size == sidecar.size else ""
    except OSError as error:
        raise EngineError(f"The engine {engine} cannot be read ({error.strerror}). {again}.") from error
    if size != sidecar.size:
        raise EngineError(f"The engine {engine} is cut off: {size} bytes of {sidecar.size}. {again}.")
    if met != sidecar.sha256:
        raise EngineError(f"The engine {engine} was damaged or changed: its SHA-256 is another. {again}.")
    if key is not None and key != sidecar.key:
        raise EngineError(
            f"The engine {engine} was built for something else ({_differences(sidecar.key, key)}). {again}."
        )
    if sidecar.host_code and met not in trusted:
        raise EngineError(
            f"The engine {engine} is version-compatible, so it carries code that loading would run, and its hash is "
            "not in the bundle: it is not loaded. Build one without --version-compatible, or add it to the bundle."
        )
    return sidecar


def read_sidecar(engine: Path) -> Sidecar:
    """What the sidecar of an engine file says.

    Raises:
        EngineError: there is none, or it is not readable.
    """
    path = engine.with_suffix(SIDECAR)
    try:
        data = parse_json(path.read_text(encoding="utf-8"), source=str(path))
        sidecar = from_json(Sidecar, data, at=str(path))
    except FileNotFoundError as error:
        raise EngineError(
            f"{engine} is not an engine of this software: it has no {path.name} beside it. Build it: "
            "python -m export.engine build."
        ) from error
    except (OSError, UnicodeDecodeError, BundleError) as error:
        raise EngineError(f"The engine {engine} cannot be used: {path.name} is not readable ({error}).") from error
    if sidecar.format != FORMAT:
        raise EngineError(f"{path} has format {sidecar.format}; this software reads {FORMAT}. Build the engine again.")
    return sidecar


def find_engine(folder: Path, key: EngineKey) -> Path | None:
    """The engine for a key, if the folder holds it sound; why one that is there can't be used is logged."""
    path = folder / key.file_name
    if not path.exists() and not path.with_suffix(SIDECAR).exists():
        return None
    try:
        # Host code is not judged here but where the engine is loaded: what this process built it may keep.
        check_engine(path, key=key, trusted=(read_sidecar(path).sha256,))
    except EngineError as error:
        logger.warning("a cached engine is built again: %s", error)
        return None
    return path


def install_engine(engine: bytes, path: Path, sidecar: Sidecar, *, gate: Callable[[Path], None] | None = None) -> None:
    """Write an engine and its sidecar: whole, or not at all.

    Args:
        engine: as the library serialised it.
        path: where; replaced if it is there.
        sidecar: what to write beside it.
        gate: called with the engine under a temporary name, before it is installed; raises to refuse it.

    Raises:
        EngineError: they can't be written; what was there is still there, and nothing else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as scratch:
            fresh = Path(scratch) / path.name
            _write(fresh.with_suffix(SIDECAR), to_json(sidecar).encode())
            _write(fresh, engine)
            if gate is not None:
                gate(fresh)
            # A sidecar of an earlier engine must not vouch for this one while the two are exchanged.
            path.with_suffix(SIDECAR).unlink(missing_ok=True)
            fresh.replace(path)
            fresh.with_suffix(SIDECAR).replace(path.with_suffix(SIDECAR))
    except OSError as error:
        raise EngineError(_cannot_write(path, len(engine), error)) from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file beside the engines, whole or not at all. Raises EngineError when it can't be written."""
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as scratch:
            fresh = Path(scratch) / path.name
            _write(fresh, data)
            fresh.replace(path)
    except OSError as error:
        raise EngineError(_cannot_write(path, len(data), error)) from error


def lock_folder(folder: Path) -> AbstractContextManager[None]:
    """The folder's lock, as a context manager: one process builds at a time, the others wait for what it builds.

    Raises:
        EngineError: the folder can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(_cannot_write(folder, 0, error)) from error
    return file_lock(folder / ".lock")


def list_engines(folder: Path) -> Iterator[tuple[Path, Sidecar | EngineError]]:
    """Every engine file in a folder, with its sidecar or with what is wrong with it, by name."""
    for path in sorted(folder.glob(f"*{ENGINE}")):
        try:
            yield path, check_engine(path, trusted=(read_sidecar(path).sha256,))
        except EngineError as error:
            yield path, error


def prune(folder: Path, is_kept: Callable[[Sidecar], bool]) -> list[Path]:
    """Remove damaged engines, what interrupted builds left, and engines that ``is_kept`` says no to.

    Returns:
        The files that were removed.

    Raises:
        EngineError: one can't be removed.
    """
    if not folder.is_dir():
        return []
    with lock_folder(folder):  # nobody is writing now: what is under a temporary name was left behind
        doomed = [path for path, found in list_engines(folder) if isinstance(found, EngineError) or not is_kept(found)]
        doomed += [path.with_suffix(SIDECAR) for path in doomed]
        doomed += [path for path in folder.glob(f"*{SIDECAR}") if not path.with_suffix(ENGINE).exists()]
        doomed += list(folder.glob(f"{TEMPORARY}*/*"))
        removed = [path for path in doomed if path.exists()]
        try:
            for path in removed:
                path.unlink()
            for left in folder.glob(f"{TEMPORARY}*"):
                left.rmdir()
        except OSError as error:
            raise EngineError(f"{error.filename} cannot be removed ({error.strerror}).") from error
    return removed


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _differences(met: EngineKey, wanted: EngineKey) -> str:
    met_values, wanted_values = asdict(met), asdict(wanted)
    return ", ".join(
        f"{name.replace('_', ' ')} {met_values[name]}, not {wanted_values[name]}"
        for name in met_values
        if met_values[name] != wanted_values[name]
    )


def _cannot_write(path: Path, size: int, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The engine {path.name} needs {size / 2**20:.0f} MiB, and the disk of {path.parent} is full: free some "
            "space (python -m export.engine prune), or name another folder with -o."
        )
    return f"The engine cannot be written to {path.parent} ({error.strerror or error}); name another folder with -o."
