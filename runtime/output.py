"""The result folder of a scan: its name, and how it is written whole or not at all."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.dicom import BINARY
from runtime.dicom import FILES as DICOM_FILES
from runtime.disk import flush_folder, flush_with_files
from runtime.errors import InputError, OutputError
from runtime.findings import Findings, to_json
from runtime.locked_folder import locked_folder, remove_leftovers
from runtime.memory import peak_memory_mb
from runtime.paths import nearest_there
from runtime.readers import scan_name

if TYPE_CHECKING:
    from runtime.pipeline import Analysis
    from runtime.progress import Progress

FINDINGS_FILE = "findings.json"
MASK_FILE = "vertebrae.nii.gz"
OVERVIEW_FILE = "overview.png"
RESULT_FILES = frozenset({FINDINGS_FILE, MASK_FILE, OVERVIEW_FILE, *DICOM_FILES.values()})
"""All that a result folder may hold; a folder with anything else is never touched."""
SCRATCH = ".vertscan-"
"""Begins the names of folders that are being written; one that a killed process left is no obstacle."""


def result_folders(
    scans: Sequence[Path], output: Path | None, *, under: Sequence[Path] | None = None
) -> tuple[Path, ...]:
    """Where the results of each scan go.

    One scan and ``output``: that very folder. Several scans: ``<scan name>.vertebrae`` in it. No ``output``:
    ``<scan name>.vertebrae`` in the working directory. Of a list of scans, each goes to the folder below that its
    ``under`` names, and one scan is a list too.

    Raises:
        InputError: two scans would share a folder; which result is whose could not be told afterwards.
    """
    if output is not None and under is None and len(scans) == 1:
        return (output,)
    below = [Path()] * len(scans) if under is None else under
    folders = tuple(
        (output or Path()) / place / f"{scan_name(scan)}.vertebrae" for scan, place in zip(scans, below, strict=True)
    )
    owners: dict[str, Path] = {}
    for scan, folder in zip(scans, folders, strict=True):
        first = owners.setdefault(str(folder).casefold(), scan)
        if first is not scan:
            raise InputError(
                f"{first} and {scan} would both be written to {folder}. Rename one, or run them one by one, each with "
                "its own -o."
            )
    return folders


@dataclass(frozen=True)
class Outputs:
    """What is written beside findings and mask.

    Args:
        overview: the picture.
        dicom: kinds of DICOM objects, of ``runtime.dicom.KINDS``.
        seg_type: how the segmentation is encoded, one of ``runtime.dicom.SEG_TYPES``; None where nobody named one:
            ``BINARY``.
    """

    overview: bool = True
    dicom: tuple[str, ...] = ()
    seg_type: str | None = None


def write_results(
    analysis: Analysis, folder: Path, *, outputs: Outputs, progress: Progress, scratch: str = SCRATCH
) -> Findings:
    """Write findings, mask and what else is asked for into ``folder``: all of them or nothing.

    Args:
        analysis: what is written.
        folder: of the results.
        outputs: what is written beside findings and mask.
        progress: is told the stages.
        scratch: begins the name of the folder it is written to first; must begin with ``SCRATCH``.

    Returns:
        The findings as written: with the time and memory of the writing itself, up to the mask. Not in it are the
        findings' own file, and bringing all onto the disk and to its name, which come after the time was stated.

    Raises:
        OutputError: the folder can't be written.
        InputError: the folder holds something else, or DICOM objects are asked for and can't be made of this scan.
    """
    from runtime.writers import write_label_volume

    seconds = dict(analysis.findings.timings_s)
    total_s = seconds.pop("total")
    start_s = time.perf_counter()
    with replaced_whole(folder, scratch=scratch) as fresh:
        if outputs.overview:
            from runtime.overview import draw_overview
            from runtime.png import write_png

            progress.stage("overview")
            picture = draw_overview(analysis.volume, analysis.labels, analysis.findings, notice=analysis.notice)
            write_png(fresh / OVERVIEW_FILE, picture)
            seconds["overview"] = round(time.perf_counter() - start_s, 3)
        if outputs.dicom:
            from runtime.dicom.writer import write_dicom

            progress.stage("dicom")
            dicom_start_s = time.perf_counter()
            write_dicom(analysis, fresh, outputs.dicom, seg_type=outputs.seg_type or BINARY)
            seconds["dicom"] = round(time.perf_counter() - dicom_start_s, 3)
        progress.stage("write")
        write_start_s = time.perf_counter()
        write_label_volume(fresh / MASK_FILE, analysis.labels, analysis.volume.grid)
        now_s = time.perf_counter()
        seconds |= {"write": round(now_s - write_start_s, 3), "total": round(total_s + now_s - start_s, 3)}
        findings = replace(analysis.findings, timings_s=seconds, peak_memory_mb=round(peak_memory_mb(), 1))
        (fresh / FINDINGS_FILE).write_text(to_json(findings) + "\n", encoding="ascii", newline="\n")
    return findings


def check_is_kept(scan: Path, folder: Path) -> None:
    """Raise InputError when results in ``folder`` would replace the scan itself, or lie among its slices."""
    source, target = _resolved(scan), _resolved(folder)
    if source == target or (source.parent == target and source.name in RESULT_FILES):
        raise InputError(f"The results in {folder} would replace the scan {scan}; name another folder with -o.")


def _resolved(path: Path) -> Path:
    """The path without links; as it is where that can't be told, such as for links in a ring: using it will tell."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def check_replaceable(folder: Path) -> None:
    """Do nothing if ``folder`` is free and can be made, is empty, or is a result folder to be replaced.

    Raises:
        OutputError: it can't be written.
        InputError: it holds something else.
    """
    try:
        home = nearest_there(folder)
        if not home.is_dir() or not os.access(home, os.W_OK):
            raise OutputError(f"Nothing can be written to {home}; name another folder with -o.")
        if not folder.exists():
            return
        others = sorted(e.name for e in folder.iterdir() if e.name not in RESULT_FILES and not _is_scratch(e))
    except OSError as error:
        raise OutputError(f"{folder} can't be used ({error.strerror or error}); name another one with -o.") from error
    if others:
        raise InputError(f"{folder} holds other files ({', '.join(others[:3])}); name another folder with -o.")


@contextmanager
def replaced_whole(folder: Path, *, scratch: str = SCRATCH) -> Iterator[Path]:
    """A fresh folder to write into; when the block ends well its files become those of ``folder``, else they vanish.

    A new ``folder`` comes into being complete, by one rename. One that is there stays itself, since it may be a mount
    point or the working directory: its results are exchanged for the new ones by renames, undone if one fails. All is
    on the disk before it gets its name, and ``findings.json`` comes last, so it never lies beside files that are not
    whole or not its own, not even after a power cut. Fresh folders that killed processes of this machine left in the
    same place are removed, where locks tell that they are nobody's; those that hold earlier results only when the new
    ones are in place.

    Raises:
        OutputError: ``folder`` can't be written.
        InputError: it may not be replaced.
    """
    check_replaceable(folder)
    folder = folder.absolute()
    with _said_as_output_error(folder), ExitStack() as stack:
        home = folder if folder.exists() else folder.parent
        home.mkdir(parents=True, exist_ok=True)
        remove_leftovers(home, SCRATCH, mark=platform.node(), spared=_holds_results)
        made = stack.enter_context(locked_folder(home, scratch, mark=platform.node()))
        fresh = made / "new"
        fresh.mkdir()
        yield fresh
        check_replaceable(folder)
        flush_with_files(fresh)
        _put(fresh, folder, made / "old")
        remove_leftovers(home, SCRATCH, mark=platform.node())


def _holds_results(left: Path) -> bool:
    """Whether a process that was killed left earlier results in its folder: there may be no others."""
    return (left / "old").is_dir() and any((left / "old").iterdir())


def _is_scratch(entry: Path) -> bool:
    return entry.name.startswith(SCRATCH)


def _put(fresh: Path, folder: Path, old: Path) -> None:
    """Make ``fresh`` the results in ``folder``, and what was there ``old``."""
    if not folder.exists():
        try:
            fresh.rename(folder)
            flush_folder(folder.parent)
            return
        except OSError:
            if not folder.exists():  # else another run has just put its results there
                raise
    with _alone_in(folder):
        _exchange(fresh, folder, old)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs from exchanging results in ``folder`` meanwhile: findings and masks are of one run.

    Does nothing where the system or the file system has no locks on folders.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _exchange(fresh: Path, folder: Path, old: Path) -> None:
    """Move the results in ``folder`` to ``old`` and those in ``fresh`` into it; when that fails, put all back.

    Findings are the first to go and the last to come, on the disk too.
    """
    names = {entry.name for entry in fresh.iterdir()}
    others = sorted((RESULT_FILES | names) - {FINDINGS_FILE})
    old.mkdir()
    try:
        _move([FINDINGS_FILE], folder, old)
        flush_folder(folder)
        _move(others, folder, old)
        _move(others, fresh, folder)
        flush_folder(folder)
        _move([FINDINGS_FILE], fresh, folder)
        flush_folder(folder)
    except BaseException:
        for name in names:
            if not (fresh / name).exists():
                (folder / name).unlink(missing_ok=True)
        for entry in sorted(old.iterdir(), key=lambda entry: entry.name == FINDINGS_FILE):
            entry.replace(folder / entry.name)
        raise


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    """Of the files ``names`` those that are in ``source`` to ``target``."""
    for name in names:
        if (source / name).exists():
            (source / name).rename(target / name)


@contextmanager
def _said_as_output_error(folder: Path) -> Iterator[None]:
    """Name the folder of the results in errors of writing, not the one that they are written to first."""
    try:
        yield
    except OutputError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise _unwritable(folder, error.__cause__) from error.__cause__
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"The results can't be written to {folder} ({error.strerror or error}); "
        "choose a folder with -o that is writable and has room."
    )
