"""Whether a scan's values are shifted by a rescale intercept that was lost or applied twice, told from a sample.

Padding hides that from the lowest value, and air that lands at 0 HU from a share of soft tissue alone. So two shapes
that no CT has are looked for, among voxels that differ from both neighbours along x: padding is flat, a picture isn't.
What was found, in per cent of the picture, lowest to highest, on five real scans (torso, lumbar spine, pelvis twice,
head), the middles of three of them, one vertebra cut out of its scan, and five phantoms with ten fields of 100 mm, ten
of 50 mm and two of lung:

==================================  ==============================================  ==============  ===============
share                               as they are                                     intercept lost  applied twice
==================================  ==============================================  ==============  ===============
-900 to -50 HU (fat, lung)          18 to 51; fields 1.8 to 52; the vertebra 0      0.0
above 700 HU (cortex, metal)        0.1 to 4.7; fields 0 to 19                      44 to 100
below -1100 HU (below air)          0.0                                                             33 to 78; fields of
                                                                                                    100 mm 4.5 to 50
-200 to 200 HU (soft tissue)        40 to 91; fields 41 to 86; lung 0.9 to 45                       0 to 3; fields of
                                                                                                    50 mm up to 11
==================================  ==============================================  ==============  ===============

No scan as it is was taken for either, nor with noise of 80 HU or metal added. Missed: lung alone with a lost intercept
(its values are then soft tissue's), and of an intercept applied twice the vertebra cut out and two fields of 50 mm.
"""

from __future__ import annotations

import numpy as np

_SAMPLED = 2**17
"""Voxels looked at, about."""
_FEWEST = 500
"""With fewer voxels that are a picture, nothing is said."""
_AIR_HU, _DARK_HU, _DENSE_HU = -900.0, -50.0, 700.0
_MOST_DARK, _LEAST_DENSE = 0.01, 0.3
_BELOW_AIR_HU, _SOFT_HU = -1100.0, (-200.0, 200.0)
_LEAST_BELOW_AIR, _MOST_SOFT = 0.03, 0.1


def offset_note(array: np.ndarray) -> str | None:
    """What to say of (z, y, x) HU that look as if an intercept was lost or applied twice; None where they don't."""
    picture = _picture(array)
    if len(picture) < _FEWEST:
        return None

    def share(low: float, high: float) -> float:
        return float(((picture >= low) & (picture <= high)).mean())

    dense = share(_DENSE_HU, np.inf)
    if dense >= _LEAST_DENSE and share(_AIR_HU, _DARK_HU) < _MOST_DARK:
        return (
            f"Next to nothing has the HU of fat or lung, and {dense:.0%} of the picture is above {_DENSE_HU:g} HU: if "
            "the rescale intercept was lost, results are wrong."
        )
    below, soft = share(-np.inf, _BELOW_AIR_HU), share(*_SOFT_HU)
    if below >= _LEAST_BELOW_AIR and soft < _MOST_SOFT:
        return (
            f"Only {soft:.0%} of the picture has the HU of soft tissue, and {below:.0%} is below {_BELOW_AIR_HU:g} HU, "
            "where nothing is: if the rescale intercept was applied twice, results are wrong."
        )
    return None


def _picture(array: np.ndarray) -> np.ndarray:
    """Of a sample of voxels those that differ from both neighbours along x: padding and what was cut off are flat."""
    step = max(1, round((array.size / _SAMPLED) ** (1 / 3)))
    rows = array[::step, ::step]
    middle = rows[:, :, 1:-1:step]
    before, after = rows[:, :, :-2:step], rows[:, :, 2::step]
    return middle[(middle != before) & (middle != after)]
