"""The mark by which a DICOM file is known (PS3.10, 7.1)."""

from __future__ import annotations

_MARK, _AT = b"DICM", 128
MARKED_BYTES = _AT + len(_MARK)
"""So many from a file's beginning hold the mark."""


def is_marked(beginning: bytes) -> bool:
    """Whether the first bytes of a file, ``MARKED_BYTES`` or more, bear the mark."""
    return beginning[_AT:MARKED_BYTES] == _MARK
