"""One grade from two witnesses: the network's probabilities, and the height loss that is measured on its masks.

The measured loss is taken as the true one, blurred by a logistic distribution whose spread grows with the scan's
voxels. What it says for each grade is the mass of this blur between Genant's limits. (A logistic's tails fall slowly
enough that a mask gone wrong can't outvote a sure network, and, unlike a normal distribution with some chance of an
outlier, it is log-concave, which makes what follows monotone.) Both witnesses see the same picture and err together, so
each is raised to a power, usually below one, before they are multiplied::

    log P(grade) = a log network(grade) + b log mass(grade | loss) + prior(grade) + constant

For a given answer of the network, every greater loss makes every "this grade or more" likelier, smoothly. The constants
are fitted on scans with known grades (``python -m train.fit_grades``) and belong to the bundle, since they say how far
its network's masks and grades can be trusted.

Reported heights are likewise a mean of the measured heights and those that the network states outright.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot, pi, sqrt

import numpy as np

from runtime.height_loss import GRADE_FROM
from runtime.heights import BodyHeights

GRADES = len(GRADE_FROM) + 1
_LEAST_PROBABILITY, _LEAST_MASS = 1e-6, 1e-300


@dataclass(frozen=True)
class GradingSpec:
    """How a bundle's grades and heights are put together from what its network says and what is measured.

    Args:
        network_weight: a, the power of the network's probabilities.
        measured_weight: b, the power of the measured loss's.
        prior: added to the log probabilities of grades 0..3, also where nothing could be measured.
        loss_bias: by how much the measured loss is greater than the true one, on average; a fraction.
        loss_sd: standard deviation of the measured loss in a scan of very fine voxels; a fraction.
        loss_sd_per_mm: what each millimetre of the scan's largest voxel side adds to it, in squares.
        reach: how far from the body's middle the heights are measured, 1 being a true mask's rims; a network's masks
            have rounder rims.
        height_shares: weight of the measured anterior, middle and posterior height; the rest is the network's.
        height_offsets_mm: added to the three.
    """

    network_weight: float
    measured_weight: float
    prior: tuple[float, float, float, float]
    loss_bias: float
    loss_sd: float
    loss_sd_per_mm: float
    reach: float
    height_shares: tuple[float, float, float]
    height_offsets_mm: tuple[float, float, float]

    def faults(self) -> Iterator[str]:
        """What can't be used of it, each as one clause."""
        for name in ("network_weight", "measured_weight", "loss_sd_per_mm"):
            if getattr(self, name) < 0:
                yield f"grading.{name} should not be negative, met {getattr(self, name):g}"
        if self.loss_sd <= 0:
            yield f"grading.loss_sd should be positive, met {self.loss_sd:g}"
        if not 0.3 <= self.reach <= 1:
            yield f"grading.reach should be from 0.3 to 1, met {self.reach:g}"
        if not all(0 <= share <= 1 for share in self.height_shares):
            yield f"grading.height_shares should be from 0 to 1, met {self.height_shares}"


def grade_probabilities(
    network: Sequence[float], loss: float | None, *, voxel_mm: float, spec: GradingSpec
) -> tuple[float, ...]:
    """Probabilities of Genant's grades 0..3 from both witnesses.

    Args:
        network: its probabilities of grades 0..3.
        loss: measured, as a fraction; None where it could not be measured.
        voxel_mm: the scan's largest voxel side.
        spec: the bundle's constants.
    """
    logs = spec.network_weight * np.log(np.maximum(network, _LEAST_PROBABILITY)) + np.array(spec.prior)
    if loss is not None:
        logs = logs + spec.measured_weight * np.log(
            np.maximum(loss_masses(loss, voxel_mm=voxel_mm, spec=spec), _LEAST_MASS)
        )
    shares = np.exp(logs - logs.max())
    return tuple(float(p) for p in shares / shares.sum())


def loss_masses(loss: float, *, voxel_mm: float, spec: GradingSpec) -> np.ndarray:
    """(4,) how probable each grade is by the measured loss alone, if all were equally frequent in it."""
    scale = hypot(spec.loss_sd, spec.loss_sd_per_mm * voxel_mm) * sqrt(3.0) / pi
    steps = (np.array(GRADE_FROM) - (loss - spec.loss_bias)) / scale
    below, above = 1.0 / (1.0 + np.exp(-steps)), 1.0 / (1.0 + np.exp(steps))
    middle = above[:-1] * below[1:] * -np.expm1(-np.diff(steps))  # equals below[1:] - below[:-1], exact in the tails
    return np.concatenate([below[:1], middle, above[-1:]])


def reported_heights(
    measured: BodyHeights | None, network: BodyHeights | None, spec: GradingSpec | None
) -> BodyHeights | None:
    """The heights to report: both put together; where only one is known, that one.

    Without a ``spec`` nobody has found out how good the measured ones are on this network's masks, so the network's
    are reported where it gives any.
    """
    if measured is None or network is None:
        return measured if network is None else network
    if spec is None:
        return network
    share = np.array(spec.height_shares)
    mixed = share * measured.as_array() + (1.0 - share) * network.as_array() + np.array(spec.height_offsets_mm)
    return BodyHeights(*(float(mm) for mm in np.maximum(mixed, 0.0)))
