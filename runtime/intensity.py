"""Hounsfield units to what a network reads."""

from __future__ import annotations

import numpy as np

from runtime.bundle import IntensityWindow


def normalise(hu: np.ndarray, window: IntensityWindow) -> np.ndarray:
    """Hounsfield units of any shape and number type as float32 in [0, 1]: the window's ends to 0 and 1, clipped.

    Air is 0, so what a convolution pads with is air, and the large constant regions of a scan add nothing to the sums
    from which engines compute means and variances in single precision (docs/decisions/0005).

    Raises:
        ValueError: the window is empty.
    """
    if not window.high_hu > window.low_hu:
        raise ValueError(f"An intensity window needs low_hu < high_hu; met {window.low_hu} and {window.high_hu}.")
    values = np.array(hu, dtype=np.float32)
    values -= np.float32(window.low_hu)
    values *= np.float32(1.0 / (window.high_hu - window.low_hu))
    return np.clip(values, np.float32(0.0), np.float32(1.0), out=values)
