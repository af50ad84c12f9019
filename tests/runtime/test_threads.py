"""How many threads libraries use, told before and after they are loaded."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("loaded", ["before", "after"])
def test_itk_uses_as_many_threads_as_it_is_told(loaded):
    load = "import SimpleITK"
    limit = "from runtime.kernels.threads import limit_threads; limit_threads(3); limit_threads(1)"
    first, second = (load, limit) if loaded == "before" else (limit, load)
    said = "print(SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads())"
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{second}\n{said}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1"]


def test_telling_does_not_load_itk():
    limit = "import sys; from runtime.kernels.threads import limit_threads; limit_threads(2)"
    asked = "print('SimpleITK' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{limit}\n{asked}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
