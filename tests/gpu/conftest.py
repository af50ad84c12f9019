"""What needs an NVIDIA GPU: ``python -m pytest tests/gpu -rs`` on a machine that has one, skipped elsewhere."""

import pytest

from runtime.bundle import open_bundle
from runtime.engines import preflights
from runtime.engines.cuda_probe import find_gpu

GPU = find_gpu(0)
WHY_NOT = "no NVIDIA GPU: the driver offers none"


@pytest.fixture(autouse=True)
def _gpu():
    if GPU is None:
        pytest.skip(WHY_NOT)


def engines_on_gpu(*names):
    """Name and precision of every engine that runs on the GPU here; of the named ones, if any are named."""
    if GPU is None:
        return [pytest.param(None, None, id="none", marks=pytest.mark.skip(reason=WHY_NOT))]
    found = {name: one for name, one in preflights().items() if not names or name in names}
    usable = [
        pytest.param(name, precision, id=f"{name}-{precision}")
        for name, one in found.items()
        if one.available and one.device != "CPU"
        for precision in one.precisions
        if not open_bundle().spec.why_not_in(precision)
    ]
    said = "; ".join(f"{name}: {one.reason}" for name, one in found.items())
    return usable or [pytest.param(None, None, id="none", marks=pytest.mark.skip(reason=said))]
