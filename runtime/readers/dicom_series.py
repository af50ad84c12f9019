"""The series of a DICOM scan, each taken apart into stacks that can be one volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from runtime.errors import InputError
from runtime.readers.dicom_frames import Frame
from runtime.readers.dicom_geometry import SAME_ORIENTATION, Stack, arrange, doubled, even_steps
from runtime.readers.dicom_headers import CtFile, text_of

_NEAR_MM = 10.0
"""Acquisitions that follow each other at most this far apart are one stack, unless they overlap."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A stack of slices of one series, orientation, size, frame of reference and acquisition.

    Args:
        series_uid: Series Instance UID.
        series_number: or ``""``.
        description: of the series, or ``""``.
        kernel: convolution kernel, or ``""``.
        image_type: that of most of its files.
        files: whose frames it holds.
        frames: of the stack; empty where no file of the series can be read.
        part: which part of its series it is, of how many.
        set_apart: how it differs from the other parts, or ``""``.
        stack: the frames in order with their grid, or None.
        defect: why there is no stack.
    """

    series_uid: str
    series_number: str
    description: str
    kernel: str
    image_type: tuple[str, ...]
    files: tuple[CtFile, ...]
    frames: tuple[Frame, ...]
    part: tuple[int, int]
    set_apart: str
    stack: Stack | None
    defect: InputError | None


def candidates(images: Sequence[CtFile], name: str, *, accept_gaps: bool) -> list[Candidate]:
    """Every stack of every series; what can't be read has its defect.

    Args:
        images: CT files of any series.
        name: of the scan, for messages.
        accept_gaps: see ``ReadOptions``.
    """
    series: dict[str, list[CtFile]] = {}
    for image in images:
        series.setdefault(image.series_uid, []).append(image)
    return [candidate for files in series.values() for candidate in _of_series(files, name, accept_gaps=accept_gaps)]


def _of_series(files: Sequence[CtFile], name: str, *, accept_gaps: bool) -> list[Candidate]:
    pictures = [file for file in files if "LOCALIZER" in file.image_type]
    usable = _of_one_unit([file for file in files if "LOCALIZER" not in file.image_type])
    found = []
    for group in (usable, pictures):
        defects = [file for file in group if file.defect is not None]
        good = [file for file in group if file.defect is None]
        first_defect = None if accept_gaps and good else next((file.defect for file in defects), None)
        parts = _parts([frame for file in good for frame in file.frames])
        if not parts and defects:
            parts = [()]
        by_source = {file.source: file for file in group}
        for number, frames in enumerate(parts, start=1):
            holders = [by_source[source] for source in dict.fromkeys(frame.source for frame in frames)] or defects
            dropped = tuple(file.source for file in defects) if frames and number == 1 else ()
            stack, defect = None, first_defect if number == 1 else None
            if defect is None:
                stack, defect = _stack(frames, dropped, _strays(parts, number), name, accept_gaps=accept_gaps)
            found.append(_candidate(holders, frames, (number, len(parts)), _difference(parts, number), stack, defect))
    return found


def _of_one_unit(files: Sequence[CtFile]) -> list[CtFile]:
    """The files; those have a defect whose stored values have no slope or intercept where others' have both."""
    told = {frame.rescaled for file in files for frame in file.frames}
    return [
        replace(
            file,
            frames=(),
            defect=InputError(
                f"{file.source} has no rescale slope or intercept, which other slices of its series have, so its "
                "values are of another unit. Export the series again."
            ),
        )
        if len(told) > 1 and not all(frame.rescaled for frame in file.frames)
        else file
        for file in files
    ]


def _stack(
    frames: Sequence[Frame], dropped: Sequence[str], strays: str, name: str, *, accept_gaps: bool
) -> tuple[Stack | None, InputError | None]:
    try:
        return arrange(frames, name, accept_gaps=accept_gaps, dropped=dropped, strays=strays), None
    except InputError as error:
        return None, error


def _candidate(
    files: Sequence[CtFile],
    frames: Sequence[Frame],
    part: tuple[int, int],
    set_apart: str,
    stack: Stack | None,
    defect: InputError | None,
) -> Candidate:
    header = files[0].header
    types = Counter(file.image_type for file in files)
    return Candidate(
        series_uid=files[0].series_uid,
        series_number=text_of(header, "SeriesNumber"),
        description=text_of(header, "SeriesDescription"),
        kernel=text_of(header, "ConvolutionKernel").strip("[]'"),
        image_type=min(types, key=lambda kind: (-types[kind], kind)),
        files=tuple(files),
        frames=tuple(frames),
        part=part,
        set_apart=set_apart,
        stack=stack,
        defect=defect,
    )


def _parts(frames: Sequence[Frame]) -> list[tuple[Frame, ...]]:
    """The frames by orientation, size, frame of reference and acquisition; the largest part first."""
    alike: list[list[Frame]] = []
    for frame in frames:
        home = next((group for group in alike if _is_alike(group[0], frame)), None)
        if home is None:
            alike.append([frame])
        else:
            home.append(frame)
    parts = [part for group in alike for part in _by_acquisition(group)]
    return sorted(parts, key=lambda part: -len(part))


def _is_alike(one: Frame, other: Frame) -> bool:
    if (one.rows, one.columns, one.frame_of_reference) != (other.rows, other.columns, other.frame_of_reference):
        return False
    pairs = zip(one.row_lps + one.column_lps, other.row_lps + other.column_lps, strict=True)
    return max(abs(a - b) for a, b in pairs) <= SAME_ORIENTATION


def _by_acquisition(frames: Sequence[Frame]) -> list[tuple[Frame, ...]]:
    """One part per acquisition, except where acquisitions together make one stack.

    They do where they are evenly spaced together, or follow each other without overlap: scanners count one acquisition
    per rotation of a sequential scan.
    """
    names = list(dict.fromkeys(frame.acquisition for frame in frames))
    if len(names) < 2:
        return [tuple(frames)]
    normal = np.cross(frames[0].row_lps, frames[0].column_lps)
    places = np.array([float(np.dot(frame.position_lps_mm, normal)) for frame in frames])
    order = np.argsort(places, kind="stable")
    ordered, gaps = [frames[i] for i in order], np.diff(places[order])
    changes = [i for i in range(len(gaps)) if ordered[i].acquisition != ordered[i + 1].acquisition]
    if not doubled(gaps).any() and (even_steps(gaps) or len(changes) == len(names) - 1):
        return _cut(ordered, [i for i in changes if gaps[i] > _NEAR_MM and gaps[i] > 2 * float(np.median(gaps))])
    return [tuple(frame for frame in ordered if frame.acquisition == name) for name in names]


def _cut(ordered: Sequence[Frame], after: Iterable[int]) -> list[tuple[Frame, ...]]:
    ends = [0, *(i + 1 for i in after), len(ordered)]
    return [tuple(ordered[a:b]) for a, b in pairwise(ends)]


def _difference(parts: Sequence[Sequence[Frame]], number: int) -> str:
    """How a part differs from the largest one, or the largest from the next."""
    if len(parts) < 2:
        return ""
    one, other = parts[number - 1][0], parts[0 if number > 1 else 1][0]
    if (one.rows, one.columns) != (other.rows, other.columns):
        return f"of {one.columns}x{one.rows} pixels"
    if one.frame_of_reference != other.frame_of_reference:
        return "of another frame of reference" if number > 1 else "of the first frame of reference"
    if not _is_alike(one, other):
        return "of another orientation" if number > 1 else "of the first orientation"
    return f"of acquisition {one.acquisition or 'without number'}"


def _strays(parts: Sequence[Sequence[Frame]], number: int) -> str:
    """What to add to a refusal for missing slices: these may be among what was set apart."""
    few = [(n, part) for n, part in enumerate(parts, start=1) if n != number and len(part) < len(parts[number - 1])]
    if not few:
        return ""
    n, part = few[0]
    more = f" and {len(few) - 1} other parts" if len(few) > 1 else ""
    return f" Set apart was {part[0].source}, {_difference(parts, n)}{more}."
