"""Which package may import which, and what the runtime must not bring in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "runtime": {"train", "export", "benchmarks", "tests", "torch", "lightning"},
    "train": {"export", "benchmarks", "tests"},
    "export": {"benchmarks", "tests"},
    "benchmarks": {"tests"},
}
LIBRARIES_ON_DEMAND = {"openvino", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "tritonclient", "grpc"}


def imports(path):
    """Top-level package names that a module imports, anywhere in it, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_only_one_way(package):
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules
        for name, line in imports(path)
        if name in FORBIDDEN[package]
    ]
    assert wrong == []


def test_the_check_of_imports_sees_what_it_looks_for(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("import os\ndef f():\n    from train.losses import x\n    import torch.nn as n\nfrom . import y\n")
    assert [name for name, _ in imports(path)] == ["os", "train", "torch"]


def loaded_after(statement):
    """Top-level packages that a fresh interpreter has loaded after running a statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_runtime_is_light():
    heavy = {"torch", "numba", "numpy", "SimpleITK", "nibabel", "pydicom"} | LIBRARIES_ON_DEMAND
    assert loaded_after("import runtime") & heavy == set()


def test_the_whole_runtime_brings_in_no_torch_and_no_engine_until_one_is_asked_for():
    modules = sorted((ROOT / "runtime").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in modules]
    statement = f"import {', '.join(name for name in names if not name.endswith('__main__'))}"
    assert loaded_after(statement) & ({"torch", "lightning"} | LIBRARIES_ON_DEMAND) == set()


def test_choosing_and_loading_an_engine_brings_in_no_torch():
    assert "torch" not in loaded_after("from runtime.engines import select_engine; select_engine()")
