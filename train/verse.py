"""VerSe's BIDS-like layout: which scans there are, where their centres lie, what their vertebrae are graded.

``rawdata/sub-X/sub-X[_...]_ct.nii.gz`` holds the scan; ``derivatives/sub-X/`` the mask ``..._seg-vert_msk.nii.gz``
and the centres ``..._seg-subreg_ctd.json`` (older releases: ``..._seg-vb_ctd.json``).
Labels: 1-7 C1-C7, 8-19 T1-T12, 20-25 L1-L6, 26 sacrum, 27 coccyx, 28 T13.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import InputError
from runtime.volume import Float64, Grid

LEVELS: Mapping[int, str] = {
    **{n: f"C{n}" for n in range(1, 8)},
    **{n + 7: f"T{n}" for n in range(1, 13)},
    **{n + 19: f"L{n}" for n in range(1, 7)},
    28: "T13",
}
LABELS: Mapping[str, int] = {level: label for label, level in LEVELS.items()}


@dataclass(frozen=True)
class Case:
    """One scan of the data set; ``mask``, ``body_mask`` and ``centroids`` are None where there is no such file."""

    name: str
    ct: Path
    mask: Path | None
    body_mask: Path | None
    centroids: Path | None


def find_cases(root: Path | str) -> tuple[Case, ...]:
    """All scans under ``root`` (or its splits), sorted by name.

    Raises InputError when there are none: the message names the layout that was looked for.
    """
    root = Path(root)
    cases = [
        _case(ct)
        for ct in sorted(root.glob("**/rawdata/**/*_ct.nii*"))
        if ct.name.endswith(("_ct.nii", "_ct.nii.gz")) and not ct.name.startswith(".")
    ]
    if not cases:
        raise InputError(
            f"No scan was found in {root}: looked for rawdata/sub-*/sub-*_ct.nii.gz (VerSe's layout). "
            "Point at the folder that holds rawdata/ and derivatives/."
        )
    return tuple(cases)


def _case(ct: Path) -> Case:
    stem = re.sub(r"_ct\.nii(\.gz)?$", "", ct.name)
    subject_folder = ct.parent
    rawdata = next(parent for parent in ct.parents if parent.name == "rawdata")
    derivatives = rawdata.parent / "derivatives" / subject_folder.relative_to(rawdata)

    def first(*patterns: str) -> Path | None:
        found = [path for pattern in patterns for path in sorted(derivatives.glob(stem + pattern))]
        return found[0] if found else None

    return Case(
        name=stem,
        ct=ct,
        mask=first("_seg-vert_msk.nii*"),
        body_mask=first("_seg-body_msk.nii*"),
        centroids=first("_seg-subreg_ctd.json", "_seg-vb_ctd.json"),
    )


def read_centroids(path: Path, grid: Grid) -> dict[int, Float64]:
    """VerSe label -> centre, RAS+ mm (x, y, z), of all vertebrae in a centroid file (no sacrum, no coccyx).

    The file's coordinates are voxel indices of the scan turned to the orientation that its first entry names; ``grid``
    is the scan's (or the mask's) own. Raises InputError for a file that isn't of this form.
    """
    try:
        entries = json.loads(path.read_text())
        direction = "".join(entries[0]["direction"])
        points = {int(e["label"]): np.array([e["X"], e["Y"], e["Z"]], float) for e in entries[1:] if "label" in e}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} is not a VerSe centroid file ({error}); expected a list that begins with "
            '{"direction": ["P", "I", "R"]} and goes on with {"label", "X", "Y", "Z"}.'
        ) from error
    centres = {}
    for label, xyz in points.items():
        if label in LEVELS:
            centres[label] = grid.to_ras_mm(_from_direction(xyz, direction, grid, path)[::-1])
    return centres


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
