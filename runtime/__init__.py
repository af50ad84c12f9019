"""Vertebrae on CT, found, segmented and graded: the lean, torch-free runtime.

The names below are imported when they are first asked for, so that ``import runtime`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.findings import Findings, Vertebra
    from runtime.pipeline import Pipeline
    from runtime.readers import read_scan
    from runtime.volume import Grid, Volume

__all__ = ["Findings", "Grid", "Pipeline", "Vertebra", "Volume", "read_scan"]

_HOMES = {
    "Findings": "runtime.findings",
    "Grid": "runtime.volume",
    "Pipeline": "runtime.pipeline",
    "Vertebra": "runtime.findings",
    "Volume": "runtime.volume",
    "read_scan": "runtime.readers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
