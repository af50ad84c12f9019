"""The order along the spine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.order import cranial_to_caudal, spine_axis


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 25), st.integers(0, 10**6), st.floats(-40, 40), st.floats(0, 360))
def test_a_tilted_spine_keeps_its_order(count, seed, tilt_deg, around_deg) -> None:
    rng = np.random.default_rng(seed)
    spine = np.cumsum(np.stack([np.zeros(count), np.zeros(count), -rng.uniform(15, 35, count)], 1), axis=0)
    tilt, around = np.deg2rad(tilt_deg), np.deg2rad(around_deg)
    lean = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
    turn = np.array([[np.cos(around), -np.sin(around), 0], [np.sin(around), np.cos(around), 0], [0, 0, 1]])
    shuffle = rng.permutation(count)
    points = (spine @ lean.T @ turn.T)[shuffle]
    assert list(shuffle[list(cranial_to_caudal(points))]) == list(range(count))
    expected = turn @ lean @ [0, 0, 1]
    assert spine_axis(points).direction_ras @ expected == pytest.approx(1.0, abs=1e-9)


def test_a_spine_whose_neighbours_differ_little_in_height_is_ordered_along_itself() -> None:
    """A strong tilt and a wobble: by height alone the second and third would change places."""
    points = np.array([[0, 0, 0], [20, 0, -20], [34, 0, -19.5], [60, 0, -55], [80, 0, -75]], float)
    assert np.argsort(-points[:, 2])[1] == 2
    assert cranial_to_caudal(points) == (0, 1, 2, 3, 4)


def test_false_centres_on_both_sides_do_not_turn_the_axis() -> None:
    spine = np.array([[0.0, 0.0, -30.0 * i] for i in range(4)])
    hips = np.array([[100.0, 0.0, -150.0], [-95.0, 0.0, -140.0]])
    assert np.array_equal(spine_axis(np.vstack([spine, hips])).direction_ras, [0, 0, 1])


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_points_stand_straight(count: int) -> None:
    points = np.zeros((count, 3))
    assert np.array_equal(spine_axis(points).direction_ras, [0, 0, 1])
    assert cranial_to_caudal(points) == tuple(range(count))
