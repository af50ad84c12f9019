"""The levels of a chain of centres: the sum over every way to name it, by what each looks like and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from runtime.anatomy import LEVEL_NAMES, LEVELS, PRESENCE, STEPS, routes
from runtime.order import SpineAxis, spine_axis

Float64 = npt.NDArray[np.float64]

OFF_BY_ONE = 0.2
"""Share of a level's probability that really belongs to the levels above and below it, however sure the network is:
neighbours look alike, and all crops of a scan can be wrong by one for the same reason."""
EVIDENCE_EXPONENT = 2.0 / 3.0
"""Probabilities go into the decoding to this power: neighbours' crops share most of their voxels, so their errors are
not independent."""
EVIDENCE_FLOOR = 1e-3
"""No level, and neither vertebra nor none, is held less probable than this: no single crop may decide alone."""
MISSED = 0.05
"""Share of vertebrae that the first network misses."""
GAP_SPREAD = 0.15
"""Standard deviation of the distance between neighbours, as a fraction of it: build, discs, curvature, centring."""
GAP_FREEDOM = 4.0
"""Degrees of freedom of its Student distribution: a collapsed vertebra brings its neighbours much nearer."""
NEAREST_MM = 8.0
"""No two vertebral bodies have their centres this near; see ``runtime.segment.DUPLICATE_DISTANCE_MM``."""
NEAREST_SHARE = 0.4
"""Nor nearer than this share of their usual distance, not even two collapsed ones."""
SIZES: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
"""Sizes of patients, relative to the adults of ``runtime.anatomy``, that are all tried."""
SIZE_SPREAD, RARE_SIZE = 0.12, 0.05
"""Standard deviation of adults' sizes, wide since published spacings differ, and the least weight of any size."""
SIDEWAYS = 1.5
"""A step that goes this many times further sideways than along the spine's axis is half as probable."""


@dataclass(frozen=True, eq=False)
class LevelMarginals:
    """Probabilities given all centres together; a row of ``levels`` and its ``none`` sum to 1.

    Args:
        levels: (n, 26) of each of ``runtime.anatomy.LEVELS``.
        none: (n,) of being no vertebra.
    """

    levels: Float64
    none: Float64


def level_marginals(
    centres_ras_mm: npt.ArrayLike, confidences: Sequence[float], evidence: npt.ArrayLike
) -> LevelMarginals:
    """The probability of each level at each centre, over every way to name the whole chain.

    A naming gives each centre a level or "none"; levels grow along the chain. Its weight is the product of

    - each centre's tempered evidence (``_node_weights``); what is "none" has no other part in it;
    - for two successive vertebrae, the sum over the ways down from one level to the other (``runtime.anatomy``) of
      that way's share among people, ``MISSED`` for each vertebra between them, and how well their distance fits;
    - the share of people who have the uppermost level at all.

    These are summed exactly, forward and backward over the chain, for every size of patient in ``SIZES``.
    """
    centres = np.asarray(centres_ras_mm, np.float64).reshape(-1, 3)
    scores = np.asarray(evidence, np.float64).reshape(-1, len(LEVEL_NAMES))
    if not len(centres) == len(confidences) == len(scores):
        raise ValueError(f"Met {len(centres)} centres, {len(confidences)} confidences, {len(scores)} rows of evidence.")
    if not len(centres):
        return LevelMarginals(np.empty((0, len(LEVELS))), np.empty(0))
    node, none = _node_weights(scores, np.asarray(confidences, np.float64))
    links = _links(centres)
    above, below = _forward(node, none, links), _backward(node, none, links)
    skipped = float(np.prod(none))
    totals = skipped + np.einsum("nsl,n->s", above, _products_after(none))
    sizes = _size_weights()
    joint = np.einsum("s,nsl,nsl->nl", sizes, above, below) / float(sizes @ totals)
    return LevelMarginals(joint, np.clip(1.0 - joint.sum(axis=1), 0.0, 1.0))


def _node_weights(evidence: Float64, confidences: Float64) -> tuple[Float64, Float64]:
    """Weights (n, 26) of each level and (n,) of "none", scaled to at most 1 for each centre.

    Whether it is a vertebra, and which one if it is, are floored and tempered apart: tempered together, 26 small
    probabilities would add up to a large one. Before that, each level gives ``OFF_BY_ONE`` to its neighbours. A level's
    weight is relative to the 26 levels' equal shares, so that a centre whose level can't be told is neutral. The
    centre's confidence moves "none" between half and once its weight.
    """
    none = np.clip(evidence[:, 0], EVIDENCE_FLOOR, 1.0 - EVIDENCE_FLOOR)
    which = evidence[:, 1:] / np.maximum(evidence[:, 1:].sum(axis=1, keepdims=True), 1e-12)
    which = (1.0 - OFF_BY_ONE) * which + OFF_BY_ONE * which @ _neighbours()
    which = np.maximum(which, EVIDENCE_FLOOR) ** EVIDENCE_EXPONENT
    which /= which.sum(axis=1, keepdims=True)
    vertebra_weight = (1.0 - none) ** EVIDENCE_EXPONENT
    none_weight = none**EVIDENCE_EXPONENT * (1.0 - 0.5 * np.clip(confidences, 0.0, 1.0))
    levels = len(LEVELS) * vertebra_weight[:, None] * which
    largest = np.maximum(levels.max(axis=1), none_weight)
    return levels / largest[:, None], none_weight / largest


@cache
def _neighbours() -> Float64:
    """(26, 26): how each level's neighbours share what is wrong by one; rows sum to 1."""
    shares = np.zeros((len(LEVELS), len(LEVELS)))
    for step in STEPS:
        a, b = LEVELS.index(step.upper), LEVELS.index(step.lower)
        shares[a, b] = shares[b, a] = step.prior * PRESENCE.get(step.upper, 1.0)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _links(centres: Float64) -> dict[tuple[int, int], Float64]:
    """(sizes, 26, 26) for each pair of centres, the upper one first: see ``_link_weights``."""
    axis = spine_axis(centres)
    links: dict[tuple[int, int], Float64] = {}
    for j in range(len(centres) - 1):  # a row at a time: all pairs at once would take hundreds of megabytes
        lower = range(j + 1, len(centres))
        gaps = np.array([_gap(centres[j] - centres[i], axis) for i in lower])
        weights = _link_weights(gaps[:, 0], gaps[:, 1])
        links |= {(j, i): weights[n] for n, i in enumerate(lower)}
    return links


def _gap(step_ras_mm: Float64, axis: SpineAxis) -> tuple[float, float]:
    """Length of a step up the spine, mm, and the weight of its direction: 1 along the spine, 0 straight across."""
    distance_mm = float(np.linalg.norm(step_ras_mm))
    along_mm = float(axis.along_mm(step_ras_mm))
    if along_mm <= 0.0:
        return distance_mm, 0.0
    sideways = np.sqrt(max(distance_mm**2 - along_mm**2, 0.0)) / along_mm
    return distance_mm, float(1.0 / (1.0 + (sideways / SIDEWAYS) ** 4))


def _link_weights(distance_mm: Float64, direction_weight: Float64) -> Float64:
    """(n, sizes, 26, 26): for each of n distances, the weight of the second index's level following the first's."""
    ways = _ways()
    usual_mm = np.array(SIZES)[:, None] * ways.length_mm
    apart_mm = distance_mm[:, None, None]
    z = (apart_mm - usual_mm) * np.sqrt(ways.steps) / (GAP_SPREAD * usual_mm)
    fit = (1.0 + z**2 / GAP_FREEDOM) ** (-(GAP_FREEDOM + 1.0) / 2.0) / np.sqrt(ways.steps)
    fit[(apart_mm < NEAREST_SHARE * usual_mm) | (apart_mm < NEAREST_MM)] = 0.0
    fit *= ways.prior * MISSED ** (ways.steps - 1.0) * direction_weight[:, None, None]
    weights = np.zeros((len(distance_mm), len(SIZES), *ways.there.shape[1:]))
    for k, there in enumerate(ways.there):
        weights[..., there] += fit[..., ways.number == k]
    return weights


@dataclass(frozen=True, eq=False)
class _Ways:
    """``runtime.anatomy.routes`` of all pairs of levels.

    Args:
        there: (3, 26, 26) bool, which of up to three ways there are from the second index's level to the third's.
        number: (n,) which of the up to three each way that is there is, in the order of ``there``; likewise its
            ``prior``, ``steps`` and ``length_mm``.
    """

    there: npt.NDArray[np.bool_]
    number: npt.NDArray[np.intp]
    prior: Float64
    steps: Float64
    length_mm: Float64


@cache
def _ways() -> _Ways:
    by_pair = [[routes(a, b) for b in LEVELS] for a in LEVELS]
    most = max(len(ways) for row in by_pair for ways in row)
    there = np.array([[[k < len(ways) for ways in row] for row in by_pair] for k in range(most)])
    found = [by_pair[a][b][k] for k, a, b in np.argwhere(there)]
    prior, steps, length_mm = (
        np.array([getattr(route, name) for route in found], np.float64) for name in ("prior", "steps", "length_mm")
    )
    return _Ways(there, np.nonzero(there)[0], prior, steps, length_mm)


def _size_weights() -> Float64:
    weights = np.maximum(np.exp(-0.5 * ((np.array(SIZES) - 1.0) / SIZE_SPREAD) ** 2), RARE_SIZE)
    return weights / weights.sum()


def _products_after(none: Float64) -> Float64:
    """(n,) product of the weights of "none" of all later centres."""
    return np.append(np.cumprod(none[:0:-1])[::-1], 1.0)


def _forward(node: Float64, none: Float64, links: dict[tuple[int, int], Float64]) -> Float64:
    """(n, sizes, 26): weight of all namings of centres 0..i in which i has the level."""
    start = np.array([PRESENCE.get(level, 1.0) for level in LEVELS]) / len(LEVELS)
    above = np.zeros((len(node), len(SIZES), len(LEVELS)))
    for i in range(len(node)):
        between = 1.0
        for j in range(i - 1, -1, -1):
            above[i] += between * np.einsum("sa,sab->sb", above[j], links[j, i])
            between *= none[j]
        above[i] = (above[i] + between * start) * node[i]
    return above


def _backward(node: Float64, none: Float64, links: dict[tuple[int, int], Float64]) -> Float64:
    """(n, sizes, 26): weight of all namings of the centres after i, given that i has the level."""
    below = np.zeros((len(node), len(SIZES), len(LEVELS)))
    for j in range(len(node) - 1, -1, -1):
        between = 1.0
        for i in range(j + 1, len(node)):
            below[j] += between * np.einsum("sab,sb->sa", links[j, i], node[i] * below[i])
            between *= none[i]
        below[j] += between
    return below
