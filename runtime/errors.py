"""The errors a user can cause or meet; each carries the exit status that the command line gives for it."""

from __future__ import annotations


class VertscanError(Exception):
    """Base of all errors of this software.

    The message says what was wrong, the value that was met and what to do about it, in one or two sentences
    that can be shown to a user as they are.
    """

    exit_status = 1


class InputError(VertscanError):
    """The scan, a path or an option cannot be used."""

    exit_status = 2


class GeometryError(InputError):
    """The scan's grid cannot be used: singular affine, absurd spacing, missing or uneven slices."""


class OutputError(InputError):
    """The results can't be written, such as to a disk that is full; nothing is wrong with the scan."""


class BundleError(VertscanError):
    """The model bundle is missing, damaged, of another schema, or a file's hash differs."""

    exit_status = 3


class EngineError(VertscanError):
    """The inference engine is not installed, was refused by its preflight, or failed."""

    exit_status = 3


class OutOfMemoryError(VertscanError):
    """The scan does not fit in the memory that is there or was allowed."""

    exit_status = 4


class OverLimitError(OutOfMemoryError):
    """The scan alone needs more memory than was allowed; it was refused before its voxels were read."""
