"""Measuring the vertebrae of a label map: which label is which vertebra, where its body is, what is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.anatomy import is_cervical
from runtime.errors import InputError
from runtime.findings import Heights
from runtime.label_map import TOTALSEGMENTATOR_LEVELS, TOTALSEGMENTATOR_SACRUM, VERSE_LEVELS
from runtime.masks import centroid_zyx, connected_parts
from runtime.morphometry import Measurement, measure_vertebrae
from runtime.vertebral_body import BodyMask
from runtime.volume import Grid, Volume

SCHEMES = ("auto", "verse", "totalsegmentator", "none")
_LEVELS: Mapping[str, Mapping[int, str]] = {
    "verse": VERSE_LEVELS,
    "totalsegmentator": TOTALSEGMENTATOR_LEVELS,
    "none": {},
}
LARGEST_CERVICAL_ML = 22.0
"""A cervical vertebra's whole mask is 6 to 18 ml, a mid-thoracic one's more than 22."""
SMALLEST_BODY_ML = 1.0
"""Of a connected body in a map of sub-regions; less is a stray."""

UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LabelledVertebra:
    """What is told of one label.

    Args:
        label: its value in the map (of a map of sub-regions: 1..n, cranial to caudal).
        level: ``"C1"``..``"L6"`` or None.
        heights_mm: of the body, or None.
        height_loss: 0..1, or None; grade: Genant 0..3 or None.
        shape: wedge, biconcave, crush, or None.
        volume_ml: of the whole vertebra's mask (of a map of sub-regions with several vertebrae: of the body's).
        mean_hu: of the trabecular bone, or None, also where cement, metal or sclerosis lies in it, as a note then says.
        complete: False where the mask reaches the edge of the map.
        reason: why heights or grade are None, else ``""``.
    """

    label: int
    level: str | None
    heights_mm: Heights | None
    height_loss: float | None
    grade: int | None
    shape: str | None
    volume_ml: float
    mean_hu: float | None
    complete: bool
    reason: str


@dataclass(frozen=True)
class MaskReport:
    """The vertebrae of a label map, cranial to caudal, and what a reader should know of how they were read."""

    vertebrae: tuple[LabelledVertebra, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Part:
    """One vertebra of a label map, cut out."""

    label: int
    mask: BodyMask
    volume_ml: float
    complete: bool


def measure_label_map(
    labels: tuple[UInt8, Grid],
    *,
    subregions: tuple[UInt8, Grid] | None = None,
    body_labels: Sequence[int] = (),
    scheme: str = "auto",
    scan: Volume | None = None,
) -> MaskReport:
    """Measure every vertebra of a label map.

    Args:
        labels: (z, y, x) uint8 and its grid, see :func:`runtime.label_map.read_labels`.
        subregions: a map of sub-regions on the same grid.
        body_labels: which of its labels are the vertebral body. Without ``subregions`` they are labels of the map
            itself, which is then one of sub-regions; each connected body is a vertebra of unknown level.
        scheme: one of ``SCHEMES``.
        scan: for the mean HU.

    Raises:
        InputError: the map holds no vertebra, the grids differ, the body labels do not occur, or the scan does not
            overlap with the map.
    """
    array, grid = labels
    _check(array, grid, subregions, scan)
    notes: list[str] = []
    if body_labels and subregions is None:
        parts = _bodies_of_subregions(array, grid, body_labels)
    else:
        body = None if subregions is None else _body_voxels(subregions[0], body_labels)
        parts = _labelled_parts(array, grid, scheme, body, notes)
    if not parts:
        raise InputError(f"The mask holds no vertebra under the scheme {scheme!r}. Name another with --labels.")
    parts.sort(key=lambda p: -float(p.mask.centre_ras_mm()[2]))
    measured = measure_vertebrae([p.mask for p in parts], scan=scan, field=grid)
    if dense := [str(p.label) for p, m in zip(parts, measured, strict=True) if m.dense]:
        notes.append(f"No HU, because cement, metal or sclerosis lies in the body: labels {', '.join(dense)}.")
    return MaskReport(tuple(_entry(p, m) for p, m in zip(parts, measured, strict=True)), tuple(notes))


def _check(array: UInt8, grid: Grid, subregions: tuple[UInt8, Grid] | None, scan: Volume | None) -> None:
    """Raise InputError for maps and scans that do not go together."""
    if not array.any():
        raise InputError("The mask is empty: all its voxels are 0. Give a mask with a label per vertebra.")
    if subregions is not None and not subregions[1].same_as(grid, tolerance_mm=0.1):
        raise InputError(
            f"The sub-regions' grid {subregions[1].shape_zyx} is not the mask's {grid.shape_zyx}, or lies elsewhere. "
            "Bring both onto one grid first."
        )
    if scan is not None:
        _require_overlap(grid, scan)


def _labelled_parts(array: UInt8, grid: Grid, scheme: str, body: Bool | None, notes: list[str]) -> list[_Part]:
    """The map's vertebrae under a scheme; ``body`` are the voxels of bodies, where they are known."""
    chosen = _scheme_of(array, grid, notes) if scheme == "auto" else scheme
    levels = _LEVELS[chosen]
    present = [int(n) for n in np.flatnonzero(np.bincount(array.ravel())) if n]
    parts = [_part(array == n, grid, n, levels.get(n), body) for n in present if not levels or n in levels]
    others = [str(n) for n in present if levels and n not in levels]
    if others:
        notes.append(f"Left out, since they are no vertebrae in this scheme: labels {', '.join(others)}.")
    return _doubted(parts, notes) if chosen == "verse" and scheme == "auto" else parts


def _require_overlap(grid: Grid, scan: Volume) -> None:
    index = scan.grid.to_index_zyx(grid.corners_ras_mm())
    if (index.max(axis=0) < -0.5).any() or (index.min(axis=0) > np.array(scan.grid.shape_zyx) - 0.5).any():
        raise InputError(f"The scan {scan.name} and the mask do not overlap in space. Give the scan of this mask.")


def _scheme_of(array: UInt8, grid: Grid, notes: list[str]) -> str:
    """The scheme of the labels; where both have them all, a guess by their order, which is noted."""
    present = [int(n) for n in np.flatnonzero(np.bincount(array.ravel())[1:]) + 1]
    if present[-1] > max(VERSE_LEVELS):
        return "totalsegmentator"
    if present[0] < TOTALSEGMENTATOR_SACRUM:
        return "verse"
    if _falls_from_cranial(array, grid, present):
        notes.append(
            "The labels were taken for TotalSegmentator's, since they fall from cranial to caudal. "
            "--labels verse reads them as VerSe's."
        )
        return "totalsegmentator"
    notes.append(
        f"Both VerSe and TotalSegmentator have the labels {', '.join(map(str, present))}: they were taken for VerSe's. "
        "--labels totalsegmentator reads them as TotalSegmentator's."
    )
    return "verse"


def _falls_from_cranial(array: UInt8, grid: Grid, present: Sequence[int]) -> bool:
    """Whether labels 25 to 28 lie as in TotalSegmentator's scheme, where they are sacrum, S1, L5 and L4.

    VerSe's 25 to 27, L6, sacrum and coccyx, come from cranial to caudal; its 28, T13, is above them as L4 is, but is
    never beside them without a label of the lumbar vertebrae between.
    """
    told = [n for n in present if n in (25, 26, 27)]
    lower, upper = (told[0], told[-1]) if len(told) > 1 else (present[0], present[-1])
    if lower == upper:
        return False
    heights_mm = [float(grid.to_ras_mm(centroid_zyx(array == n)[0])[2]) for n in (lower, upper)]
    return heights_mm[1] > heights_mm[0]


def _doubted(parts: list[_Part], notes: list[str]) -> list[_Part]:
    """The parts without levels, where labels 1, 2, 3... are far too large for C1, C2, C3..."""
    cervical = [p.volume_ml for p in parts if is_cervical(p.mask.level) and p.complete]
    if not cervical or float(np.median(cervical)) <= LARGEST_CERVICAL_ML:
        return parts
    notes.append(
        f"Labels from 1 on would be cervical, but hold {np.median(cervical):.0f} ml each: the labels were taken as "
        "running numbers without levels. --labels verse insists on levels."
    )
    return [_Part(p.label, BodyMask(p.mask.grid, p.mask.whole, p.mask.body), p.volume_ml, p.complete) for p in parts]


def _body_voxels(array: UInt8, body_labels: Sequence[int]) -> Bool:
    body = np.isin(array, body_labels)
    if not body.any():
        present = ", ".join(str(n) for n in np.unique(array) if n)
        raise InputError(
            f"The body labels {', '.join(map(str, body_labels))} do not occur in the map of sub-regions, which holds "
            f"{present or 'nothing'}. Name labels that it has."
        )
    return body


def _bodies_of_subregions(array: UInt8, grid: Grid, body_labels: Sequence[int]) -> list[_Part]:
    """Each connected body as a vertebra, numbered cranial to caudal; a single one keeps the rest of the map as arch."""
    numbered, voxels = connected_parts(_body_voxels(array, body_labels))
    sizes_ml = voxels * grid.voxel_volume_mm3 / 1000.0
    large = [n for n in range(1, len(sizes_ml)) if sizes_ml[n] >= SMALLEST_BODY_ML]
    if len(large) == 1:
        return [_part(array > 0, grid, 1, None, numbered == large[0])]
    masks = [numbered == n for n in large]
    masks.sort(key=lambda m: -float(grid.to_ras_mm(centroid_zyx(m)[0])[2]))
    return [_part(mask, grid, n, None, mask) for n, mask in enumerate(masks, start=1)]


def _part(whole: Bool, grid: Grid, label: int, level: str | None, body: Bool | None) -> _Part:
    """One vertebra cut out of the map, with a voxel around it."""
    voxels = np.argwhere(whole)
    low = np.maximum(voxels.min(axis=0) - 1, 0)
    high = np.minimum(voxels.max(axis=0) + 2, whole.shape)
    block = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    inside = None
    if body is not None and (body[block] & whole[block]).any():
        inside = body[block] & whole[block]
    complete = bool((voxels.min(axis=0) > 0).all() and (voxels.max(axis=0) < np.array(whole.shape) - 1).all())
    part_grid = grid.sub_grid(low, high - low)
    volume_ml = len(voxels) * grid.voxel_volume_mm3 / 1000.0
    return _Part(label, BodyMask(part_grid, whole[block].copy(), inside, level=level), volume_ml, complete)


def _entry(part: _Part, measured: Measurement) -> LabelledVertebra:
    heights, fracture = measured.heights, measured.fracture
    return LabelledVertebra(
        label=part.label,
        level=part.mask.level,
        heights_mm=None if heights is None else Heights(*(round(float(h), 2) for h in heights.as_array())),
        height_loss=None if fracture is None else round(fracture.height_loss, 4),
        grade=None if fracture is None else fracture.grade,
        shape=None if fracture is None else fracture.shape,
        volume_ml=round(part.volume_ml, 3),
        mean_hu=None if measured.mean_hu is None else round(measured.mean_hu, 1),
        complete=part.complete,
        reason=measured.reason,
    )
