"""All that is measured of a spine's vertebrae from their masks: heights, height loss, grade, shape, trabecular density.

This is the entry for the pipeline and for ``python -m runtime.measure``; the parts are in
:mod:`runtime.vertebral_body`, :mod:`runtime.heights` and :mod:`runtime.height_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.anatomy import is_cervical
from runtime.body_grid import BODY_GRID_MM, Float64, squared_depth
from runtime.height_loss import MeasuredFracture, measure_loss
from runtime.heights import BodyHeights, BodySize, HeightEnds, measure_body
from runtime.kernels.threads import each_in_threads
from runtime.resample import resample
from runtime.vertebral_body import Body, BodyMask, find_body, spine_tangents
from runtime.volume import Grid, Volume

TRABECULAR_DEPTH_MM = 4.0
"""Distance from the surface at which neither cortex nor its partial volume is met."""
_SMALLEST_TRABECULAR_ML = 0.15
DENSE_HU = 700.0
"""Trabecular bone stays below 400 HU, with contrast medium too; cement with its contrast agent is above 1000, metal
above 2000, and their partial volume lies between."""
_MOST_DENSE = 0.03
"""Share of the core above ``DENSE_HU``: a bone island of 8 mm is less of a lumbar core, 1 ml of cement is more."""
_WHOLE_ENOUGH = 0.3
"""Share of the median mask from which a vertebra's centre says where the spine runs; less is a fragment."""

_TIP = 0.01
"""Share of a body that may lie in the outermost half voxels; the cut through a body of 25 mm takes 2 % of it."""

CUT = "the edge of the scan cuts the body"
NO_BODY = "no vertebral body can be told in the mask"
NOT_A_BODY = "C1 and C2 have no body of the usual form"
CERVICAL = "cervical vertebrae are not graded: Genant's grades and the normal shapes are for T1 to L6"
MAYBE_CERVICAL = "probably cervical, though its level is not known: cervical vertebrae are not graded"


@dataclass(frozen=True)
class Measurement:
    """What is measured of one vertebra.

    Args:
        heights: of the body, or None where they cannot be told.
        ends: the heights' end points, or None with the heights.
        fracture: height loss, grade and shape, or None where the vertebra cannot be graded.
        mean_hu: of the trabecular bone: inside the body, 4 mm from its surface (half its depth where it is flat); None
            without a scan, where too little is left, or with ``dense``. Contrast medium raises it, and it changes with
            the tube voltage.
        reason: why heights or grade are None; ``""`` where there are both.
        has_body: False where the mask holds no vertebral body (less than ``SMALLEST_BODY_ML``).
        dense: whether more than 3 % of that bone is above 700 HU, as with cement, metal or sclerosis.
    """

    heights: BodyHeights | None
    ends: HeightEnds | None
    fracture: MeasuredFracture | None
    mean_hu: float | None
    reason: str
    has_body: bool
    dense: bool = False


def measure_vertebrae(
    bodies: Sequence[BodyMask], *, scan: Volume | None = None, field: Grid | None = None, reach: float = 1.0
) -> tuple[Measurement, ...]:
    """Measure the vertebrae of one spine.

    Args:
        bodies: cranial to caudal. The masks may lie on crops, each on its own grid.
        scan: for the trabecular density.
        field: the grid of the scan or label map that the masks come from, where known: a body that reaches its edge is
            cut, as is one whose mask says so.
        reach: see :func:`runtime.heights.measure_body`.

    Returns:
        One entry per vertebra, in the same order.
    """
    looks = each_in_threads(
        lambda pair: _look(*pair, scan, field, reach), list(zip(bodies, _tangents(bodies), strict=True))
    )
    heights = [None if look.size is None else look.size.heights for look in looks]
    fractures = measure_loss(heights, [v.level for v in bodies], in_neck=[v.in_neck for v in bodies])
    return tuple(
        Measurement(
            height,
            None if look.size is None else look.size.ends,
            fracture,
            look.trabecular.mean_hu,
            look.reason,
            dense=look.trabecular.dense,
            has_body=look.has_body,
        )
        for height, fracture, look in zip(heights, fractures, looks, strict=True)
    )


@dataclass(frozen=True)
class Trabecular:
    """Mean HU of a body's trabecular bone, and whether it holds what is none; see :class:`Measurement`."""

    mean_hu: float | None
    dense: bool = False


@dataclass(frozen=True)
class _Look:
    """What one vertebra shows without its neighbours."""

    size: BodySize | None
    trabecular: Trabecular
    reason: str
    has_body: bool


def _look(vertebra: BodyMask, tangent: Float64, scan: Volume | None, field: Grid | None, reach: float) -> _Look:
    body = find_body(vertebra, superior_ras=tangent)
    cut = not vertebra.complete or (body is not None and field is not None and _reaches_edge(body, field))
    size = None if body is None or cut or vertebra.level in ("C1", "C2") else measure_body(body, reach=reach)
    trabecular = Trabecular(None) if scan is None or body is None else measure_trabecular(body, scan)
    return _Look(size, trabecular, _reason(vertebra, size, cut=cut), body is not None)


def measure_trabecular(body: Body, scan: Volume) -> Trabecular:
    """Mean HU of a body's trabecular bone; see :class:`Measurement`."""
    squared = squared_depth(body.inside)
    core = body.inside & ((squared >= (TRABECULAR_DEPTH_MM / BODY_GRID_MM) ** 2) | (4 * squared >= squared.max()))
    index_zyx = scan.grid.to_index_zyx(body.grid.to_ras_mm(np.argwhere(core)))
    seen = ((index_zyx >= -0.5) & (index_zyx <= np.array(scan.grid.shape_zyx) - 0.5)).all(axis=1)
    voxels = np.argwhere(core)[seen]
    if len(voxels) < _SMALLEST_TRABECULAR_ML * 1000:
        return Trabecular(None)
    start, stop = voxels.min(axis=0), voxels.max(axis=0) + 1
    hu = resample(scan, body.grid.sub_grid(start, stop - start))[tuple((voxels - start).T)]
    if float((hu > DENSE_HU).mean()) > _MOST_DENSE:
        return Trabecular(None, dense=True)
    return Trabecular(float(hu.mean(dtype=np.float64)))


def _tangents(bodies: Sequence[BodyMask]) -> Float64:
    """(n, 3) the spine's direction at every vertebra; fragments and empty masks do not say where it runs."""
    volumes = np.array([v.outline.sum() * v.grid.voxel_volume_mm3 for v in bodies])
    whole = [n for n, volume in enumerate(volumes) if volume > 0 and volume >= _WHOLE_ENOUGH * np.median(volumes)]
    if not whole:
        return np.tile([0.0, 0.0, 1.0], (len(bodies), 1))
    tangents = spine_tangents([bodies[n].centre_ras_mm() for n in whole])
    nearest = [min(range(len(whole)), key=lambda k: abs(whole[k] - n)) for n in range(len(bodies))]
    return tangents[nearest]


def _reaches_edge(body: Body, field: Grid) -> bool:
    """Whether more of the body than the tip of a process lies beyond the outermost voxels' centres."""
    index_zyx = field.to_index_zyx(body.grid.to_ras_mm(np.argwhere(body.inside)))
    beyond = (index_zyx <= 0.0) | (index_zyx >= np.array(field.shape_zyx) - 1.0)
    return bool(beyond.any(axis=1).mean() > _TIP)


def _reason(vertebra: BodyMask, size: BodySize | None, *, cut: bool) -> str:
    if vertebra.level in ("C1", "C2"):
        return NOT_A_BODY
    if cut:
        return CUT
    if size is None:
        return NO_BODY
    if is_cervical(vertebra.level):
        return CERVICAL
    return MAYBE_CERVICAL if vertebra.in_neck else ""
