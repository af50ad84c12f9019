"""The files that NRRD and MetaImage headers name for their voxels, and the hash of all that belongs to a scan."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from runtime.errors import InputError

_MOST_LINES = 10_000
"""Of a header, and files of a scan; ITK's time for the lines of an NRRD header grows with their square."""
_LONGEST_LINE = 2**20
_METAIMAGE_AXES = range(2, 5)
"""What a MetaImage may state as its NDims; ITK's reader writes beyond its memory, or never ends, for absurd ones."""
_NDIMS = re.compile(rb"NDims\s*[=:]\s*([^\r\n]*)", re.IGNORECASE)
_BEFORE_VOXELS = re.compile(rb"ElementDataFile\s*[=:]", re.IGNORECASE)
_LONGEST_HEADER = 2**20
_PATTERN = re.compile(r"(?P<before>[^%]*)%(?P<width>0?\d?)d(?P<after>[^%]*)")
"""Of numbered files, such as ``slice%03d.raw``."""


def sha256_of(path: Path) -> str:
    """Hex digest of a scan's bytes: those of the file, followed by those of the data files that its header names.

    Raises:
        InputError: it can't be told which files these are.
        OSError: one of them can't be read.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for data in data_files(path):
        with data.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def data_files(path: Path) -> tuple[Path, ...]:
    """The files that hold the voxels of an NRRD or a MetaImage, in their order; none where ``path`` itself holds them.

    Raises:
        InputError: the header names something else than files, or it can't be told which.
        OSError: the header can't be read.
    """
    names = _NAMES[path.suffix.lower()](path) if path.suffix.lower() in _NAMES else ()
    files = tuple(path.parent / name for name in names)
    for file, name in zip(files, names, strict=True):
        if "\0" in name:
            raise InputError(f"{path.name} names {name!r} as its voxels' file, which is no name. Export it again.")
        if file.exists() and not file.is_file():
            raise InputError(f"{path.name} names {name} as the file of its voxels, which is none. Export it again.")
    return files


def metaimage_fields(path: Path) -> dict[str, str]:
    """The ``Name = value`` lines of a MetaImage header, names in lower case."""
    return _metaimage_header(path)[0]


def check_metaimage_axes(path: Path) -> None:
    """Raise InputError for a MetaImage that states no NDims, or anywhere one that ITK's reader doesn't survive."""
    if path.suffix.lower() not in (".mha", ".mhd"):
        return
    with path.open("rb") as file:
        header = _BEFORE_VOXELS.split(file.read(_LONGEST_HEADER), maxsplit=1)[0]
    stated = [value.decode("utf-8", "replace").strip() for value in _NDIMS.findall(header)]
    wrong = [value for value in stated if _leading_number(value) not in _METAIMAGE_AXES]
    if wrong or not stated:
        met = f"its NDims is {wrong[0][:20]!r}" if wrong else "it states no NDims"
        raise InputError(f"{path.name} is damaged or no MetaImage: {met}; a scan has 3. Copy or export it again.")


def _leading_number(value: str) -> int | None:
    """The whole number at the beginning, which is what ITK reads; None where there is none."""
    number = re.match(r"[+-]?\d+", value)
    return int(number[0]) if number else None


def _metaimage_lines(file: BinaryIO, path: Path) -> Iterator[tuple[str, str]]:
    """Names in lower case and values, as ITK's reader separates them, up to the one that says where the voxels are."""
    for count, raw in enumerate(iter(lambda: file.readline(4096), b""), start=1):
        _check_count(count, path)
        if not raw.strip():
            continue
        key, *values = re.split("[=:]", raw.decode("utf-8", "surrogateescape"), maxsplit=1)
        if not values:
            return
        yield key.strip().lower(), values[0].strip()
        if key.strip().lower() == "elementdatafile":
            return


def _metaimage_header(path: Path) -> tuple[dict[str, str], list[str]]:
    """The fields, and where the last one says that they follow, the names of the data files."""
    with path.open("rb") as file:
        fields = dict(_metaimage_lines(file, path))
        listed = []
        if _is_list(fields.get("elementdatafile", "")):
            for raw in iter(lambda: file.readline(4096), b""):
                listed.append(raw.decode("utf-8", "surrogateescape").strip())
                _check_count(len(listed), path)
    return fields, [name for name in listed if name]


def _metaimage_names(path: Path) -> Sequence[str]:
    fields, listed = _metaimage_header(path)
    named = fields.get("elementdatafile", "LOCAL")
    if named.upper() == "LOCAL":
        return ()
    if _is_list(named):
        return listed
    if "%" not in named:
        return (named,)
    slices = fields.get("dimsize", "").split()[-1:] or ["1"]
    given = named.split()
    return _numbered([*given, *("1", *slices, "1")[len(given) - 1 :]], path)


def _nrrd_names(path: Path) -> Sequence[str]:
    lines = _nrrd_lines(path)
    for line in lines:
        field, _, named = line.partition(": ")
        if field.lower() in ("data file", "datafile"):
            if _is_list(named):
                return [name for name in lines if name]
            return _numbered(named.split()[:4], path) if "%" in named else (named,)
    return ()


def _nrrd_lines(path: Path) -> Iterator[str]:
    """The lines of an NRRD header, up to the empty one before the voxels or the end of the file."""
    with path.open("rb") as file:
        lines = 0
        while line := file.readline(_LONGEST_LINE).strip(b"\r\n"):
            lines += 1
            _check_count(lines, path)
            yield line.decode("utf-8", "surrogateescape")


def check_nrrd_header(path: Path) -> None:
    """Raise InputError for an NRRD header of absurdly many lines."""
    if path.suffix.lower() == ".nrrd":
        for _ in _nrrd_lines(path):
            pass


_NAMES = {".nrrd": _nrrd_names, ".mha": _metaimage_names, ".mhd": _metaimage_names}


def _is_list(named: str) -> bool:
    return named.split()[:1] == ["LIST"]


def _numbered(words: Sequence[str], path: Path) -> Sequence[str]:
    """The names that a pattern with its first number, last number and step stands for.

    Raises:
        InputError: it is no such pattern.
    """
    pattern = _PATTERN.fullmatch(words[0])
    numbers = [int(word) for word in words[1:] if re.fullmatch(r"[+-]?\d{1,9}", word)]
    if pattern is None or len(words) != 4 or len(numbers) != 3 or numbers[2] == 0:
        raise InputError(
            f"{path.name} names the files of its voxels as {' '.join(words)!r}, which can't be understood. Export the "
            "scan as one file, such as .nii.gz."
        )
    first, last, step = numbers
    counted = range(first, last + (1 if step > 0 else -1), step)
    _check_count(len(counted), path, "files")
    return [f"{pattern['before']}{n:{pattern['width']}d}{pattern['after']}" for n in counted]


def _check_count(count: int, path: Path, what: str = "lines") -> None:
    if count > _MOST_LINES:
        raise InputError(f"The header of {path.name} has more than {_MOST_LINES} {what}. Export the scan again.")
