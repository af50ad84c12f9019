"""Label maps, such as VerSe's and TotalSegmentator's: reading them, and which level a label stands for."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError, OutOfMemoryError
from runtime.readers.checks import check_grid, check_shape
from runtime.volume import Grid
from runtime.writers import DESCRIPTION

LARGEST_LABEL = 255

VERSE_LEVELS: Mapping[int, str] = MappingProxyType(
    {
        **{n: f"C{n}" for n in range(1, 8)},
        **{n + 7: f"T{n}" for n in range(1, 13)},
        **{n + 19: f"L{n}" for n in range(1, 7)},
        28: "T13",
    }
)
"""VerSe's labels; 26 is the sacrum, 27 the coccyx."""

TOTALSEGMENTATOR_LEVELS: Mapping[int, str] = MappingProxyType(
    {
        **{27 + n: f"L{5 - n}" for n in range(5)},
        **{32 + n: f"T{12 - n}" for n in range(12)},
        **{44 + n: f"C{7 - n}" for n in range(7)},
    }
)
"""TotalSegmentator's labels (version 2, task ``total``); 25 is the sacrum, 26 its first segment."""
TOTALSEGMENTATOR_SACRUM = 25
"""The lowest of its labels in the spine."""


@contextmanager
def _silent_nibabel() -> Iterator[None]:
    """Keep the library's logger, which prints on stderr, quiet: what it tells is in its exceptions too."""
    from nibabel.imageglobals import logger

    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def read_labels(path: Path) -> tuple[npt.NDArray[np.uint8], Grid]:
    """A NIfTI label map as uint8 (z, y, x) and its grid.

    Raises:
        InputError: the file cannot be read, or is no 3D map of whole labels 0..255.
        GeometryError: its grid cannot be used.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        with _silent_nibabel():
            image = nibabel.load(path)
            shape_zyx = check_shape(image.shape, path.name)
            grid = check_grid(shape_zyx, image.affine, path.name)
            values = np.asanyarray(image.dataobj)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check the path.") from error
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise InputError(
            f"{path} can't be read as a NIfTI label map ({error}). Give a .nii or .nii.gz file."
        ) from error
    except MemoryError as error:
        raise OutOfMemoryError(f"The label map {path} does not fit in memory; crop it to the spine.") from error
    if values.dtype.kind not in "iufb":
        raise InputError(f"{path} holds {values.dtype} instead of labels. Give a label map of whole numbers.")
    values = values.reshape(shape_zyx[::-1])
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= LARGEST_LABEL):
        raise InputError(
            f"{path} is no map of labels 0..{LARGEST_LABEL}: its values are {low:g} to {high:g}. "
            "Give the segmentation, not the scan."
        )
    labels = np.ascontiguousarray(values.T.astype(np.uint8))
    if values.dtype.kind == "f" and not np.array_equal(labels.T, values):
        raise InputError(f"{path} holds values that are no whole numbers. Give a label map, not probabilities.")
    return labels, grid


def is_own_mask(path: Path) -> bool:
    """Whether a label map that can be read is one that this software wrote, by what its header says."""
    import nibabel

    with _silent_nibabel():
        header = nibabel.load(path).header
    return "descrip" in header and bytes(header["descrip"].item()) == DESCRIPTION
