"""What masks hold, against NumPy's plain words for it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.masks import centroid_zyx, filled_block


@st.composite
def masks(draw):
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    density = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    mask = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(shape) < density
    return mask[..., ::-1] if draw(st.booleans()) else mask  # also such that don't lie in one piece


@given(masks(), st.integers(0, 2))
@settings(max_examples=300, deadline=None)
def test_the_filled_block_reaches_from_the_first_voxel_to_the_last_along_each_axis(mask, margin):
    found = filled_block(mask, margin=margin)
    voxels = np.argwhere(mask)
    if not len(voxels):
        assert found is None
        return
    low = np.maximum(voxels.min(axis=0) - margin, 0)
    high = np.minimum(voxels.max(axis=0) + 1 + margin, mask.shape)
    assert found == tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


@given(masks())
@settings(max_examples=100, deadline=None)
def test_the_centroid_is_the_mean_of_the_voxels(mask):
    centre, count = centroid_zyx(mask)
    assert count == mask.sum()
    if count:
        np.testing.assert_allclose(centre, np.argwhere(mask).mean(axis=0))
    else:
        assert np.isnan(centre).all()
