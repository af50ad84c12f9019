"""Second stage: one crop per vertebra through FracSegNet; masks, grades and heights out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.bundle import FracSegNetSpec
from runtime.engines.base import Session
from runtime.errors import EngineError
from runtime.kernels.threads import each_in_threads
from runtime.looks import looks_together, second_look, support
from runtime.masks import centroid_zyx, connected_parts, filled_block
from runtime.order import cranial_to_caudal
from runtime.scan_access import ScanAccess, ScanOnHost
from runtime.volume import Block, Grid, Volume

REFINE_WITHIN_MM = 10.0
"""A body mask whose centroid is further from the voted centre is that of another vertebra, or broken."""
DUPLICATE_DISTANCE_MM = 8.0
"""No two vertebral bodies have their centres this near, not even a child's or two collapsed ones."""
DUPLICATE_OVERLAP = 0.5
"""Masks that share this much of the smaller one are of the same vertebra."""
BODY_HALF_HEIGHT_MM = 12.0
"""Where the bundle has no body mask: a scan's edge nearer to the centre than this cuts the vertebral body."""
BODY_EDGE_STEPS = 2
"""A network that sees a body cut short may draw an endplate just before the scan's edge: crushed where it is not."""
STRAY_FRACTION = 0.1
"""Parts of a mask smaller than this fraction of its main part are dropped."""

Point = tuple[float, float, float]


class VotedCentre(Protocol):
    """What this stage needs of a ``runtime.localise.Centre``."""

    @property
    def centre_ras_mm(self) -> Point:
        """RAS+ mm (x, y, z)."""

    @property
    def confidence(self) -> float:
        """0..1."""


@dataclass(frozen=True, eq=False)
class SegmentedVertebra:
    """What the second network says of one vertebra.

    Args:
        source: index of the voted centre that it was found around.
        centre_ras_mm: centroid of the body mask where there is a plausible one, else the voted centre.
        confidence: of the localisation.
        grid: where ``mask`` and ``body`` lie: the crop, trimmed to the mask; of half the crop's spacing where the
            bundle interleaves two looks.
        mask: (z, y, x) float32, probability of belonging to this vertebra.
        body: (z, y, x) float32, probability of belonging to its body, or None where the bundle does not separate it.
        grade_probabilities: of grades 0..3.
        heights_mm: anterior, middle and posterior, or None where the bundle does not give them.
        height_loss: largest of the three relative losses, 0..1, or None.
        complete: False when the mask touches the edge of the scan.
        body_complete: False when the edge of the scan cuts the vertebral body itself, so that neither heights nor a
            grade can be told.
    """

    source: int
    centre_ras_mm: Point
    confidence: float
    grid: Grid
    mask: npt.NDArray[np.float32]
    body: npt.NDArray[np.float32] | None
    grade_probabilities: tuple[float, ...]
    heights_mm: Point | None
    height_loss: float | None
    complete: bool
    body_complete: bool


def segment(
    volume: Volume,
    centres: Sequence[VotedCentre],
    spec: FracSegNetSpec,
    session: Session,
    *,
    batch: int = 4,
    access: ScanAccess | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SegmentedVertebra, ...]:
    """Segment and grade the vertebra around each centre; centres of the same vertebra are merged.

    The crops are cut from the scan's own voxels, so masks are as fine as the scan allows. ``access`` says where those
    lie, None for the host's memory; ``batch`` crops, at most, go through the network at once. ``progress`` is told the
    centres done and their number.

    Returns:
        The vertebrae from cranial to caudal, by their final centres' places along the spine.

    Raises:
        EngineError: the network's outputs do not fit the bundle or are not finite.
    """
    access = access or ScanOnHost(volume)
    outputs: list[_Outputs] = []
    for start in range(0, len(centres), batch):
        grids = [spec.grid_around(c.centre_ras_mm) for c in centres[start : start + batch]]
        outputs += _outputs(grids, spec, session, access, batch=batch)
        if progress is not None:
            progress(len(outputs), len(centres))
    found = each_in_threads(
        lambda i: _read(centres[i], outputs[i], spec, volume.grid, source=i), list(range(len(centres)))
    )
    return _merge_duplicates(found, spec.mask_threshold)


@dataclass(frozen=True, eq=False)
class _Outputs:
    """What the network gives for one vertebra.

    Args:
        first: (k, z, y, x) mask probabilities of the first look.
        second: of the second, in the mirror, or None without one.
        grid: of the first look.
        others: the other outputs, the mean of both looks.
    """

    first: npt.NDArray[np.float32]
    second: npt.NDArray[np.float32] | None
    grid: Grid
    others: tuple[npt.NDArray[np.float32], ...]


def _outputs(
    grids: Sequence[Grid], spec: FracSegNetSpec, session: Session, access: ScanAccess, *, batch: int
) -> list[_Outputs]:
    """What the network gives for the crops on ``grids``, of one look at each or of two, one in the mirror."""
    count, seconds = len(grids), [second_look(grid, spec) for grid in grids] if spec.mirrored else []
    given = access.run_crops(session, [*grids, *seconds], spec.intensity, batch=batch)
    named = dict(zip(session.output_names, given, strict=True))
    masks, *others = _checked_outputs(named, spec, count + len(seconds))
    if not seconds:
        return [_Outputs(masks[i], None, grid, tuple(of[i] for of in others)) for i, grid in enumerate(grids)]
    both = [np.float32(0.5) * (of[:count] + of[count:]) for of in others]
    return [_Outputs(masks[i], masks[count + i], grid, tuple(of[i] for of in both)) for i, grid in enumerate(grids)]


def _checked_outputs(named: Mapping[str, np.ndarray], spec: FracSegNetSpec, count: int) -> list[np.ndarray]:
    """The network's mask, grade and, where the bundle has them, heights."""
    expected: dict[str, tuple[int, ...]] = {
        "mask": (count, len(spec.mask_channels), *spec.crop_zyx),
        "grade": (count, len(spec.grade_names)),
    }
    if spec.has_heights:
        expected["heights"] = (count, 6)
    shapes = {name: tuple(output.shape) for name, output in named.items()}
    if any(shapes.get(name) != shape for name, shape in expected.items()):
        raise EngineError(f"{spec.file} gave outputs {shapes}; its bundle promises {expected}.")
    if not all(np.isfinite(named[name]).all() for name in expected):
        raise EngineError(f"{spec.file} gave values that are not finite; try --precision fp32.")
    return [named[name] for name in expected]


def _read(centre: VotedCentre, its: _Outputs, spec: FracSegNetSpec, scan: Grid, *, source: int) -> SegmentedVertebra:
    """Read one vertebra's outputs."""
    masks, grid = its.first, its.grid
    if its.second is not None:
        masks, grid = looks_together(masks, its.second, grid, spec)
    mask = _without_strays(masks[0], spec.mask_threshold)
    body = None
    refined = centre.centre_ras_mm
    complete = not touches_edge(mask > spec.mask_threshold, grid, scan, step_mm=spec.spacing_mm)
    if "body" in spec.mask_channels:
        voted_zyx = grid.to_index_zyx(centre.centre_ras_mm)
        body = _main_part(masks[spec.mask_channels.index("body")], spec.mask_threshold, grid, voted_zyx)
        refined = _refined_centre(centre.centre_ras_mm, body > spec.mask_threshold, grid)
        body_complete = not touches_edge(
            body > spec.mask_threshold, grid, scan, step_mm=spec.spacing_mm, steps_along_spine=BODY_EDGE_STEPS
        )
    else:
        body_complete = complete or _distance_to_edge_mm(refined, scan) >= BODY_HALF_HEIGHT_MM
    block = support(mask if body is None else np.maximum(mask, body))
    grade, *heights = its.others
    return SegmentedVertebra(
        source=source,
        centre_ras_mm=refined,
        confidence=float(centre.confidence),
        grid=grid.sub_grid_at(block),
        mask=mask[block].copy(),
        body=None if body is None else body[block].copy(),
        grade_probabilities=tuple(float(p) for p in np.clip(grade, 0.0, 1.0)),
        heights_mm=_three(heights[0][:3]) if heights else None,
        height_loss=float(np.clip(heights[0][3:].max(), 0.0, 1.0)) if heights else None,
        complete=complete and body_complete,
        body_complete=body_complete,
    )


def _three(values: npt.NDArray[np.float32]) -> Point:
    return float(values[0]), float(values[1]), float(values[2])


def touches_edge(
    mask: npt.NDArray[np.bool_], grid: Grid, scan: Grid, *, step_mm: float, steps_along_spine: int = 1
) -> bool:
    """Whether a mask on ``grid`` reaches the outermost voxels of ``scan``, or comes within a step of them.

    ``step_mm`` is the size of the voxels on which the network saw it; ``steps_along_spine`` is how many of them count
    at the cranial and the caudal end.
    """
    steps = np.ones(3)
    steps[2 - int(np.argmax(np.abs(scan.affine_ras[2, :3])))] = steps_along_spine
    margin = np.maximum(0.5, steps * step_mm / np.array(scan.spacing_xyz_mm[::-1]))
    last = np.array(scan.shape_zyx) - 1

    def any_near(points_ras_mm: npt.NDArray[np.float64]) -> bool:
        index_zyx = scan.to_index_zyx(points_ras_mm)
        return bool(((index_zyx <= margin) | (index_zyx >= last - margin)).any())

    block = filled_block(mask)
    if block is None or not any_near(grid.sub_grid_at(block).corners_ras_mm()):
        return False
    return any_near(grid.to_ras_mm(np.argwhere(mask)))


def _distance_to_edge_mm(point_ras_mm: Point, scan: Grid) -> float:
    index_zyx = scan.to_index_zyx(point_ras_mm)
    last = np.array(scan.shape_zyx) - 1
    return float((np.minimum(index_zyx, last - index_zyx) * np.array(scan.spacing_xyz_mm[::-1])).min())


def _without_strays(probability: np.ndarray, threshold: float) -> np.ndarray:
    """The probabilities with small islands set to zero."""
    parts, sizes = connected_parts(probability > threshold)
    if len(sizes) <= 2:
        return probability
    stray = sizes < STRAY_FRACTION * sizes[1:].max()
    stray[0] = False
    return _without(stray, parts, probability) if stray.any() else probability


def _main_part(probability: np.ndarray, threshold: float, grid: Grid, voted_zyx: np.ndarray) -> np.ndarray:
    """The probabilities with all islands set to zero but the one that has the most voxels near the voted centre.

    Voxels count the less the further they are. The largest island may be a neighbour of a body that has collapsed.
    """
    parts, sizes = connected_parts(probability > threshold)
    axes = zip(probability.shape, voted_zyx, grid.spacing_xyz_mm[::-1], strict=True)
    weights = [
        np.maximum(0.0, 1 - np.abs(np.arange(size) - middle) * spacing_mm / REFINE_WITHIN_MM)
        for size, middle, spacing_mm in axes
    ]
    z, y, x = (w[w > 0] for w in weights)
    around = parts[np.ix_(*(np.flatnonzero(w) for w in weights))]
    near = np.bincount(around.ravel(), (z[:, None, None] * y[:, None] * x).ravel(), minlength=len(sizes))
    near[0] = 0
    if len(sizes) == 2 and near[1]:
        return probability
    others = np.arange(len(sizes)) > 0
    if near.any():
        others[int(np.argmax(near))] = False
    return _without(others, parts, probability)


def _without(dropped: npt.NDArray[np.bool_], parts: npt.NDArray[np.int32], probability: np.ndarray) -> np.ndarray:
    """The probabilities with zeros in the parts whose numbers are dropped."""
    from runtime.kernels.parts import leave_out

    kept = np.empty(probability.shape, np.float32)
    leave_out(probability, parts, dropped, kept)
    return kept


def _refined_centre(voted_ras_mm: Point, body: npt.NDArray[np.bool_], grid: Grid) -> Point:
    centre_zyx, voxels = centroid_zyx(body)
    if not voxels:
        return voted_ras_mm
    centroid = grid.to_ras_mm(centre_zyx)
    if np.linalg.norm(centroid - np.asarray(voted_ras_mm)) > REFINE_WITHIN_MM:
        return voted_ras_mm
    return float(centroid[0]), float(centroid[1]), float(centroid[2])


def _merge_duplicates(found: Sequence[SegmentedVertebra], threshold: float) -> tuple[SegmentedVertebra, ...]:
    """Of vertebrae that are the same one, keep the most confident that is outlined; from cranial to caudal."""
    kept: list[_Outline] = []
    outlines = [_outlined(one, threshold) for one in found]
    for outline in sorted(outlines, key=lambda o: (o.block is None, -o.of.confidence)):
        if not any(_same(outline, other) for other in kept):
            kept.append(outline)
    vertebrae = [outline.of for outline in kept]
    return tuple(vertebrae[i] for i in cranial_to_caudal([v.centre_ras_mm for v in vertebrae]))


@dataclass(frozen=True, eq=False)
class _Outline:
    """What tells vertebrae apart: (z, y, x) bool of body or mask, its number of voxels, the block that they fill.

    All of them lie within ``reach_mm`` of ``middle_ras_mm``.
    """

    of: SegmentedVertebra
    inside: npt.NDArray[np.bool_]
    voxels: int
    block: Block | None
    middle_ras_mm: npt.NDArray[np.float64]
    reach_mm: float


def _outlined(vertebra: SegmentedVertebra, threshold: float) -> _Outline:
    inside = (vertebra.mask if vertebra.body is None else vertebra.body) > threshold
    block = filled_block(inside)
    corners = (vertebra.grid if block is None else vertebra.grid.sub_grid_at(block)).corners_ras_mm()
    middle = corners.mean(axis=0)
    reach_mm = float(np.linalg.norm(corners - middle, axis=1).max()) + max(vertebra.grid.spacing_xyz_mm)
    return _Outline(vertebra, inside, int(np.count_nonzero(inside)), block, middle, reach_mm)


def _same(a: _Outline, b: _Outline) -> bool:
    distance_mm = float(np.linalg.norm(np.subtract(a.of.centre_ras_mm, b.of.centre_ras_mm)))
    return distance_mm < DUPLICATE_DISTANCE_MM or _overlap(a, b) > DUPLICATE_OVERLAP


def _overlap(a: _Outline, b: _Outline) -> float:
    """Volume shared by two vertebrae's bodies (masks where there are none), as a fraction of the smaller one."""
    apart_mm = float(np.linalg.norm(a.middle_ras_mm - b.middle_ras_mm))
    if a.block is None or b.block is None or apart_mm > a.reach_mm + b.reach_mm:
        return 0.0
    around = b.of.grid.sub_grid([s.start - 1 for s in b.block], [s.stop - s.start + 2 for s in b.block])
    there = a.of.grid.to_index_zyx(around.corners_ras_mm())
    first = np.clip(np.floor(there.min(axis=0)).astype(np.intp), 0, a.inside.shape)
    end = np.clip(np.ceil(there.max(axis=0)).astype(np.intp) + 1, 0, a.inside.shape)
    near = first + np.argwhere(a.inside[tuple(slice(f, e) for f, e in zip(first, end, strict=True))])
    index = np.rint(b.of.grid.to_index_zyx(a.of.grid.to_ras_mm(near))).astype(np.intp)
    index = index[((index >= 0) & (index < b.inside.shape)).all(axis=1)]
    return float(b.inside[tuple(index.T)].sum()) / min(a.voxels, b.voxels)
