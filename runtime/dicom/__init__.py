"""Results as DICOM objects, beside the images they were read from: segmentation, structured report, picture, document.

``docs/dicom-results.md`` says what each holds. The modules here need the extra ``dicom`` (highdicom, reportlab); only
this one can be imported without, so that a command can tell what is missing before it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from runtime.errors import InputError

SEG, SR, SC, PDF = "seg", "sr", "sc", "pdf"
KINDS = (SEG, SR, SC, PDF)
"""Segmentation, structured report, secondary capture, encapsulated PDF."""
FILES = {kind: f"{kind}.dcm" for kind in KINDS}
"""File names in a result folder."""
BINARY, LABELMAP, LABELMAP_RLE = "BINARY", "LABELMAP", "LABELMAP-RLE"
SEG_TYPES = (BINARY, LABELMAP, LABELMAP_RLE)
"""How a segmentation can be encoded; all but ``LABELMAP_RLE`` (run lengths, lossless) are uncompressed."""
_NEEDS = {SEG: ("highdicom",), SR: ("highdicom",), SC: ("highdicom",), PDF: ("highdicom", "reportlab")}


def parse_kinds(text: str) -> tuple[str, ...]:
    """The kinds in a list with commas, each once, in the order of ``KINDS``.

    Raises:
        InputError: a kind is unknown, or there is none.
    """
    wanted = [part.strip().lower() for part in text.split(",") if part.strip()]
    unknown = sorted(set(wanted) - set(KINDS))
    if unknown or not wanted:
        raise InputError(
            f"DICOM results are chosen from {', '.join(KINDS)}, with commas between; met {text!r}. "
            "The folder that results go to is named with -o."
        )
    return tuple(kind for kind in KINDS if kind in wanted)


def check_installed(kinds: Sequence[str]) -> None:
    """Raise InputError when a package that these kinds need is not installed."""
    needed = {package for kind in kinds for package in _NEEDS[kind]}
    missing = sorted(package for package in needed if find_spec(package) is None)
    if missing:
        raise InputError(
            f"DICOM results need the package {missing[0]}; install it with: pip install 'vertscan[dicom]'."
        )
