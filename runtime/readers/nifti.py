"""NIfTI-1 and NIfTI-2 in one file, ``.nii`` or ``.nii.gz``: streamed once, hashed on the way by a thread of its own."""

from __future__ import annotations

import gzip
import hashlib
import io
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.errors import InputError
from runtime.readers.checks import VoxelCollector, check_grid, check_shape, fits_int16, tell_of
from runtime.readers.options import ReadOptions, ScanHeader
from runtime.volume import Volume

_CHUNK = 2**20
_FORMS_MAY_DIFFER_MM = 0.5
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_SIZES = {348: "Nifti1Header", 540: "Nifti2Header"}


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def readinto(self, buffer: Any, /) -> int | None: ...


class _HashingFile:
    """A file whose bytes are hashed on another thread as they are read.

    Args:
        file: to be read from its beginning.
        pool: of one thread, since the hash depends on the order.
        copies: whether the buffers that are read into may be changed by the caller before the next call.
    """

    def __init__(self, file: Any, pool: ThreadPoolExecutor, *, copies: bool) -> None:
        self._file, self._pool, self._copies = file, pool, copies
        self._hash = hashlib.sha256()
        self._pending: Future[None] | None = None

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        self._hash_next(data)
        return data

    def readinto(self, buffer: Any) -> int:
        count: int = self._file.readinto(buffer)
        part = memoryview(buffer)[:count]
        self._hash_next(bytes(part) if self._copies else part)
        return count

    def sha256_of_all(self) -> str:
        """Hex digest of the whole file, after reading what is left of it."""
        while self.read(_CHUNK):
            pass
        self._wait()
        return self._hash.hexdigest()

    def _hash_next(self, data: bytes | memoryview) -> None:
        self._wait()  # one piece at a time, so that memory stays small
        self._pending = self._pool.submit(self._hash.update, data)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()


def read(path: Path, name: str, options: ReadOptions) -> Volume:
    """Reads one NIfTI file; see :func:`runtime.readers.read_scan`."""
    from isal import igzip, igzip_lib, isal_zlib

    damage: tuple[type[Exception], ...] = (gzip.BadGzipFile, igzip_lib.IsalError)  # type: ignore[assignment]
    with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        packed = path.name.lower().endswith(".gz")
        hashing = _HashingFile(file, pool, copies=packed)  # else it is read into slabs, which are filled once
        try:
            if not packed:
                return _read_stream(hashing, hashing, path.name, name, options)
            # IGzipFile wraps the same reader, but unpacks into a temporary of a slab that it then copies.
            unpacking: Any = isal_zlib._GzipReader(hashing, igzip.READ_BUFFER_SIZE)  # type: ignore[arg-type]
            with io.BufferedReader(unpacking) as stream:
                return _read_stream(stream, hashing, path.name, name, options)
        except EOFError as error:
            raise InputError(f"{path.name} is cut off: its compressed data end early. Copy the file again.") from error
        except damage as error:
            raise InputError(_what_is_wrong_with_gzip(path, error)) from error


def _what_is_wrong_with_gzip(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if _header_size(start):
        return f"{path.name} is not gzipped, though its name says so. Rename it to {path.name[:-3]}."
    return f"{path.name} is damaged ({error}). Copy the file again."


def _read_stream(stream: _Stream, hashing: _HashingFile, file_name: str, name: str, options: ReadOptions) -> Volume:
    header, size = _read_header(stream, file_name)
    shape = check_shape(header.get_data_shape(), file_name)
    affine, notes = _affine(header, file_name)
    grid = check_grid(shape, affine, file_name)
    offset = float(header["vox_offset"])
    if not size <= offset <= 2**31:
        raise InputError(f"{file_name} is damaged: its header puts the voxels at byte {offset:g}. Export it again.")
    coding = _coding(header, file_name)
    tell_of(ScanHeader(file_name, grid, coding.fits_int16, reader_bytes=0), options)
    _skip(stream, int(offset) - size, file_name)
    voxels = VoxelCollector(shape, file_name)
    _read_voxels(stream, coding, voxels, shape, file_name)
    while stream.read(_CHUNK):  # to the end, so that a compressed file's checksum is verified
        pass
    array = voxels.finish(options.lowest_hu)
    return Volume(array, grid, name, hashing.sha256_of_all(), (*notes, *voxels.notes))


def _read_header(stream: _Stream, file_name: str) -> tuple[Any, int]:
    """nibabel's header and its size in bytes."""
    import nibabel as nib

    start = stream.read(4)
    size = _header_size(start)
    if not size:
        raise InputError(_what_it_is_instead(start, file_name))
    block = bytearray(start)
    while len(block) < size and (data := stream.read(size - len(block))):
        block += data
    if len(block) < size:
        raise InputError(f"{file_name} is cut off within its header, after {len(block)} bytes. Copy the file again.")
    header = getattr(nib, _HEADER_SIZES[size])(bytes(block), check=False)
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise InputError(
            f"{file_name} is not a single-file NIfTI: its magic is {bytes(header['magic'])!r}. Convert it to .nii.gz."
        )
    return header, size


def _header_size(start: bytes) -> int:
    """Bytes of the header that begins with these four, 0 when no NIfTI header does."""
    return next((n for n in _HEADER_SIZES if start in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), 0)


def _what_it_is_instead(start: bytes, file_name: str) -> str:
    if not start:
        return f"{file_name} is empty. Copy or export the scan again."
    if start.startswith(_GZIP_MAGIC) and not file_name.lower().endswith(".gz"):
        return f"{file_name} is gzipped, though its name does not say so. Rename it to {file_name}.gz."
    return f"{file_name} is no NIfTI file: it starts with the bytes {start.hex()}. Export the scan again."


def _affine(header: Any, file_name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine as nibabel prefers it (sform, then qform, then none) and what to say about it."""
    from nibabel.spatialimages import HeaderDataError

    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as error:
        raise InputError(f"The orientation in {file_name} is damaged ({error}). Export the scan again.") from error
    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) <= 0:
        return affine, (
            "The file does not state its orientation (no sform nor qform code): voxel axes were taken to run left, "
            "anterior, superior.",
        )
    if min(codes) > 0 and (apart_mm := _qform_apart_mm(header, affine)) > _FORMS_MAY_DIFFER_MM:
        return affine, (f"The file's sform and qform disagree by up to {apart_mm:.1f} mm: the sform was used.",)
    return affine, ()


def _qform_apart_mm(header: Any, affine: np.ndarray) -> float:
    """How far the qform puts any corner from where the affine puts it; infinite for a damaged qform."""
    from nibabel.spatialimages import HeaderDataError

    try:
        difference = header.get_qform() - affine
    except (HeaderDataError, ValueError):
        return float("inf")
    ends = [(0, int(n) - 1) for n in header.get_data_shape()[:3]]
    corners = np.array([[x, y, z, 1] for x in ends[0] for y in ends[1] for z in ends[2]])
    return float(np.linalg.norm(corners @ difference.T, axis=1).max())


@dataclass(frozen=True)
class _Coding:
    """How the voxels are stored; ``slope`` and ``intercept`` are from stored values to HU."""

    dtype: np.dtype[Any]
    slope: float
    intercept: float

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def fits_int16(self) -> bool:
        return self.dtype.kind in "iu" and fits_int16(np.iinfo(self.dtype).max, self.slope, self.intercept)


def _coding(header: Any, file_name: str) -> _Coding:
    """How the header says that the voxels are stored; raises InputError where they can't be Hounsfield units."""
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except (HeaderDataError, KeyError) as error:  # nibabel's KeyError is an unknown data type
        raise InputError(f"The header of {file_name} is damaged ({error}). Export the scan again.") from error
    if dtype.kind not in "iuf":
        raise InputError(
            f"{file_name} holds {'colours' if dtype.names else dtype.name} instead of Hounsfield units. Give the CT "
            "itself."
        )
    return _Coding(dtype, 1.0 if slope is None else float(slope), float(intercept or 0.0))


def _read_voxels(
    stream: _Stream, coding: _Coding, voxels: VoxelCollector, shape_zyx: tuple[int, int, int], file_name: str
) -> None:
    """Streams the voxels into ``voxels`` with slope and intercept applied."""
    depth, rows, columns = shape_zyx
    dtype = coding.dtype
    for first in range(0, depth, voxels.planes_per_slab):
        planes = min(voxels.planes_per_slab, depth - first)
        # What is read may still be hashed when it is put: it is not to be written over by what it is scaled to.
        slab = np.empty((planes, rows, columns), dtype) if coding.is_scaled else voxels.room_for(first, planes, dtype)
        _fill(stream, slab, file_name)
        if coding.is_scaled:
            slab = slab * np.float64(coding.slope) + np.float64(coding.intercept)
        voxels.put(first, slab)


def _fill(stream: _Stream, array: np.ndarray, file_name: str) -> None:
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
            raise InputError(f"{file_name} is cut off: it ends before its last voxel. Copy the file again.")
        done += count


def _skip(stream: _Stream, count: int, file_name: str) -> None:
    while count > 0:
        data = stream.read(min(count, _CHUNK))
        if not data:
            raise InputError(f"{file_name} is cut off: it ends before its first voxel. Copy the file again.")
        count -= len(data)
