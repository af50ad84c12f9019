"""From the frames of a CT series to their order and one grid, or a reason why there is none.

Only positions along the slice normal count, never Slice Location or Instance Number. A tilted gantry gives a sheared
grid, from which everything is resampled through the full affine. Uneven steps give a grid with even planes, onto which
the slices are interpolated from their own positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.errors import GeometryError, InputError
from runtime.readers.checks import check_grid, check_shape
from runtime.readers.dicom_frames import Frame
from runtime.volume import LPS_FROM_RAS, Float64, Grid

SAME_ORIENTATION = 1e-3
"""By which the components of two slices' directions may differ: half a pixel across 512."""
_SAME_POSITION = 0.05
"""Share of the step up to which two slices lie in the same place."""
_SAME_POSITION_MM = 1e-3
_STEP_TOLERANCE = 0.05
"""Share of the step by which a step may differ; places may by twice as much."""
_STEP_TOLERANCE_MM = 0.025
"""At least this much is allowed: files round positions to 0.01 mm."""
_SIDEWAYS_MM = 0.05
"""And a tenth of a pixel, if that is more: by which a slice may lie beside the line through the first and the last."""
_TILT_WORTH_A_NOTE_DEGREES = 0.1
_LARGEST_TILT_DEGREES = 40.0
"""Gantries tilt by up to 30."""
_LARGEST_GAP_MM = 10.0
"""Steps wider than this, and than any even one, are gaps: what lies between can't be interpolated."""
_LEAST_REPAIRED_STEP_MM = 0.5
_MOST_PLANES_PER_SLICE = 4
_BLOCK = 3
"""So many equal steps in a row are a block of thicker slices; fewer are missing slices."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order with the grid of the volume that they make.

    Args:
        frames: along the slice normal.
        grid: of the volume.
        planes: (n,) float64, index along z of the grid at which each frame lies.
        air: ranges of planes (first, last + 1) inside wide gaps, which hold no picture.
        copies: frames left out because they should be copies, with the index of the frame that is kept.
        step_mm: between slices along the normal; the median where steps differ.
        tilt_degrees: of the gantry.
        repairs: what was made right: ``"tilt"``, ``"uneven steps"``, ``"gaps"``.
        notes: what to say about it.
    """

    frames: tuple[Frame, ...]
    grid: Grid
    planes: Float64
    air: tuple[tuple[int, int], ...]
    copies: tuple[tuple[int, Frame], ...]
    step_mm: float
    tilt_degrees: float
    repairs: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Steps:
    """Where the planes of the volume lie: ``planes`` of the frames, how many there are, and what was repaired."""

    planes: Float64
    count: int
    air: tuple[tuple[int, int], ...] = ()
    repair: str = ""
    note: str = ""


def arrange(
    frames: Sequence[Frame], name: str, *, accept_gaps: bool = False, dropped: Sequence[str] = (), strays: str = ""
) -> Stack:
    """The frames ordered by their position along the slice normal, and the grid of the volume that they make.

    Args:
        frames: of one size and orientation.
        name: of the scan, for messages.
        accept_gaps: interpolate where slices are missing, and leave copies out.
        dropped: files of the series that can't be read and are left out.
        strays: said when slices are missing: which were set apart.

    Raises:
        InputError: there is only one slice.
        GeometryError: pixel spacings differ; slices are missing, doubled, or not above each other.
    """
    if len(frames) < 2:
        raise InputError(f"{name} has only one slice, {frames[0].source}; give the folder with the whole CT series.")
    spacing = _one_spacing(frames, name)
    row, column = _directions(frames, name)
    normal = np.cross(row, column)
    ordered = sorted(frames, key=lambda frame: float(np.dot(frame.position_lps_mm, normal)))
    ordered, copies = _without_copies(ordered, normal, name, accept_gaps=accept_gaps)
    positions = np.array([frame.position_lps_mm for frame in ordered])
    places = positions @ normal
    tilt = _require_straight(ordered, positions, places, normal, min(spacing), name)
    steps = _steps(ordered, places, name, accept_gaps=accept_gaps, strays=strays)
    axes = (row * spacing[1], column * spacing[0], (positions[-1] - positions[0]) / (steps.count - 1))
    shape = check_shape((ordered[0].columns, ordered[0].rows, steps.count), name)
    step_mm = float(np.median(np.diff(places)))
    tilted = tilt > _TILT_WORTH_A_NOTE_DEGREES
    return Stack(
        frames=tuple(ordered),
        grid=check_grid(shape, LPS_FROM_RAS @ _affine_lps(axes, positions[0]), name),
        planes=steps.planes,
        air=steps.air,
        copies=tuple(copies),
        step_mm=step_mm,
        tilt_degrees=tilt,
        repairs=(*(["tilt"] if tilted else []), *([steps.repair] if steps.repair else [])),
        notes=tuple(_notes(ordered, copies, dropped, steps, step_mm, tilt)),
    )


def _affine_lps(axes_mm: tuple[Float64, Float64, Float64], origin_mm: Float64) -> Float64:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.stack(axes_mm, axis=1), origin_mm
    return affine


def doubled(gaps_mm: np.ndarray) -> np.ndarray:
    """Which steps along the normal, rising, are none: the slices on both sides lie in the same place."""
    apart = gaps_mm[gaps_mm > _SAME_POSITION_MM]
    step = float(np.median(apart)) if len(apart) else 0.0
    return np.asarray(gaps_mm <= max(_SAME_POSITION_MM, _SAME_POSITION * step))


def even_steps(gaps_mm: np.ndarray) -> bool:
    """Whether these steps are one step, and no slice is off its place."""
    step = float(np.median(gaps_mm))
    tolerance = _tolerance_mm(step)
    if (np.abs(gaps_mm - step) > tolerance).any():
        return False
    places = np.concatenate([[0.0], np.cumsum(gaps_mm)])
    return bool((np.abs(places - np.linspace(0, places[-1], len(places))) <= 2 * tolerance).all())


def _tolerance_mm(step: float) -> float:
    return max(_STEP_TOLERANCE_MM, _STEP_TOLERANCE * step)


def _notes(
    ordered: Sequence[Frame],
    copies: Sequence[tuple[int, Frame]],
    dropped: Sequence[str],
    steps: _Steps,
    step_mm: float,
    tilt: float,
) -> list[str]:
    notes = []
    if tilt > _TILT_WORTH_A_NOTE_DEGREES:
        notes.append(
            f"The slices are tilted by {tilt:.1f} degrees (gantry tilt): the scan's grid is sheared, and what the "
            "networks see was resampled from it."
        )
    if steps.note:
        notes.append(steps.note)
    if copies:
        notes.append(f"{len(copies)} slices that were there twice were left out, such as {copies[0][1].source}.")
    if dropped:
        notes.append(f"{len(dropped)} slices that can't be read were left out, such as {dropped[0]}.")
    thickness = ordered[0].thickness_mm
    if thickness is not None and step_mm > 1.5 * thickness and not steps.repair:
        notes.append(
            f"The slices are {step_mm:.2f} mm apart and only {thickness:g} mm thick: every other one may be missing."
        )
    return notes


def _one_spacing(frames: Sequence[Frame], name: str) -> tuple[float, float]:
    """The pixel spacing (rows, columns) of all frames."""
    first = frames[0]
    for frame in frames[1:]:
        if not np.allclose(frame.spacing_mm, first.spacing_mm, rtol=1e-4, atol=0):
            raise GeometryError(
                f"{name} mixes slices of different pixel spacings ({first.spacing_mm} in {first.source} and "
                f"{frame.spacing_mm} mm in {frame.source}). Give one plain CT series, without other series."
            )
    return first.spacing_mm[0], first.spacing_mm[1]


def _directions(frames: Sequence[Frame], name: str) -> tuple[Float64, Float64]:
    """Unit vectors (LPS) along which the column index and the row index grow, of the middle frame in each component."""
    both = np.median([frame.row_lps + frame.column_lps for frame in frames], axis=0)
    axes = both.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > SAME_ORIENTATION:
        raise GeometryError(
            f"The slices of {name} have the orientation {axes.tolist()}, which is not two perpendicular unit vectors. "
            "Export the series again."
        )
    return axes[0], axes[1]


def _without_copies(
    ordered: Sequence[Frame], normal: Float64, name: str, *, accept_gaps: bool
) -> tuple[list[Frame], list[tuple[int, Frame]]]:
    """The frames without those in the place of another one, and these with the index of that other one."""
    places = np.array([np.dot(frame.position_lps_mm, normal) for frame in ordered])
    same = doubled(np.diff(places))
    if not same.any():
        return list(ordered), []
    kept: list[Frame] = []
    copies = []
    for frame, is_copy in zip(ordered, [False, *same], strict=True):
        if is_copy:
            copies.append((len(kept) - 1, frame))
        else:
            kept.append(frame)
    if not accept_gaps or len(kept) < 2:
        first, second = ordered[int(same.argmax())], ordered[int(same.argmax()) + 1]
        raise GeometryError(
            f"{name} has {int(same.sum()) + 1} or more slices in the same place: {first.source} and {second.source} "
            f"both at {places[int(same.argmax())]:.2f} mm. Give one acquisition or phase, without copies."
        )
    return kept, copies


def _require_straight(
    ordered: Sequence[Frame], positions: Float64, places: Float64, normal: Float64, pixel_mm: float, name: str
) -> float:
    """Refuses slices that shift sideways against each other; returns by how many degrees their line is tilted."""
    axis = (positions[-1] - positions[0]) / (places[-1] - places[0])
    tilt = float(np.degrees(np.arccos(np.clip(axis @ normal / np.linalg.norm(axis), -1, 1))))
    off = np.linalg.norm(positions - positions[0] - np.outer(places - places[0], axis), axis=1)
    if off.max() > max(_SIDEWAYS_MM, 0.1 * pixel_mm):
        worst, by_mm = _farthest_off(positions, places)
        raise GeometryError(
            f"The slices of {name} do not lie on one line: {ordered[worst].source} is {by_mm:.2f} mm off its "
            "place. Give a series with one table position per slice, such as a reconstruction."
        )
    if tilt > _LARGEST_TILT_DEGREES:
        raise GeometryError(
            f"The slices of {name} are shifted as if tilted by {tilt:.0f} degrees, from {ordered[0].source} to "
            f"{ordered[-1].source}; gantries tilt by up to 30. Export the series again."
        )
    return tilt


def _farthest_off(positions: Float64, places: Float64) -> tuple[int, float]:
    """The slice farthest beside the line that most of them lie on (median of slopes, then of offsets), and how far."""
    lateral = np.diff(positions, axis=0) / np.diff(places)[:, None]
    residual = positions - np.outer(places, np.median(lateral, axis=0))
    off = np.linalg.norm(residual - np.median(residual, axis=0), axis=1)
    return int(off.argmax()), float(off.max())


def _steps(ordered: Sequence[Frame], places: Float64, name: str, *, accept_gaps: bool, strays: str) -> _Steps:
    """Where the volume's planes lie.

    Raises:
        GeometryError: slices are missing, and gaps are not accepted.
    """
    gaps = np.diff(places)
    if even_steps(gaps):
        return _Steps(np.arange(len(places), dtype=np.float64), len(places))
    step = float(np.median(gaps))
    times = np.rint(gaps / step)
    whole = (times >= 2) & (np.abs(gaps - times * step) <= _tolerance_mm(step) * times)
    missing = whole & ~_in_thicker_block(ordered, gaps)
    wide = (gaps > _LARGEST_GAP_MM) & (gaps > 1.5 * step)
    if (missing | wide).any():
        if not accept_gaps:
            raise _missing(ordered, gaps, step, times, missing, wide, name, strays)
        return _filled(places, gaps, step, times, missing, wide)
    planes, count = _even_planes(places, max(float(gaps.min()), _LEAST_REPAIRED_STEP_MM))
    odd = int(np.flatnonzero(np.abs(gaps - step) > _tolerance_mm(step))[0]) if _odd(gaps, step) else 0
    note = (
        f"The slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart (first at odds between {ordered[odd].source} "
        f"and {ordered[odd + 1].source}): the scan was resampled from each slice's own position to "
        f"{(places[-1] - places[0]) / (count - 1):.2f} mm."
    )
    return _Steps(planes, count, repair="uneven steps", note=note)


def _odd(gaps: Float64, step: float) -> bool:
    return bool((np.abs(gaps - step) > _tolerance_mm(step)).any())


def _in_thicker_block(ordered: Sequence[Frame], gaps: Float64) -> np.ndarray:
    """Which steps belong to a run of equal ones whose slices are as thick as the step: a protocol, nothing missing."""
    covered = np.zeros(len(gaps), bool)
    first = 0
    for last in range(1, len(gaps) + 1):
        if last < len(gaps) and abs(gaps[last] - gaps[first]) <= _tolerance_mm(float(gaps[first])):
            continue
        if last - first >= _BLOCK:
            thickness = [frame.thickness_mm or 0.0 for frame in ordered[first + 1 : last]]
            covered[first:last] = min(thickness) >= 0.9 * gaps[first]
        first = last
    return covered


def _missing(
    ordered: Sequence[Frame],
    gaps: Float64,
    step: float,
    times: Float64,
    missing: np.ndarray,
    wide: np.ndarray,
    name: str,
    strays: str,
) -> GeometryError:
    at = int((missing | wide).argmax())
    what = f"{int((times - 1)[missing].sum())} slices" if not (wide & ~missing).any() else "a part"
    return GeometryError(
        f"{name} misses {what}: a gap of {gaps[at]:.2f} mm between {ordered[at].source} and "
        f"{ordered[at + 1].source}, where slices are {step:.2f} mm apart.{strays} Export or receive the whole series "
        "again, or accept gaps (--accept-gaps)."
    )


def _filled(
    places: Float64, gaps: Float64, step: float, times: Float64, missing: np.ndarray, wide: np.ndarray
) -> _Steps:
    """Planes where slices are missing too: the step's where all others are even, else even ones as for uneven steps."""
    regular = np.where(missing, times, 1.0)
    if even_steps(gaps / regular):
        planes = np.concatenate([[0.0], np.cumsum(regular)])
        count = int(planes[-1]) + 1
    else:
        planes, count = _even_planes(places, max(float(gaps.min()), _LEAST_REPAIRED_STEP_MM))
    air = tuple(
        (int(np.floor(planes[i])) + 1, int(np.ceil(planes[i + 1])))
        for i in np.flatnonzero(wide)
        if np.ceil(planes[i + 1]) > np.floor(planes[i]) + 1
    )
    holes = missing | wide
    note = f"Slices are missing in {int(holes.sum())} gaps of up to {gaps[holes].max():.2f} mm, accepted as asked: "
    fills = [
        f"{fill} those {which} {_LARGEST_GAP_MM:g} mm"
        for fill, which, any_of in (
            ("interpolated", "up to", (holes & ~wide).any()),
            ("air in", "above", wide.any()),
        )
        if any_of
    ]
    return _Steps(planes, count, air, "gaps", note + ", ".join(fills) + ".")


def _even_planes(places: Float64, step_mm: float) -> tuple[Float64, int]:
    """Where slices lie on even planes about ``step_mm`` apart from the first slice to the last, and their number."""
    extent = float(places[-1] - places[0])
    count = int(np.clip(round(extent / step_mm), 1, _MOST_PLANES_PER_SLICE * len(places))) + 1
    return (places - places[0]) * ((count - 1) / extent), count
