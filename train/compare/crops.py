"""A finite set of graded vertebra crops: drawn from phantoms once, kept as one file, trained on and measured on.

The thesis trained on the 726 graded crops of VerSe 2019, 22 of them of grade 3. What imbalance does shows only when
the rare grades are few different vertebrae, so nothing is rendered afresh here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runtime.errors import InputError
from train.config import FracSegNetRun, LevelNetRun, LocNetRun
from train.level_crops import LevelSample
from train.phantom import PhantomConfig
from train.sources import VertebraSample, find_vertebra, grade_shares, render_vertebra

log = logging.getLogger(__name__)

VERSE_COUNTS = (591, 63, 50, 22)
"""Training crops of grades 0 to 3 of VerSe 2019 (thesis, table of class counts)."""
EVALUATION_COUNTS = (160, 80, 80, 80)
"""Enough of each grade to tell F1 scores apart; figures are weighted back to VerSe's frequencies."""
TRAINING_SEEDS = range(2**31)
EVALUATION_SEEDS = range(2**31, 2**31 + 2**20)
PHANTOMS = PhantomConfig(
    wild_probability=0.1,
    noise_hu=(2.0, 40.0),
    slice_thickness_mm=(0.7, 5.0),
    thick_slice_probability=0.1,
    motion_probability=0.02,
    starvation_probability=0.05,
    circular_field_probability=0.05,
)
"""Scans about as good as VerSe's, so that what limits the grades is their number and not the images."""


@dataclass(frozen=True, eq=False)
class Crops:
    """Graded crops.

    Args:
        hu: (n, z, y, x) int16.
        masks: (n, k, z, y, x) bool, in the order of the network's mask channels.
        grades: (n,) int64, Genant 0..3.
        heights: (n, 6) float32: anterior, middle, posterior height in mm, then their relative losses.
    """

    hu: np.ndarray
    masks: np.ndarray
    grades: np.ndarray
    heights: np.ndarray

    def __len__(self) -> int:
        return len(self.grades)

    def sample(self, index: int, *, mirrored: bool = False) -> VertebraSample:
        """One crop; ``mirrored`` from left to right, which changes neither grade nor heights."""
        x = slice(None, None, -1 if mirrored else 1)
        return VertebraSample(
            hu=self.hu[index][..., x].astype(np.float32),
            masks=self.masks[index][..., x],
            masks_known=np.ones(self.masks.shape[1], bool),
            grade=int(self.grades[index]),
            heights=self.heights[index],
        )


def draw_crops(counts: Sequence[int], run: FracSegNetRun, *, seeds: range, seed: int) -> Crops:
    """``counts[g]`` crops of thoracic and lumbar vertebrae of each grade g, nearly all of different patients.

    Crop i is determined by ``(seed, i)`` alone. Raises InputError where no patient has a vertebra of the wanted grade.
    """
    wanted = np.repeat(np.arange(len(counts)), counts)
    samples = []
    for i, grade in enumerate(tqdm(wanted.tolist(), desc="crops", unit="crop", disable=None)):
        rng = np.random.default_rng([seed, i])
        anatomy, target = find_vertebra(grade, rng, PHANTOMS, seeds=seeds, regions="TL")
        if target.grade != grade:
            raise InputError(f"No phantom with a vertebra of grade {grade} was met for seed {seed}; take another seed.")
        samples.append(render_vertebra(anatomy, target, rng, run, PHANTOMS))
    return Crops(
        np.stack([np.clip(np.round(s.hu), -32768, 32767).astype(np.int16) for s in samples]),
        np.stack([s.masks for s in samples]),
        wanted.astype(np.int64),
        np.stack([s.heights for s in samples]),
    )


def kept_crops(path: Path, counts: Sequence[int], run: FracSegNetRun, *, seeds: range, seed: int) -> Crops:
    """``draw_crops``, from the file ``path`` where an earlier call with the same arguments left it.

    Raises InputError when the file holds something else.
    """
    place = f"{run.network.crop} {run.spacing_mm} {run.crop_shift_mm} {run.centre_jitter_mm}"
    key = f"{list(counts)} {place} {seeds} {seed} {PHANTOMS}"
    if not path.is_file():
        log.info("drawing %d crops into %s", sum(counts), path)
        _write(path, draw_crops(counts, run, seeds=seeds, seed=seed), key)
    with np.load(path) as file:
        if str(file["key"]) != key:
            raise InputError(f"{path} holds crops that were drawn differently; name another output folder.")
        masks = np.unpackbits(file["masks"], axis=-1).astype(bool)
        return Crops(file["hu"], masks, file["grades"], file["heights"])


def _write(path: Path, crops: Crops, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    packed = np.packbits(crops.masks, axis=-1)
    np.savez_compressed(temporary, hu=crops.hu, masks=packed, grades=crops.grades, heights=crops.heights, key=key)
    temporary.replace(path)


class CropsSource:
    """A ``Source`` that draws from a finite set, by grade as ``run.sampling`` says, mirrored half of the time."""

    def __init__(self, crops: Crops) -> None:
        self.crops = crops
        self._members = [np.flatnonzero(crops.grades == grade) for grade in range(4)]

    def draw(self, rng: np.random.Generator, run: FracSegNetRun) -> tuple[int, bool]:
        """Which crop, and whether to mirror it."""
        shares = grade_shares(run)
        members = np.arange(len(self.crops)) if shares is None else self._members[int(rng.choice(4, p=shares))]
        return int(members[rng.integers(len(members))]), bool(rng.random() < 0.5)

    def vertebra(self, rng: np.random.Generator, run: FracSegNetRun) -> VertebraSample:
        """See Source."""
        index, mirrored = self.draw(rng, run)
        return self.crops.sample(index, mirrored=mirrored)

    def localisation(
        self, rng: np.random.Generator, shape_zyx: tuple[int, int, int], run: LocNetRun
    ) -> tuple[np.ndarray, np.ndarray]:
        """There is none: these crops are of single vertebrae."""
        raise InputError("A set of vertebra crops trains FracSegNet only.")

    def levels(self, rng: np.random.Generator, run: LevelNetRun) -> list[LevelSample]:
        """There is none: these crops are of single vertebrae."""
        raise InputError("A set of vertebra crops trains FracSegNet only.")
