"""The list of scans: a CSV with a column ``scan``, checked as a whole before anything starts."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError
from runtime.output import check_is_kept, check_replaceable, result_folders

SCAN, ID = "scan", "id"
_SHOWN = 20
"""So many problems are told; of the others their number."""


@dataclass(frozen=True)
class CohortScan:
    """A row of the list.

    Args:
        id: names the scan in every table: its column ``id``, or without one ``scan`` as written.
        scan: as written.
        path: of the scan, absolute.
        folder: where its results go, absolute.
        others: what the other columns say, in the order of ``ScanTable.columns``.
    """

    id: str
    scan: str
    path: Path
    folder: Path
    others: tuple[str, ...]


@dataclass(frozen=True)
class ScanTable:
    """The list: its scans in their order, the names of its other columns, and the folder that all scans lie in."""

    scans: tuple[CohortScan, ...]
    columns: tuple[str, ...]
    root: Path


@dataclass(frozen=True)
class _Row:
    line: int
    id: str
    scan: str
    path: Path
    others: tuple[str, ...]


def read_scan_table(path: Path, *, output: Path, root: Path | None, reserved: Collection[str]) -> ScanTable:
    """Read and check the list.

    A path that is not absolute starts at the list's own folder. The results of a scan go to
    ``<scan name>.vertebrae`` in ``output``, in the same subfolders that it lies in below ``root``: where
    ``runtime.infer ROOT -o OUTPUT`` puts them.

    Args:
        path: CSV in UTF-8 with a header; separated by commas, or by semicolons where the header has no comma.
        output: folder of the results.
        root: folder that all scans lie in; the list's own folder if None.
        reserved: names of columns that the tables of results have themselves.

    Raises:
        InputError: what is wrong with the list, all of it: header, rows, ids and scans that are there twice, scans
            that are missing, and results that can't be where they would go.
    """
    path = path.absolute()
    root = path.parent if root is None else root.absolute()
    header, rows = _read_rows(path, reserved)
    problems = [*_doubled(rows), *_missing(rows)]
    outside = [row for row in rows if not _is_below(row.path, root)]
    if outside:
        common = _common_folder([row.path for row in rows])
        problems += [f"line {row.line}: {row.scan} is not below {root}" for row in outside]
        problems.append(f"name a folder that all scans lie in with --root{f', such as {common}' if common else ''}")
    if problems:
        raise _refused(path, problems)
    folders = result_folders(
        [row.path for row in rows],
        output.absolute(),
        under=[Path(os.path.normpath(row.path.parent)).relative_to(os.path.normpath(root)) for row in rows],
    )
    if problems := _unusable(rows, folders):
        raise _refused(path, problems)
    scans = tuple(
        CohortScan(row.id, row.scan, row.path, folder, row.others) for row, folder in zip(rows, folders, strict=True)
    )
    return ScanTable(scans, tuple(name for name in header if name not in (SCAN, ID)), root)


def _refused(path: Path, problems: Sequence[str]) -> InputError:
    if len(problems) == 1:
        return InputError(f"{path}: {problems[0]}.")
    shown = [f"  {problem}" for problem in problems[:_SHOWN]]
    more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return InputError("\n".join([f"{path} can't be used, for {len(problems)} reasons:", *shown, *more]))


def _read_rows(path: Path, reserved: Collection[str]) -> tuple[list[str], list[_Row]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            lines = csv.reader(file, delimiter=";" if ";" in first and "," not in first else ",", strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_header(path, header, reserved)
            cells = [(lines.line_num, [cell.strip() for cell in row]) for row in lines if any(map(str.strip, row))]
    except OSError as error:
        raise InputError(f"The list {path} can't be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The list {path} is not UTF-8 text; save it as CSV in UTF-8.") from error
    except csv.Error as error:
        raise InputError(f"The list {path} is no CSV: line {lines.line_num}: {error}.") from error
    if not cells:
        raise InputError(f"{path} lists no scan; below the header each line should name one.")
    wrong = [
        f"line {line} has {len(row)} fields, the header {len(header)}" for line, row in cells if len(row) != len(header)
    ]
    at = header.index(SCAN)
    wrong += [f"line {line} names no scan" for line, row in cells if len(row) == len(header) and not row[at]]
    if wrong:
        raise _refused(path, wrong)
    return header, [_row(path, header, line, row) for line, row in cells]


def _check_header(path: Path, header: Sequence[str], reserved: Collection[str]) -> None:
    if SCAN not in header:
        met = ", ".join(header) if any(header) else "nothing"
        raise InputError(f"{path} has no column {SCAN!r}; its first line should name the columns, and names {met}.")
    problems = []
    if "" in header:
        problems.append(f"column {header.index('') + 1} has no name")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    problems += [f"there are {header.count(name)} columns {name!r}" for name in twice]
    own = sorted((set(header) & set(reserved)) - {SCAN, ID})
    problems += [f"the tables of results have a column {name!r} themselves; rename it" for name in own]
    if problems:
        raise _refused(path, problems)


def _row(path: Path, header: Sequence[str], line: int, cells: Sequence[str]) -> _Row:
    named = dict(zip(header, cells, strict=True))
    scan = named[SCAN]
    others = tuple(value for name, value in named.items() if name not in (SCAN, ID))
    return _Row(line, named.get(ID, scan), scan, path.parent / scan, others)


def _doubled(rows: Sequence[_Row]) -> list[str]:
    problems, ids, paths = [], dict[str, int](), dict[str, int]()
    for row in rows:
        if not row.id:
            problems.append(f"line {row.line}: the id is empty")
        elif ids.setdefault(row.id, row.line) != row.line:
            problems.append(f"line {row.line}: the id {row.id} is that of line {ids[row.id]} too")
        path = os.path.normcase(os.path.normpath(row.path))
        if paths.setdefault(path, row.line) != row.line:
            problems.append(f"line {row.line}: the scan {row.scan} is that of line {paths[path]} too")
    return problems


def _missing(rows: Sequence[_Row]) -> list[str]:
    problems = []
    for row in rows:
        try:
            row.path.stat()
        except (OSError, ValueError) as error:
            reason = "there is no such file or folder" if isinstance(error, FileNotFoundError) else str(error)
            problems.append(f"line {row.line}: {row.scan}: {reason}")
    return problems


def _is_below(path: Path, root: Path) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root))


def _common_folder(paths: Sequence[Path]) -> str:
    try:
        return os.path.commonpath([os.path.normpath(path.parent) for path in paths])
    except ValueError:  # on several drives
        return ""


def _unusable(rows: Sequence[_Row], folders: Sequence[Path]) -> list[str]:
    """Results that can't be where they would go; a reason that many share, such as a disk that is full, once."""
    problems = dict[str, str]()
    for row, folder in zip(rows, folders, strict=True):
        try:
            check_is_kept(row.path, folder)
            check_replaceable(folder)
        except InputError as error:
            problems.setdefault(str(error), f"line {row.line}: {str(error).rstrip('.')}")
    return list(problems.values())
