"""A LocNet at half the resolution that learns from one at full resolution."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.errors import InputError
from tests.train.test_loop import TINY, Balls, loc_run, train
from train import config as configuration
from train.__main__ import main
from train.config import Distillation, LocNetRun
from train.distillation import Teacher
from train.loop import Trainer
from train.networks import LocNet, LocNetConfig

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*isinstance.*LeafSpec.*")
HALF = LocNetConfig(TINY.without_first(), half_resolution=True, stem=TINY.channels[0])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    train(loc_run(), folder)
    return folder


def half_run(teacher: Path, **loop) -> LocNetRun:
    return replace(loc_run(**loop), network=HALF, distillation=Distillation(str(teacher)))


def test_both_have_the_same_outputs_and_the_same_features_at_half_the_resolution() -> None:
    image = torch.randn(2, 1, 16, 8, 24)
    for config in (LocNetConfig(TINY), HALF):
        network = LocNet(config).eval()
        with torch.inference_mode():
            said, (entering, leaving) = network.with_features(image)
            torch.testing.assert_close(said, network(image))
        assert [tuple(one.shape) for one in said] == [(2, 1, 16, 8, 24), (2, 3, 16, 8, 24)]
        assert entering.shape == (2, TINY.channels[0], 8, 4, 12)
        assert leaving.shape == (2, TINY.channels[1], 8, 4, 12)


def test_it_begins_with_the_weights_of_the_levels_that_both_have(teacher: Path) -> None:
    """What leaves those levels is then the teacher's, where what enters them is."""
    tutor, student = Teacher(Distillation(str(teacher))), LocNet(HALF).eval()
    tutor.begin(student)
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        _, (entering, leaving) = tutor.network.with_features(image)
        torch.testing.assert_close(student.unet(entering)[-1], leaving)


def test_a_network_that_says_the_same_is_not_set_apart(teacher: Path) -> None:
    tutor, image = Teacher(Distillation(str(teacher))), torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        (heat, offsets), features = tutor.network.with_features(image)
    same = tutor.losses(image, (heat, offsets), features)
    other = tutor.losses(image, (1 - heat, offsets + 3.0), (features[0] + 1.0, features[1] - 1.0))
    assert set(same) == {"heat_apart", "offsets_apart", "features_apart"}
    for name, value in same.items():
        assert float(value) < 0.02, "no more than rounding"
        assert float(other[name]) > 20 * float(value) + 0.01


def test_learning_brings_it_nearer_to_its_teacher(teacher: Path, tmp_path: Path) -> None:
    run = half_run(teacher, steps=40, learning_rate=3e-3, ema=0.0, validate_every=40)
    trainer = Trainer(run, Balls(), tmp_path, accelerator="cpu")
    batch = trainer.task.batch(Balls(), (9,), 2)

    def apart() -> float:
        with torch.no_grad():
            parts = trainer.task.losses(trainer.network, batch)
        return sum(float(parts[name]) for name in ("heat_apart", "offsets_apart", "features_apart"))

    before = apart()
    trainer.fit(progress=False)
    assert apart() < 0.8 * before


def test_an_interrupted_one_goes_on(teacher: Path, tmp_path: Path) -> None:
    train(half_run(teacher), tmp_path)
    again = Trainer(half_run(teacher), Balls(), tmp_path, accelerator="cpu")
    assert again.step == 6


@pytest.mark.parametrize(
    "network",
    [LocNetConfig(TINY), replace(HALF, stem=7), replace(HALF, unet=TINY), replace(HALF, variant="H")],
    ids=["full resolution", "stem", "levels", "no offsets"],
)
def test_a_network_of_other_levels_is_refused(teacher: Path, network: LocNetConfig) -> None:
    with pytest.raises(InputError, match="must be a LocNetConfig"):
        Teacher(Distillation(str(teacher))).begin(LocNet(network))


def test_what_cannot_teach_is_refused(teacher: Path, tmp_path: Path) -> None:
    train(half_run(teacher), tmp_path / "half")
    with pytest.raises(InputError, match="full resolution"):
        Teacher(Distillation(str(tmp_path / "half")))
    with pytest.raises(InputError, match="cannot be read"):
        Teacher(Distillation(str(tmp_path / "none")))


def test_the_bundle_that_ships_can_teach_and_the_preset_fits_it() -> None:
    from runtime.bundle import DEFAULT_BUNDLE
    from train.presets import presets

    preset = presets()["locnet"]["half"]
    assert isinstance(preset, LocNetRun)
    Teacher(Distillation(str(DEFAULT_BUNDLE))).begin(LocNet(preset.network))


def test_runs_of_versions_without_it_are_read(tmp_path: Path) -> None:
    configuration.save(loc_run(), tmp_path / "config.json")
    old = json.loads((tmp_path / "config.json").read_text())
    del old["run"]["distillation"], old["run"]["network"]["half_resolution"], old["run"]["network"]["stem"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert configuration.load(tmp_path / "config.json") == loc_run()


def test_only_locnet_has_a_teacher(tmp_path: Path, capsys) -> None:
    assert main(["levelnet", "-o", str(tmp_path), "--teacher", str(tmp_path)]) == 2
    assert "Only locnet has a --teacher" in capsys.readouterr().err
