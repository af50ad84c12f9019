"""Where training samples come from: phantoms rendered on the fly, real scans in VerSe's layout, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from runtime.crops import crop_grid
from train.config import FracSegNetRun, LevelNetRun, LocNetRun
from train.level_crops import AIR_HU, LevelSample, level_crops
from train.phantom import Anatomy, PhantomConfig, random_scan_grid, render, sample_anatomy, sample_appearance
from train.phantom.spine import VertebraShape, sample_spine

_GRADE_SHARES = (0.5, 1 / 6, 1 / 6, 1 / 6)
"""Of balanced phantom crops. Equal shares made the network call an uncertain healthy vertebra grade 1."""


@dataclass(frozen=True, eq=False)
class VertebraSample:
    """A crop around one vertebra.

    Args:
        hu: (z, y, x) float32.
        masks: (k, z, y, x) bool, in the order of the network's mask channels.
        masks_known: (k,) bool: False where the source can't tell.
        grade: Genant 0..3, or -1 where it isn't known.
        heights: (6,) anterior, middle, posterior height in mm, then their relative losses; nan where unknown.
    """

    hu: np.ndarray
    masks: np.ndarray
    masks_known: np.ndarray
    grade: int
    heights: np.ndarray


class Source(Protocol):
    """Something that samples can be drawn from; the generator alone decides which."""

    def localisation(
        self, rng: np.random.Generator, shape_zyx: tuple[int, int, int], run: LocNetRun
    ) -> tuple[np.ndarray, np.ndarray]:
        """A crop (z, y, x) in HU and the vertebral centres in it, (k, 3) voxels z, y, x."""
        ...

    def vertebra(self, rng: np.random.Generator, run: FracSegNetRun) -> VertebraSample:
        """A crop around a vertebra."""
        ...

    def levels(self, rng: np.random.Generator, run: LevelNetRun) -> list[LevelSample]:
        """``run.crops_per_scan`` wide crops of one scan, each around a vertebra or a place that is none."""
        ...


@runtime_checkable
class SplitSource(Source, Protocol):
    """A source that holds scans back for validation. One without an end, such as phantoms, has no need to."""

    def validation(self) -> Source:
        """Scans of other patients than those that are trained on."""
        ...


def held_out(source: Source) -> Source:
    """Where validation draws from: what the source holds back, or the source itself (with other seeds)."""
    return source.validation() if isinstance(source, SplitSource) else source


class PhantomSource:
    """Endless phantoms, each rendered straight into the crop that is asked for."""

    def __init__(self, config: PhantomConfig | None = None) -> None:
        self.config = config or PhantomConfig()

    def _anatomy(self, rng: np.random.Generator) -> Anatomy:
        return sample_anatomy(int(rng.integers(2**31)), self.config)

    def localisation(
        self, rng: np.random.Generator, shape_zyx: tuple[int, int, int], run: LocNetRun
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Source. Some crops are cut by the edge of a scan, beyond which there is air."""
        anatomy = self._anatomy(rng)
        extent_mm = np.array(shape_zyx[::-1]) * run.spacing_mm
        vertebrae = anatomy.vertebrae
        if rng.random() < run.negative_fraction:
            centre = _anywhere(anatomy, rng)
        else:
            centre = anatomy.centre_ras_mm(vertebrae[rng.integers(len(vertebrae))])
            centre = centre + rng.uniform(-0.45, 0.45, 3) * extent_mm
        grid = crop_grid(centre, spacing_mm=run.spacing_mm, shape_zyx=shape_zyx)
        scan = render(anatomy, grid, sample_appearance(rng, self.config), rng)
        points = np.array([grid.to_index_zyx(v.centre_ras_mm) for v in scan.vertebrae]).reshape(-1, 3)
        return cut_by_edges(scan.volume.array, points, rng)

    def vertebra(self, rng: np.random.Generator, run: FracSegNetRun) -> VertebraSample:
        """See Source. With ``run.balanced`` the grade is drawn first (half are 0), then a vertebra that has it."""
        anatomy, target = self._choose(rng, balanced=run.balanced)
        centre = anatomy.centre_ras_mm(target) + rng.normal(0, run.centre_jitter_mm, 3)
        grid = crop_grid(centre, spacing_mm=run.spacing_mm, shape_zyx=(run.network.crop,) * 3)
        scan = render(anatomy, grid, sample_appearance(rng, self.config), rng)
        known = {"vertebra": scan.mask == target.label, "body": scan.body_mask == target.label}
        losses = 1 - np.array(target.heights_mm) / np.array(target.original_heights_mm)
        channels = run.network.mask_channels
        return VertebraSample(
            hu=cut_by_edges(scan.volume.array, np.zeros((0, 3)), rng, keep_middle=0.7)[0],
            masks=np.stack([known[name] for name in channels]) if channels else np.zeros((0, *grid.shape_zyx), bool),
            masks_known=np.ones(len(channels), bool),
            grade=target.grade,
            heights=np.concatenate([target.heights_mm, losses]).astype(np.float32),
        )

    def levels(self, rng: np.random.Generator, run: LevelNetRun) -> list[LevelSample]:
        """See Source. The phantom is rendered once, in a clinical field of view, at the crops' resolution."""
        anatomy = self._anatomy(rng)
        grid = random_scan_grid(anatomy, rng, spacing_mm=run.spacing_mm)
        scan = render(anatomy, grid, sample_appearance(rng, self.config), rng)
        centres = {v.label: scan.volume.grid.to_index_zyx(v.centre_ras_mm) for v in scan.vertebrae}
        return level_crops(scan.volume.array, scan.mask, centres, rng, run)

    def _choose(self, rng: np.random.Generator, *, balanced: bool) -> tuple[Anatomy, VertebraShape]:
        wanted = int(rng.choice(4, p=_GRADE_SHARES)) if balanced else None
        for _ in range(20):
            seed = int(rng.integers(2**31))
            grades = [shape.grade for shape in sample_spine(np.random.default_rng([seed, 1]), self.config)[0]]
            if wanted is None or wanted in grades:
                break
        anatomy = sample_anatomy(seed, self.config)
        candidates = [v for v in anatomy.vertebrae if v.grade == wanted] or list(anatomy.vertebrae)
        return anatomy, candidates[rng.integers(len(candidates))]


def cut_by_edges(
    hu: np.ndarray,
    points_zyx: np.ndarray,
    rng: np.random.Generator,
    *,
    probability: float = 0.3,
    keep_middle: float = 0.25,
) -> tuple[np.ndarray, np.ndarray]:
    """The crop as if the scan ended inside it: air beyond a random plane or two, centres there are gone.

    The middle ``keep_middle`` of every axis always remains.
    """
    hu = np.array(hu, np.float32)
    if rng.random() >= probability:
        return hu, points_zyx
    inside = np.ones(len(points_zyx), bool)
    for _ in range(rng.integers(1, 3)):
        axis = int(rng.integers(3))
        size = hu.shape[axis]
        width = int(rng.integers(1, max(int(size * (1 - keep_middle) / 2), 2)))
        low = bool(rng.integers(2))
        part = [slice(None)] * 3
        part[axis] = slice(0, width) if low else slice(size - width, size)
        hu[tuple(part)] = AIR_HU
        inside &= points_zyx[:, axis] > width - 0.5 if low else points_zyx[:, axis] < size - width - 0.5
    return hu, points_zyx[inside]


def _anywhere(anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """RAS mm (3,): a point anywhere in and around the patient, half of the time beside or below the sacrum.

    Hips, the acetabular roof above all, are what a network takes for vertebrae longest.
    """
    if rng.random() < 0.5:
        lowest = anatomy.centre_ras_mm(anatomy.vertebrae[-1])
        return np.asarray(lowest + rng.uniform([-110.0, -60.0, -190.0], [110.0, 70.0, -20.0]))
    middle = np.mean([anatomy.centre_ras_mm(v) for v in anatomy.vertebrae], axis=0)
    return np.asarray(middle + rng.uniform(-1, 1, 3) * np.array([190.0, 140.0, 420.0]))


class MixedSource:
    """Several sources, one drawn at random for each sample."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)

    def localisation(
        self, rng: np.random.Generator, shape_zyx: tuple[int, int, int], run: LocNetRun
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Source."""
        return self.sources[rng.integers(len(self.sources))].localisation(rng, shape_zyx, run)

    def vertebra(self, rng: np.random.Generator, run: FracSegNetRun) -> VertebraSample:
        """See Source."""
        return self.sources[rng.integers(len(self.sources))].vertebra(rng, run)

    def levels(self, rng: np.random.Generator, run: LevelNetRun) -> list[LevelSample]:
        """See Source."""
        return self.sources[rng.integers(len(self.sources))].levels(rng, run)

    def validation(self) -> MixedSource:
        """What its sources hold back."""
        return MixedSource([held_out(source) for source in self.sources])


def make_source(data: Sequence[str], *, grades: Path | None, cache: Path) -> Source:
    """The source for the command line's ``--data``: ``phantoms``, folders in VerSe's layout, or several of them."""
    from train.real_scans import RealSource

    sources: list[Source] = [
        PhantomSource() if name == "phantoms" else RealSource(Path(name), grades=grades, cache=cache) for name in data
    ]
    return sources[0] if len(sources) == 1 else MixedSource(sources)
