"""VerSe's BIDS-like layout: which scans there are, where their centres lie, what their vertebrae are graded.

``rawdata/sub-X/sub-X[_...]_ct.nii.gz`` holds the scan; ``derivatives/sub-X/`` the mask ``..._seg-vert_msk.nii.gz``
and the centres ``..._seg-subreg_ctd.json`` (older releases: ``..._seg-vb_ctd.json``).
Labels: 1-7 C1-C7, 8-19 T1-T12, 20-25 L1-L6, 26 sacrum, 27 coccyx, 28 T13.

Splits: a folder above ``rawdata``, the root among them, whose name ends in ``training``, ``validation`` or ``test``
says of which its scans are, as in VerSe's own archives; of several the lowest one. Where no folder says ``validation``,
every tenth subject, chosen by a hash of its name, is held out of training for it. Scans of one subject are never on
both sides: VerSe 2020 holds the patients of VerSe 2019 again, in other splits, so a subject that is in a test folder
anywhere is for test alone, and one in a validation folder is not trained on. Of scans of the same name one is used.
Among several data sets that are drawn from together a subject has one split likewise.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runtime.errors import InputError
from runtime.label_map import VERSE_LEVELS, read_labels
from runtime.volume import Float64, Grid

LEVELS: Mapping[int, str] = VERSE_LEVELS
LABELS: Mapping[str, int] = {level: label for label, level in LEVELS.items()}


log = logging.getLogger(__name__)
SPLITS = ("training", "validation", "test")
HELD_OUT_SHARE = 0.1
"""Of the subjects, for validation, where the data set has no validation folder."""


@dataclass(frozen=True)
class Case:
    """One scan of the data set; the files from ``mask`` on are None where there is no such file.

    ``body_mask`` (vertebral bodies) and ``heights`` (true heights) come with phantoms alone.
    """

    name: str
    ct: Path
    mask: Path | None
    body_mask: Path | None
    centroids: Path | None
    heights: Path | None = None
    split: str = "training"

    @property
    def subject(self) -> str:
        """The patient: ``sub-verse401`` of ``sub-verse401_split-verse253``."""
        return self.name.split("_")[0]


@dataclass(frozen=True)
class KnownHeights:
    """True heights of a vertebral body: anterior, middle, posterior in mm, and its greatest relative loss."""

    heights_mm: tuple[float, float, float]
    height_loss: float


def find_cases(
    root: Path | str, *, split: str | None = None, splits_elsewhere: Mapping[str, str] | None = None
) -> tuple[Case, ...]:
    """All scans under ``root``, or those of one split (see this module's head), sorted by name.

    Args:
        root: a folder in VerSe's layout.
        split: one of ``SPLITS``, or None for all.
        splits_elsewhere: subject -> its split in other data sets, see ``splits_of_subjects``: a subject is in the one
            furthest from training, there or here.

    Raises:
        InputError: there is no scan (the message names the layout that was looked for), or none of that split.
    """
    root = Path(root)
    cases = [
        _case(ct, root)
        for ct in sorted(root.glob("**/rawdata/**/*_ct.nii*"))
        if ct.name.endswith(("_ct.nii", "_ct.nii.gz")) and not ct.name.startswith(".")
    ]
    if not cases:
        raise InputError(
            f"No scan was found in {root}: looked for rawdata/sub-*/sub-*_ct.nii.gz (VerSe's layout). "
            "Point at the folder that holds rawdata/ and derivatives/."
        )
    own = _with_validation(_apart(cases))
    cases = _stricter(own, splits_elsewhere or {})
    if moved := sum(case.split != before.split for case, before in zip(cases, own, strict=True)):
        log.info("%d scans in %s are of patients whom another folder holds out, and are held out too", moved, root)
    return of_split(cases, split, root)


def of_split(cases: Sequence[Case], split: str | None, root: Path | str) -> tuple[Case, ...]:
    """The cases of one split, or all for None. Raises InputError, which names ``root``, when there are none."""
    chosen = tuple(case for case in cases if split in (None, case.split))
    if not chosen:
        counts = ", ".join(f"{sum(c.split == name for c in cases)} for {name}" for name in SPLITS)
        raise InputError(
            f"{root} has no scan for {split}: its {len(cases)} scans are {counts}. Name the folder above where this "
            "one is of one split, as dataset-verse19test is, or rename the folder where its name only ends so, as "
            "spine-test does, or name one with more subjects: every tenth is held out for validation where no folder "
            "is named so."
        )
    return chosen


def splits_of_subjects(roots: Iterable[Path | str]) -> dict[str, str]:
    """Subject -> the split furthest from training that it is in under any of ``roots``."""
    return _strictest(case for root in roots for case in find_cases(root))


def _strictest(cases: Iterable[Case]) -> dict[str, str]:
    strictest: dict[str, str] = {}
    for case in cases:
        strictest[case.subject] = max(strictest.get(case.subject, SPLITS[0]), case.split, key=SPLITS.index)
    return strictest


def _stricter(cases: Iterable[Case], splits: Mapping[str, str]) -> list[Case]:
    """The cases, those of subjects that are further from training in ``splits`` moved there."""
    return [
        replace(case, split=max(case.split, splits.get(case.subject, SPLITS[0]), key=SPLITS.index)) for case in cases
    ]


def _apart(cases: Sequence[Case]) -> list[Case]:
    """Each subject in one split, the one furthest from training that any of its scans is in; each name once."""
    once = {case.name: case for case in reversed(_stricter(cases, _strictest(cases)))}
    if len(once) < len(cases):
        log.warning("%d scans are there more than once; one of each name is used", len(cases) - len(once))
    return [once[name] for name in sorted(once)]


def _with_validation(cases: Sequence[Case]) -> list[Case]:
    """The cases, with subjects of the training split held out where no folder is named for validation."""
    if any(case.split == "validation" for case in cases):
        return list(cases)
    held_out = held_out_subjects(case.subject for case in cases if case.split == "training")
    return [
        replace(case, split="validation") if case.split == "training" and case.subject in held_out else case
        for case in cases
    ]


def held_out_subjects(subjects: Iterable[str]) -> frozenset[str]:
    """About a tenth of the subjects, by a hash of their names; of two or more subjects at least one, and never all.

    A subject's place does not depend on which others there are, but for data sets so small that the hash holds out
    nobody, or everybody.
    """

    def place(subject: str) -> float:
        return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8]) / 2**64

    ranked = sorted(set(subjects), key=place)
    if len(ranked) < 2:
        return frozenset()
    count = sum(place(subject) < HELD_OUT_SHARE for subject in ranked)
    return frozenset(ranked[: min(max(count, 1), len(ranked) - 1)])


def _case(ct: Path, root: Path) -> Case:
    stem = re.sub(r"_ct\.nii(\.gz)?$", "", ct.name)
    rawdata = next(parent for parent in ct.parents if parent.name == "rawdata")
    derivatives = rawdata.parent / "derivatives" / ct.parent.relative_to(rawdata)

    def first(*patterns: str) -> Path | None:
        found = [path for pattern in patterns for path in sorted(derivatives.glob(stem + pattern))]
        return found[0] if found else None

    return Case(
        name=stem,
        ct=ct,
        mask=first("_seg-vert_msk.nii*"),
        body_mask=first("_seg-body_msk.nii*"),
        centroids=first("_seg-subreg_ctd.json", "_seg-vb_ctd.json"),
        heights=first("_heights.json"),
        split=_split_named((root.absolute().name, *rawdata.relative_to(root).parts[:-1])),
    )


def _split_named(folders: Sequence[str]) -> str:
    """The split that a folder's name ends in, as ``dataset-verse19test`` or ``02-validation``; else training."""
    met = [match[1] for name in folders if (match := re.search(r"(?:^|[^a-z])(training|validation|test)$", name))]
    return met[-1] if met else "training"


def read_centroids(path: Path, grid: Grid) -> dict[int, Float64]:
    """VerSe label -> centre, RAS+ mm (x, y, z), of all vertebrae in a centroid file (no sacrum, no coccyx).

    The file's coordinates are voxel indices of the scan turned to the orientation that its first entry names; ``grid``
    is the scan's (or the mask's) own. Raises InputError for a file that isn't of this form.
    """
    direction, points = _annotations(path)
    centres = {}
    for label, xyz in points.items():
        if label in LEVELS:
            centres[label] = grid.to_ras_mm(_from_direction(xyz, direction, grid, path)[::-1])
    return centres


def annotated_labels(case: Case) -> frozenset[int]:
    """VerSe labels of the vertebrae in a scan's centroid file, or in its mask where it has none; else no label.

    Raises InputError when the file cannot be read.
    """
    if case.centroids is not None:
        return frozenset(_annotations(case.centroids)[1]) & LEVELS.keys()
    if case.mask is not None:
        return frozenset(np.unique(read_labels(case.mask)[0]).tolist()) & LEVELS.keys()
    return frozenset()


def _annotations(path: Path) -> tuple[str, dict[int, Float64]]:
    """The direction that a centroid file names, and label -> voxel index (x, y, z), of sacrum and coccyx too."""
    try:
        entries = json.loads(path.read_text())
        direction = "".join(entries[0]["direction"])
        points = {int(e["label"]): np.array([e["X"], e["Y"], e["Z"]], float) for e in entries[1:] if "label" in e}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} is not a VerSe centroid file ({error}); expected a list that begins with "
            '{"direction": ["P", "I", "R"]} and goes on with {"label", "X", "Y", "Z"}.'
        ) from error
    return direction, points


def _from_direction(xyz: Float64, direction: str, grid: Grid, path: Path) -> Float64:
    """Voxel indices (x, y, z) of ``grid``, from those of the same voxels turned to the orientation ``direction``."""
    if sorted(map(_axis_of, direction)) != ["A", "R", "S"]:
        raise InputError(f"{path} names the direction {direction!r}; expected three letters such as P, I, R.")
    own = grid.orientation
    result = np.empty(3)
    for axis, letter in enumerate(own):
        source = [_axis_of(d) for d in direction].index(_axis_of(letter))
        size = grid.shape_zyx[2 - axis]
        result[axis] = xyz[source] if direction[source] == letter else size - 1 - xyz[source]
    return result


def _axis_of(letter: str) -> str:
    return {"L": "R", "P": "A", "I": "S"}.get(letter, letter)


def read_heights(path: Path) -> dict[int, KnownHeights]:
    """VerSe label -> true heights, from the file that phantoms come with. Raises InputError for another form."""
    try:
        return {int(e["label"]): KnownHeights(_three(e["heights_mm"]), float(e["height_loss"]))
                for e in json.loads(path.read_text())}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a file of heights ({error}); expected a list of {{label, heights_mm, height_loss}}."
        ) from error


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    a, b, c = (float(value) for value in values)
    return a, b, c


def find_grades(root: Path, grades: Path | None) -> dict[str, dict[int, int]]:
    """The grades of the file that is named, or else of every ``genant*.json`` under ``root`` or right above it."""
    if grades is not None:
        return read_grades(grades)
    files = sorted(root.glob("**/genant*.json")) or sorted(root.absolute().parent.glob("genant*.json"))
    found: dict[str, dict[int, int]] = {}
    for file in files:
        found.update(read_grades(file))
    return found


def read_grades(path: Path) -> dict[str, dict[int, int]]:
    """Scan name -> VerSe label -> Genant grade 0..3, from a json or csv file.

    json: ``{split: {"sub-verse004_16": grade}}`` (splits optional). csv: columns ``subject, label, grade`` with a label
    or level name per row, or one row per subject with a column per level (``T12`` or ``T12_fx-g``).
    Raises InputError for other forms and for grades outside 0..3.
    """
    grades: dict[str, dict[int, int]] = {}
    for name, label, grade in _json_rows(path) if path.suffix == ".json" else _csv_rows(path):
        if grade not in (0, 1, 2, 3):
            raise InputError(f"{path}: {name}, label {label} has the grade {grade}; Genant grades are 0, 1, 2 or 3.")
        grades.setdefault(name, {})[label] = grade
    return grades


def _json_rows(path: Path) -> list[tuple[str, int, int]]:
    try:
        content = json.loads(path.read_text())
        flat: dict[str, int] = {}
        for key, value in content.items():
            flat.update(value if isinstance(value, dict) else {key: value})
        return [(key.rsplit("_", 1)[0], int(key.rsplit("_", 1)[1]), int(value)) for key, value in flat.items()]
    except (OSError, ValueError, AttributeError, IndexError, TypeError) as error:
        raise InputError(
            f'{path} is not a json file of grades ({error}); expected {{"training": {{"sub-verse004_16": 2}}}}.'
        ) from error


def _csv_rows(path: Path) -> list[tuple[str, int, int]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as csv: {error}.") from error
    header = list(rows[0]) if rows else []
    subject = next((c for c in header if c.lower() in ("subject", "verse_id", "name", "scan")), None)
    if subject is None:
        raise InputError(f"{path} has the columns {header}; one of them must be 'subject'.")
    try:
        if "label" in header and "grade" in header:
            return [(_name(r[subject]), _label(r["label"]), int(float(r["grade"]))) for r in rows if r["grade"] != ""]
        levels = {c: c.split("_")[0] for c in header if re.fullmatch(r"[CTL]\d+(_fx-g)?", c)}
        return [
            (_name(r[subject]), LABELS[level], int(float(r[column])))
            for r in rows
            for column, level in levels.items()
            if r[column] not in ("", None) and r[column].lower() != "nan"
        ]
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} holds a label or grade that is no number or level: {error}.") from error


def _label(text: str) -> int:
    return LABELS[text] if text in LABELS else int(float(text))


def _name(text: str) -> str:
    if text.startswith("sub-"):
        return text
    return f"sub-verse{int(text):03d}" if text.isdigit() else f"sub-{text}"
