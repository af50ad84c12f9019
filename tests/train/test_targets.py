"""Targets against the definition, voxel by voxel."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.targets import gaussian_heatmap, offset_map

POINTS = st.lists(st.tuples(*[st.floats(-3, 12)] * 3), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(POINTS, st.tuples(*[st.integers(1, 7)] * 3))
def test_targets_against_the_definition(points: list[tuple[float, float, float]], shape: tuple[int, int, int]) -> None:
    heat = gaussian_heatmap(points, shape, sigma_voxels=1.7)
    offsets = offset_map(points, shape)
    for voxel in np.ndindex(*shape):
        distances = [np.linalg.norm(np.subtract(p, voxel)) for p in points]
        expected = max(np.exp(-(d**2) / (2 * 1.7**2)) for d in distances)
        assert abs(heat[voxel] - expected) < 1e-4
        # Every offset ends at a centre, and no centre is nearer.
        vector = offsets[(slice(None), *voxel)]
        end = np.add(voxel, vector)
        assert min(np.linalg.norm(np.subtract(p, end)) for p in points) < 1e-4
        assert np.linalg.norm(vector) < min(distances) + 1e-4


def test_no_centres_give_zeros() -> None:
    assert not gaussian_heatmap([], (3, 4, 5), sigma_voxels=3).any()
    assert not offset_map([], (3, 4, 5)).any()
    assert offset_map([], (3, 4, 5)).shape == (3, 3, 4, 5)
