"""The voxels of a DICOM series: decoded file by file, in HU, each in its place."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np

from runtime.errors import GeometryError, InputError
from runtime.readers import jpeg_12bit
from runtime.readers.checks import VoxelCollector
from runtime.readers.dicom_damage import damage, damaged
from runtime.readers.dicom_files import SourceFile
from runtime.readers.dicom_frames import Frame
from runtime.readers.dicom_geometry import Stack
from runtime.readers.dicom_headers import CtFile

PADDING_HU = -1024.0
"""What pixels that a file declares to be padding become, and planes in wide gaps."""
_INT16 = np.iinfo(np.int16)
_FILES_AHEAD = 4
"""Files that are read before they are due. One thread does that: two would wait for each other's memory."""
_OPEN_FILES = 2
"""Decoded files that are kept: enhanced files may take turns."""
_BYTES_PER_OPEN_PIXEL = 8
"""Of a file that is decoded: its bytes, those again as the library has them, stored values, and HU of one slice."""
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
"""Transfer syntaxes whose pixels lie in the file as they are, little endian: implicit and explicit VR."""


class SliceReader:
    """Decodes the slices of one series; remembers the hashes of the files that it read.

    Args:
        files: by name.
        images: the headers of the series' files, by name.
    """

    def __init__(self, files: Mapping[str, SourceFile], images: Mapping[str, CtFile]) -> None:
        self._files, self._images = files, images
        self._decoded: dict[str, np.ndarray] = {}
        self._digests: dict[str, str] = {}
        self._ahead: dict[str, Future[tuple[str, np.ndarray]]] = {}

    def without_memory(self) -> SliceReader:
        """A reader of the same files that has read none yet."""
        return SliceReader(self._files, self._images)

    def sha256(self) -> str:
        """Of the sorted hashes of all files that were read, so that names and order don't count."""
        return hashlib.sha256("".join(sorted(self._digests.values())).encode()).hexdigest()

    def stored(self, frame: Frame) -> np.ndarray:
        """(rows, columns) stored values of a frame.

        Raises:
            InputError: the file can't be decoded, or has no pixels or too few.
        """
        if frame.source not in self._decoded:
            while len(self._decoded) >= _OPEN_FILES:
                self._decoded.pop(next(iter(self._decoded)))
            begun = self._ahead.pop(frame.source, None)
            digest, values = self._read(frame) if begun is None else begun.result()
            self._digests[frame.source], self._decoded[frame.source] = digest, values
        decoded = self._decoded[frame.source]
        if frame.index >= len(decoded):
            raise InputError(
                f"{frame.source} holds {len(decoded)} frames where {frame.index + 1} are due. Export the series again."
            )
        plane: np.ndarray = decoded[frame.index]
        return plane

    def hu(self, frame: Frame) -> np.ndarray:
        """(rows, columns) HU of a frame: int16 or int32 where slope and intercept are whole, else float64."""
        return to_hu(self.stored(frame), frame)

    def in_turn(self, frames: Sequence[Frame]) -> Generator[np.ndarray]:
        """``hu`` of each frame in order; close it if it isn't used up.

        Where every file holds one frame, the next files are read, hashed and decoded meanwhile, on another thread.
        """
        waiting = iter(frames if len({frame.source for frame in frames}) == len(frames) else ())
        with ThreadPoolExecutor(1) as pool:
            try:
                for frame in frames:
                    while len(self._ahead) < _FILES_AHEAD and (following := next(waiting, None)) is not None:
                        self._ahead[following.source] = pool.submit(self._read, following)
                    yield self.hu(frame)
            finally:
                pool.shutdown(cancel_futures=True)
                self._ahead.clear()

    def _read(self, frame: Frame) -> tuple[str, np.ndarray]:
        """Hash and (frames, rows, columns) stored values of the file that holds a frame."""
        data = self._files[frame.source].read()
        return hashlib.sha256(data).hexdigest(), _stored_values(data, self._images[frame.source], frame)


def bytes_of_open_files(stack: Stack) -> int:
    """Memory of the files that are open at a time while a stack is read, at most: their bytes, pixels and HU."""
    frames_of = Counter(frame.source for frame in stack.frames)
    largest = max(frames_of.values())
    at_once = min(len(frames_of), _OPEN_FILES + (_FILES_AHEAD if largest == 1 else 0))
    return at_once * largest * stack.frames[0].rows * stack.frames[0].columns * _BYTES_PER_OPEN_PIXEL


def read_voxels(reader: SliceReader, stack: Stack, voxels: VoxelCollector) -> None:
    """Puts every plane of a stack into its place; planes between slices are interpolated linearly.

    Raises:
        InputError: a file can't be decoded.
        GeometryError: slices in one place that should be copies differ.
    """
    with closing(reader.in_turn(stack.frames)) as slices:
        _put_planes(slices, stack, voxels)
    for index, copy in stack.copies:
        kept = stack.frames[index]
        if not np.array_equal(reader.hu(copy), reader.hu(kept)):
            raise GeometryError(
                f"{kept.source} and {copy.source} lie in the same place and hold different images, so neither can be "
                "left out. Give one acquisition or phase."
            )


def _put_planes(slices: Iterator[np.ndarray], stack: Stack, voxels: VoxelCollector) -> None:
    blank = {plane for first, last in stack.air for plane in range(first, last)}
    before: np.ndarray | None = None
    next_plane = 0
    for k, (position, after) in enumerate(zip(stack.planes, slices, strict=True)):
        while next_plane < stack.grid.shape_zyx[0] and next_plane <= position + 1e-6:
            if next_plane in blank:
                plane = np.full(after.shape, PADDING_HU)
            elif before is None or position - next_plane < 1e-6:
                plane = after
            else:
                share = (next_plane - stack.planes[k - 1]) / (position - stack.planes[k - 1])
                plane = _between(before, after, share)
            voxels.put(next_plane, plane[None])
            next_plane += 1
        before = after


def to_hu(stored: np.ndarray, frame: Frame) -> np.ndarray:
    """HU of one frame: whole numbers where slope and intercept are whole and small, else float64.

    They are int16 where that is enough and nothing is to be scaled, which is the usual case, and int32 otherwise.
    """
    hu = _shifted(stored, frame.intercept) if frame.slope == 1 else None
    if hu is None:
        hu = _scaled(stored, frame)
    if frame.padding is not None:
        low, high = frame.padding
        hu[stored == low if low == high else (stored >= low) & (stored <= high)] = PADDING_HU
    return hu


def _scaled(stored: np.ndarray, frame: Frame) -> np.ndarray:
    whole = frame.slope.is_integer() and frame.intercept.is_integer()
    if whole and stored.dtype.itemsize <= 2 and frame.slope <= 2**10 and abs(frame.intercept) <= 2**20:
        hu: np.ndarray = stored.astype(np.int32)
        if frame.slope != 1:
            hu *= int(frame.slope)
        hu += int(frame.intercept)
    else:
        hu = stored * frame.slope + frame.intercept
    return hu


def _shifted(stored: np.ndarray, intercept: float) -> np.ndarray | None:
    """The 16-bit values plus the intercept as int16; None where these aren't 16-bit values, or don't fit."""
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize != 2 or not intercept.is_integer():
        return None
    if not _INT16.min <= intercept <= _INT16.max:
        return None
    low, high = int(stored.min()) + int(intercept), int(stored.max()) + int(intercept)
    if not (_INT16.min <= low and high <= _INT16.max):
        return None
    moved: np.ndarray = stored.astype(np.int16) + np.int16(intercept)  # wraps around, and back to what is meant
    return moved


def _between(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    """Linear interpolation, whole HU where both are whole."""
    mixed: np.ndarray = before * (1.0 - share) + after * share
    return np.rint(mixed) if before.dtype.kind == after.dtype.kind == "i" else mixed


def _stored_values(data: bytes, image: CtFile, frame: Frame) -> np.ndarray:
    """(frames, rows, columns) stored values of one file."""
    import pydicom

    try:
        native = _native_values(data, image, frame)
        if native is not None:
            return native
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        if "PixelData" not in dataset:
            raise InputError(f"{image.source} has no pixel data, or is cut off within them. Export the series again.")
        if jpeg_12bit.is_needed(dataset):
            return jpeg_12bit.decode(dataset)
        return np.asarray(dataset.pixel_array).reshape(-1, frame.rows, frame.columns)
    except damage() as error:
        raise damaged(image.source, error) from error


def _native_values(data: bytes, image: CtFile, frame: Frame) -> np.ndarray | None:
    """The pixels of a plain file without a second parse, read-only; None where it takes pydicom.

    Plain are 16 bits, little endian, not compressed. Bits that are not used are cleared, as pydicom does.
    """
    header: Any = image.header
    syntax = str(header.file_meta.get("TransferSyntaxUID", "")) if hasattr(header, "file_meta") else ""
    unused = 16 - int(header.get("BitsStored") or 0)
    bits = (header.get("BitsAllocated"), header.get("SamplesPerPixel", 1))
    if (
        syntax not in _NATIVE
        or bits != (16, 1)
        or not 0 <= unused < 16
        or header.get("PixelRepresentation") not in (0, 1)
    ):
        return None
    at = image.pixel_offset
    is_explicit = data[at + 4 : at + 6] in (b"OW", b"OB")  # whatever the file claims; lengths are even, these are odd
    start = at + (12 if is_explicit else 8)
    length = int.from_bytes(data[start - 4 : start], "little")
    if data[at : at + 4] != b"\xe0\x7f\x10\x00" or length % 2:
        return None
    count = max(int(header.get("NumberOfFrames") or 1), 1)
    size = 2 * count * frame.rows * frame.columns
    if length < size or len(data) < start + size:
        return None
    kind = "<i2" if header.PixelRepresentation else "<u2"
    values = np.frombuffer(data, kind, size // 2, start)
    if unused:
        values = np.right_shift(np.left_shift(values, unused), unused)
    return values.reshape(count, frame.rows, frame.columns)
