"""Ctrl-C while a command imports what it needs ends it in one line, status 130, as it does later."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

CODE = """
import builtins, runpy, sys
name, module = sys.argv[1:3]
real = builtins.__import__
def interrupted(what, *rest, **options):
    if what.split(".")[0] == name:
        raise KeyboardInterrupt
    return real(what, *rest, **options)
builtins.__import__ = interrupted
sys.argv = [module, *sys.argv[3:]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("during", "command"),
    [
        ("numpy", ["runtime.infer", "x.nii.gz"]),
        ("numpy", ["runtime.measure", "x.nii.gz"]),
        ("openvino", ["runtime.infer", "x.nii.gz"]),
        ("fastapi", ["runtime.serve"]),
        ("openvino", ["runtime.serve", "--port", "0"]),
        ("torch", ["export.verify"]),
        ("torch", ["export.calibrate", "-o", "x"]),
        ("torch", ["export", "-o", "x"]),
        ("torch", ["benchmarks", "latency"]),
        ("torch", ["train", "locnet"]),
        ("tqdm", ["train.evaluate", "--phantoms", "1"]),
        ("ray", ["runtime.cohort", "x.csv", "-o", "x"]),
        ("tritonclient", ["export.triton", "-o", "x"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_an_interrupt_while_importing_is_one_line(during, command, tmp_path):
    if find_spec(during) is None:
        pytest.skip(f"needs {during}")
    done = subprocess.run(
        [sys.executable, "-c", CODE, during, *command], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 130
    assert done.stdout == ""
    assert done.stderr.startswith("error: interrupted")
    assert done.stderr.count("\n") == 1
