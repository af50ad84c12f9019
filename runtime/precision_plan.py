"""What calibration found out about a network's numbers: the part of ``bundle.json`` that typed graphs are made by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PrecisionPlan:
    """How one network may be computed in fewer bits. Written by ``export.calibrate``, read by ``runtime.typed_graph``.

    The plan of a network that nobody calibrated is the empty one, ``PrecisionPlan()``: the rule alone then applies.

    Args:
        source: on what the ranges were measured, such as ``"inputs of phantoms"``.
        samples: how many windows or crops those were.
        fp16_keep_fp32: names of nodes that read or give numbers too large or too small for FP16, with a margin, so
            they stay FP32 in FP16 graphs.
        fp16_largest: largest absolute value of any tensor that is FP16 in the FP16 graph; FP16 ends at 65504.
        fp16_largest_at: the name of that tensor.
        fp16_rounding: largest relative error, root mean square, that rounding to FP16 makes in any of those tensors;
            2e-4 where none of its numbers are too small for it.
        fp16_rounding_at: the name of that tensor.
        int8_ranges: for each tensor that INT8 graphs quantise, the absolute value that becomes 127. Empty where INT8
            was not calibrated, or did not pass its gate.
        gates: for each precision that was put to the gate, the figures that it reached; see ``export.calibrate``.
    """

    source: str = ""
    samples: int = 0
    fp16_keep_fp32: tuple[str, ...] = ()
    fp16_largest: float = 0.0
    fp16_largest_at: str = ""
    fp16_rounding: float = 0.0
    fp16_rounding_at: str = ""
    int8_ranges: Mapping[str, float] = field(default_factory=dict)
    gates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def why_no_int8(self) -> str:
        """Why the network is not offered in INT8, or the empty text where it is."""
        if self.int8_ranges:
            return ""
        reached = ", ".join(f"{name} {value:.4g}" for name, value in self.gates.get("int8", {}).items() if value)
        return f"it did not pass its accuracy gate ({reached})" if reached else "it was not calibrated for it"
