"""DICOM CT series: folders, zips, DICOMDIRs and single (enhanced) files. The geometry is checked here, not by ITK."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.readers.checks import VoxelCollector, fits_int16, tell_of
from runtime.readers.dicom_choice import SeriesRules, Verdict, brief, choose, label, refusal, stated_thickness_mm
from runtime.readers.dicom_damage import quiet
from runtime.readers.dicom_files import FileSet, dicomdir_files, folder_files, single_file, zip_files
from runtime.readers.dicom_geometry import Stack, arrange
from runtime.readers.dicom_headers import CtFile, Headers, read_headers, text_of
from runtime.readers.dicom_pixels import SliceReader, bytes_of_open_files, read_voxels
from runtime.readers.dicom_series import Candidate, candidates
from runtime.readers.dicom_source import DicomSource
from runtime.readers.options import ReadOptions, ScanHeader
from runtime.remarks import NOT_READ
from runtime.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

_HEADER_BYTES = 2**16
"""A header without pixels, as objects."""


@dataclass(frozen=True, eq=False)
class SeriesList:
    """What a DICOM scan holds.

    Args:
        verdicts: on every stack of every CT series, the best first.
        headers: of all files.
        files: all of them.
    """

    verdicts: tuple[Verdict, ...]
    headers: Headers
    files: FileSet


def read_folder(path: Path, name: str, options: ReadOptions) -> Volume:
    """Reads the CT series in a folder and its subfolders; see :func:`runtime.readers.read_scan`."""
    return _read(folder_files(path), name, options)


def read_file(path: Path, name: str, options: ReadOptions) -> Volume:
    """Reads one enhanced multiframe CT file."""
    return _read(single_file(path), name, options)


def read_dicomdir(path: Path, name: str, options: ReadOptions) -> Volume:
    """Reads the CT series that a DICOMDIR names."""
    return _read(dicomdir_files(path), name, options)


def read_zip(path: Path, name: str, options: ReadOptions) -> Volume:
    """Reads the CT series in a zip, without unpacking it to disk."""
    with _zip(path) as files:
        return _read(files, name, options)


def list_series(path: Path, name: str, options: ReadOptions) -> SeriesList:
    """What is there and what would be chosen; no pixel is read.

    Args:
        path: folder, zip, DICOMDIR or file.
        name: of the scan, for messages.
        options: as for reading.

    Raises:
        InputError: it can't be looked into.
    """
    if path.is_dir():
        return _list(folder_files(path), name, options)
    if path.name.lower().endswith(".zip"):
        with _zip(path) as files:
            return _list(files, name, options)
    by_name = dicomdir_files if path.name.upper() == "DICOMDIR" else single_file
    return _list(by_name(path), name, options)


@contextmanager
def _zip(path: Path) -> Iterator[FileSet]:
    try:
        with zip_files(path) as files:
            yield files
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path.name} is no zip or is damaged ({error}). Copy the file again.") from error
    except NotImplementedError as error:
        raise InputError(f"{path.name} is packed in a way that can't be read ({error}). Give the folder.") from error


def _list(files: FileSet, name: str, options: ReadOptions) -> SeriesList:
    headers = read_headers(files)
    with quiet():
        found = candidates(headers.images, name, accept_gaps=options.accept_gaps)
    return SeriesList(tuple(choose(found, series_uid=options.series_uid)), headers, files)


def _read(files: FileSet, name: str, options: ReadOptions) -> Volume:
    """The chosen series; what is raised bears what was said of every series as its ``__notes__``."""
    listed = _list(files, name, options)
    try:
        return _read_chosen(listed, files, name, options)
    except InputError as error:
        for reason in _reasons(listed):
            error.add_note(reason)
        raise


def _read_chosen(listed: SeriesList, files: FileSet, name: str, options: ReadOptions) -> Volume:
    notes = [*files.notes, *_on_what_is_missing(listed, options)]
    if not listed.headers.images:
        raise InputError(
            f"{files.where} has no CT images (it holds: {listed.headers.met()}). Give a folder or zip with a DICOM CT "
            "series."
        )
    chosen = next((verdict.candidate for verdict in listed.verdicts if verdict.chosen), None)
    if chosen is None:
        raise refusal(listed.verdicts, name, options.series_uid)
    if options.series_uid is None:
        notes += _on_whose_they_are(listed, chosen, files.where)
    notes += _on_the_choice(listed, chosen)
    with quiet():
        return _volume(files, chosen, name, notes, options)


def _volume(files: FileSet, chosen: Candidate, name: str, notes: Sequence[str], options: ReadOptions) -> Volume:
    """The chosen stack with its voxels; files that turn out to be damaged are left out if gaps are accepted."""
    images = {image.source: image for image in chosen.files}
    reader = SliceReader(files.files, images)
    stack = chosen.stack
    assert stack is not None
    tell_of(_header(stack, images, name), options)
    if options.accept_gaps:
        stack = _decodable(reader, chosen, name)
    voxels = VoxelCollector(stack.grid.shape_zyx, name)
    read_voxels(reader, stack, voxels)
    array = voxels.finish(options.lowest_hu)
    rescaled = all(frame.rescaled for frame in stack.frames)
    unscaled = (
        []
        if rescaled
        else ["Rescale slope or intercept are missing: the stored values were taken as Hounsfield units."]
    )
    everything = (*notes, *stack.notes, *unscaled, *voxels.notes)
    return Volume(array, stack.grid, name, reader.sha256(), everything, _source(stack, images, files.root))


def _header(stack: Stack, images: Mapping[str, CtFile], name: str) -> ScanHeader:
    """What the headers say of a stack."""
    kinds = {(frame.source, frame.slope, frame.intercept) for frame in stack.frames}
    stays_int16 = all(fits_int16(_largest_stored(images[s].header), slope, shift) for s, slope, shift in kinds)
    return ScanHeader(name, stack.grid, stays_int16, bytes_of_open_files(stack) + len(images) * _HEADER_BYTES)


def _largest_stored(header: Dataset) -> float:
    """The largest value that a pixel can have; infinite where they aren't whole numbers of a known size."""
    bits, signed = header.get("BitsStored"), header.get("PixelRepresentation")
    return 2.0 ** (int(bits) - int(signed)) - 1 if bits and signed in (0, 1) else math.inf


def _decodable(reader: SliceReader, chosen: Candidate, name: str) -> Stack:
    """The stack without the slices whose pixels can't be decoded."""
    assert chosen.stack is not None
    bad: dict[str, InputError] = {}
    trial = reader.without_memory()
    for frame in (*chosen.stack.frames, *(copy for _, copy in chosen.stack.copies)):
        if frame.source not in bad:
            try:
                trial.stored(frame)
            except InputError as error:
                bad[frame.source] = error
    if not bad:
        return chosen.stack
    good = [frame for frame in chosen.frames if frame.source not in bad]
    if not good:
        raise next(iter(bad.values()))
    dropped = [*bad, *(file.source for file in chosen.files if file.defect is not None)]
    return arrange(good, name, accept_gaps=True, dropped=dropped)


def _on_what_is_missing(listed: SeriesList, options: ReadOptions) -> list[str]:
    """What to say of files that can't be read or aren't there.

    Raises:
        InputError: there are such files, and gaps are not accepted.
    """
    broken, missing = listed.headers.broken, listed.files.missing
    if not options.accept_gaps:
        if broken:
            raise next(iter(broken.values()))
        if missing:
            raise InputError(
                f"The DICOMDIR names {len(missing)} files that are not there, such as {missing[0]}. Copy the disc "
                "again, or accept gaps (--accept-gaps)."
            )
    notes = []
    if empty := listed.headers.empty:
        notes.append(f"{len(empty)} files are empty, such as {empty[0]}: if they were slices, the scan is not whole.")
    if broken:
        notes.append(f"{len(broken)} files that can't be read were left out, such as {next(iter(broken))}.")
    if missing:
        notes.append(f"{len(missing)} files that the DICOMDIR names are not there, such as {missing[0]}.")
    return notes


def _on_whose_they_are(listed: SeriesList, chosen: Candidate, where: str) -> list[str]:
    """What to say of several studies.

    Raises:
        InputError: the images are of several patients. Which of them the results would be about is not for a rule to
            say.
    """
    if (count := len(patients(listed))) > 1:
        raise InputError(
            f"{where} has CT images of {count} patients. Give the folder of one of them, or name a series with "
            "--series (python -m runtime.series lists them)."
        )
    studies = {image.study_uid for image in listed.headers.images}
    if len(studies) < 2:
        return []
    with quiet():
        date = text_of(chosen.files[0].header, "StudyDate") or "without date"
    return [f"CT images of {len(studies)} studies were there; those that were read are of the study of {date}."]


def patients(listed: SeriesList) -> frozenset[str]:
    """Whom the CT images are of: Patient IDs, or names where there are none; images with neither don't count."""
    headers = [image.header for image in listed.headers.images]
    with quiet():
        return frozenset(text_of(h, "PatientID") or text_of(h, "PatientName") for h in headers) - {""}


def _on_the_choice(listed: SeriesList, chosen: Candidate) -> list[str]:
    """Why this series was read and the others were not."""
    notes = []
    if len(listed.verdicts) > 1:
        best = listed.verdicts[0]
        notes.append(f"Of {len(listed.verdicts)} CT series, {brief(chosen)} was read: {best.reason}.")
    notes += [reason for reason in _reasons(listed) if reason.startswith(NOT_READ)]
    mates = [other for other in listed.headers.others if other.series_uid and other.series_uid == chosen.series_uid]
    if mates:
        notes.append(
            f"{len(mates)} files of {label(chosen)} are no CT images and were left out, such as {mates[0].source} "
            f"({mates[0].kind})."
        )
    return notes


def _reasons(listed: SeriesList) -> list[str]:
    """What is said of every series: the CT series, the best first, then those without CT images."""
    said = [f"{'Chosen: ' if verdict.chosen else NOT_READ}{described(verdict)}." for verdict in listed.verdicts]
    return said + [f"{NOT_READ}{other.label}: {other.reason}." for other in listed.headers.other_series()]


def described(verdict: Verdict) -> str:
    """A candidate and why it is, or isn't, the one to run on; no full stop."""
    apart = f" {verdict.candidate.set_apart}" if verdict.candidate.set_apart else ""
    return f"{brief(verdict.candidate)}{apart}: {verdict.reason.rstrip('.')}"


def _source(stack: Stack, images: Mapping[str, CtFile], root: Path) -> DicomSource:
    """What results refer to: the slices as they were received."""
    frames = stack.frames
    first = frames[0]
    thickness_mm = stated_thickness_mm(frames)
    believed = thickness_mm is not None and thickness_mm <= SeriesRules.thickest_mm
    return DicomSource(
        series_uid=images[first.source].series_uid,
        study_uid=images[first.source].study_uid,
        frame_of_reference_uid=first.frame_of_reference,
        files=tuple(root / frame.source for frame in frames),
        sop_instance_uids=tuple(text_of(images[frame.source].header, "SOPInstanceUID") for frame in frames),
        frame_numbers=tuple(frame.index + 1 for frame in frames),
        positions_lps_mm=_readonly([frame.position_lps_mm for frame in frames]),
        orientation=first.row_lps + first.column_lps,
        pixel_spacing_mm=(first.spacing_mm[0], first.spacing_mm[1]),
        thickness_mm=thickness_mm if believed else None,
        rows=first.rows,
        columns=first.columns,
        planes=_readonly(stack.planes),
        datasets=tuple(images[source].header for source in dict.fromkeys(frame.source for frame in frames)),
    )


def _readonly(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.array(values, np.float64)
    array.setflags(write=False)
    return array
