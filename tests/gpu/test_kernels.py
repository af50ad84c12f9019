"""The CUDA kernels on the GPU itself, on the cases of the simulator: the processor's results, bit for bit.

Pytest runs the tests that are imported here.
"""

from importlib.util import find_spec

import pytest

from tests.gpu.conftest import GPU, WHY_NOT

if GPU is None:
    pytest.skip(WHY_NOT, allow_module_level=True)
if find_spec("numba_cuda") is None:
    pytest.skip("needs numba-cuda[cu13]", allow_module_level=True)

from tests.runtime.device.simulated_sampling import *  # noqa: F403
from tests.runtime.device.simulated_voting import *  # noqa: F403
from tests.runtime.device.simulated_windows import *  # noqa: F403
