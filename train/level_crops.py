"""Wide, coarse crops around vertebrae and around what is none: what LevelNet is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.anatomy import LEVEL_NAMES, NOT_A_VERTEBRA
from train.config import LevelNetRun
from train.verse import LEVELS

AIR_HU = -1024.0
BONE_HU = 150.0
"""Places that are no vertebra are drawn from voxels above this: soft tissue would be too easy."""
NONE = LEVEL_NAMES.index(NOT_A_VERTEBRA)
BEYOND_MM = 40.0
"""So far beyond the last annotated centre another vertebra may be partly visible, which VerSe does not annotate: the
step to the next lumbar centre is at most 37 mm."""
_FIRST_LEVEL, _LAST_LEVELS = "C1", ("L5", "L6")
"""Beyond these lie the skull and the sacrum, which are no vertebrae."""


@dataclass(frozen=True, eq=False)
class LevelSample:
    """A crop and what is in its middle.

    Args:
        hu: (z, y, x) float32.
        level: index into ``LEVEL_NAMES``.
    """

    hu: np.ndarray
    level: int


def level_crops(
    hu: np.ndarray,
    mask: np.ndarray | None,
    centres_zyx: Mapping[int, np.ndarray],
    rng: np.random.Generator,
    run: LevelNetRun,
    *,
    cut_ones_annotated: bool = True,
) -> list[LevelSample]:
    """``run.crops_per_scan`` crops of one scan.

    Args:
        hu: (z, y, x) on the working grid, RAS+ axes.
        mask: (z, y, x), not 0 inside vertebrae, or None; no crop around a place that is none is centred there.
        centres_zyx: VerSe label to voxel index (3,).
        rng: decides everything.
        run: size, spacing, shares.
        cut_ones_annotated: whether vertebrae that are only partly visible have a centre too, as those of phantoms do.
            Where they don't, nothing shortly beyond the first or the last centre is taken for no vertebra.
    """
    ends = () if cut_ones_annotated else open_ends(centres_zyx)
    labels = sorted(centres_zyx)
    points = np.array([centres_zyx[n] for n in labels]).reshape(-1, 3)
    samples = []
    for _ in range(run.crops_per_scan):
        middle = None
        if not labels or rng.random() < run.negative_fraction:
            middle, level = place_without_vertebra(hu, mask, points, rng, run, ends), NONE
        if middle is None and labels:
            label = labels[rng.integers(len(labels))]
            middle, level = centres_zyx[label], LEVEL_NAMES.index(LEVELS[label])
        if middle is None:  # neither vertebra nor bone: anywhere will do
            middle, level = rng.uniform(0, 1, 3) * hu.shape, NONE
        middle = middle + rng.normal(0, run.centre_jitter_mm / run.spacing_mm, 3)
        start = crop_start(middle, run.network.crop_zyx)
        samples.append(LevelSample(block(hu, start, run.network.crop_zyx, fill=AIR_HU).astype(np.float32), level))
    return samples


@dataclass(frozen=True, eq=False)
class OpenEnd:
    """An end of the annotated spine beyond which a vertebra may be that nobody annotated.

    Args:
        centre_zyx: the last annotated centre, voxels (3,).
        onward_zyx: unit vector (3,) along the spine, away from the other centres.
    """

    centre_zyx: np.ndarray
    onward_zyx: np.ndarray

    def may_hold(self, place_zyx: np.ndarray, spacing_mm: float) -> bool:
        """Whether a place is at the height, along the spine, of a vertebra beyond this end."""
        along_mm = float((place_zyx - self.centre_zyx) @ self.onward_zyx) * spacing_mm
        return 0 <= along_mm <= BEYOND_MM


def open_ends(centres_zyx: Mapping[int, np.ndarray]) -> tuple[OpenEnd, ...]:
    """The ends of the annotated spine but for those that are its own: above C1, and below L5 or L6.

    Args:
        centres_zyx: VerSe label to voxel index (3,), z from feet to head. The spine goes on as from the last centre but
            one to the last one, or straight up and down from a single one.
    """
    upward = sorted(centres_zyx, key=lambda label: float(centres_zyx[label][0]))
    if not upward:
        return ()
    lowest, highest = upward[0], upward[-1]
    ends = []
    if LEVELS[lowest] not in _LAST_LEVELS:
        ends.append(_end([centres_zyx[n] for n in upward[1::-1]], np.array([-1.0, 0.0, 0.0])))
    if LEVELS[highest] != _FIRST_LEVEL:
        ends.append(_end([centres_zyx[n] for n in upward[-2:]], np.array([1.0, 0.0, 0.0])))
    return tuple(ends)


def _end(last_zyx: Sequence[np.ndarray], usual_zyx: np.ndarray) -> OpenEnd:
    """The end after the last one or two centres; ``usual_zyx`` is its direction where there is but one."""
    way = np.asarray(last_zyx[-1] - last_zyx[0], float)
    length = float(np.linalg.norm(way))
    return OpenEnd(np.asarray(last_zyx[-1], float), way / length if length > 0 else usual_zyx)


def place_without_vertebra(
    hu: np.ndarray,
    mask: np.ndarray | None,
    points_zyx: np.ndarray,
    rng: np.random.Generator,
    run: LevelNetRun,
    ends: Sequence[OpenEnd] = (),
) -> np.ndarray | None:
    """Voxel index (3,) of bright tissue that is no vertebra and far from every vertebral centre; None where none is.

    Half of the places lie below the spine, where sacrum and hips look most like vertebrae; none lies shortly beyond one
    of the ``ends``.
    """
    low = rng.random() < 0.5
    part = hu
    if low and len(points_zyx):
        part = hu[: max(int(points_zyx[:, 0].min()), 1)]  # z runs from feet to head
    bone = np.flatnonzero(part > BONE_HU)
    for _ in range(20):
        if not len(bone):
            return None
        place = np.array(np.unravel_index(bone[rng.integers(len(bone))], part.shape))
        far = np.linalg.norm(points_zyx - place, axis=1) * run.spacing_mm >= run.negative_distance_mm
        beyond = any(end.may_hold(place, run.spacing_mm) for end in ends)
        if far.all() and not beyond and (mask is None or not mask[tuple(place)]):
            return place.astype(float)
    return None


def crop_start(middle_zyx: np.ndarray, shape_zyx: tuple[int, int, int]) -> np.ndarray:
    """The first voxel (3,) of the crop whose middle, its index (n - 1) / 2 as in ``crop_grid``, is nearest to a point.

    Args:
        middle_zyx: (3,) fractional voxel index.
        shape_zyx: of the crop.
    """
    return np.round(middle_zyx - np.array(shape_zyx) / 2 + 0.5).astype(int)


def block(array: np.ndarray, start_zyx: np.ndarray, shape_zyx: tuple[int, int, int], *, fill: float) -> np.ndarray:
    """The block that begins at ``start_zyx`` (which may lie outside), ``fill`` where the array has ended."""
    out = np.full(shape_zyx, fill, array.dtype)
    low = np.maximum(start_zyx, 0)
    high = np.minimum(start_zyx + shape_zyx, array.shape)
    if (high > low).all():
        source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        target = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start_zyx, strict=True))
        out[target] = array[source]
    return out
