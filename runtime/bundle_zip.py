"""Unpacking a zipped bundle into the user's cache, safely and once."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from runtime.bundle_checks import BUNDLE_JSON
from runtime.cache import user_cache_folder
from runtime.errors import BundleError

MAX_UNPACKED_BYTES = 8 * 2**30
"""No bundle is larger; a zip that claims to be is refused before anything of it is written."""


def unpack_zip(path: Path) -> tuple[Path, bool]:
    """The folder with the content of a zipped bundle, in the user's cache under the zip's SHA-256.

    Returns:
        The folder that holds ``bundle.json``, and whether it was unpacked now rather than found.

    Raises:
        BundleError: it is no zip, is damaged, holds no bundle, or a member would land outside its folder.
    """
    target = _target(path)
    if (target / BUNDLE_JSON).is_file():
        return target, False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as scratch:
            fresh = Path(scratch) / "new"
            _extract(path, fresh)
            _rename_unless_there(fresh, target)
    except OSError as error:
        raise BundleError(f"The bundle {path} cannot be unpacked into {target}: {error.strerror or error}.") from error
    return target, True


def discard_unpacked(path: Path) -> None:
    """Forget what ``unpack_zip`` made of this zip."""
    shutil.rmtree(_target(path), ignore_errors=True)


def _target(path: Path) -> Path:
    try:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"The bundle {path} cannot be read ({error.strerror}).") from error
    return user_cache_folder("bundles") / digest[:32]


def _extract(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_members(path, members)
            root = _root(path, members)
            folder.mkdir()
            for member in members:
                name = PurePosixPath(member.filename)
                if name.parent != root:
                    continue
                with archive.open(member) as source, open(folder / name.name, "xb") as copy:
                    shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise BundleError(f"{path} is not a readable zip: {error}.") from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        name = member.filename
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ":" in name or ".." in parts:
            raise BundleError(f"{path} is refused: its member {name!r} would land outside the bundle's folder.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BundleError(f"{path} is refused: its member {name!r} is a link.")
        if member.flag_bits & 0x1:
            raise BundleError(f"{path} is refused: its member {name!r} is encrypted.")
    total = sum(member.file_size for member in members)
    if total > MAX_UNPACKED_BYTES:
        raise BundleError(f"{path} is refused: it would unpack to {total} bytes, more than {MAX_UNPACKED_BYTES}.")
    names = [member.filename for member in members]
    if len({name.casefold() for name in names}) != len(names):
        raise BundleError(f"{path} is refused: it holds two members of one name.")


def _root(path: Path, members: list[zipfile.ZipInfo]) -> PurePosixPath:
    """Where the bundle lies in the zip: at its top, or in one folder."""
    roots = {PurePosixPath(m.filename).parent for m in members if PurePosixPath(m.filename).name == BUNDLE_JSON}
    if len(roots) != 1:
        raise BundleError(f"{path} should hold one {BUNDLE_JSON}; it holds {len(roots)}.")
    return roots.pop()


def _rename_unless_there(fresh: Path, target: Path) -> None:
    try:
        fresh.rename(target)
    except OSError:
        # Another process unpacked the same zip in the meantime.
        if not (target / BUNDLE_JSON).is_file():
            raise
