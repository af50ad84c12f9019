"""Where training samples come from: phantoms rendered on the fly, real scans in VerSe's layout, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from runtime.crops import crop_grid
from train.config import FracSegNetRun, LevelNetRun, LocNetRun
from train.level_crops import AIR_HU, LevelSample, level_crops
from train.phantom import (
    Anatomy,
    Appearance,
    PhantomConfig,
    random_scan_grid,
    render,
    sample_anatomy,
    sample_appearance,
)
from train.phantom.spine import VertebraShape, sample_spine
from train.phantom.tables import Tissue
from train.verse import splits_of_subjects

_BALANCED_SHARES = (0.5, 1 / 6, 1 / 6, 1 / 6)
"""Equal shares made the network call an uncertain healthy vertebra grade 1."""
_SEVERE_SHARES = (0.45, 0.1, 0.15, 0.3)
_TRIES = 20
"""How many patients are looked through for a vertebra of the wanted grade."""


def grade_shares(run: FracSegNetRun) -> tuple[float, ...] | None:
    """How often crops of grades 0 to 3 are drawn with ``run.sampling``; None where the grade is not asked for."""
    total = sum(run.class_counts)
    known = {
        "as_found": None,
        "class_counts": tuple(count / total for count in run.class_counts),
        "balanced": _BALANCED_SHARES,
        "equal": (0.25,) * 4,
        "severe": _SEVERE_SHARES,
    }
    return known[run.sampling]


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
        if rng.random() < run.negative_fraction:
            anatomy = self._anatomy(rng)
            centre = _anywhere(anatomy, rng)
        else:
            wanted = int(rng.integers(2, 4)) if rng.random() < run.fractured_fraction else None
            anatomy, target = find_vertebra(wanted, rng, self.config)
            extent_mm = np.array(shape_zyx[::-1]) * run.spacing_mm
            centre = anatomy.centre_ras_mm(target) + rng.uniform(-0.45, 0.45, 3) * extent_mm
        grid = crop_grid(centre, spacing_mm=run.spacing_mm, shape_zyx=shape_zyx)
        appearance = dense_blood(sample_appearance(rng, self.config), rng, probability=run.dense_blood_fraction)
        scan = render(anatomy, grid, appearance, rng)
        points = np.array([grid.to_index_zyx(v.centre_ras_mm) for v in scan.vertebrae]).reshape(-1, 3)
        hu = thick_slices(scan.volume.array, rng, spacing_mm=run.spacing_mm, probability=run.thick_slices_fraction)
        return narrow_field(
            *cut_by_edges(hu, points, rng), rng, spacing_mm=run.spacing_mm, probability=run.narrow_field_fraction
        )

    def vertebra(self, rng: np.random.Generator, run: FracSegNetRun) -> VertebraSample:
        """See Source. Unless ``run.sampling`` is "as_found", the grade is drawn first, then a vertebra that has it."""
        shares = grade_shares(run)
        wanted = None if shares is None else int(rng.choice(4, p=shares))
        return render_vertebra(*find_vertebra(wanted, rng, self.config), rng, run, self.config)

    def levels(self, rng: np.random.Generator, run: LevelNetRun) -> list[LevelSample]:
        """See Source. The phantom is rendered once, in a clinical field of view, at the crops' resolution."""
        anatomy = self._anatomy(rng)
        grid = random_scan_grid(anatomy, rng, spacing_mm=run.spacing_mm)
        scan = render(anatomy, grid, sample_appearance(rng, self.config), rng)
        centres = {v.label: scan.volume.grid.to_index_zyx(v.centre_ras_mm) for v in scan.vertebrae}
        return level_crops(scan.volume.array, scan.mask, centres, rng, run)


def find_vertebra(
    grade: int | None,
    rng: np.random.Generator,
    config: PhantomConfig,
    *,
    seeds: range = range(2**31),
    regions: str = "CTL",
) -> tuple[Anatomy, VertebraShape]:
    """A patient with a seed in ``seeds`` and one of the vertebrae in ``regions``: one of that grade, or any for None.

    Where none of some tens of patients has such a vertebra, one of another grade is returned.
    """
    for _ in range(_TRIES):
        seed = int(rng.integers(seeds.start, seeds.stop))
        shapes = sample_spine(np.random.default_rng([seed, 1]), config)[0]
        if grade is None or any(v.grade == grade and v.level[0] in regions for v in shapes):
            break
    anatomy = sample_anatomy(seed, config)
    within = [v for v in anatomy.vertebrae if v.level[0] in regions]
    candidates = [v for v in within if v.grade == grade] or within
    return anatomy, candidates[rng.integers(len(candidates))]


def render_vertebra(
    anatomy: Anatomy, target: VertebraShape, rng: np.random.Generator, run: FracSegNetRun, config: PhantomConfig
) -> VertebraSample:
    """A crop around one vertebra of a phantom, in a drawn appearance; beside some bodies the scan ends."""
    centre = anatomy.centre_ras_mm(target) + rng.normal(0, run.centre_jitter_mm, 3)
    grid = crop_grid(
        centre, spacing_mm=run.spacing_mm, shape_zyx=(run.network.crop,) * 3, shift_ras_mm=run.crop_shift_mm
    )
    scan = render(anatomy, grid, sample_appearance(rng, config), rng)
    known = {"vertebra": scan.mask == target.label, "body": scan.body_mask == target.label}
    inside = scan_beside_body(known["body"], rng)
    losses = 1 - np.array(target.heights_mm) / np.array(target.original_heights_mm)
    channels = run.network.mask_channels
    return VertebraSample(
        hu=np.where(inside, scan.volume.array, np.float32(AIR_HU)),
        masks=np.array([known[name] & inside for name in channels], bool).reshape(-1, *grid.shape_zyx),
        masks_known=np.ones(len(channels), bool),
        grade=target.grade,
        heights=np.concatenate([target.heights_mm, losses]).astype(np.float32),
    )


def scan_beside_body(body: np.ndarray, rng: np.random.Generator, *, probability: float = 0.3) -> np.ndarray:
    """Which voxels of a crop a scan holds, (z, y, x) bool: in some crops it ends beyond a random plane or two.

    The scan never ends inside the body, or nearer to it than a voxel: its grade and heights remain to be told. Half of
    the planes lie above or below it, where scans end most often.

    Args:
        body: (z, y, x) bool.
        rng: decides where.
        probability: of a crop that the scan does not fill.
    """
    inside = np.ones(body.shape, bool)
    if rng.random() >= probability or not body.any():
        return inside
    for _ in range(rng.integers(1, 3)):
        axis = int(rng.choice(3, p=(0.5, 0.25, 0.25)))
        occupied = np.flatnonzero(body.any(axis=tuple(other for other in range(3) if other != axis)))
        is_low = bool(rng.integers(2))
        room = int(occupied[0] if is_low else body.shape[axis] - 1 - occupied[-1]) - 1
        if room < 1:
            continue
        width = int(rng.integers(1, room + 1))
        beyond = [slice(None)] * 3
        beyond[axis] = slice(0, width) if is_low else slice(body.shape[axis] - width, None)
        inside[tuple(beyond)] = False
    return inside


def cut_by_edges(
    hu: np.ndarray,
    points_zyx: np.ndarray,
    rng: np.random.Generator,
    *,
    probability: float = 0.3,
) -> tuple[np.ndarray, np.ndarray]:
    """The crop as if the scan ended inside it: air beyond a random plane or two, centres there are gone.

    The middle quarter of every axis always remains.
    """
    hu = np.array(hu, np.float32)
    if rng.random() >= probability:
        return hu, points_zyx
    inside = np.ones(len(points_zyx), bool)
    for _ in range(rng.integers(1, 3)):
        axis = int(rng.integers(3))
        size = hu.shape[axis]
        width = int(rng.integers(1, max(int(size * 3 / 8), 2)))
        low = bool(rng.integers(2))
        part = [slice(None)] * 3
        part[axis] = slice(0, width) if low else slice(size - width, size)
        hu[tuple(part)] = AIR_HU
        inside &= points_zyx[:, axis] > width - 0.5 if low else points_zyx[:, axis] < size - width - 0.5
    return hu, points_zyx[inside]


def narrow_field(
    hu: np.ndarray, points_zyx: np.ndarray, rng: np.random.Generator, *, spacing_mm: float, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Some crops as if reconstructed for the spine or the heart: air beyond 80 to 180 mm along y and x.

    One of the centres lies in the field, where there are any; those beyond it are gone.

    Args:
        hu: (z, y, x) float32.
        points_zyx: (k, 3) centres, voxels.
        rng: decides where.
        spacing_mm: of the voxels.
        probability: of a narrow field.
    """
    if rng.random() >= probability:
        return hu, points_zyx
    size_yx = np.array(hu.shape[1:])
    held_yx = points_zyx[rng.integers(len(points_zyx))][1:] if len(points_zyx) else size_yx * rng.uniform(0.2, 0.8, 2)
    width_yx = rng.uniform(80.0, 180.0, 2) / spacing_mm
    low = np.clip(np.rint(held_yx - rng.uniform(0.15, 0.85, 2) * width_yx), 0, None).astype(int)
    high = np.minimum(np.rint(low + width_yx).astype(int), size_yx)
    field = np.full(hu.shape, AIR_HU, np.float32)
    within = (slice(None), slice(low[0], high[0]), slice(low[1], high[1]))
    field[within] = hu[within]
    inside = ((points_zyx[:, 1:] > low - 0.5) & (points_zyx[:, 1:] < high - 0.5)).all(axis=1)
    return field, points_zyx[inside]


def thick_slices(hu: np.ndarray, rng: np.random.Generator, *, spacing_mm: float, probability: float) -> np.ndarray:
    """Some crops as if resampled from slices of 3 to 6 mm, mostly axial ones, sometimes sagittal or coronal ones.

    Each slice is the mean over its thickness; between their middles values are interpolated, as the runtime does.

    Args:
        hu: (z, y, x) float32.
        rng: decides how.
        spacing_mm: of the voxels.
        probability: of such slices.
    """
    if rng.random() >= probability:
        return hu
    axis = int(rng.choice(3, p=(0.6, 0.2, 0.2)))
    thickness_voxels = rng.uniform(3.0, 6.0) / spacing_mm
    weights = slice_weights(hu.shape[axis], thickness_voxels, rng.uniform(0, thickness_voxels))
    return along_axis(hu, weights, axis)


def slice_weights(count: int, thickness_voxels: float, first_voxel: float) -> np.ndarray:
    """(count, count) float32: which voxels of a line make up each voxel once it was stored in slices; rows sum to 1.

    Args:
        count: voxels of the line.
        thickness_voxels: of the contiguous slices.
        first_voxel: middle of a slice; the others lie ``thickness_voxels`` apart.
    """
    middles = np.arange(first_voxel - thickness_voxels, count + thickness_voxels, thickness_voxels)
    voxels = np.arange(count)
    low, high = middles[:, None] - thickness_voxels / 2, middles[:, None] + thickness_voxels / 2
    share = np.clip(np.minimum(high, voxels + 0.5) - np.maximum(low, voxels - 0.5), 0, None)
    kept = share.sum(axis=1) > 0.5 * min(thickness_voxels, 1.0)
    means = share[kept] / share[kept].sum(axis=1, keepdims=True)
    place = np.interp(voxels, middles[kept], np.arange(kept.sum()))
    between = np.clip(1 - np.abs(place[:, None] - np.arange(kept.sum())), 0, None)
    return np.asarray(between @ means, np.float32)


def along_axis(hu: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """(z, y, x) float32: every line along ``axis`` multiplied by the matrix ``weights``."""
    return np.ascontiguousarray(np.moveaxis(np.moveaxis(hu, axis, -1) @ weights.T, -1, axis), np.float32)


def dense_blood(appearance: Appearance, rng: np.random.Generator, *, probability: float) -> Appearance:
    """Some appearances with undiluted contrast agent in the veins, as beside the upper spine during an injection."""
    if rng.random() >= probability:
        return appearance
    hu = appearance.hu.copy()
    hu[Tissue.VEIN] = rng.uniform(300.0, 1800.0)
    return replace(appearance, hu=hu)


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
    """The source for the command line's ``--data``: ``phantoms``, folders in VerSe's layout, or several of them.

    A patient whom one of the folders holds out for validation or test is not trained on in any other, and one for test
    not validated on.
    """
    from train.real_scans import RealSource

    splits = splits_of_subjects(name for name in data if name != "phantoms")
    sources: list[Source] = [
        PhantomSource()
        if name == "phantoms"
        else RealSource(Path(name), grades=grades, cache=cache, splits_elsewhere=splits)
        for name in data
    ]
    return sources[0] if len(sources) == 1 else MixedSource(sources)
