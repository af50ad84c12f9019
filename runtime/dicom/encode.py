"""Objects to bytes: what pydicom would write, in a fraction of its time.

A report of a spine has some ten thousand elements, most of them short texts and sequences, and many items are held by
several sequences. pydicom makes a buffer for each element and looks through each sequence once for each level above it.
Here the usual kinds of elements are put together as bytes, an item that is met again is not encoded again, and all else
is left to pydicom. The files are the same, byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from pydicom.charset import default_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, dcmwrite, write_data_element
from pydicom.tag import tag_in_exception
from pydicom.uid import ExplicitVRLittleEndian

_ITEM = b"\xfe\xff\x00\xe0"
_SHORT_HEAD, _LONG_HEAD = struct.Struct("<HH2sH"), struct.Struct("<HH2s2xL")
"""Of an element: group, number, type, length in two bytes or in four."""
_ITEM_HEAD = struct.Struct("<4sL")
_PADDING = {"UI": b"\0", **dict.fromkeys(("AE", "AS", "CS", "LO", "LT", "SH", "ST"), b" ")}
"""Types of short text, and what makes their length even."""
_LONGEST_SHORT = 0xFFFE
_DATASET_HEAD = ("SOPClassUID", "SOPInstanceUID")


def write_object(path: Path, result: Dataset) -> None:
    """Write an object as a DICOM file, as ``result.save_as(path, enforce_file_format=True)`` does.

    Raises:
        OSError: the file can't be written.
        ValueError: the object can't be encoded.
    """
    if result.file_meta.TransferSyntaxUID != ExplicitVRLittleEndian:
        result.save_as(path, enforce_file_format=True)
        return
    parts = [_file_head(result), *_Encoder().elements(result, default_encoding)]
    with path.open("wb") as file:
        file.writelines(parts)


def _file_head(result: Dataset) -> bytes:
    """What comes before the object's own elements."""
    shell, buffer = Dataset(), DicomBytesIO()
    shell.file_meta = result.file_meta
    for keyword in _DATASET_HEAD:
        setattr(shell, keyword, result[keyword].value)
    dcmwrite(buffer, shell, enforce_file_format=True)
    own = b"".join(_Encoder().elements(shell, default_encoding))
    return buffer.getvalue()[: -len(own)]


class _Encoder:
    """Encodes one object, explicit VR, little endian."""

    def __init__(self) -> None:
        self._items: dict[tuple[int, str], bytes] = {}

    def elements(self, dataset: Dataset, encodings: str | Sequence[str]) -> Iterator[bytes]:
        """The parts of a dataset in their order. An error names the element that it was met at."""
        charset: Any = dataset.get("SpecificCharacterSet", encodings)
        for tag in sorted(dataset.keys()):
            if tag.element or tag.group <= 6:  # not a group's length, which is retired
                with tag_in_exception(tag):
                    yield from self._element(dataset, dataset[tag], charset)

    def _element(self, dataset: Dataset, element: DataElement, charset: Any) -> Iterator[bytes]:
        if len(element.VR) != 2:  # such as "OB or OW", which other elements decide
            element = cast(DataElement, correct_ambiguous_vr_element(element, dataset, True))
        content = self._content(element, charset)
        if content is None:
            buffer = DicomBytesIO()
            buffer.is_implicit_VR, buffer.is_little_endian = False, True
            write_data_element(buffer, element, charset)
            yield buffer.getvalue()
        else:
            head = _SHORT_HEAD if element.VR in _PADDING else _LONG_HEAD
            yield head.pack(element.tag.group, element.tag.element, element.VR.encode(), len(content))
            yield content

    def _content(self, element: DataElement, charset: Any) -> bytes | None:
        """The value of a usual element; None for others."""
        kind, value = element.VR, element.value
        if kind == "SQ" and not element.is_undefined_length and all(_is_own(item) for item in value):
            return b"".join(self._item(item, charset) for item in value)
        if kind in _PADDING and isinstance(value, str) and value.isascii() and len(value) < _LONGEST_SHORT:
            text = value.encode("ascii")
            return text + _PADDING[kind] if len(text) % 2 else text
        if kind in ("OB", "OW") and isinstance(value, bytes) and not element.is_undefined_length:
            return value + b"\0" if len(value) % 2 else value
        return None

    def _item(self, item: Dataset, charset: Any) -> bytes:
        """An item of a sequence; one that was met before is the same again, since all items live as long as this."""
        key = id(item), str(charset)
        known = self._items.get(key)
        if known is None:
            content = b"".join(self.elements(item, charset))
            known = self._items[key] = _ITEM_HEAD.pack(_ITEM, len(content)) + content
        return known


def _is_own(item: Dataset) -> bool:
    """Whether an item was made here: what was read from a file goes on as it was, padding and oddities included."""
    return item.original_encoding == (None, None) and not getattr(item, "is_undefined_length_sequence_item", False)
