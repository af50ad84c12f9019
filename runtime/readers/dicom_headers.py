"""The headers of a DICOM scan's files: one parse each, and what else is there."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError
from runtime.readers.dicom_damage import damage, damaged, quiet
from runtime.readers.dicom_files import DICOMDIR, FileSet, SourceFile
from runtime.readers.dicom_frames import CT_CLASSES, Frame, frames_of
from runtime.readers.dicom_mark import is_marked

if TYPE_CHECKING:
    from pydicom import Dataset

_HEAD_BYTES = 64 * 2**10
"""Read at first: most headers are shorter."""
_GROUPS_AT_START = (b"\x02\x00", b"\x08\x00")
"""How files begin that lack the preamble: with an element of group 2 or 8, little endian."""
_LARGEST_ELEMENT = 0x0100
_PREAMBLE_BYTES = 132
_NO_LENGTH = 0xFFFFFFFF
"""Stands for the length of an element that ends with a delimiter."""
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Files named so that are no DICOM are damaged; so are files that are but the zeros with which DICOM begins."""


@dataclass(frozen=True, eq=False)
class CtFile:
    """One CT file's header.

    Args:
        source: name of the file.
        header: without pixels.
        pixel_offset: byte at which the pixel data's element begins, where the file is not compressed.
        series_uid, study_uid: or ``""``.
        image_type: such as ``("ORIGINAL", "PRIMARY", "AXIAL")``.
        frames: empty where there is a defect.
        defect: why it can't be read.
    """

    source: str
    header: Dataset
    pixel_offset: int
    series_uid: str
    study_uid: str
    image_type: tuple[str, ...]
    frames: tuple[Frame, ...]
    defect: InputError | None


@dataclass(frozen=True, eq=False)
class OtherFile:
    """A DICOM file that is no CT image: its modality, its class by name, and the series that it belongs to."""

    source: str
    kind: str
    class_name: str
    series_uid: str
    series_number: str


@dataclass(frozen=True)
class OtherSeries:
    """A series without any CT image.

    Args:
        series_uid: or ``""``, for all files without one.
        series_number: or ``""``.
        kinds: what its files are: class by name, and modality.
        files: how many.
    """

    series_uid: str
    series_number: str
    kinds: tuple[str, ...]
    files: int

    @property
    def label(self) -> str:
        """What to call it in messages: number and count, no UID."""
        number = f"series {self.series_number}" if self.series_number else "a series without number"
        return f"{number} ({self.files} {'file' if self.files == 1 else 'files'})"

    @property
    def reason(self) -> str:
        """Why it isn't run on; no full stop."""
        return f"no CT images but {', '.join(self.kinds)}"


@dataclass(eq=False)
class Headers:
    """What the files are.

    Args:
        images: the CT files.
        others: other DICOM files.
        broken: what could not be decoded, by file name.
        no_dicom: how many files are no DICOM.
        empty: names of files without a byte.
    """

    images: list[CtFile] = field(default_factory=list)
    others: list[OtherFile] = field(default_factory=list)
    broken: dict[str, InputError] = field(default_factory=dict)
    no_dicom: int = 0
    empty: list[str] = field(default_factory=list)

    def met(self) -> str:
        """What is there instead of CT images, for messages."""
        counts = Counter(other.kind for other in self.others)
        counts["not DICOM"] = self.no_dicom
        return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()) if n) or "no files"

    def other_series(self) -> list[OtherSeries]:
        """The series in which there are no CT images, by number."""
        with_images = {image.series_uid for image in self.images}
        series: dict[str, list[OtherFile]] = {}
        for other in self.others:
            if other.series_uid not in with_images:
                series.setdefault(other.series_uid, []).append(other)
        found = [
            OtherSeries(
                series_uid=uid,
                series_number=files[0].series_number,
                kinds=tuple(sorted({f"{file.class_name} ({file.kind})" for file in files})),
                files=len(files),
            )
            for uid, files in series.items()
        ]
        return sorted(found, key=lambda one: (one.series_number.zfill(12), one.kinds, one.series_uid))


def read_headers(files: FileSet) -> Headers:
    """The headers of all files."""
    found = Headers()
    with quiet():
        for source, file in files.files.items():
            if PurePosixPath(source).name.upper() == DICOMDIR:
                continue
            try:
                _read_header(found, source, file)
            except damage() as error:
                found.broken[source] = damaged(source, error)
    return found


def header_of(source: str, file: SourceFile) -> Dataset | None:
    """One file's header without pixels, as :func:`read_headers` takes it; None where it is no DICOM.

    Raises:
        InputError: it is damaged.
    """
    try:
        with quiet():
            parsed = _parse_whole(source, file)
    except damage() as error:
        raise damaged(source, error) from error
    return None if parsed is None else parsed[0]


def text_of(dataset: Any, key: str) -> str:
    """A text attribute, or ``""`` where it is missing or damaged; for what is only shown or ranked by."""
    try:
        value = dataset.get(key)
        return "" if value is None else " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    except damage():
        return ""


def other_file(header: Any, source: str, series_uid: str) -> OtherFile:
    """What a header says of a file that is no CT image."""
    return OtherFile(
        source=source,
        kind=text_of(header, "Modality")[:16] or "without modality",
        class_name=_class_name(header).removesuffix(" Storage") or "object of an unknown class",
        series_uid=series_uid,
        series_number=text_of(header, "SeriesNumber")[:12],
    )


def _class_name(header: Any) -> str:
    """The SOP class as the standard names it, or ``""``: also where the file ends within its UID."""
    from pydicom.uid import UID

    sop_class = text_of(header, "SOPClassUID")
    name: str = UID(sop_class).name
    return "" if name == sop_class else name


def _read_header(found: Headers, source: str, file: SourceFile) -> None:
    parsed = _parse_whole(source, file)
    if parsed is None:
        found.no_dicom += 1
        if not file.size:
            found.empty.append(source)
        return
    header, offset = parsed
    sop_class, series_uid = str(header.get("SOPClassUID", "")), str(header.get("SeriesInstanceUID", ""))
    if sop_class not in CT_CLASSES:
        found.others.append(other_file(header, source, series_uid))
        return
    image = _ct_file(header, offset, source, file, series_uid)
    if image.defect is not None and not series_uid:
        found.broken[source] = image.defect  # it may belong to any series
    else:
        found.images.append(image)


def _ct_file(header: Dataset, offset: int, source: str, file: SourceFile, series_uid: str) -> CtFile:
    frames: tuple[Frame, ...] = ()
    defect = None
    try:
        frames = tuple(frames_of(header, source))
        _require_whole(header, frames, offset, source, file)
    except InputError as error:
        defect = error
    except damage() as error:
        defect = damaged(source, error)
    image_type = header.get("ImageType") or ()
    return CtFile(
        source=source,
        header=header,
        pixel_offset=offset,
        series_uid=series_uid,
        study_uid=str(header.get("StudyInstanceUID", "")),
        image_type=(image_type,) if isinstance(image_type, str) else tuple(str(v).strip() for v in image_type),
        frames=() if defect else frames,
        defect=defect,
    )


def _parse_whole(source: str, file: SourceFile) -> tuple[Dataset, int] | None:
    """As ``_parse``; raises EOFError where a file should be DICOM and is not, or its header ends early."""
    parsed = _parse(file)
    if parsed is None:
        start = file.head(_PREAMBLE_BYTES)
        if PurePosixPath(source).suffix.lower() in _DICOM_SUFFIXES or (start and not any(start)):
            raise EOFError(
                f"it ends after {len(start)} bytes" if len(start) < _PREAMBLE_BYTES else "it has no DICOM mark"
            )
    elif not parsed[0].get("SeriesInstanceUID") and not _class_name(parsed[0]):
        raise EOFError("its header ends early, or names no class and no series")
    return parsed


def _parse(file: SourceFile) -> tuple[Dataset, int] | None:
    """A file's header without pixels, and where these begin; None where it is no DICOM."""
    head = file.head(_HEAD_BYTES)
    forced = not is_marked(head)
    if forced and not (head[:2] in _GROUPS_AT_START and int.from_bytes(head[2:4], "little") < _LARGEST_ELEMENT):
        return None
    if len(head) < file.size:
        try:
            header, offset = _parse_bytes(head, forced=forced)
        except damage():
            pass  # the header may go on behind what was read: the whole file tells
        else:
            if offset < len(head) - 12:
                return header, offset
        head = file.read()
    return _parse_bytes(head, forced=forced)


def _parse_bytes(data: bytes, *, forced: bool) -> tuple[Dataset, int]:
    import pydicom

    stream = io.BytesIO(data)
    header = pydicom.dcmread(stream, stop_before_pixels=True, force=forced)
    _require_whole_values(header)
    return header, stream.tell()


def _require_whole_values(header: Dataset) -> None:
    """Raises EOFError where the file ends within its header's last value: half a UID is another UID."""
    from pydicom.dataelem import RawDataElement

    last = header.get_item(max(header.keys())) if len(header) else None
    if isinstance(last, RawDataElement) and last.value is not None and len(last.value) < last.length < _NO_LENGTH:
        raise EOFError(f"it ends within the value of {last.tag}")


def _require_whole(header: Dataset, frames: tuple[Frame, ...], offset: int, source: str, file: SourceFile) -> None:
    """Refuses files that are shorter than their uncompressed pixels."""
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    if syntax is None or syntax.is_compressed or syntax.is_deflated:
        return
    pixels = frames[0].rows * frames[0].columns * len(frames) * (int(header.get("BitsAllocated", 16)) // 8)
    if offset >= file.size:
        raise InputError(f"{source} has no pixel data. Export the CT series with its images.")
    if file.size < offset + pixels:
        raise InputError(
            f"{source} can't be decoded: it is cut off, {file.size - offset} bytes are left of {pixels} of its pixels. "
            "Copy or export the series again."
        )
