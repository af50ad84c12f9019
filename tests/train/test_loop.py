"""The loop: resumable at any moment, best and last checkpoints, schedules, early stopping."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._utils import ExceptionWrapper

from runtime.errors import InputError
from train import config as configuration
from train.config import FracSegNetRun, LocNetRun, LoopConfig
from train.loop import Trainer, learning_rate, save_atomically, usable_precision
from train.networks import FracSegNetConfig, LocNetConfig, UNetConfig
from train.sources import VertebraSample
from train.tasks import LocNetTask

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*isinstance.*LeafSpec.*")
TINY = UNetConfig((4, 4), 4)


class Balls:
    """A source of bright balls: no phantom, so the loop can be tested in seconds."""

    def localisation(self, rng, shape_zyx, run):
        centre = np.array([rng.uniform(3, n - 3) for n in shape_zyx])
        distance = np.linalg.norm(np.moveaxis(np.indices(shape_zyx), 0, -1) - centre, axis=-1)
        return np.where(distance < 3, 500.0, -50.0).astype(np.float32), centre[None]

    def vertebra(self, rng, run):
        shape = (run.network.crop,) * 3
        grade = int(rng.integers(4))
        mask = np.zeros((1, *shape), bool)
        mask[0, 4 : 12 - grade, 4:12, 4:12] = True
        return VertebraSample(
            np.where(mask[0], 400.0, 0.0).astype(np.float32), mask, np.ones(1, bool), grade, np.full(6, np.nan)
        )


def loc_run(**loop) -> LocNetRun:
    values = {"steps": 6, "batch": 1, "warmup": 2, "validate_every": 3, "validation_samples": 2, "workers": 0,
              "precision": "32-true"} | loop  # fmt: skip
    return LocNetRun(LocNetConfig(TINY), LoopConfig(**values), crop_shapes=((8, 8, 8), (12, 8, 8)))


def frac_run(**settings) -> FracSegNetRun:
    """A few steps on masks and grades of the balls."""
    network = FracSegNetConfig(TINY, ("vertebra",), "pooled", dropout=0.1, heights=False, crop=16)
    return FracSegNetRun(network, loc_run().loop, **settings)


def train(run, folder: Path) -> Trainer:
    trainer = Trainer(run, Balls(), folder, accelerator="cpu")
    trainer.fit(progress=False)
    return trainer


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["network"]


class KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("run", "kill_at"),
    [(loc_run(), 1), (loc_run(), 3), (loc_run(), 5), (frac_run(task_weighting="uncertainty"), 3),
     (frac_run(task_weighting="nash", nash_every=2), 3)],
)  # fmt: skip
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch, run, kill_at: int) -> None:
    monkeypatch.setattr("train.loop.CHECKPOINT_SECONDS", 0.0)
    train(run, tmp_path / "unbroken")
    broken = Trainer(run, Balls(), tmp_path / "broken", accelerator="cpu")
    optimise = broken._optimise

    def optimise_until_killed(batch):
        if broken.step == kill_at:
            raise KilledError
        return optimise(batch)

    monkeypatch.setattr(broken, "_optimise", optimise_until_killed)
    with pytest.raises(KilledError):
        broken.fit(progress=False)
    resumed = Trainer(run, Balls(), tmp_path / "broken", accelerator="cpu")
    assert resumed.step == kill_at
    resumed.fit(progress=False)
    for name in ("last.ckpt", "best.ckpt"):
        a, b = weights(tmp_path / "unbroken" / name), weights(tmp_path / "broken" / name)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, msg=f"{name} {key}")


def test_checkpoints_of_versions_without_balancers_are_resumed(tmp_path: Path) -> None:
    train(frac_run(), tmp_path)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del state["balancer"]
    torch.save(state, tmp_path / "last.ckpt")
    assert Trainer(frac_run(), Balls(), tmp_path, accelerator="cpu").step == 6


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(loc_run(), tmp_path)
    before = (tmp_path / "best.ckpt").read_bytes()
    again = Trainer(loc_run(), Balls(), tmp_path, accelerator="cpu")
    assert again.step == 6
    again.fit(progress=False)
    assert (tmp_path / "best.ckpt").read_bytes() == before


def test_the_folder_holds_config_checkpoints_and_curves(tmp_path: Path) -> None:
    train(loc_run(), tmp_path)
    assert configuration.load(tmp_path / "config.json") == loc_run()
    assert list((tmp_path / "curves").glob("events.*"))
    assert not list(tmp_path.glob("*.tmp"))


def test_training_learns_the_balls(tmp_path: Path) -> None:
    run = FracSegNetRun(
        FracSegNetConfig(UNetConfig((8, 8), 8), ("vertebra",), "pooled", dropout=0.0, heights=False, crop=16),
        LoopConfig(steps=60, batch=2, learning_rate=1e-2, warmup=5, validate_every=30, validation_samples=8, workers=0,
                   ema=0.9, precision="32-true"),
    )  # fmt: skip
    best = train(run, tmp_path).best_metrics
    assert best["dice_vertebra"] > 0.8


def test_early_stopping(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("train.tasks.LocNetTask.metrics", lambda *_: {"score": 0.0})
    trainer = train(loc_run(steps=50, validate_every=1, patience=3), tmp_path)
    assert trainer.step == 4


def test_a_run_that_was_stopped_early_makes_no_further_step(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("train.tasks.LocNetTask.metrics", lambda *_: {"score": 0.0})
    run = loc_run(steps=50, validate_every=1, patience=3)
    train(run, tmp_path)
    before = weights(tmp_path / "last.ckpt")
    again = train(run, tmp_path)
    assert again.step == 4
    assert again.best_metrics == {"score": 0.0}
    torch.testing.assert_close(weights(tmp_path / "last.ckpt"), before, rtol=0, atol=0)
    patient = replace(run, loop=replace(run.loop, patience=5))
    assert train(patient, tmp_path).step == 6, "more patience goes on"


def said_by_the_loop(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "train.loop"]


def test_settings_changed_on_the_way_are_said_and_the_earlier_ones_kept(tmp_path: Path, caplog) -> None:
    train(loc_run(), tmp_path)
    Trainer(loc_run(), Balls(), tmp_path, accelerator="cpu")
    assert said_by_the_loop(caplog) == []
    assert [path.name for path in tmp_path.glob("config*")] == ["config.json"], "nothing was changed"
    changed = replace(loc_run(steps=8, learning_rate=0.5), foreground_weight=4.0)
    Trainer(loc_run(steps=7), Balls(), tmp_path, accelerator="cpu")
    caplog.clear()
    train(changed, tmp_path)
    (said,) = said_by_the_loop(caplog)
    assert "from step 6 on" in said
    for change in (
        "loop.steps from 7 to 8",
        "loop.learning_rate from 0.001 to 0.5",
        "foreground_weight from 10.0 to 4.0",
    ):
        assert change in said
    assert configuration.load(tmp_path / "config.json") == changed
    assert configuration.load(tmp_path / "config.before-step-6.json") == loc_run(), "what made these six steps"
    train(replace(changed, loop=replace(changed.loop, steps=9)), tmp_path)
    assert configuration.load(tmp_path / "config.before-step-8.json") == changed
    assert configuration.load(tmp_path / "config.before-step-6.json") == loc_run()


@pytest.mark.parametrize("setting", [{"spacing_mm": 2.0}, {"sigma_voxels": 3.0}])
def test_the_images_of_a_run_cannot_be_changed_on_the_way(tmp_path: Path, setting: dict) -> None:
    train(loc_run(), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match=next(iter(setting))):
        Trainer(replace(loc_run(steps=8), **setting), Balls(), tmp_path, accelerator="cpu")
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("changed", [{"seed": 3}, {"batch": 2}, {"validation_samples": 3}, {"learning_rate": 0.1}])
def test_a_score_on_other_validation_samples_is_not_waited_for(tmp_path: Path, monkeypatch, changed: dict) -> None:
    scores = iter([2.0, 1.0, 1.0])
    monkeypatch.setattr("train.tasks.LocNetTask.metrics", lambda *_: {"score": next(scores)})
    train(loc_run(), tmp_path)
    train(loc_run(steps=8, **changed), tmp_path)
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert kept["step"] == (3 if "learning_rate" in changed else 8)


@pytest.mark.parametrize(
    ("began", "goes_on", "keeps"),
    [
        ({"data": ("v",)}, {"data": ("v",), "grades": "a.csv"}, True),
        ({"data": ("v",), "grades": "a.csv"}, {"data": ("v",), "grades": "./a.csv"}, True),
        ({"data": ("v",), "grades": "a.csv"}, {"data": ("v",), "grades": "b.csv"}, False),
        ({"data": ("v",), "grades": "a.csv"}, {"data": ("v",)}, False),
        ({"data": ("/d/verse",)}, {"data": ("/d/verse/",)}, True),
        ({"data": ("/d/verse",)}, {"data": ("/d/verse2",)}, False),
        ({"data": ("phantoms",)}, {"data": ("./phantoms",)}, False),
    ],
)
def test_the_same_data_in_other_words_keep_the_best_score(
    tmp_path: Path, monkeypatch, began: dict, goes_on: dict, keeps: bool
) -> None:
    """Earlier versions did not write down which grades a run was given."""
    scores = iter([2.0, 1.0, 1.0])
    monkeypatch.setattr("train.tasks.LocNetTask.metrics", lambda *_: {"score": next(scores)})
    train(replace(loc_run(), **began), tmp_path)
    train(replace(loc_run(steps=8), **goes_on), tmp_path)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["step"] == (3 if keeps else 8)


def test_weight_decay_is_what_the_resumed_run_says(tmp_path: Path) -> None:
    train(loc_run(), tmp_path)
    groups = Trainer(loc_run(weight_decay=0.3), Balls(), tmp_path, accelerator="cpu").optimiser.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


@pytest.mark.parametrize(
    ("began", "changed", "says"),
    [({}, {"optimiser": "adam"}, "another network or optimiser"), ({"ema": 0.0}, {"ema": 0.9}, "loop.ema=0")],
)
def test_what_a_checkpoint_does_not_hold_is_said(tmp_path: Path, began: dict, changed: dict, says: str) -> None:
    train(loc_run(**began), tmp_path)
    with pytest.raises(InputError, match=says):
        Trainer(loc_run(steps=8, **(began | changed)), Balls(), tmp_path, accelerator="cpu")


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_what_is_no_number_is_noticed_and_not_kept(tmp_path: Path, monkeypatch, clip_norm: float, spoilt: str) -> None:
    """Also where the loss was a number and its gradient none: the weights then are none any more."""
    losses = LocNetTask.losses

    def diverge(task, network, batch):
        parts = losses(task, network, batch)
        if trainer.step < 5:
            return parts
        nothing = sum(weight.sum() for weight in network.parameters()) * 0
        return parts | {"loss": parts["loss"] * math.nan if spoilt == "loss" else parts["loss"] + nothing.sqrt()}

    monkeypatch.setattr(LocNetTask, "losses", diverge)
    trainer = Trainer(loc_run(clip_norm=clip_norm, warmup=0), Balls(), tmp_path, accelerator="cpu")
    with pytest.raises(InputError, match="diverged: at step 6, with a learning rate"):
        trainer.fit(progress=False)
    for weight in weights(tmp_path / "best.ckpt").values():
        assert weight.isfinite().all()
    assert not (tmp_path / "last.ckpt").exists()


def test_what_is_no_number_in_another_process_ends_this_one_too(tmp_path: Path, monkeypatch) -> None:
    trainer = Trainer(loc_run(), Balls(), tmp_path, accelerator="cpu")
    monkeypatch.setattr(trainer.fabric, "all_reduce", lambda failures, reduce_op: failures + 1)
    with pytest.raises(InputError, match="diverged: at step 3"):
        trainer.fit(progress=False)


def test_several_processes_judge_at_the_same_steps_whatever_their_clocks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("train.loop.CHECKPOINT_SECONDS", -1.0)
    judged: dict[int, list[int]] = {1: [], 2: []}
    for processes, steps in judged.items():
        trainer = Trainer(loc_run(steps=12, validate_every=7), Balls(), tmp_path / str(processes), accelerator="cpu")
        monkeypatch.setattr(type(trainer.fabric), "world_size", processes)
        monkeypatch.setattr(
            trainer, "_refuse_what_is_no_number", lambda *_, to=steps, of=trainer, **__: to.append(of.step)
        )
        trainer.fit(progress=False)
    assert judged == {1: list(range(1, 13)), 2: [7, 10, 12]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_and_precisions_that_are_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kind cuda"):
        Trainer(loc_run(), Balls(), tmp_path, accelerator="cuda")
    with pytest.raises(InputError, match="precision=fp16"):
        Trainer(loc_run(precision="fp16"), Balls(), tmp_path, accelerator="cpu")


def test_an_error_of_a_worker_process_is_said_without_its_trace(tmp_path: Path, monkeypatch) -> None:
    """As torch hands it over: of the same class, with the other process's trace in its words."""

    def damaged(*_):
        try:
            raise InputError("the scan is damaged: fetch it anew")
        except InputError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    monkeypatch.setattr("train.loop.Batches.__getitem__", damaged)
    with pytest.raises(InputError) as refused:
        train(loc_run(), tmp_path)
    assert str(refused.value) == "the scan is damaged: fetch it anew"


def test_a_score_that_is_no_number_is_said_not_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("train.tasks.LocNetTask.metrics", lambda *_: {"score": math.nan})
    with pytest.raises(InputError, match="neither grades nor masks"):
        train(loc_run(), tmp_path)


def test_nothing_is_kept_as_best_before_its_time(tmp_path: Path, monkeypatch) -> None:
    scores = iter([3.0, 2.0, 1.0])
    monkeypatch.setattr("train.tasks.LocNetTask.metrics", lambda *_: {"score": next(scores)})
    train(loc_run(validate_every=2, checkpoint_from=4), tmp_path)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["step"] == 4


def test_patience_begins_when_checkpoints_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("train.tasks.LocNetTask.metrics", lambda *_: {"score": 0.0})
    trainer = train(loc_run(steps=50, validate_every=1, patience=3, checkpoint_from=10), tmp_path)
    assert trainer.step == 13
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["step"] == 10


def test_what_could_not_be_measured_is_not_kept(tmp_path: Path, monkeypatch) -> None:
    figures = {"score": 1.0, "dice_body": math.nan, "recall": 0.5}
    monkeypatch.setattr("train.tasks.LocNetTask.metrics", lambda *_: figures)
    train(loc_run(), tmp_path)
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)["metrics"]
    assert kept == {"score": 1.0, "recall": 0.5}, "a bundle's JSON can hold no nan"


def test_schedules() -> None:
    loop = LoopConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(loop, step) for step in range(100)]
    assert rates[9] == pytest.approx(1.0)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    step = replace(loop, schedule="step", decay_every=30)
    assert [round(learning_rate(step, s), 5) for s in (0, 29, 30, 60)] == [1.0, 1.0, 0.1, 0.01]
    assert learning_rate(replace(loop, schedule="constant"), 99) == 1.0


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "last.ckpt"
    save_atomically({"step": 1}, path)

    def fail(state, file) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_atomically({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    train(loc_run(), tmp_path / "first")
    best = torch.load(tmp_path / "first" / "best.ckpt", weights_only=True)["network"]
    second = Trainer(
        loc_run(start_from=str(tmp_path / "first"), seed=5), Balls(), tmp_path / "second", accelerator="cpu"
    )
    torch.testing.assert_close(second.network.module.state_dict(), best, rtol=0, atol=0)
    torch.testing.assert_close(second.evaluated.state_dict(), best, rtol=0, atol=0)
    assert second.step == 0


def test_what_cannot_be_started_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no best\.ckpt"):
        Trainer(loc_run(start_from=str(tmp_path / "none")), Balls(), tmp_path / "a", accelerator="cpu")
    train(loc_run(), tmp_path / "first")
    wider = replace(loc_run(start_from=str(tmp_path / "first")), network=LocNetConfig(UNetConfig((6, 6), 6)))
    with pytest.raises(InputError, match="another shape"):
        Trainer(wider, Balls(), tmp_path / "b", accelerator="cpu")


@pytest.mark.parametrize(("hardware", "wanted", "used"), [
    ({}, "bf16-mixed", "32-true"),
    ({"avx512_f": True, "avx512_bf16": False}, "bf16-mixed", "32-true"),
    ({"avx512_bf16": True}, "bf16-mixed", "bf16-mixed"),
    ({"amx_bf16": True}, "bf16-mixed", "bf16-mixed"),
    ({"architecture": "aarch64"}, "bf16-mixed", "bf16-mixed"),
    ({}, "32-true", "32-true"),
])  # fmt: skip
def test_bf16_is_not_emulated(monkeypatch, caplog, hardware: dict, wanted: str, used: str) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bool(hardware))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **hardware})
    assert usable_precision(wanted, "cpu") == used
    assert bool(caplog.records) == (used != wanted)
