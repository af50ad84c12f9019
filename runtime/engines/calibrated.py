"""In which precisions a bundle's own calibration says that its networks find the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from runtime.bundle import BundleSpec
from runtime.engines.parity import LIMITS, Parity, faults


def passed_precisions(spec: BundleSpec) -> frozenset[str]:
    """The precisions that every network of a bundle was put to the gate in, with figures within today's limits.

    None for a bundle that nobody calibrated.
    """
    plans = [spec.precision.get(network.file) for network in spec.networks]
    return frozenset(
        precision
        for precision in LIMITS
        if all(plan is not None and _passes(plan.gates.get(precision), precision) for plan in plans)
    )


def _passes(figures: Mapping[str, float] | None, precision: str) -> bool:
    names = {field.name for field in fields(Parity)} - {"failed"}
    if figures is None or not names <= set(figures):  # a figure that is no number isn't written
        return False
    found = Parity(**{name: figures[name] for name in names})  # type: ignore[arg-type]
    return not faults(found, LIMITS[precision])
