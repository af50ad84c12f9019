"""NRRD and MetaImage, through ITK's own readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.readers.checks import VoxelCollector, check_grid, check_shape
from runtime.readers.itk_files import check_nrrd_header, data_files, metaimage_fields, sha256_of
from runtime.volume import LPS_FROM_RAS, Volume


def read(path: Path, name: str) -> Volume:
    """Reads one file; see :func:`runtime.readers.read_scan`."""
    import SimpleITK

    check_nrrd_header(path)
    sha256 = sha256_of(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        shape = check_shape(reader.GetSize(), path.name)
        _require_scalars(reader, path.name)
        _require_all_bytes(path)
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path.name} is damaged or cut off ({reason}). Copy or export the file again.") from error
    if image.GetDimension() > 3:
        image = image[(slice(None),) * 3 + (0,) * (image.GetDimension() - 3)]
    grid = check_grid(shape, _affine_ras(image), path.name)
    values = SimpleITK.GetArrayViewFromImage(image)
    voxels = VoxelCollector(shape, path.name)
    for first in range(0, shape[0], voxels.planes_per_slab):
        voxels.put(first, values[first : first + voxels.planes_per_slab])
    array = voxels.finish()
    return Volume(array, grid, name, sha256, tuple(voxels.notes))


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


def _affine_ras(image: Any) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_FROM_RAS @ affine
