"""Pictures on disk as PNG, packed by ISA-L: a tenth of the time that zlib's usual level takes, a fifth more bytes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BITS, _RGB = 8, 2
_UP = 2
"""PNG's filter that keeps each byte's difference to the one above; small for pictures with smooth or empty parts."""
_COMPRESSION = 1
"""ISA-L's level 2 gains 0.4 % for a tenth more time; 3 is larger."""


def write_png(path: Path, picture: Image.Image) -> None:
    """Write an RGB picture.

    Raises:
        OSError: the file can't be written.
    """
    from isal import isal_zlib

    pixels = np.asarray(picture.convert("RGB"))
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, _EIGHT_BITS, _RGB, 0, 0, 0)
    packed = isal_zlib.compress(filtered.data, _COMPRESSION)
    path.write_bytes(_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b""))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
