"""The version of this software, as installed."""

from __future__ import annotations


def software_version() -> str:
    """Such as ``"0.1.0"``, or ``"(not installed)"`` where it runs from its sources."""
    from importlib import metadata

    try:
        return metadata.version("vertscan")
    except metadata.PackageNotFoundError:
        return "(not installed)"
