"""Training samples from real scans in VerSe's layout, resampled once and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from runtime.errors import InputError
from runtime.readers import read_scan
from runtime.resample import resample, working_grid
from runtime.volume import Grid
from train.config import GRADE_FIRST, FracSegNetRun, LevelNetRun, LocNetRun
from train.label_maps import read_labels, sample_nearest
from train.level_crops import AIR_HU, LevelSample, block, crop_start, level_crops
from train.scan_grades import Grades, match_grades
from train.sources import MixedSource, Source, VertebraSample, grade_shares, held_out
from train.verse import LEVELS, Case, find_cases, find_grades, of_split, read_centroids

log = logging.getLogger(__name__)
BODY_DEPTH = 0.6
"""Of the deepest voxel's depth. From 0.4 to 0.8 nothing changes by more than a millimetre."""
UNKNOWN_GRADE = -1
UNKNOWN_SHARE = 0.1
"""Of the crops drawn by grade, those of vertebrae whose grade is not known. They teach masks alone, but of all of the
neck, which nobody grades, and of patients whom no list has; a larger share would take as much from the grades."""


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan on its working grid.

    Args:
        name: of the case.
        hu: (z, y, x) int16, memory-mapped.
        mask: (z, y, x) uint8 with VerSe labels, memory-mapped, or None where the data set has none.
        body: likewise, the vertebral bodies alone.
        centres_zyx: VerSe label to voxel index (3,).
    """

    name: str
    hu: np.ndarray
    mask: np.ndarray | None
    body: np.ndarray | None
    centres_zyx: dict[int, np.ndarray]


class RealSource:
    """Crops of the scans under ``root`` that are of one split (see ``train.verse``).

    Args:
        root: a folder in VerSe's layout.
        grades: a csv or json file of Genant grades; None for those found beside the data.
        cache: where resampled scans are kept.
        split: one of ``train.verse.SPLITS``.
        splits_elsewhere: subject -> its split in the other folders that are drawn from, see ``find_cases``.
    """

    def __init__(
        self,
        root: Path,
        *,
        grades: Path | None,
        cache: Path,
        split: str = "training",
        splits_elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        every_case = find_cases(root, splits_elsewhere=splits_elsewhere)
        self.cases = of_split(every_case, split, root)
        self._root, self._grades_file, self.cache = root, grades, cache
        self._splits_elsewhere = splits_elsewhere
        self.grades: Mapping[str, Grades] = match_grades(every_case, find_grades(root, grades))

    @property
    def graded_scans(self) -> int:
        """How many of the split's scans have grades."""
        return sum(case.name in self.grades for case in self.cases)

    def validation(self) -> RealSource:
        """The same data set's scans for validation: other subjects. Raises InputError when there are none."""
        return RealSource(
            self._root,
            grades=self._grades_file,
            cache=self.cache,
            split="validation",
            splits_elsewhere=self._splits_elsewhere,
        )

    def prepared(self, case: Case, spacing_mm: float) -> PreparedScan:
        """The scan at ``spacing_mm``, from the cache if it is there."""
        return _prepared(case, spacing_mm, self.cache)

    def localisation(
        self, rng: np.random.Generator, shape_zyx: tuple[int, int, int], run: LocNetRun
    ) -> tuple[np.ndarray, np.ndarray]:
        """See Source: around a random vertebra, or anywhere for the share of negatives."""
        scan = self.prepared(self.cases[rng.integers(len(self.cases))], run.spacing_mm)
        centres = np.array(list(scan.centres_zyx.values())).reshape(-1, 3)
        shape = np.array(shape_zyx)
        if len(centres) and rng.random() >= run.negative_fraction:
            middle = centres[rng.integers(len(centres))] + rng.uniform(-0.45, 0.45, 3) * shape
        else:
            middle = rng.uniform(0, 1, 3) * np.array(scan.hu.shape)
        start = crop_start(middle, shape_zyx)
        hu = block(scan.hu, start, shape_zyx, fill=AIR_HU).astype(np.float32)
        points = centres - start
        points = points[((points > -0.5) & (points < shape - 0.5)).all(axis=1)]
        if rng.random() < 0.5:
            hu, points = hu[:, :, ::-1], points * [1, 1, -1] + [0, 0, shape_zyx[2] - 1]
        return vary_intensity(hu, rng), points

    def vertebra(self, rng: np.random.Generator, run: FracSegNetRun) -> VertebraSample:
        """See Source: any vertebra that has a centre; how often one of each grade, ``run.sampling`` says."""
        case, label, grade = self._choose(rng, run)
        scan = self.prepared(case, run.spacing_mm)
        shape = (run.network.crop,) * 3
        middle = scan.centres_zyx[label] + rng.normal(0, run.centre_jitter_mm / run.spacing_mm, 3)
        middle = middle + np.array(run.crop_shift_mm[::-1]) / run.spacing_mm
        start = crop_start(middle, shape)
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        masks = {"vertebra": scan.mask, "body": scan.body}
        channels = run.network.mask_channels
        return VertebraSample(
            hu=vary_intensity(block(scan.hu, start, shape, fill=AIR_HU).astype(np.float32)[:, :, flip], rng),
            masks=np.array([_labelled(masks[c], label, start, shape)[:, :, flip] for c in channels]).reshape(
                -1, *shape
            ),
            masks_known=np.array([masks[c] is not None for c in channels], bool),
            grade=grade,
            heights=np.full(6, np.nan, np.float32),
        )

    def levels(self, rng: np.random.Generator, run: LevelNetRun) -> list[LevelSample]:
        """See Source. VerSe annotates no vertebra that is only partly visible: none is to pass for no vertebra."""
        scan = self.prepared(self.cases[rng.integers(len(self.cases))], run.spacing_mm)
        known = {label: centre for label, centre in scan.centres_zyx.items() if label in LEVELS}
        samples = level_crops(scan.hu, scan.mask, known, rng, run, cut_ones_annotated=False)
        return [LevelSample(vary_intensity(s.hu, rng), s.level) for s in samples]

    def _choose(self, rng: np.random.Generator, run: FracSegNetRun) -> tuple[Case, int, int]:
        by_grade = self._by_grade
        wanted = grade_shares(run)
        if run.sampling in GRADE_FIRST and wanted is not None:
            shares = group_shares(by_grade.keys(), wanted)
            group = by_grade[int(rng.choice(list(shares), p=list(shares.values())))]
        else:
            group = [entry for entries in by_grade.values() for entry in entries]
        return group[rng.integers(len(group))]

    @cached_property
    def _by_grade(self) -> dict[int, list[tuple[Case, int, int]]]:
        """Grade, or ``UNKNOWN_GRADE`` -> the vertebrae that have it: their scan, label and grade."""
        groups: dict[int, list[tuple[Case, int, int]]] = {}
        for case in self.cases:
            known = self.grades.get(case.name, {})
            for label in _centres(case, _grid_of(case)):
                grade = known.get(label, UNKNOWN_GRADE)
                groups.setdefault(grade, []).append((case, label, grade))
        if not groups:
            raise InputError("The data set names no vertebra: neither centroid files nor masks were found.")
        return groups


def check_grades(run: FracSegNetRun, source: Source) -> None:
    """Say which data sets have no grades at all and teach masks alone.

    Raises InputError where the network has no masks to learn, and no grade would be known in training or validation.
    """
    for data in _parts(source):
        if isinstance(data, RealSource) and not data.graded_scans:
            log.warning("no grades for %d scans in %s; name them with --grades", len(data.cases), data._root)
    if run.network.mask_channels:
        return
    for drawn, what in ((source, "training"), (held_out(source), "validation")):
        if not any(not isinstance(data, RealSource) or data.graded_scans for data in _parts(drawn)):
            raise InputError(
                f"FracNet learns grades alone, and no scan for {what} has any: name a csv or json file of grades with "
                "--grades."
            )


def _parts(source: Source) -> tuple[Source, ...]:
    return source.sources if isinstance(source, MixedSource) else (source,)


def group_shares(present: Collection[int], wanted: Sequence[float]) -> dict[int, float]:
    """How often a vertebra of each grade that is present is drawn, of ``UNKNOWN_GRADE`` too; they add up to 1.

    Args:
        present: the grades that occur.
        wanted: shares of grades 0 to 3; the grades that occur keep their proportions.

    Unknown ones have ``UNKNOWN_SHARE``, or all where no grade is known.
    """
    known = {grade: wanted[grade] for grade in sorted(present) if grade != UNKNOWN_GRADE}
    if not known:
        return {UNKNOWN_GRADE: 1.0}
    rest = 1.0 - UNKNOWN_SHARE if UNKNOWN_GRADE in present else 1.0
    shares = {grade: rest * share / sum(known.values()) for grade, share in known.items()}
    return shares | ({UNKNOWN_GRADE: UNKNOWN_SHARE} if UNKNOWN_GRADE in present else {})


def _labelled(
    labels: np.ndarray | None, label: int, start_zyx: np.ndarray, shape_zyx: tuple[int, int, int]
) -> np.ndarray:
    """Where the block has the label, bool (z, y, x); nowhere when there is no label map."""
    if labels is None:
        return np.zeros(shape_zyx, bool)
    return block(labels, start_zyx, shape_zyx, fill=0) == label


def vary_intensity(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another scanner's view of the same crop: contrast, level and noise vary a little."""
    varied = hu * rng.uniform(0.9, 1.1) + rng.normal(0, 20)
    return (varied + rng.normal(0, 1, hu.shape) * rng.uniform(0, 25)).astype(np.float32)


def _grid_of(case: Case) -> Grid:
    """The scan's own grid, without reading its voxels. Raises InputError where the file can't be read."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        header = nibabel.load(case.ct)
        x, y, z = header.shape[:3]
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise InputError(f"{case.ct} cannot be read as a scan ({error}); fetch it anew or take it out.") from error
    return Grid((z, y, x), header.affine)


def _centres(case: Case, grid: Grid) -> dict[int, np.ndarray]:
    """Label -> centre of the vertebral body, RAS mm: from the centroid file, or else from the mask."""
    if case.centroids is not None:
        return dict(read_centroids(case.centroids, grid))
    if case.mask is None:
        return {}
    return body_centres(*read_labels(case.mask))


def body_centres(labels: np.ndarray, grid: Grid) -> dict[int, np.ndarray]:
    """Label -> centre of the vertebral body (3,), RAS mm, from masks of whole vertebrae, (z, y, x) with VerSe labels.

    The body is the thickest part of a vertebra: the centre is that of all voxels at least ``BODY_DEPTH`` times as deep
    inside the mask as its deepest one. The mask's own centre of mass lies 11 to 13 mm behind it, drawn by the arch.
    """
    centres = {}
    for label in (int(n) for n in np.unique(labels) if int(n) in LEVELS):
        voxels = np.argwhere(labels == label)
        low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
        block = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] == label
        depth = _depth_mm(block, grid.spacing_xyz_mm)
        centres[label] = grid.to_ras_mm(low + np.argwhere(depth >= BODY_DEPTH * depth.max()).mean(axis=0))
    return centres


def _depth_mm(mask: np.ndarray, spacing_xyz_mm: tuple[float, float, float]) -> np.ndarray:
    """How far from the mask's surface each voxel (z, y, x) lies: positive inside."""
    import SimpleITK as sitk  # noqa: N813  the name all of its users know

    image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
    image.SetSpacing(spacing_xyz_mm)
    depth = sitk.SignedMaurerDistanceMap(image, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    return np.asarray(sitk.GetArrayFromImage(depth)[1:-1, 1:-1, 1:-1])


@lru_cache(maxsize=512)
def _prepared(case: Case, spacing_mm: float, cache: Path) -> PreparedScan:
    folder = cache / f"{case.name}-{_cache_key(case, spacing_mm)}"
    if not (folder / "meta.json").is_file():
        _prepare_whole(case, spacing_mm, folder)
    meta = json.loads((folder / "meta.json").read_text())

    def load(name: str) -> np.ndarray | None:
        return np.load(folder / f"{name}.npy", mmap_mode="r") if (folder / f"{name}.npy").is_file() else None

    hu = load("hu")
    if hu is None:
        raise InputError(f"The cache folder {folder} is incomplete; delete it and start again.")
    return PreparedScan(
        case.name, hu, load("mask"), load("body"), {int(k): np.array(v) for k, v in meta["centres_zyx"].items()}
    )


def _cache_key(case: Case, spacing_mm: float) -> str:
    """Sixteen hex digits that change with the case's files, the spacing, and how centres are read."""
    files = [path for path in (case.ct, case.mask, case.body_mask, case.centroids) if path is not None]
    stamps = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join([*stamps, f"{spacing_mm} {BODY_DEPTH}"]).encode()).hexdigest()[:16]


def _prepare_whole(case: Case, spacing_mm: float, folder: Path) -> None:
    """``_prepare`` beside ``folder``, then renamed: several processes may want the same case at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "new"
        _prepare(case, spacing_mm, fresh)
        try:
            fresh.rename(folder)
        except OSError:  # another process was faster
            if not (folder / "meta.json").is_file():
                raise


def _prepare(case: Case, spacing_mm: float, folder: Path) -> None:
    """Resample one case into a new ``folder``."""
    log.info("resampling %s to %g mm", case.name, spacing_mm)
    volume = read_scan(case.ct)
    grid = working_grid(volume.grid, spacing_mm)
    folder.mkdir()
    hu = resample(volume, grid)
    np.save(folder / "hu.npy", np.clip(np.round(hu), -1024, 32767).astype(np.int16))
    for name, path in (("mask", case.mask), ("body", case.body_mask)):
        if path is not None:
            labels, label_grid = read_labels(path)
            np.save(folder / f"{name}.npy", sample_nearest(labels, label_grid, grid))
    centres = {str(label): grid.to_index_zyx(c).tolist() for label, c in _centres(case, volume.grid).items()}
    (folder / "meta.json").write_text(json.dumps({"centres_zyx": centres, "spacing_mm": spacing_mm}))
