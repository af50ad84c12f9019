"""Which vertebra is which: what a network says of each centre, decoded along the whole spine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.anatomy import LEVEL_NAMES, LEVELS, is_cervical
from runtime.bundle import LevelNetSpec
from runtime.engines.base import Session
from runtime.errors import EngineError
from runtime.level_chain import level_marginals
from runtime.scan_access import ScanAccess, ScanOnHost
from runtime.volume import Grid, Volume

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

SURE_ENOUGH = 0.5
"""Levels must be more probable than this. From 0.5 on no two that are told can contradict each other."""
PROBABLY_CERVICAL = 0.5
"""A vertebra is taken for one of the neck from this probability on, whether or not its level is told."""
_CERVICAL = [is_cervical(level) for level in LEVELS]
SURELY_NONE = 0.75
"""A centre is rejected when it is no vertebra with more than this probability: to lose a true one is worse."""


@dataclass(frozen=True)
class LevelCall:
    """What is said of one centre.

    Args:
        level: ``"C1"``..``"L6"``, or None where none is probable enough, and for what is no vertebra.
        confidence: probability 0..1 of that level, of the most probable one where ``level`` is None, or, for what
            is no vertebra, of being none.
        is_vertebra: False for a centre that is to be dropped.
        cervical: probability 0..1 of being one of the neck, if it is a vertebra.
    """

    level: str | None
    confidence: float
    is_vertebra: bool
    cervical: float


def level_evidence(
    volume: Volume,
    centres_ras_mm: npt.ArrayLike,
    spec: LevelNetSpec,
    session: Session,
    *,
    batch: int = 4,
    access: ScanAccess | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float32:
    """What the network says of the crop around each centre.

    The scan is resampled once, over all crops together, and each crop is cut from that at the voxel nearest to its
    centre, as in training: neighbours' crops share most of their voxels, and one by one each would read the scan anew.

    Args:
        volume: the scan.
        centres_ras_mm: (n, 3).
        spec: how the network is run.
        session: the network.
        batch: crops that are run at once.
        access: where the scan's voxels lie; None for the host's memory.
        progress: is told the crops done and their number.

    Returns:
        (n, 27) probabilities of ``runtime.anatomy.LEVEL_NAMES``.

    Raises:
        EngineError: the network's output does not fit the bundle, or is not finite.
    """
    centres = np.asarray(centres_ras_mm, np.float64).reshape(-1, 3)
    evidence = np.empty((len(centres), len(LEVEL_NAMES)), np.float32)
    if not len(centres):
        return evidence
    grid, starts = _common_grid(centres, spec)
    image = (access or ScanOnHost(volume)).image_on(grid)
    for first in range(0, len(centres), batch):
        part = starts[first : first + batch]
        outputs = image.run_windows(session, part, spec.crop_zyx, spec.intensity)
        named = dict(zip(session.output_names, outputs, strict=True))
        evidence[first : first + len(part)] = _checked_output(named, len(part), spec)
        if progress is not None:
            progress(first + len(part), len(centres))
    return evidence


def _common_grid(centres: Float64, spec: LevelNetSpec) -> tuple[Grid, npt.NDArray[np.intp]]:
    """A grid that holds every crop, and the first voxel (n, 3; z, y, x) of each crop in it."""
    shape = np.array(spec.crop_zyx)
    low = centres.min(axis=0)
    starts = np.rint((centres - low)[:, ::-1] / spec.spacing_mm).astype(np.intp)
    z, y, x = (int(n) for n in starts.max(axis=0) + shape)
    affine = np.diag([spec.spacing_mm, spec.spacing_mm, spec.spacing_mm, 1.0])
    affine[:3, 3] = low - spec.spacing_mm * (shape[::-1] - 1) / 2
    return Grid((z, y, x), affine), starts


def _checked_output(named: Mapping[str, np.ndarray], count: int, spec: LevelNetSpec) -> Float32:
    expected = (count, len(spec.level_names))
    shapes = {name: tuple(output.shape) for name, output in named.items()}
    if shapes.get("level") != expected:
        raise EngineError(f"{spec.file} gave outputs {shapes}; its bundle promises level {expected}.")
    if not np.isfinite(named["level"]).all():
        raise EngineError(f"{spec.file} gave values that are not finite; try --precision fp32.")
    return np.clip(named["level"], 0.0, 1.0).astype(np.float32)


def decode_levels(
    centres_ras_mm: npt.ArrayLike,
    confidences: Sequence[float],
    evidence: npt.ArrayLike,
    *,
    min_confidence: float = SURE_ENOUGH,
) -> tuple[LevelCall, ...]:
    """Name each centre, or reject it, from what the network said of all of them and from where they lie.

    See ``level_marginals`` for the model. A centre is rejected when its probability of being none exceeds
    ``SURELY_NONE``; a level is told when its probability exceeds ``min_confidence``. Levels that are told always grow
    along the chain.

    Args:
        centres_ras_mm: (n, 3), from cranial to caudal.
        confidences: (n,) of the localisation, 0..1.
        evidence: (n, 27) probabilities of ``runtime.anatomy.LEVEL_NAMES``.
        min_confidence: at least ``SURE_ENOUGH``.

    Raises:
        ValueError: the three don't agree in length, or ``min_confidence`` is below ``SURE_ENOUGH``.
    """
    if min_confidence < SURE_ENOUGH:
        raise ValueError(f"min_confidence should be at least {SURE_ENOUGH}, met {min_confidence}.")
    marginals = level_marginals(centres_ras_mm, confidences, evidence)
    rows = zip(marginals.levels, marginals.none, strict=True)
    return tuple(_call(levels, float(none), min_confidence) for levels, none in rows)


def _call(levels: Float64, none: float, min_confidence: float) -> LevelCall:
    cervical = float(levels[_CERVICAL].sum() / max(levels.sum(), 1e-12))
    if none > SURELY_NONE:
        return LevelCall(None, none, False, cervical)
    best = int(np.argmax(levels))
    confidence = float(levels[best])
    return LevelCall(LEVELS[best] if confidence > min_confidence else None, confidence, True, cervical)


def in_neck(calls: Sequence[LevelCall | None]) -> tuple[bool, ...]:
    """Whether each vertebra of a spine, cranial to caudal, is to be taken for one of the neck.

    It is where its level is cervical or that is probable enough, and so is all that lies above such a vertebra; where
    nothing is said of levels, it is not.
    """
    cervical = [
        n
        for n, call in enumerate(calls)
        if call is not None and (is_cervical(call.level) or call.cervical >= PROBABLY_CERVICAL)
    ]
    lowest = max(cervical, default=-1)
    return tuple(n <= lowest for n in range(len(calls)))
