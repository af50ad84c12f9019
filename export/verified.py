"""What a bundle says of the precisions in which it was verified on whole scans: ``BundleSpec.verified``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export.parity_report import Outcome
from runtime.bundle import Bundle, open_bundle, write_bundle
from runtime.errors import InputError

FEWEST_SCANS = 50
"""Fewer don't decide what every scan of a machine is computed in."""


def record(folder: Path, outcomes: Sequence[Outcome]) -> Bundle:
    """Write into a bundle's ``bundle.json`` in which precisions its networks passed on a processor, and how well.

    A precision that was compared and didn't pass is taken out, if it stood there; others stay as they are.

    Args:
        folder: of the bundle that was verified.
        outcomes: of ``export.verify``; those on GPUs and in FP32, which need no word of the bundle, are left out.

    Returns:
        The bundle as written.

    Raises:
        InputError: the bundle is no folder, or too few scans were compared.
    """
    judged = [one for one in outcomes if one.device == "CPU" and one.choice.precision != "fp32"]
    check_recordable(folder, min((len(one.scans) for one in judged), default=0))
    bundle = open_bundle(folder)
    kept = {name: met for name, met in bundle.spec.verified.items() if name not in {o.choice.precision for o in judged}}
    passed = {one.choice.precision: figures_of(one) for one in judged if not one.faults}
    spec = replace(bundle.spec, verified={**kept, **passed})
    return write_bundle(spec, {name: bundle.path_of(name) for name in spec.files}, folder)


def check_recordable(folder: Path, scans: int) -> None:
    """Raise InputError where what is found on so many scans can't be written into a bundle."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: what was verified is written into a bundle's folder, not into a zip.")
    if scans < FEWEST_SCANS:
        raise InputError(
            f"What is verified is recorded from {FEWEST_SCANS} scans on, in another precision than fp32 on the "
            f"processor; met {scans}. Compare on more: --phantoms {FEWEST_SCANS}."
        )


def figures_of(outcome: Outcome) -> dict[str, float]:
    """The worst figures met, by their names in ``runtime.engines.parity.Parity``, and over how many scans."""
    whole = outcome.whole
    names = (
        "centres", "centres_lost", "centre_shift_mm", "smallest_dice", "grades", "grades_changed", "grade", "levels",
        "levels_changed", "level", "heights_mm",
    )  # fmt: skip
    figures = {"scans": len(outcome.scans), "dice": whole.dice, **{name: getattr(whole, name) for name in names}}
    return {name: round(float(value), 6) for name, value in figures.items()}
