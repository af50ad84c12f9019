"""What a file that came over the network would unpack to, by what it says of itself, before anybody unpacks it."""

from __future__ import annotations

import re
import struct
import zipfile
from contextlib import suppress
from math import prod
from pathlib import Path

from isal import igzip, igzip_lib

from runtime.serve.options import JobLimits
from runtime.serve.refusal import RefusedRequestError

_DIMENSIONS = {348: ("h", 40, 72), 540: ("q", 16, 12)}
"""By the size of a NIfTI header: type and place of its eight ``dim``, place of ``bitpix`` (16 bits)."""
_HEADER = 540
_LONGEST_END = 2**16 + 256
"""How far from a zip's end its end record can begin, with that of the 64-bit kind before it."""
_IN_THE_LARGE_END = 2**32 - 1
"""What the small end record states where the size stands in the 64-bit one."""
_LONGEST_ENTRY = 1024
"""Of a zip's directory, on the average."""


def check_unpacked(path: Path, limits: JobLimits) -> None:
    """Refuse a zip or NIfTI file that would unpack to more than is allowed; what is damaged is left to its reader.

    Members of a zip are read up to the size that its directory states, no further, so that size is what counts.

    Raises:
        RefusedRequestError: 413, with the size that was met; 403 where the server's user may not read the file.
    """
    name = path.name.lower()
    try:
        if name.endswith(".zip"):
            _check_zip(path, limits)
        elif name.endswith((".nii", ".nii.gz")):
            _check_size(_nifti_bytes(path), limits, "the scan's voxels")
    except (PermissionError, FileNotFoundError) as error:
        raise RefusedRequestError(403, "The server's user may not read this file, or it is gone.") from error


def _check_zip(path: Path, limits: JobLimits) -> None:
    if _directory_bytes(path) > limits.max_files * _LONGEST_ENTRY:  # it would be held in memory, so first
        raise RefusedRequestError(413, f"The zip has too many members; at most {limits.max_files} are taken here.")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [info.file_size for info in archive.infolist()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error):
        return
    if len(sizes) > limits.max_files:
        raise RefusedRequestError(413, f"The zip has {len(sizes)} members; at most {limits.max_files} are taken here.")
    _check_size(sum(sizes), limits, "the zip")


def _directory_bytes(path: Path) -> int:
    """Size of a zip's directory: the largest that is stated where an end record may be; 0 where there is none.

    Which of several readers take for the end is theirs to choose, and a comment can hold what looks like one.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LONGEST_END))
        tail = file.read()
    large = [struct.unpack_from("<Q", tail, at + 40)[0] for at in _places(rb"PK\x06\x06", tail, 48)]
    small = [struct.unpack_from("<I", tail, at + 12)[0] for at in _places(rb"PK\x05\x06", tail, 22)]
    return max([*large, *(size for size in small if not large or size != _IN_THE_LARGE_END)], default=0)


def _places(signature: bytes, tail: bytes, length: int) -> list[int]:
    """Where records of this signature begin that are whole."""
    return [match.start() for match in re.finditer(signature, tail) if match.start() + length <= len(tail)]


def _check_size(size: int, limits: JobLimits, what: str) -> None:
    if size > limits.max_unpacked_bytes:
        most = limits.max_unpacked_bytes
        raise RefusedRequestError(413, f"Unpacked, {what} would take {size} bytes; at most {most} are taken here.")


def _nifti_bytes(path: Path) -> int:
    """Of the voxels by the header, two each at least, which is how they are held; 0 where there is no such header."""
    head = _head(path)
    for size, (kind, dim_at, bits_at) in _DIMENSIONS.items():
        for order in "<>":
            if len(head) >= size and struct.unpack_from(f"{order}i", head)[0] == size:
                rank, *lengths = struct.unpack_from(f"{order}8{kind}", head, dim_at)
                bits = struct.unpack_from(f"{order}h", head, bits_at)[0]
                return prod(max(1, n) for n in lengths[: max(0, min(rank, 7))]) * max(2, bits // 8)
    return 0


def _head(path: Path) -> bytes:
    """The first bytes; where the file is packed, as its reader unpacks it, members joined."""
    with path.open("rb") as file:
        head = file.read(_HEADER)
    if not head.startswith(b"\x1f\x8b"):
        return head
    damage: tuple[type[Exception], ...] = (OSError, EOFError, igzip_lib.IsalError)  # type: ignore[assignment]
    head = b""
    with igzip.open(path) as stream, suppress(*damage):
        while len(head) < _HEADER and (piece := stream.read1(_HEADER - len(head))):
            head += piece
    return head
