"""Engine files in the user's cache: each with a sidecar that says what it was built from and for.

``NAME.engine`` is the engine as the library serialised it; ``NAME.json`` states what it computes, for which GPUs it was
built (``runtime.engines.trt_key``), size and SHA-256. An engine without its sidecar is none. Both are written under
temporary names and renamed, the sidecar last, so that nothing half-written is ever found.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from runtime.bundle_json import from_json, parse_json, to_json
from runtime.cache import user_cache_folder
from runtime.engines.cuda_probe import Gpu
from runtime.engines.file_lock import file_lock
from runtime.engines.trt_key import (
    ENGINE,
    FORMAT,
    KERNELS,
    EngineBuild,
    EngineKey,
    Sidecar,
    engine_name,
    preference,
    why_other_gpu,
    why_other_version,
)
from runtime.errors import BundleError, EngineError

logger = logging.getLogger(__name__)

SIDECAR, TEMPORARY, TIMINGS = ".json", ".build-", "timing-"


def engine_folder() -> Path:
    """The folder of the engines in the user's cache."""
    return user_cache_folder("engines")


def check_engine(engine: Path, *, key: EngineKey | None = None, trusted: Collection[str] = ()) -> Sidecar:
    """What stands beside an engine file, once ``read_engine`` has nothing against it."""
    return read_engine(engine, key=key, trusted=trusted)[0]


def read_engine(engine: Path, *, key: EngineKey | None = None, trusted: Collection[str] = ()) -> tuple[Sidecar, bytes]:
    """An engine file with its sidecar, unless it isn't whole, isn't what was asked for, or carries code that nobody
    vouches for. The bytes are those that were checked, whatever becomes of the file.

    Args:
        engine: the file.
        key: what it must have been built from; None for anything.
        trusted: SHA-256 digests of engines that may run code for the host: those that the bundle lists.

    Raises:
        EngineError: says which of these it is, and what to do.
    """
    again = "Build it again: python -m export.engine build"
    sidecar = read_sidecar(engine)
    try:
        content = engine.read_bytes()
    except OSError as error:
        raise EngineError(f"The engine {engine} cannot be read ({error.strerror}). {again}.") from error
    if len(content) != sidecar.size:
        raise EngineError(f"The engine {engine} is cut off: {len(content)} bytes of {sidecar.size}. {again}.")
    if hashlib.sha256(content).hexdigest() != sidecar.sha256:
        raise EngineError(f"The engine {engine} was damaged or changed: its SHA-256 is another. {again}.")
    if key is not None and key != sidecar.key:
        raise EngineError(
            f"The engine {engine} was built for something else ({_differences(sidecar.key, key)}). {again}."
        )
    if sidecar.host_code and sidecar.sha256 not in trusted:
        raise EngineError(
            f"The engine {engine} is version-compatible, so it carries code that loading would run, and its hash is "
            "not in the bundle: it is not loaded. Build one without --version-compatible, or add it to the bundle: "
            "python -m export.engine trust."
        )
    return sidecar, content


def read_sidecar(engine: Path) -> Sidecar:
    """What the sidecar of an engine file says.

    Raises:
        EngineError: there is none, or it is not readable.
    """
    path = engine.with_suffix(SIDECAR)
    try:
        data = parse_json(path.read_text(encoding="utf-8"), source=str(path))
        met = data.get("format", FORMAT) if isinstance(data, dict) else FORMAT
        if met == FORMAT:
            return from_json(Sidecar, data, at=str(path))
    except FileNotFoundError as error:
        raise EngineError(
            f"{engine} is not an engine of this software: it has no {path.name} beside it. Build it: "
            "python -m export.engine build."
        ) from error
    except (OSError, UnicodeDecodeError, BundleError) as error:
        raise EngineError(f"The engine {engine} cannot be used: {path.name} is not readable ({error}).") from error
    raise EngineError(f"{path} has format {met}; this software reads {FORMAT}. Build the engine again.")


def find_engine(folder: Path, key: EngineKey, build: EngineBuild) -> Path | None:
    """The engine of a key that was built just so, if the folder holds it sound; why one can't be used is logged.

    Host code is not judged here but where the engine is loaded.
    """
    path = folder / engine_name(key, build)
    if not path.exists() and not path.with_suffix(SIDECAR).exists():
        return None
    try:
        sidecar = check_engine(path, key=key, trusted=(read_sidecar(path).sha256,))
        if sidecar.build != build:
            raise EngineError(f"The engine {path} was built otherwise ({_differences(sidecar.build, build)}).")
    except EngineError as error:
        logger.warning("a cached engine is built again: %s", error)
        return None
    return path


def find_engine_for(folder: Path, key: EngineKey, gpu: Gpu, *, trusted: Collection[str] = ()) -> Path | None:
    """The best engine of a key that may run on a GPU, whoever built it and however, if the folder holds one sound.

    Why one of this key can't be used, though it was built for this GPU, is logged.

    Args:
        folder: where engines are.
        key: what it must compute, and the version of the library that is installed.
        gpu: that it must be for.
        trusted: see ``read_engine``.
    """
    found: list[tuple[Path, Sidecar]] = []
    for path in _engine_paths(folder) if folder.exists() else ():
        try:
            sidecar = read_sidecar(path)
        except EngineError as error:
            logger.debug("%s", error)
            continue
        is_of_key = replace(sidecar.key, library_version=key.library_version) == key
        other = why_other_version(sidecar.key, sidecar.build, key.library_version) or why_other_gpu(sidecar.build, gpu)
        if is_of_key and not other:
            found.append((path, sidecar))
    found.sort(key=lambda one: one[1].built, reverse=True)
    for path, sidecar in sorted(found, key=lambda one: preference(one[1].build, gpu)):
        try:
            check_engine(path, key=sidecar.key, trusted=trusted)
        except EngineError as error:
            logger.warning("a cached engine is not used: %s", error)
            continue
        return path
    return None


def note_gate(engine: Path, sidecar: Sidecar, judged: str) -> None:
    """Write down beside an engine file that it passed the gate, so that it need not be asked again.

    Args:
        engine: the file.
        sidecar: that was read when it was judged; where another engine lies there now, nothing is written.
        judged: see ``Sidecar.gates``.

    Raises:
        EngineError: it can't be written.
    """
    with lock_folder(engine.parent):
        now = read_sidecar(engine)
        if now.sha256 == sidecar.sha256 and judged not in now.gates:
            noted = replace(now, gates=(*now.gates, judged))
            replace_file(engine.with_suffix(SIDECAR), to_json(noted).encode())


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


@contextmanager
def temporary_file(name: str, data: bytes) -> Iterator[Path]:
    """A file of that name in the temporary folder, removed when the block is left.

    Raises:
        EngineError: it can't be written.
    """
    with ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / name
            path.write_bytes(data)
        except OSError as error:
            raise EngineError(
                f"The graph {name} ({len(data) / 2**20:.0f} MiB) cannot be written to the temporary folder "
                f"{tempfile.tempdir or ''} ({error.strerror}): free some space there, or name another folder in TMPDIR."
            ) from error
        yield path


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
    """Every engine file in a folder, with its sidecar or with what is wrong with it, by name.

    Raises:
        EngineError: the folder can't be read.
    """
    for path in _engine_paths(folder):
        try:
            yield path, check_engine(path, trusted=(read_sidecar(path).sha256,))
        except EngineError as error:
            yield path, error


def prune(folder: Path, is_kept: Callable[[Sidecar], bool]) -> list[Path]:
    """Remove damaged engines, what interrupted builds left, and engines that ``is_kept`` says no to, with the kernels
    that were compiled for them. With the last engine what builds measured goes, too.

    Returns:
        The files that were removed.

    Raises:
        EngineError: one can't be removed.
    """
    if not folder.is_dir():
        return []
    with lock_folder(folder):  # nobody is writing now: what is under a temporary name was left behind
        engines = dict(list_engines(folder))
        doomed = [path for path, found in engines.items() if isinstance(found, EngineError) or not is_kept(found)]
        kept = {path.stem for path in engines} - {path.stem for path in doomed}
        doomed += [path for path in folder.glob(f"*{KERNELS}") if path.stem.rpartition("-")[0] not in kept]
        doomed += [path.with_suffix(SIDECAR) for path in engines if path in doomed]
        doomed += [path for path in folder.glob(f"*{SIDECAR}") if not path.with_suffix(ENGINE).exists()]
        doomed += [] if kept else list(folder.glob(f"{TIMINGS}*"))
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


def _engine_paths(folder: Path) -> list[Path]:
    """The engine files in a folder, by name. Raises EngineError when it is no folder, or can't be read."""
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(ENGINE))
    except OSError as error:
        raise EngineError(f"The folder of engines {folder} cannot be read ({error.strerror}).") from error


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _differences(met: EngineKey | EngineBuild, wanted: EngineKey | EngineBuild) -> str:
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
