"""The device path in Numba's CUDA simulator, in processes of their own: it replaces CUDA for a whole process.

To run one alone: NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/runtime/device/simulated_voting.py
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
FILES = sorted(path.name for path in FOLDER.glob("simulated_*.py"))


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda")
@pytest.mark.parametrize("file", FILES)
def test_the_kernels_say_what_the_processor_says(file):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER / file)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=FOLDER.parents[2],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout or "100%" in done.stdout


def test_there_are_files_to_run():
    assert len(FILES) >= 4
