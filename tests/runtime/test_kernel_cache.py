"""Where no cache folder can be written the kernels still work: containers with a read-only installation and no home."""

import subprocess
import sys

PROGRAM = """
import tempfile
from pathlib import Path
import numba.core.caching as caching
real = tempfile.TemporaryFile
def refuse(*args, dir=None, **kwargs):
    raise PermissionError(13, "Permission denied")
tempfile.TemporaryFile = refuse
import runtime.kernels.jit
tempfile.TemporaryFile = real
from numba import config
assert Path(config.CACHE_DIR).is_dir(), config.CACHE_DIR
import numpy as np
from runtime.voting import density_peaks
print(density_peaks(np.pad(np.ones((1, 1, 1), np.float32), 2), threshold=0.5, separation_voxels=2.0).tolist())
"""


def test_kernels_work_where_nothing_can_be_cached() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[2, 2, 2]]"
