"""How this software's own results are known when they come back."""

from __future__ import annotations

from pydicom.dataset import Dataset

MANUFACTURER = "vertscan"


def is_own(header: Dataset) -> bool:
    """Whether an object was made by this software, on this node or another one."""
    return str(header.get("Manufacturer", "")).strip().casefold() == MANUFACTURER
