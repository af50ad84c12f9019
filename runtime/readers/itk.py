"""NRRD and MetaImage, through ITK's own readers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.readers.checks import VoxelCollector, check_grid, check_shape, fits_int16, tell_of
from runtime.readers.itk_files import (
    check_metaimage_axes,
    check_nrrd_header,
    data_files,
    metaimage_fields,
    sha256_of,
)
from runtime.readers.options import ReadOptions, ScanHeader
from runtime.volume import LPS_FROM_RAS, Grid, Volume

_NO_MEMORY = "Failed to allocate memory for image."
"""ITK raises one kind of error for all that it meets; this is what it says where the voxels found no room."""


def read(path: Path, name: str, options: ReadOptions) -> Volume:
    """Reads one file; see :func:`runtime.readers.read_scan`."""
    import SimpleITK

    _check_name(path)
    check_nrrd_header(path)
    check_metaimage_axes(path)
    sha256 = sha256_of(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        shape = check_shape(reader.GetSize(), path.name)
        _require_scalars(reader, path.name)
        _require_all_bytes(path)
        grid = check_grid(shape, _affine_ras(reader), path.name)
        tell_of(_header(reader, path, grid), options)
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        if reason == _NO_MEMORY:
            raise MemoryError(reason) from error
        raise InputError(f"{path.name} is damaged or cut off ({reason}). Copy or export the file again.") from error
    if image.GetDimension() > 3:
        image = image[(slice(None),) * 3 + (0,) * (image.GetDimension() - 3)]
    values = SimpleITK.GetArrayViewFromImage(image)
    voxels = VoxelCollector(shape, path.name)
    for first in range(0, shape[0], voxels.planes_per_slab):
        voxels.put(first, values[first : first + voxels.planes_per_slab])
    array = voxels.finish(options.lowest_hu)
    return Volume(array, grid, name, sha256, tuple(voxels.notes))


def _check_name(path: Path) -> None:
    """Refuses names that are no UTF-8: SimpleITK ends the whole process over them."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"The path {str(path)!a} is not UTF-8, and ITK can't open it. Rename the file, or the folder it is in."
        ) from error


def _require_scalars(reader: Any, file_name: str) -> None:
    import SimpleITK

    kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() != 1 or "complex" in kind or "vector" in kind:
        raise InputError(
            f"{file_name} holds {reader.GetNumberOfComponents()} values per voxel ({kind}), such as colours, instead "
            "of Hounsfield units. Give the CT itself."
        )


_ELEMENT_BYTES = {"char": 1, "short": 2, "int": 4, "long": 4, "long_long": 8, "float": 4, "double": 8}


def _require_all_bytes(path: Path) -> None:
    """Refuses an uncompressed MetaImage that is too short, which ITK may read without a word."""
    if path.suffix.lower() not in (".mha", ".mhd"):
        return
    fields = metaimage_fields(path)
    if fields.get("compresseddata", "false").lower() == "true" or "dimsize" not in fields:
        return
    element = fields.get("elementtype", "").lower().removeprefix("met_").replace("uchar", "char")
    width = _ELEMENT_BYTES.get(element, _ELEMENT_BYTES.get(element.removeprefix("u"), 1))
    try:
        needed = width * int(np.prod([int(n) for n in fields["dimsize"].split()]))
    except ValueError as error:
        raise InputError(f"{path.name} is damaged: its DimSize is {fields['dimsize']!r}. Export it again.") from error
    met = sum(file.stat().st_size for file in data_files(path) or (path,))
    if met < needed:
        raise InputError(f"{path.name} is cut off: {needed} bytes of voxels are due, {met} are there. Copy it again.")


def _header(reader: Any, path: Path, grid: Grid) -> ScanHeader:
    """What is known before the voxels are read: ITK reads all of them in their own type, and packed ones whole."""
    import SimpleITK

    dtype = _stored_as(SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))
    stays_int16 = dtype.kind in "iu" and fits_int16(np.iinfo(dtype).max, 1.0, 0.0)
    unpacked = math.prod(grid.shape_zyx) * dtype.itemsize
    on_disk = sum(file.stat().st_size for file in data_files(path) or (path,))
    return ScanHeader(path.name, grid, stays_int16, reader_bytes=unpacked + (on_disk if on_disk < unpacked else 0))


def _stored_as(kind: str) -> np.dtype[Any]:
    """NumPy's name for what ITK calls ``16-bit signed integer``, ``32-bit float`` and so on."""
    bits, _, rest = kind.partition("-bit ")
    letter = {"signed integer": "i", "unsigned integer": "u", "float": "f"}.get(rest)
    return np.dtype(f"{letter}{int(bits) // 8}") if letter else np.dtype(np.float64)


def _affine_ras(image: Any) -> np.ndarray:
    """Of an image, or of the reader that knows its header; axes beyond the third have one voxel and are left out."""
    axes = image.GetDimension()
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(axes, axes)[:3, :3]
    affine[:3, :3] = directions * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return LPS_FROM_RAS @ affine
