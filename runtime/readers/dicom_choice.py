"""Which series of a DICOM scan to run on, and why: rules with numbers, and a reason for every series."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.errors import InputError
from runtime.readers.dicom_frames import Frame
from runtime.readers.dicom_series import Candidate

_PLANES = ("sagittal", "coronal", "axial")
_MOST_REASONS = 3
"""Series whose reason an error's one line tells."""


@dataclass(frozen=True)
class SeriesRules:
    """Points against a series; the one with fewest is run on. Localizers and secondary images are no candidates.

    Args:
        thin_mm: what a slice stands for, its step or its thickness if that is more, costs nothing up to this.
        points_per_mm: of what a slice stands for beyond that.
        thickest_mm: a stated thickness above this is not believed; thick slabs that are rendered on purpose are below.
        not_axial: slices that are farther than ``axial_within_degrees`` from axial.
        axial_within_degrees: of the slice normal from the patient's axis; gantry tilt stays below.
        sharp_kernel: bone and lung kernels are noisy.
        unknown_kernel: neither known as soft nor as sharp.
        derived: DERIVED instead of ORIGINAL images.
        repaired: uneven steps or gaps; a tilted gantry costs nothing, its slices are where they say.
        points_per_cm: by which its slices reach less far than those of the candidate that reaches farthest.
        few_slices: fewer than this
        few: cost so much.
        least_share: of the length of a series that can't be read: only one that reaches at least so far is run on in
            its place, else the scan is refused with what is wrong with that series.
    """

    thin_mm: float = 1.5
    points_per_mm: float = 10.0
    thickest_mm: float = 100.0
    not_axial: float = 40.0
    axial_within_degrees: float = 40.0
    sharp_kernel: float = 6.0
    unknown_kernel: float = 2.0
    derived: float = 10.0
    repaired: float = 10.0
    points_per_cm: float = 1.0
    few_slices: int = 20
    few: float = 15.0
    least_share: float = 0.8


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the rules say of one candidate.

    Args:
        candidate: of which.
        points: against it; None where it can't be run on.
        costs: the points by reason.
        chosen: whether it is the one to run on.
        reason: why it is chosen, or why not.
    """

    candidate: Candidate
    points: float | None
    costs: dict[str, float]
    chosen: bool
    reason: str


def choose(
    found: Sequence[Candidate], *, series_uid: str | None = None, rules: SeriesRules | None = None
) -> list[Verdict]:
    """A verdict on every candidate, the best first; at most one is chosen.

    Args:
        found: candidates.
        series_uid: of the series that was asked for; of its parts the rules still choose one, whatever its kind.
        rules: what counts how much.
    """
    rules = rules or SeriesRules()
    excluded = {id(one): _why_excluded(one, series_uid) for one in found}
    longest = max((one for one in found if excluded[id(one)] == str(one.defect)), key=extent_mm, default=None)
    for one in found:
        if not excluded[id(one)] and longest is not None and extent_mm(one) < rules.least_share * extent_mm(longest):
            excluded[id(one)] = (
                f"it reaches {extent_mm(one):.0f} mm and is no substitute for {label(longest)}, which can't be read "
                f"and reaches {extent_mm(longest):.0f} mm"
            )
    open_ones = [one for one in found if not excluded[id(one)]]
    farthest_mm = max((extent_mm(one) for one in open_ones), default=0.0)
    costs = {id(one): _costs(one, farthest_mm, rules) for one in open_ones}
    ranked = sorted(open_ones, key=lambda one: (round(sum(costs[id(one)].values()), 6), -len(one.frames), _order(one)))
    verdicts = []
    for place, one in enumerate(ranked):
        own = costs[id(one)]
        reason = _why_chosen(one, own, ranked, series_uid) if place == 0 else _why_not(own, costs[id(ranked[0])])
        verdicts.append(Verdict(one, round(sum(own.values()), 2), own, place == 0, reason))
    rest = sorted((one for one in found if excluded[id(one)]), key=_order)
    return verdicts + [Verdict(one, None, {}, False, excluded[id(one)]) for one in rest]


def refusal(verdicts: Sequence[Verdict], name: str, series_uid: str | None) -> InputError:
    """The error to raise when nothing was chosen."""
    defects = [v.candidate for v in verdicts if v.candidate.defect is not None and v.reason == str(v.candidate.defect)]
    if series_uid is not None and all(v.candidate.series_uid != series_uid for v in verdicts):
        return InputError(
            f"{name} has no CT series with the UID {series_uid}. See what is there: python -m runtime.series PATH."
        )
    if defects:
        largest = max(defects, key=lambda one: (extent_mm(one), len(one.frames) or len(one.files)))
        assert largest.defect is not None
        return largest.defect
    reasons = "; ".join(f"{label(v.candidate)}: {v.reason}" for v in verdicts[:_MOST_REASONS])
    more = f"; {len(verdicts) - _MOST_REASONS} more" if len(verdicts) > _MOST_REASONS else ""
    return InputError(
        f"{name} has no CT series to run on ({reasons}{more}). See them all with python -m runtime.series PATH; name "
        "one all the same with --series UID."
    )


def label(one: Candidate) -> str:
    """What to call a candidate in messages: number and part, no UID."""
    number = f"series {one.series_number}" if one.series_number else "a series without number"
    part = f" part {one.part[0]}" if one.part[1] > 1 else ""
    return number + part


def brief(one: Candidate) -> str:
    """Number, slices, step and kernel."""
    step = f" {one.stack.step_mm:.2f} mm apart" if one.stack is not None else ""
    kernel = f", kernel {one.kernel}" if one.kernel else ""
    count = len(one.frames) or sum(max(len(file.frames), 1) for file in one.files)
    return f"{label(one)} ({count} slices{step}{kernel})"


def extent_mm(one: Candidate) -> float:
    """How far its slices reach along their normal, from the first one's centre to the last one's."""
    places = [float(np.dot(frame.position_lps_mm, _normal(one))) for frame in one.frames]
    return max(places, default=0.0) - min(places, default=0.0)


def thickness_mm(one: Candidate) -> float | None:
    """How thick its slices are said to be: see :func:`stated_thickness_mm`."""
    return stated_thickness_mm(one.frames)


def stated_thickness_mm(frames: Sequence[Frame]) -> float | None:
    """How thick slices are said to be: the median of those that say so, or None."""
    stated = [frame.thickness_mm for frame in frames if frame.thickness_mm is not None]
    return float(np.median(stated)) if stated else None


def plane_of(one: Candidate) -> str:
    """``"axial"``, ``"coronal"`` or ``"sagittal"``, whichever is closest; ``""`` without frames."""
    return _PLANES[int(np.abs(_normal(one)).argmax())] if one.frames else ""


def kernel_kind(kernel: str) -> str:
    """``"soft"``, ``"sharp"`` or ``""`` where a kernel's name isn't known.

    Siemens (B30f, Br40, Bl57, H60s, I70f: from 50 on sharp), GE (STANDARD, BONE, ...), Philips (A to E, L, YA to YE),
    Canon (FC01 to FC19 body, FC20s brain, from FC30 on bone and lung).
    """
    name = kernel.upper().strip()
    if re.match(r"^(BONE|EDGE|LUNG|CHST|ULTRA|SHARP|HIGH|DETAIL|HD BONE)", name):
        return "soft" if name.startswith("DETAIL") else "sharp"
    if re.match(r"^(STANDARD|STND|STD|SOFT|SMOOTH)", name):
        return "soft"
    if toshiba := re.match(r"^FC(\d\d)", name):
        return "soft" if int(toshiba[1]) < 30 else "sharp"
    if siemens := re.match(r"^[A-Z]{1,2}(\d\d)", name):
        return "soft" if int(siemens[1]) < 50 else "sharp"
    if re.match(r"^(A|B|C|UA|UB|UC)$", name):
        return "soft"
    if re.match(r"^(D|E|L|Y[A-E])$", name):
        return "sharp"
    return ""


def _normal(one: Candidate) -> np.ndarray:
    return np.cross(one.frames[0].row_lps, one.frames[0].column_lps)


def _why_excluded(one: Candidate, series_uid: str | None) -> str:
    if series_uid is not None:
        if one.series_uid != series_uid:
            return "another series was asked for"
    elif "LOCALIZER" in one.image_type:
        return "it is a localizer"
    elif "SECONDARY" in one.image_type[:2]:
        return "its images are secondary captures or reformats (image type SECONDARY)"
    return "" if one.defect is None else str(one.defect)


def _costs(one: Candidate, farthest_mm: float, rules: SeriesRules) -> dict[str, float]:
    """The points against a candidate, by reason."""
    assert one.stack is not None
    step_mm, slices, extent = one.stack.step_mm, len(one.stack.frames), extent_mm(one)
    normal = _normal(one)
    off_axis = float(np.degrees(np.arccos(np.clip(abs(normal[2]) / np.linalg.norm(normal), 0, 1))))
    kernel = kernel_kind(one.kernel)
    thick_mm = thickness_mm(one) or 0.0
    overlap = step_mm < thick_mm <= rules.thickest_mm  # slices that overlap blur as far as they are thick
    costs = {
        f"slices {f'{thick_mm:.2f} mm thick, ' * overlap}{step_mm:.2f} mm apart": rules.points_per_mm
        * max((thick_mm if overlap else step_mm) - rules.thin_mm, 0),
        f"{plane_of(one)} slices": rules.not_axial * (off_axis > rules.axial_within_degrees),
        f"sharp kernel {one.kernel}": rules.sharp_kernel * (kernel == "sharp"),
        f"kernel {one.kernel} is not known" if one.kernel else "kernel is not told": rules.unknown_kernel
        * (kernel == ""),
        "derived images": rules.derived * ("DERIVED" in one.image_type[:1]),
        " and ".join(r for r in one.stack.repairs if r != "tilt"): rules.repaired
        * any(r != "tilt" for r in one.stack.repairs),
        f"{farthest_mm - extent:.0f} mm shorter": rules.points_per_cm * (farthest_mm - extent) / 10,
        f"only {slices} slices": rules.few * (slices < rules.few_slices),
    }
    return {reason: round(points, 3) for reason, points in costs.items() if points}


def _order(one: Candidate) -> tuple[bool, int, str, int]:
    number = one.series_number
    return (not number.isdecimal(), int(number) if number.isdecimal() else 0, one.series_uid, one.part[0])


def _why_chosen(one: Candidate, costs: dict[str, float], ranked: Sequence[Candidate], series_uid: str | None) -> str:
    if series_uid is not None and len(ranked) == 1:
        return "it was asked for"
    if len(ranked) == 1:
        return "the only one that can be run on"
    against = f"; against it: {', '.join(costs)}" if costs else ""
    return f"fewest points against it ({sum(costs.values()):.1f}){against}"


def _why_not(own: dict[str, float], best: dict[str, float]) -> str:
    more = [reason for reason, points in own.items() if points > best.get(reason, 0.0)]
    points = f"{sum(own.values()):.1f} points against it, the chosen one has {sum(best.values()):.1f}"
    return f"{', '.join(more) or 'as good as the chosen one, which has more slices or the lower number'} ({points})"
