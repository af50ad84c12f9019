"""A command whose extra isn't installed says so in one line."""

import subprocess
import sys

import pytest

from runtime.extras import stop_without

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'lightning', 'onnx', 'tqdm', 'fastapi'):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
import runpy
sys.argv = ['x', *%r]
runpy.run_module(%r, run_name='__main__')
"""


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("train", "train", ["locnet"]),
        ("train.evaluate", "train", ["--phantoms", "1"]),
        ("export", "export", ["-o", "x"]),
        ("export.verify", "export", ["--phantoms", "1"]),
        ("runtime.serve", "serve", []),
    ],
)
def test_a_lean_installation_names_the_extra(module, extra, arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HIDE % (arguments, module)], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"vertscan[{extra}]" in done.stderr


def test_a_defect_of_our_own_is_not_hidden():
    with pytest.raises(ModuleNotFoundError):
        stop_without("train", ModuleNotFoundError("No module named 'train.gone'", name="train.gone"))
