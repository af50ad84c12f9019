"""From the frames of a CT series to their order and one grid, or a reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.errors import GeometryError, InputError
from runtime.readers.checks import check_grid, check_shape
from runtime.readers.dicom_frames import Frame
from runtime.volume import LPS_FROM_RAS, Grid

_DIRECTION_TOLERANCE = 1e-3
_SAME_POSITION_MM = 1e-3
_STEP_TOLERANCE = 0.05
"""Share of the step by which a slice may be off its place."""
_STEP_TOLERANCE_MM = 0.02
"""At least this much is allowed: files round positions."""
_TILT_WORTH_A_NOTE_DEGREES = 0.1


def arrange(frames: Sequence[Frame], name: str) -> tuple[list[Frame], Grid, list[str]]:
    """The frames ordered by their position along the slice normal, the grid of the stack, and notes.

    The slice axis goes from the first position to the last, so a tilted gantry gives a sheared grid. Slices may be off
    their place by 5 % of a step or 0.02 mm, whichever is more.

    Raises:
        InputError: there is only one slice.
        GeometryError: sizes, orientations or frames of reference differ; slices are missing, doubled or uneven.
    """
    if len(frames) < 2:
        raise InputError(f"{name} has only one slice, {frames[0].source}; give the folder with the whole CT series.")
    _require_one_kind(frames, name)
    normal = np.cross(frames[0].row_lps, frames[0].column_lps)
    ordered = sorted(frames, key=lambda frame: float(np.dot(frame.position_lps_mm, normal)))
    positions = np.array([frame.position_lps_mm for frame in ordered])
    _require_even_steps(ordered, positions @ normal, name)
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    _require_straight(ordered, positions, step, name)
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(ordered[0].row_lps, ordered[0].spacing_mm[1])
    affine[:3, 1] = np.multiply(ordered[0].column_lps, ordered[0].spacing_mm[0])
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    shape = check_shape((ordered[0].columns, ordered[0].rows, len(ordered)), name)
    grid = check_grid(shape, LPS_FROM_RAS @ affine, name)
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    notes = [f"The slices are tilted by {tilt:.1f} degrees (gantry tilt); this is kept in the grid."]
    return ordered, grid, notes if tilt > _TILT_WORTH_A_NOTE_DEGREES else []


def _require_one_kind(frames: Sequence[Frame], name: str) -> None:
    first = frames[0]
    axes = np.array([first.row_lps, first.column_lps])
    if np.abs(axes @ axes.T - np.eye(2)).max() > _DIRECTION_TOLERANCE:
        raise GeometryError(
            f"The slices of {name} have the orientation {axes.tolist()}, which is not two perpendicular unit vectors. "
            "Export the series again."
        )
    for frame in frames[1:]:
        reason = ""
        if (frame.rows, frame.columns) != (first.rows, first.columns):
            reason = f"sizes ({first.rows}x{first.columns} and {frame.rows}x{frame.columns} in {frame.source})"
        elif np.abs(np.array([frame.row_lps, frame.column_lps]) - axes).max() > _DIRECTION_TOLERANCE:
            reason = f"orientations ({first.row_lps + first.column_lps} and {frame.row_lps + frame.column_lps})"
        elif not np.allclose(frame.spacing_mm, first.spacing_mm, rtol=1e-4):
            reason = f"pixel spacings ({first.spacing_mm} and {frame.spacing_mm} mm in {frame.source})"
        elif frame.frame_of_reference != first.frame_of_reference:
            reason = f"frames of reference (in {first.source} and {frame.source})"
        if reason:
            raise GeometryError(
                f"{name} mixes slices of different {reason}. Give one plain CT series, without localizers or "
                "other series."
            )


def _require_even_steps(ordered: Sequence[Frame], places_mm: np.ndarray, name: str) -> None:
    """Refuses doubled, missing and unevenly spaced slices; ``places_mm`` are along the normal, rising."""
    gaps = np.diff(places_mm)
    doubled = np.flatnonzero(gaps < _SAME_POSITION_MM)
    if len(doubled):
        first, second = ordered[doubled[0]], ordered[doubled[0] + 1]
        raise GeometryError(
            f"{name} has {len(doubled) + 1} or more slices in the same place: {first.source} and {second.source} both "
            f"at {places_mm[doubled[0]]:.2f} mm. Give one acquisition or phase, without copies."
        )
    step = float(np.median(gaps))
    tolerance = max(_STEP_TOLERANCE_MM, _STEP_TOLERANCE * step)
    odd = np.flatnonzero(np.abs(gaps - step) > tolerance)
    if not len(odd):
        return
    steps = np.rint(gaps[odd] / step)
    whole = (steps >= 2) & (np.abs(gaps[odd] - steps * step) <= tolerance * steps)
    where = f"between {ordered[odd[0]].source} and {ordered[odd[0] + 1].source}"
    if whole.all():
        raise GeometryError(
            f"{name} misses {int((steps - 1).sum())} slices: a gap of {gaps[odd[0]]:.2f} mm {where}, where slices are "
            f"{step:.2f} mm apart. Export or receive the whole series again."
        )
    raise GeometryError(
        f"{name} has uneven slice spacing: {gaps.min():.2f} to {gaps.max():.2f} mm, first at odds {where}. Give a "
        "series with one slice spacing, such as a reconstruction."
    )


def _require_straight(ordered: Sequence[Frame], positions: np.ndarray, step: np.ndarray, name: str) -> None:
    """Refuses stacks whose slices shift against each other or drift from even places."""
    expected = positions[0] + np.arange(len(ordered))[:, None] * step
    off = np.linalg.norm(positions - expected, axis=1)
    allowed = max(2 * _STEP_TOLERANCE_MM, 2 * _STEP_TOLERANCE * float(np.linalg.norm(step)))
    if off.max() > allowed:
        worst = int(off.argmax())
        raise GeometryError(
            f"The slices of {name} do not lie on one line: {ordered[worst].source} is {off[worst]:.2f} mm off its "
            "place. Give a series with one table position per slice, such as a reconstruction."
        )
