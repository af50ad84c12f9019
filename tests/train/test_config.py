"""Runs as JSON, settings from the command line, and what the thesis preset says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.bundle_json import to_json
from runtime.errors import InputError
from train import config
from train.__main__ import build_parser
from train.config import FracSegNetRun, LocNetRun, override
from train.presets import presets


@pytest.mark.parametrize(("network", "preset"), [(n, p) for n, named in presets().items() for p in named])
def test_every_preset_survives_json(tmp_path: Path, network: str, preset: str) -> None:
    run = presets()[network][preset]
    config.save(run, tmp_path / "config.json")
    assert config.load(tmp_path / "config.json") == run


def test_the_thesis_preset_is_its_recipe() -> None:
    loc, frac = presets()["locnet"]["thesis"], presets()["fracsegnet"]["thesis"]
    assert (loc.spacing_mm, loc.crop_shapes, loc.sigma_voxels, loc.heatmap_threshold) == (1.0, ((128,) * 3,), 3.0, 0.8)
    assert (loc.heatmap_weight, loc.offset_weight, loc.chamfer_weight, loc.foreground_weight) == (1.0, 0.01, 0.01, 0.0)
    assert (loc.loop.optimiser, loc.loop.learning_rate, loc.loop.schedule, loc.loop.patience) == (
        "adam",
        0.05,
        "constant",
        0,
    )
    assert loc.loop.checkpoint_from / loc.loop.steps == 0.6
    assert len(loc.network.unet.channels) == 5
    assert (frac.network.crop, frac.network.grade_head, frac.network.mask_channels) == (96, "pooled", ("vertebra",))
    assert (frac.grade_loss, frac.mask_loss, frac.grade_weight, frac.mask_weight) == ("focal", "dice", 1.0, 1.0)
    assert (frac.mask_entropy_weight, frac.height_weight) == (0.0, 0.0)
    assert (frac.loop.learning_rate, frac.loop.schedule, frac.loop.patience) == (5e-4, "step", 50)
    assert frac.class_counts == (591, 63, 50, 22)


def test_settings_reach_nested_values() -> None:
    run = override(LocNetRun(), ["loop.steps=7", "network.variant=H", "crop_shapes=[[8,8,8]]", "sigma_voxels=2"])
    assert (run.loop.steps, run.network.variant, run.crop_shapes, run.sigma_voxels) == (7, "H", ((8, 8, 8),), 2.0)


@pytest.mark.parametrize(
    "setting", ["loop.stepss=7", "loop.steps=many", "loop.steps", "loop.steps.x=1", "network.variant=Q"]
)
def test_settings_that_do_not_exist_or_fit_are_refused(setting: str) -> None:
    with pytest.raises(InputError):
        override(LocNetRun(), [setting])


def test_the_settings_given_as_examples_fit_every_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(InputError) as refused:
        override(LocNetRun(), ["loop.none=1"])
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    texts = (
        build_parser().format_help(),
        guide.partition("changes any value of the run")[2],
        str(refused.value).partition("e.g.")[2],
    )
    for text in texts:
        example = re.search(r"loop\.\w+=[\d.]*\d", text)
        assert example
        for known in presets().values():
            for run in known.values():
                override(run, [example[0]])


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(InputError, match="training writes it"):
        config.load(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="no training configuration"):
        config.load(path)


def test_runs_of_versions_without_start_from_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config.save(LocNetRun(), path)
    old = json.loads(path.read_text())
    del old["run"]["loop"]["start_from"]
    path.write_text(json.dumps(old))
    assert config.load(path) == LocNetRun()


@pytest.mark.parametrize(("balanced", "sampling"), [(True, "balanced"), (False, "as_found")])
def test_runs_of_versions_with_two_samplings_and_fixed_weights_are_read(
    tmp_path: Path, balanced: bool, sampling: str
) -> None:
    path = tmp_path / "config.json"
    config.save(FracSegNetRun(), path)
    old = json.loads(path.read_text())
    for later in ("sampling", "task_weighting", "nash_every"):
        del old["run"][later]
    old["run"]["balanced"] = balanced
    path.write_text(json.dumps(old))
    assert config.load(path) == FracSegNetRun(sampling=sampling, task_weighting="fixed")


@pytest.mark.parametrize("setting", ["sampling=natural", "task_weighting=gradnorm", "nash_every=0"])
def test_choices_that_do_not_exist_are_refused(setting: str) -> None:
    with pytest.raises(InputError, match="met"):
        override(FracSegNetRun(), [setting])


@pytest.mark.parametrize(("network", "settings"), [
    ("locnet", [
        "loop.schedule=linear", "loop.optimiser=sgd", "offset_mask=eiter", "loop.learning_rate=-1",
        "negative_fraction=7", "loop.batch=0", "loop.validate_every=0", "loop.steps=0", "loop.ema=1",
        "loop.validation_samples=0", "loop.decay_every=0", "loop.clip_norm=-1", "loop.learning_rate=NaN",
        "spacing_mm=0",
    ]),
    ("fracsegnet", ["grade_loss=fcoal", "mask_loss=dise", "centre_jitter_mm=-1"]),
    ("levelnet", ["crops_per_scan=0", "negative_fraction=1.5", "label_smoothing=2"]),
])  # fmt: skip
def test_what_no_training_could_follow_is_refused(network: str, settings: list[str]) -> None:
    for setting in settings:
        with pytest.raises(InputError, match="met") as refused:
            override(presets()[network]["default"], [setting])
        assert setting.partition("=")[2].lower() in str(refused.value).lower(), "the value that was met"


def test_a_run_that_would_keep_no_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match="checkpoint_from is 48000 and the run has 20000"):
        override(presets()["locnet"]["thesis"], ["loop.steps=20000"])
    both = override(presets()["locnet"]["thesis"], ["loop.steps=20000", "loop.checkpoint_from=20000"])
    assert both.loop.checkpoint_from == 20000


def test_runs_with_settings_that_earlier_versions_did_not_follow_are_read_as_they_ran(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config.save(LocNetRun(), path)
    old = json.loads(path.read_text())
    del old["run"]["data_before"], old["run"]["grades"]
    old["run"] |= {"offset_mask": "eiter"}
    old["run"]["loop"] |= {"schedule": "linear", "optimiser": "sgd", "steps": 50, "checkpoint_from": 100}
    path.write_text(json.dumps(old))
    loop = replace(LocNetRun().loop, schedule="cosine", optimiser="adamw", steps=50, checkpoint_from=50)
    assert config.load(path) == replace(LocNetRun(), loop=loop, offset_mask="predicted")


def test_a_locnet_of_an_earlier_version_goes_on_as_it_began() -> None:
    values = json.loads(to_json(LocNetRun()))
    added = ("fractured_fraction", "narrow_field_fraction", "thick_slices_fraction", "dense_blood_fraction")
    for name in added:
        del values[name]
    assert [config.with_later_settings(values)[name] for name in added] == [0.0] * 4
    assert "fractured_fraction" not in config.with_later_settings(json.loads(to_json(FracSegNetRun())))
