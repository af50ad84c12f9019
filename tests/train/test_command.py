"""``python -m train``: trains, resumes, and refuses what it can't do."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import InputError
from train import config
from train.__main__ import sole_run_in

SETTINGS = [
    "network.unet.channels=[4,4]",
    "network.unet.bottleneck=4",
    "loop.steps=2",
    "loop.batch=1",
    "loop.workers=1",
    "loop.validate_every=2",
    "loop.validation_samples=1",
    "crop_shapes=[[16,16,16]]",
]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "train", *arguments], capture_output=True, text=True, check=False)


def test_a_run_from_the_command_line_and_its_resumption(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    done = run("locnet", "-o", str(out), "--quiet", "--accelerator", "cpu", *settings)
    assert done.returncode == 0, done.stderr
    assert {"best.ckpt", "last.ckpt", "config.json"} <= {path.name for path in out.iterdir()}
    assert config.load(out / "config.json").loop.steps == 2
    again = run("locnet", "-o", str(out), "--quiet", "--accelerator", "cpu", "--set", "loop.steps=3")
    assert again.returncode == 0, again.stderr
    assert config.load(out / "config.json").loop.steps == 3


def test_another_network_or_preset_does_not_take_over_a_run(tmp_path: Path) -> None:
    config.save(config.LocNetRun(), tmp_path / "config.json")
    (tmp_path / "last.ckpt").touch()
    for arguments, says in (
        (["fracsegnet"], "interrupted run of a LocNet"),
        (["locnet", "--preset", "thesis"], "without --preset"),
        (["locnet", "--set", "network.unet.bottleneck=4"], "can't be changed"),
    ):
        done = run(*arguments, "-o", str(tmp_path))
        assert done.returncode == 2
        assert says in done.stderr


def test_what_it_cannot_do_is_said_without_a_trace(tmp_path: Path) -> None:
    for arguments, says in (
        (["locnet", "--preset", "none"], "no preset"),
        (["locnet", "--set", "loop.nothing=1"], "no setting"),
        (["locnet", "--data", str(tmp_path)], "rawdata"),
    ):
        done = run(*arguments, "-o", str(tmp_path / "run"))
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    with sole_run_in(tmp_path / "run"):
        second = run("locnet", "-o", str(tmp_path / "run"), *(word for s in SETTINGS for word in ("--set", s)))
    assert second.returncode == 2
    assert "Another training is running" in second.stderr
    assert not (tmp_path / "run" / "config.json").exists()
    with sole_run_in(tmp_path / "run"):
        pass


def test_the_other_processes_of_one_training_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sole_run_in(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with sole_run_in(tmp_path):
            monkeypatch.delenv("LOCAL_RANK")
            with pytest.raises(InputError), sole_run_in(tmp_path):
                pass
