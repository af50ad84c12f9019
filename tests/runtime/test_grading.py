from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runtime.grading import GradingSpec, grade_probabilities, loss_masses, reported_heights
from runtime.heights import BodyHeights

SPEC = GradingSpec(
    network_weight=0.7,
    measured_weight=0.5,
    prior=(0.0, -0.5, -0.4, -0.3),
    loss_bias=0.03,
    loss_sd=0.05,
    loss_sd_per_mm=0.02,
    reach=0.9,
    height_shares=(0.5, 0.25, 1.0),
    height_offsets_mm=(0.0, 1.0, -0.5),
)
NETWORKS = ((0.7, 0.2, 0.08, 0.02), (0.0, 0.0, 1.0, 0.0), (0.25, 0.25, 0.25, 0.25), (1.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("voxel_mm", [0.5, 2.0, 5.0])
def test_masses_are_those_of_a_logistic_distribution(voxel_mm):
    """Oracle: the share of many draws of the true loss that fall between Genant's limits."""
    sd = np.hypot(SPEC.loss_sd, SPEC.loss_sd_per_mm * voxel_mm)
    draws = np.random.default_rng(1).logistic(0.27 - SPEC.loss_bias, sd * np.sqrt(3) / np.pi, 400_000)
    expected = np.histogram(draws, [-np.inf, 0.20, 0.25, 0.40, np.inf])[0] / len(draws)
    assert loss_masses(0.27, voxel_mm=voxel_mm, spec=SPEC) == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("voxel_mm", [0.5, 3.0])
def test_more_loss_never_makes_a_fracture_less_likely(network, voxel_mm):
    losses = np.linspace(-1.0, 1.0, 401)
    table = np.array([grade_probabilities(network, x, voxel_mm=voxel_mm, spec=SPEC) for x in losses])
    assert table.sum(axis=1) == pytest.approx(1.0)
    assert (table >= 0).all()
    for grade in (1, 2, 3):
        at_least = table[:, grade:].sum(axis=1)
        assert (np.diff(at_least) >= -1e-12).all()
        assert np.abs(np.diff(at_least)).max() < 0.2, "no jumps at Genant's limits"


@pytest.mark.parametrize("loss", [None, 0.0, 0.3, 0.9])
def test_a_surer_network_never_makes_a_fracture_less_likely(loss):
    odds = np.linspace(-4, 4, 61)
    shares = [np.exp(o * np.arange(4)) / np.exp(o * np.arange(4)).sum() for o in odds]
    table = np.array([grade_probabilities(p, loss, voxel_mm=1.0, spec=SPEC) for p in shares])
    for grade in (1, 2, 3):
        assert (np.diff(table[:, grade:].sum(axis=1)) >= -1e-12).all()


def test_without_a_measurement_the_network_and_the_prior_decide():
    network = (0.4, 0.3, 0.2, 0.1)
    neutral = replace(SPEC, network_weight=1.0, prior=(0.0, 0.0, 0.0, 0.0))
    assert grade_probabilities(network, None, voxel_mm=1.0, spec=neutral) == pytest.approx(network)
    expected = np.array(network) ** 0.7 * np.exp(SPEC.prior)
    assert grade_probabilities(network, None, voxel_mm=1.0, spec=SPEC) == pytest.approx(expected / expected.sum())


def test_coarser_voxels_weigh_less():
    network = (0.97, 0.01, 0.01, 0.01)
    fractured = [sum(grade_probabilities(network, 0.5, voxel_mm=mm, spec=SPEC)[1:]) for mm in (0.5, 2.0, 5.0, 10.0)]
    assert fractured == sorted(fractured, reverse=True)


def test_heights_are_mixed_as_the_bundle_says():
    measured, network = BodyHeights(20.0, 10.0, 25.0), BodyHeights(22.0, 14.0, 5.0)
    mixed = reported_heights(measured, network, SPEC)
    assert mixed is not None
    assert mixed.as_array() == pytest.approx([21.0, 14.0, 24.5])
    assert reported_heights(measured, None, SPEC) == measured
    assert reported_heights(None, network, SPEC) == network
    assert reported_heights(measured, network, None) == network
    assert reported_heights(None, None, SPEC) is None
