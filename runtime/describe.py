"""What is told of each vertebra, and the warnings that go with it: the last step before the findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.anatomy import is_cervical
from runtime.body_grid import INSIDE
from runtime.bundle import BundleSpec
from runtime.findings import COMBINED, NETWORK, Heights, Measured, NetworkOpinion, Vertebra
from runtime.grading import GradingSpec, grade_probabilities, reported_heights
from runtime.height_loss import MeasuredFracture, measure_loss, shape_of
from runtime.heights import BodyHeights
from runtime.levels import LevelCall, in_neck
from runtime.morphometry import CERVICAL, CUT, MAYBE_CERVICAL, NO_BODY, Measurement
from runtime.paste import paste_masks
from runtime.segment import SegmentedVertebra
from runtime.vertebral_body import BodyMask
from runtime.volume import Grid, Volume

THICK_SLICES_MM = 3.0
"""Warned of above: heights measured on phantoms are off by 1.5 mm and a grade in five is wrong
(docs/decisions/0006)."""
METAL_HU, METAL_ML = 1500.0, 0.3
"""So many ml of a mask above so many HU are metal or bone cement: cortex stays below, with sharp kernels too."""
SHORT_MM = 30.0
"""A scan that reaches less far along the spine can't show a vertebra and its endplates."""
WITHOUT_BODY = ("C1", "C2")


@dataclass(frozen=True)
class Described:
    """A vertebra as the findings report it, and what they must warn of beside.

    Args:
        vertebra: as reported.
        is_dense: whether it has no trabecular HU because of what is denser than bone.
        holds_metal: whether metal or cement lies in its mask, which grows hollow around it.
    """

    vertebra: Vertebra
    is_dense: bool
    holds_metal: bool


@dataclass(frozen=True)
class Reported:
    """The heights to report of one vertebra and the height loss that they make; each None where it can't be told.

    ``no_grade_reason`` says why no grade can be given, None where one can.
    """

    heights: BodyHeights | None
    fracture: MeasuredFracture | None
    no_grade_reason: str | None


@dataclass(frozen=True)
class _Grades:
    """What is reported of a vertebra's grade; nothing where none can be given."""

    grade: int | None = None
    probabilities: tuple[float, ...] | None = None
    basis: str | None = None
    network: NetworkOpinion | None = None


def body_masks(
    found: Sequence[SegmentedVertebra], calls: Sequence[LevelCall | None], *, mask_threshold: float
) -> tuple[BodyMask, ...]:
    """What :func:`runtime.morphometry.measure_vertebrae` measures: the network's masks, with the levels that were told.

    Args:
        found: what the network said, cranial to caudal.
        calls: what is said of each one's level.
        mask_threshold: probability from which a voxel belongs to a mask.
    """
    shift = np.float32(INSIDE - mask_threshold)
    return tuple(
        BodyMask(
            one.grid,
            one.mask + shift,
            None if one.body is None else one.body + shift,
            complete=one.body_complete,
            level=None if call is None else call.level,
            in_neck=neck,
        )
        for one, call, neck in zip(found, calls, in_neck(calls), strict=True)
    )


def reported(
    found: Sequence[SegmentedVertebra],
    measurements: Sequence[Measurement],
    calls: Sequence[LevelCall | None],
    grading: GradingSpec | None,
) -> tuple[Reported, ...]:
    """The heights to report of a spine's vertebrae, and what these say of fractures; see :mod:`runtime.grading`."""
    heights: list[BodyHeights | None] = []
    levels = [None if call is None else call.level for call in calls]
    for one, measured, level in zip(found, measurements, levels, strict=True):
        stated = None if one.heights_mm is None else BodyHeights(*one.heights_mm)
        known = one.body_complete and measured.has_body and level not in WITHOUT_BODY
        heights.append(reported_heights(measured.heights, stated, grading) if known else None)
    neck = in_neck(calls)
    reasons = map(_no_grade_reason, found, measurements, levels, neck)
    losses = measure_loss(heights, levels, in_neck=neck)
    return tuple(Reported(*each) for each in zip(heights, losses, reasons, strict=True))


def _no_grade_reason(found: SegmentedVertebra, measurement: Measurement, level: str | None, neck: bool) -> str | None:
    if not found.body_complete:
        return CUT
    if is_cervical(level):
        return CERVICAL
    if neck:
        return MAYBE_CERVICAL
    return None if measurement.has_body else NO_BODY


def describe(
    number: int,
    found: SegmentedVertebra,
    volume: Volume,
    labels: np.ndarray,
    *,
    call: LevelCall | None,
    measurement: Measurement,
    heights: Reported,
    spec: BundleSpec,
) -> Described:
    """One vertebra as the findings report it.

    Volume and mean HU are those of the scan's own voxels. Where the edge of the scan cuts the vertebral body, its
    heights mean nothing, so grade, heights and loss are None; where it cuts only arch or processes, they are kept
    and a warning says that the vertebra is incomplete. Nor do they mean anything where the network outlined no body.
    Vertebrae that are cervical, or probably so, get neither grade nor loss: no training data grade them.

    Args:
        number: 1..n, its label in ``labels``.
        found: what the network said.
        volume: the scan.
        labels: (z, y, x) uint8 on the scan's grid.
        call: what is said of its level, or None where the bundle can't tell.
        measurement: what was measured on its mask.
        heights: what is to be reported of its heights, and why there is no grade.
        spec: the bundle's.
    """
    block = _block(found.grid, volume.grid)
    mask = labels[block] == number
    inside = mask
    if found.body is not None and mask.size:
        grid = volume.grid.sub_grid_at(block)
        inside = paste_masks([(found.grid, found.body)], grid, threshold=spec.fracsegnet.mask_threshold) > 0
    level = None if call is None else call.level
    grades = _grades(found, measurement, volume, spec) if heights.no_grade_reason is None else _Grades()
    fracture = heights.fracture
    x, y, z = found.centre_ras_mm
    hu = volume.array[block]
    vertebra = Vertebra(
        index=number,
        level=level,
        level_confidence=None if call is None or level is None else round(call.confidence, 4),
        centre_ras_mm=(round(x, 2), round(y, 2), round(z, 2)),
        confidence=round(min(1.0, max(0.0, found.confidence)), 4),
        complete=found.complete,
        grade=grades.grade,
        grade_probabilities=grades.probabilities,
        grade_from=grades.basis,
        grades_differ=_differ(grades.network, measurement.fracture),
        no_grade_reason=heights.no_grade_reason,
        shape=shape_of(fracture.losses) if grades.grade and fracture is not None else None,
        heights_mm=_rounded(heights.heights),
        expected_heights_mm=None if fracture is None else _rounded(fracture.expected),
        height_loss=None if fracture is None else round(fracture.height_loss, 4),
        network=grades.network,
        measured=_measured(measurement),
        volume_ml=round(float(mask.sum()) * volume.grid.voxel_volume_mm3 / 1000.0, 3),
        mean_hu=round(float(hu[inside].mean(dtype=np.float64)), 1) if inside.any() else None,
        trabecular_hu=None if measurement.mean_hu is None or not found.body_complete else round(measurement.mean_hu, 1),
        mask_label=number,
    )
    metal_ml = np.count_nonzero(hu[mask] > METAL_HU) * volume.grid.voxel_volume_mm3 / 1000.0
    return Described(vertebra, measurement.dense and found.body_complete, bool(metal_ml >= METAL_ML))


def _grades(found: SegmentedVertebra, measurement: Measurement, volume: Volume, spec: BundleSpec) -> _Grades:
    """The grade to report, from both witnesses where the bundle says how, and the network's own."""
    network = NetworkOpinion(
        int(np.argmax(found.grade_probabilities)),
        tuple(round(p, 4) for p in found.grade_probabilities),
        None if found.heights_mm is None else Heights(*(round(h, 2) for h in found.heights_mm)),
        None if found.height_loss is None else round(found.height_loss, 4),
    )
    if spec.grading is None:
        return _Grades(network.grade, network.grade_probabilities, NETWORK, network)
    loss = None if measurement.fracture is None else measurement.fracture.height_loss
    voxel_mm = max(volume.grid.spacing_xyz_mm)
    both = grade_probabilities(found.grade_probabilities, loss, voxel_mm=voxel_mm, spec=spec.grading)
    basis = NETWORK if loss is None else COMBINED
    return _Grades(int(np.argmax(both)), tuple(round(p, 4) for p in both), basis, network)


def _differ(network: NetworkOpinion | None, measured: MeasuredFracture | None) -> bool:
    return network is not None and measured is not None and abs(network.grade - measured.grade) > 1


def _measured(measurement: Measurement) -> Measured | None:
    heights, fracture = _rounded(measurement.heights), measurement.fracture
    if heights is None:
        return None
    if fracture is None:
        return Measured(None, None, heights)
    return Measured(fracture.grade, round(fracture.height_loss, 4), heights)


def _rounded(heights: BodyHeights | None) -> Heights | None:
    return None if heights is None else Heights(*(round(float(mm), 2) for mm in heights.as_array()))


def _block(part: Grid, scan: Grid) -> tuple[slice, slice, slice]:
    """The scan's voxels that the crop ``part`` can reach, as slices along z, y and x; may be empty."""
    corners = scan.to_index_zyx(part.corners_ras_mm())
    reach = max(part.spacing_xyz_mm) / np.array(scan.spacing_xyz_mm[::-1])
    low = np.floor(corners.min(axis=0) - reach).astype(int)
    high = np.ceil(corners.max(axis=0) + reach).astype(int) + 1
    z, y, x = (slice(max(0, a), max(0, a, min(n, b))) for a, b, n in zip(low, high, scan.shape_zyx, strict=True))
    return z, y, x


def notice(spec: BundleSpec) -> str:
    """What table, picture and findings must say of a bundle; ``""`` for one that is fit for clinical use."""
    if spec.clinical:
        return ""
    if "synthetic" in str(dict(spec.training)).lower():
        return "Trained on synthetic data. Not for clinical use."
    return "Not for clinical use."


def warnings(
    spec: BundleSpec,
    volume: Volume,
    described: Sequence[Described],
    *,
    dropped: int,
    rejected: int,
    padded: int = 0,
) -> tuple[str, ...]:
    """Everything that a reader of the findings should know before trusting them.

    Args:
        spec: of the bundle.
        volume: the scan.
        described: what was found.
        dropped: centres that were too many.
        rejected: centres that were held for none when levels were told, or around which nothing was outlined.
        padded: vertebrae that were outlined where the scan holds no picture.
    """
    vertebrae = [one.vertebra for one in described]
    said = [text for text in (notice(spec),) if text]
    said += volume.notes
    if (thick := _thick_slices(volume)) is not None:
        said.append(
            f"Slices are {thick}: above {THICK_SLICES_MM:.0f} mm, heights may be off by more than 1 mm, so that grades "
            "are unreliable."
        )
    if dropped:
        said.append(f"The network saw {dropped} more vertebrae than a patient has; the least confident were dropped.")
    if rejected:
        said.append(
            f"{rejected} candidate {_plural(rejected, 'centre was', 'centres were')} rejected as not a vertebra."
        )
    if padded:
        lie = _plural(padded, "centre was rejected: it lies", "centres were rejected: they lie")
        said.append(f"{padded} candidate {lie} where the scan is filled with one value.")
    if not vertebrae:
        said.append("No vertebra was found.")
        if (reach_mm := _reach_mm(volume)) < SHORT_MM:
            said.append(f"The scan reaches over {reach_mm:.0f} mm from head to foot: too little to show a vertebra.")
    elif spec.levelnet is None:
        said.append("Levels are not given: this bundle has no network that tells them.")
    if spec.grading is None and any(v.heights_mm is not None and v.network is not None for v in vertebrae):
        said.append(
            "Grades are the network's alone, and so are heights where it gives any: this bundle does not say how they "
            "go with the measured ones."
        )
    if any(v.trabecular_hu is not None for v in vertebrae):
        said.append("HU of bone change with the tube voltage and with contrast medium: they are no bone density.")
    return (*said, *_remarks(described, tells_levels=spec.levelnet is not None))


def _thick_slices(volume: Volume) -> str | None:
    """How far apart slices are or, where they overlap, how thick; None where that is too little to be said."""
    apart_mm = max(volume.grid.spacing_xyz_mm)
    thickness_mm = None if volume.source is None else volume.source.thickness_mm
    if round(max(apart_mm, thickness_mm or 0.0), 2) <= THICK_SLICES_MM:
        return None
    thick = f"{thickness_mm:.1f} mm thick, " if thickness_mm is not None and thickness_mm > apart_mm else ""
    return f"{thick}{apart_mm:.1f} mm apart"


def _reach_mm(volume: Volume) -> float:
    """How far the scan reaches from its lowest to its highest voxel, edges included."""
    grid = volume.grid
    return float(np.abs(grid.affine_ras[2, :3]) @ np.array(grid.shape_zyx[::-1]))


def _remarks(described: Sequence[Described], *, tells_levels: bool) -> Iterator[str]:
    """What is to be said of single vertebrae, each remark with the numbers of those it is about."""
    vertebrae = [one.vertebra for one in described]
    for text, members in (
        (
            "no HU of trabecular bone, because cement, metal or sclerosis lies in the body",
            [one.vertebra for one in described if one.is_dense],
        ),
        (
            "metal or cement lies in the mask; do not trust heights, grade and HU there",
            [one.vertebra for one in described if one.holds_metal],
        ),
        ("without a level, because none is probable enough", [v for v in vertebrae if tells_levels and not v.level]),
        ("cut by the edge of the scan", [v for v in vertebrae if not v.complete]),
        (
            "without a grade, because the edge of the scan cuts the body",
            [v for v in vertebrae if v.no_grade_reason == CUT and not is_cervical(v.level)],
        ),
        (
            "without grade and heights, because no vertebral body can be told in the mask",
            [v for v in vertebrae if v.no_grade_reason == NO_BODY],
        ),
        ("no grade: cervical vertebrae are not graded", [v for v in vertebrae if is_cervical(v.level)]),
        (
            "no grade: probably cervical, though the level is not told",
            [v for v in vertebrae if v.no_grade_reason == MAYBE_CERVICAL],
        ),
        ("the network's and the measured grade differ by more than one", [v for v in vertebrae if v.grades_differ]),
        (
            "not measured, since the body's mask has not the form of a body: the grade is the network's alone",
            [v for v in vertebrae if v.grade is not None and v.measured is None],
        ),
        ("without a mask", [v for v in vertebrae if v.volume_ml == 0.0]),
    ):
        if members:
            numbers = ", ".join(str(v.index) for v in members)
            yield f"{_plural(len(members), 'Vertebra', 'Vertebrae')} {numbers}: {text}."


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
