from __future__ import annotations

import numpy as np
import pytest

from runtime.bundle import IntensityWindow
from runtime.intensity import normalise


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_the_window_goes_to_zero_to_one_and_is_clipped(dtype):
    hu = np.array([[-3000, -1000], [0, 500], [1000, 3000]], dtype)
    before = hu.copy()
    result = normalise(hu, IntensityWindow(-1000, 1000))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[0, 0], [0.5, 0.75], [1, 1]], atol=1e-6)
    np.testing.assert_array_equal(hu, before)


@pytest.mark.parametrize("window", [(0, 0), (5, -5), (0, float("nan"))])
def test_an_empty_window_is_refused(window):
    with pytest.raises(ValueError, match="low_hu < high_hu"):
        normalise(np.zeros(3), IntensityWindow(*window))
