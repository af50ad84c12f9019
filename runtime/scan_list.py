"""What is to be run where a folder is named: the folder itself as one DICOM series, or the scans in it one by one."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError
from runtime.output import FINDINGS_FILE, RESULT_FILES
from runtime.paths import is_folder
from runtime.readers import READERS
from runtime.readers.dicom_damage import damage, quiet
from runtime.readers.dicom_mark import MARKED_BYTES, is_marked

logger = logging.getLogger(__name__)

RULE = (
    "A folder that holds DICOM files, or a DICOMDIR, is one scan. In any other folder every .nii, .nii.gz, .nrrd, "
    ".mha, .mhd and .zip file and every subfolder that holds DICOM files is a scan of its own, at any depth; "
    "subfolders that hold the series of one study, or pieces of one series, are one scan together. Links to folders "
    "are followed, each folder counts once. Hidden folders, folders of results and scans of other formats beside DICOM "
    "files are left out."
)
"""What a folder means, for those who use it."""
_FILES = tuple(ending for ending in READERS if ending.startswith(".") and ending != ".dcm")
_RESULTS = ".vertebrae"
_UIDS = ("SeriesInstanceUID", "StudyInstanceUID")


@dataclass(frozen=True)
class ListedScan:
    """A scan to be run.

    Args:
        path: of the file or folder.
        under: where its results go below the output folder: where the scan lies in the folder that was named.
    """

    path: Path
    under: Path = Path()


def list_scans(named: Sequence[Path]) -> tuple[tuple[ListedScan, ...], bool]:
    """The scans that the named paths mean by ``RULE``, in the order of the names; and whether any name meant a list.

    A folder in which nothing is found is given as it is: reading it tells what is wrong.

    Raises:
        InputError: a folder can't be listed.
    """
    scans: list[ListedScan] = []
    is_list = len(named) > 1
    for path in named:
        found = _scans_in(path, set()) if is_folder(path) else [path]
        if found in ([path], []):
            scans.append(ListedScan(path))
            continue
        is_list = True
        scans += [ListedScan(one, one.parent.relative_to(path)) for one in found]
    return tuple(scans), is_list


def _scans_in(folder: Path, entered: set[str]) -> list[Path]:
    """The scans in a folder; ``entered`` are folders that were looked at, and are not again, whatever links to them."""
    entered.add(os.path.realpath(folder))
    try:
        with os.scandir(folder) as entries:
            there = [Path(entry.path) for entry in sorted(entries, key=lambda entry: entry.name)]
        files = [one for one in there if one.is_file()]  # links that go round in a ring are neither
        below = [one for one in there if one.is_dir()]
        if _first_dicom(files) is not None:
            _say_what_is_left_out(folder, files)
            return [folder]
    except OSError as error:
        raise InputError(
            f"The folder {folder} can't be listed ({error.strerror or error}); give this user read access, or name the "
            "scans one by one."
        ) from error
    if {FINDINGS_FILE} <= {file.name for file in files} <= RESULT_FILES:
        return []
    found = [file for file in files if file.name.lower().endswith(_FILES)]
    below = [one for one in below if not one.name.startswith(".") and not one.name.lower().endswith(_RESULTS)]
    below.sort(key=lambda one: one.is_symlink())
    listed = [(one, _scans_in(one, entered)) for one in below if os.path.realpath(one) not in entered]
    if _belong_together([one for one, inside in listed if inside == [one]]):
        return [folder]
    return found + [scan for _, inside in listed for scan in inside]


def _say_what_is_left_out(folder: Path, files: Sequence[Path]) -> None:
    """Beside DICOM files scans of other formats are often copies or masks of these, so they aren't run unasked."""
    others = [file.name for file in files if file.name.lower().endswith(_FILES)]
    if others:
        logger.warning(
            "%s is one scan, its DICOM files; %d other file(s) in it are left out, such as %s. Name them to run them.",
            folder, len(others), others[0],
        )  # fmt: skip


def _first_dicom(files: Sequence[Path]) -> Path | None:
    """The first DICOM file, by its ending, its mark or its name."""
    for file in files:
        name = file.name.lower()
        if name.endswith(".dcm") or name == "dicomdir":
            return file
        if not name.endswith(_FILES) and _has_mark(file):
            return file
    return None


def _has_mark(file: Path) -> bool:
    with file.open("rb") as stream:
        return is_marked(stream.read(MARKED_BYTES))


def _belong_together(folders: Sequence[Path]) -> bool:
    """Whether the folders, by their first DICOM files, hold one study, or any two of them pieces of one series."""
    if len(folders) < 2:
        return False
    unreadable: tuple[type[Exception], ...] = (OSError, *damage())
    series, studies = [], set()
    for folder in folders:
        try:
            first = _first_dicom(sorted(file for file in folder.iterdir() if file.is_file()))
            if first is None or first.name.lower() == "dicomdir":
                continue
            own_series, study = _series_and_study_of(first)
        except unreadable:  # reading it as a scan tells what is wrong
            continue
        series.append(own_series or str(folder))
        studies.add(study or series[-1])
    return len(set(series)) < len(series) or len(studies) == 1 < len(series)


def _series_and_study_of(file: Path) -> list[str]:
    """The UIDs of a DICOM file's series and study; empty where it has none."""
    import pydicom

    with quiet():
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_UIDS))
        return [str(header.get(keyword, "")) for keyword in _UIDS]
