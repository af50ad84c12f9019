"""What a bundle says of the precisions in which it was verified on whole scans: ``BundleSpec.verified``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from export.parity_report import Outcome
from runtime.bundle import Bundle, open_bundle
from runtime.bundle_checks import BUNDLE_JSON, VERIFIABLE
from runtime.bundle_json import to_json
from runtime.cache import write_whole
from runtime.engines import EngineChoice
from runtime.errors import InputError

FEWEST_SCANS = 50
"""Fewer don't decide what every scan of a machine is computed in."""


def record(bundle: Bundle, outcomes: Sequence[Outcome], *, given: int) -> Bundle:
    """Write into a bundle's ``bundle.json`` in which precisions its networks passed on a processor, and how well.

    A precision that was compared and didn't pass with every engine is taken out, if it stood there; others stay.

    Args:
        bundle: that was compared, in a folder.
        outcomes: of ``export.verify``; those on GPUs, and in what an engine offers for comparisons alone or may not be
            recorded, are left out.
        given: how many of the scans were no phantoms.

    Returns:
        The bundle as written.

    Raises:
        InputError: too little was compared, the bundle is another one by now, or it can't be written.
    """
    judged: dict[str, list[Outcome]] = {}
    for one in outcomes:
        if is_recorded(one.choice):
            judged.setdefault(one.choice.precision, []).append(one)
    check_recordable(bundle.folder, [one.choice for one in outcomes], scans=_fewest_scans(judged), given=given)
    if open_bundle(bundle.folder).sha256 != bundle.sha256:
        raise InputError(f"The bundle in {bundle.folder} was changed while it was verified; verify it again.")
    kept = {precision: met for precision, met in bundle.spec.verified.items() if precision not in judged}
    passed = {
        precision: {f"{one.choice.name} {one.version}": figures_of(one) for one in of_one}
        for precision, of_one in judged.items()
        if not any(one.faults for one in of_one)
    }
    spec = replace(bundle.spec, verified={**kept, **passed})
    place = bundle.folder / BUNDLE_JSON
    try:
        mode = place.stat().st_mode
        write_whole(place, to_json(spec).encode())
        place.chmod(mode)
    except OSError as error:
        raise InputError(f"What was verified can't be written into {bundle.folder} ({error.strerror}).") from error
    return open_bundle(bundle.folder)


def _fewest_scans(judged: Mapping[str, Sequence[Outcome]]) -> int:
    """On how many scans every engine was compared; raises InputError where one could not be opened."""
    for one in chain.from_iterable(judged.values()):
        if not one.scans and one.with_itself.failed:
            said = f"{one.choice.name} in {one.choice.precision}: {one.with_itself.failed}"
            raise InputError(f"Nothing is recorded, since an engine was not compared ({said}).")
    return min((len(one.scans) for one in chain.from_iterable(judged.values())), default=0)


def is_recorded(choice: EngineChoice) -> bool:
    """Whether a bundle may say that it was verified so: in what the engine offers for more than comparisons."""
    offered = choice.module.preflight(device=choice.device)
    return choice.precision in VERIFIABLE and offered.device == "CPU" and choice.precision in offered.precisions


def check_recordable(folder: Path, choices: Sequence[EngineChoice], *, scans: int, given: int) -> None:
    """Refuse what can't be recorded: to be asked before hours are spent on comparing, too.

    Args:
        folder: of the bundle.
        choices: what is compared.
        scans: on how many scans.
        given: how many of these were no phantoms.

    Raises:
        InputError: one of these is not enough.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: what was verified is written into a bundle's folder, not into a zip.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"Nothing can be written into {folder}; copy the bundle to a folder of yours.")
    if not any(map(is_recorded, choices)):
        raise InputError(
            f"Nothing here can be recorded: that takes an engine with {' or '.join(VERIFIABLE)} on a processor."
        )
    if scans < FEWEST_SCANS or given < 1:
        raise InputError(
            f"What is verified is recorded from {FEWEST_SCANS} scans on, a real one among them, since networks are "
            f"surest where they were trained; met {scans}, {given} of them given. Name scans, and --phantoms "
            f"{FEWEST_SCANS}."
        )


def figures_of(outcome: Outcome) -> dict[str, float]:
    """Over how many scans, and the worst figures met, by their names in ``runtime.engines.parity.Parity``."""
    whole = outcome.whole
    return {
        "scans": len(outcome.scans),
        "centres": whole.centres,
        "centres_lost": whole.centres_lost,
        "centre_shift_mm": round(whole.centre_shift_mm, 4),
        "dice": round(whole.dice, 6),
        "smallest_dice": round(whole.smallest_dice, 4),
        "grades": whole.grades,
        "grades_changed": whole.grades_changed,
        "grade": round(whole.grade, 4),
        "levels": whole.levels,
        "levels_changed": whole.levels_changed,
        "level": round(whole.level, 4),
        "heights_mm": round(whole.heights_mm, 4),
    }
