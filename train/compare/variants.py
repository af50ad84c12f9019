"""What is compared, as values: the small network, the shared start, and how each variant differs from the default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from train.config import FracSegNetRun, LoopConfig
from train.networks import FracSegNetConfig, UNetConfig

SMALL = FracSegNetRun(
    network=FracSegNetConfig(UNetConfig((4, 16, 32), 32), crop=32),
    loop=LoopConfig(
        batch=8, learning_rate=8e-3, warmup=20, ema=0.98, validation_samples=8, precision="32-true", workers=0
    ),
    spacing_mm=3.0,
    crop_shift_mm=(0.0, 0.0, 0.0),
    height_weight=2.0,
)
"""The default preset, its crops around the body and at 3 mm, heights weighed less, a seventh of its weights."""

GRADE_LOSSES = ("cross_entropy", "weighted_cross_entropy", "focal_unweighted", "focal", "unified_focal")
SAMPLINGS: Mapping[str, str] = {"natural": "as_found", "balanced": "balanced", "equal": "equal"}
"""Name in the tables -> ``FracSegNetRun.sampling``; the set itself has VerSe's frequencies."""

WHOLE: Mapping[str, FracSegNetRun] = {
    "fixed weights": SMALL,
    "learnt uncertainty": replace(SMALL, task_weighting="uncertainty"),
    "Nash-MTL": replace(SMALL, task_weighting="nash", nash_every=4),
    "pooled head": replace(SMALL, network=replace(SMALL.network, grade_head="pooled")),
    "focal Tversky masks": replace(SMALL, mask_loss="focal_tversky"),
}
"""Variants that change what the whole network learns. Each is the default preset (fixed weights, cross entropy, Dice
with binary cross entropy, balanced sampling, spatial head) but for what its name says."""
WEIGHTINGS = ("fixed weights", "learnt uncertainty", "Nash-MTL")
"""Those of which every seed is run; of the others the first."""


@dataclass(frozen=True)
class Effort:
    """How long everything is trained.

    Args:
        start_steps: of the shared start: masks and heights, no grades, batches of 8.
        head_steps: of a grade head on true thickness, batches of 32.
        whole_steps: of a whole network from the start, batches of 8.
        head_seeds, whole_seeds: how many runs of each, with the seeds from 1 on.
    """

    start_steps: int = 300
    head_steps: int = 1000
    whole_steps: int = 80
    head_seeds: int = 3
    whole_seeds: int = 2


def start_run(effort: Effort) -> FracSegNetRun:
    """What all variants start from: masks and heights are learnt, grades not yet."""
    run = replace(SMALL, grade_weight=0.0, sampling="as_found")
    return replace(run, loop=_lasting(run.loop, effort.start_steps))


def whole_run(name: str, seed: int, effort: Effort, start: Path) -> FracSegNetRun:
    """A whole network that goes on from the best weights in the folder ``start``."""
    run = WHOLE[name]
    loop = replace(run.loop, learning_rate=3e-3, seed=seed, start_from=str(start))
    return replace(run, loop=_lasting(loop, effort.whole_steps))


def head_variants(effort: Effort) -> list[tuple[str, str, FracSegNetRun]]:
    """Part, name and run (of no seed yet) of everything that is compared on heads that read the true thickness."""
    samplings = [
        ("heads", f"{loss}, {name}", replace(SMALL, grade_loss=loss, sampling=sampling))
        for name, sampling in SAMPLINGS.items()
        for loss in GRADE_LOSSES
    ]
    weightings = [("head weights", name, WHOLE[name]) for name in WEIGHTINGS]
    return [(part, name, _of_head(run, effort)) for part, name, run in samplings + weightings]


def _of_head(run: FracSegNetRun, effort: Effort) -> FracSegNetRun:
    """The run of a head, which has no mask."""
    loop = replace(run.loop, learning_rate=1e-3, batch=32)
    return replace(run, mask_weight=0.0, loop=_lasting(loop, effort.head_steps))


def _lasting(loop: LoopConfig, steps: int) -> LoopConfig:
    """Validated once, at the end, so that the last moving average is what is measured."""
    return replace(loop, steps=steps, validate_every=steps)
