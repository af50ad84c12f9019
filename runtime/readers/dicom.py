"""DICOM CT series: folders, zips of a folder, and single (enhanced) files. The geometry is checked here, not by ITK."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runtime.errors import InputError
from runtime.readers.checks import VoxelCollector
from runtime.readers.dicom_frames import CT_CLASSES, Frame, frames_of
from runtime.readers.dicom_geometry import arrange
from runtime.readers.dicom_source import DicomSource
from runtime.volume import Volume

PADDING_HU = -1024.0
"""What pixels that a file declares to be padding become."""

_LOCALIZER = "CT localizer"

Files = Mapping[str, Callable[[], BinaryIO]]
"""Opens each file of a series, by the name that messages use."""


@dataclass(frozen=True)
class _Image:
    """One CT file's header, as far as choosing a series needs it."""

    series_uid: str
    series_number: str
    frames: tuple[Frame, ...]
    header: Any


def read_folder(path: Path, name: str) -> Volume:
    """Reads the CT series in a folder and its subfolders; see :func:`runtime.readers.read_scan`."""
    walked = [Path(folder) / file for folder, _, files in os.walk(path, onerror=_raise) for file in files]
    found = [file for file in walked if file.is_file()]  # not links that lead nowhere, pipes and the like
    files = {str(file.relative_to(path)): _opener(file) for file in sorted(found)}
    return _read(files, name, f"The folder {path}", path)


def read_file(path: Path, name: str) -> Volume:
    """Reads one enhanced multiframe CT file."""
    return _read({path.name: _opener(path)}, name, f"The file {path}", path.parent)


def read_zip(path: Path, name: str) -> Volume:
    """Reads the CT series in a zip, without unpacking it to disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            locked = next((info.filename for info in members if info.flag_bits & 1), None)
            if locked is not None:
                raise InputError(f"{path.name} is encrypted (such as {locked}); unpack it and give the folder.")
            files = {info.filename: _member_opener(archive, info) for info in members}
            return _read(files, name, f"The zip {path}", path)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path.name} is no zip or is damaged ({error}). Copy the file again.") from error
    except NotImplementedError as error:
        raise InputError(f"{path.name} is packed in a way that can't be read ({error}). Give the folder.") from error


def _raise(error: OSError) -> None:
    raise error


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def _member_opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], BinaryIO]:
    return lambda: io.BytesIO(archive.read(info))


def _read(files: Files, name: str, where: str, root: Path) -> Volume:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on attributes that are not used here
        images, notes = _ct_images(files, where)
        chosen = _longest_series(images, notes)
        frames, grid, more = arrange([frame for image in chosen for frame in image.frames], name)
        notes += more
        if not all(frame.rescaled for frame in frames):
            notes.append("Rescale slope or intercept are missing: the stored values were taken as Hounsfield units.")
        voxels = VoxelCollector(grid.shape_zyx, name)
        digests = _read_voxels(files, frames, voxels)
    array = voxels.finish()
    sha256 = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    source = _source(frames, {frame.source: image.header for image in chosen for frame in image.frames}, root)
    return Volume(array, grid, name, sha256, (*notes, *voxels.notes), source)


def _source(frames: Sequence[Frame], headers: Mapping[str, Any], root: Path) -> DicomSource:
    """What results refer to: the slices as they were received."""
    first, header = frames[0], headers[frames[0].source]
    return DicomSource(
        series_uid=str(header.get("SeriesInstanceUID", "")),
        study_uid=str(header.get("StudyInstanceUID", "")),
        frame_of_reference_uid=first.frame_of_reference,
        files=tuple(root / frame.source for frame in frames),
        sop_instance_uids=tuple(str(headers[frame.source].get("SOPInstanceUID", "")) for frame in frames),
        frame_numbers=tuple(frame.index + 1 for frame in frames),
        positions_lps_mm=np.array([frame.position_lps_mm for frame in frames]),
        orientation=first.row_lps + first.column_lps,
        pixel_spacing_mm=(first.spacing_mm[0], first.spacing_mm[1]),
        rows=first.rows,
        columns=first.columns,
        planes=np.arange(len(frames), dtype=np.float64),
        datasets=tuple(headers[name] for name in dict.fromkeys(frame.source for frame in frames)),
    )


def _ct_images(files: Files, where: str) -> tuple[list[_Image], list[str]]:
    """The headers of all CT images, localizers left out, and what to say about those."""
    others: Counter[str] = Counter()
    images = []
    for source, opener in files.items():
        try:
            found = _image_or_kind(opener, source)
        except _damage() as error:
            raise _damaged(source, error) from error
        if isinstance(found, str):
            others[found] += 1
        else:
            images.append(found)
    if not images:
        met = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items())) or "no files"
        raise InputError(f"{where} has no CT images (it holds: {met}). Give a folder or zip with a DICOM CT series.")
    return images, [f"Left out: {others[_LOCALIZER]} of kind {_LOCALIZER}."] if others[_LOCALIZER] else []


def _image_or_kind(opener: Callable[[], BinaryIO], source: str) -> _Image | str:
    """A CT image's header, or what else the file is."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with opener() as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
    except InvalidDicomError:
        return "not DICOM"
    if str(dataset.get("SOPClassUID", "")) not in CT_CLASSES:
        return str(dataset.get("Modality", "")) or "without modality"
    if "LOCALIZER" in (dataset.get("ImageType") or ()):
        return _LOCALIZER
    series_number = dataset.get("SeriesNumber")
    return _Image(
        str(dataset.get("SeriesInstanceUID", "")),
        "without number" if series_number is None else str(series_number),
        tuple(frames_of(dataset, source)),
        dataset,
    )


def _damage() -> tuple[type[Exception], ...]:
    """What pydicom raises for a damaged file; RuntimeError (and NotImplementedError) for pixels it cannot decode."""
    from pydicom.errors import BytesLengthException

    usual = (EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, RuntimeError, OverflowError)
    return (*usual, struct.error, BytesLengthException)


def _damaged(source: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"The DICOM file {source} can't be decoded ({reason}). Copy or export the series again.")


def _longest_series(images: Sequence[_Image], notes: list[str]) -> list[_Image]:
    """The images of the series with most slices; a note says what was left out."""
    counts: Counter[str] = Counter()
    for image in images:
        counts[image.series_uid] += len(image.frames)
    chosen_uid = min(counts, key=lambda uid: (-counts[uid], uid))
    chosen = [image for image in images if image.series_uid == chosen_uid]
    if len(counts) > 1:
        others = ", ".join(str(count) for uid, count in sorted(counts.items()) if uid != chosen_uid)
        notes.append(
            f"{len(counts)} CT series were there; series {chosen[0].series_number} with most slices, "
            f"{counts[chosen_uid]}, was read (the others have {others})."
        )
    return chosen


def _read_voxels(files: Files, frames: Sequence[Frame], voxels: VoxelCollector) -> list[str]:
    """Decodes every frame into its place; returns the SHA-256 digests of the files."""
    digests = []
    places: dict[str, list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(frame.source, []).append(place)
    for source, planes in places.items():
        with files[source]() as file:
            data = file.read()
        digests.append(hashlib.sha256(data).hexdigest())
        stored = _stored_values(data, source, frames[planes[0]], len(planes))
        for place in planes:
            frame = frames[place]
            voxels.put(place, _to_hu(stored[frame.index], frame)[None])
    return digests


def _stored_values(data: bytes, source: str, frame: Frame, count: int) -> np.ndarray:
    """(frames, rows, columns) stored values of one file."""
    import pydicom

    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        if "PixelData" not in dataset:
            raise InputError(f"{source} has no pixel data. Export the CT series with its images.")
        stored = np.asarray(dataset.pixel_array).reshape(-1, frame.rows, frame.columns)
    except _damage() as error:
        raise _damaged(source, error) from error
    if len(stored) < count:
        raise InputError(f"{source} holds {len(stored)} frames where {count} are due. Export the series again.")
    return stored


def _to_hu(stored: np.ndarray, frame: Frame) -> np.ndarray:
    """HU of one frame: whole numbers where slope and intercept are whole, else float64."""
    if frame.slope.is_integer() and frame.intercept.is_integer():
        hu: np.ndarray = stored.astype(np.int64) * int(frame.slope) + int(frame.intercept)
    else:
        hu = stored * frame.slope + frame.intercept
    if frame.padding is not None:
        hu[(stored >= frame.padding[0]) & (stored <= frame.padding[1])] = PADDING_HU
    return hu
