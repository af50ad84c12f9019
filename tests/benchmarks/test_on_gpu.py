"""The script for a machine with a GPU: every step is one that there is, and one that fails stops no other."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.__main__ import build_parser
from export import engine

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "on_gpu.sh"
RECORD = """#!/bin/sh
echo "$@" >> "$RECORD"
case "$*" in
  *export.engine*) for last; do :; done; touch "$last/a.engine" ;;
  *"pytest tests/gpu"*) exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The script with stand-ins for Python and nvidia-smi that note what they are asked."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("on_gpu")
    for name in ("python3", "nvidia-smi"):
        (folder / name).write_text(RECORD)
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "RECORD": str(folder / "asked")}
    done = subprocess.run(["bash", SCRIPT, folder / "out"], env=environment, capture_output=True, text=True, check=True)
    return done.stdout, (folder / "asked").read_text().splitlines(), folder / "out"


def test_every_step_is_taken_and_a_failing_one_is_told(ran):
    said, _, out = ran
    statuses = {line.split(":")[0]: line.split("exit status ")[1].split(",")[0] for line in said.splitlines()}
    assert statuses == {**dict.fromkeys(statuses, "0"), "tests": "1"}
    assert list(statuses) == ["engines", "gpu", "latency", "tests", "compiled", "rtx-build", "rtx-loads"]
    assert {f"{name}.txt" for name in statuses} | {"steps.txt"} == {path.name for path in out.iterdir()}


def test_what_is_asked_can_be_asked(ran):
    asked = [shlex.split(line) for line in ran[1] if line.startswith("-m ")]
    parsers = {"benchmarks": build_parser(), "export.engine": engine.build_parser()}
    parsed = [module for _, module, *rest in asked if module in parsers and parsers[module].parse_args(rest)]
    assert parsed == ["benchmarks", "benchmarks", "export.engine"]
    assert {module for _, module, *_ in asked} == {"runtime.engines", "pytest", *parsers}
    assert (SCRIPT.parents[1] / "tests" / "gpu").is_dir()


def test_its_steps_together_take_less_than_ten_minutes():
    words = [line.split() for line in SCRIPT.read_text().splitlines() if line.strip().startswith("step ")]
    assert sum(int(line[2]) for line in words) < 600
