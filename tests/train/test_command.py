"""``python -m train``: trains, resumes, and refuses what it can't do."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.bundle import DEFAULT_BUNDLE
from runtime.errors import BundleError, InputError
from train import config
from train.__main__ import build_parser, run_of, sole_run_in
from train.config import LocNetRun, override
from train.data_seen import data_seen
from train.presets import TAUGHT, presets
from train.tasks import task_of
from train.weights import fitting, weights_to_start_from

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
        (["fracsegnet", "--preset", "thesis"], "interrupted run of a LocNet"),
        (["locnet", "--set", "network.unet.bottleneck=4"], "can't be changed"),
    ):
        done = run(*arguments, "-o", str(tmp_path))
        assert done.returncode == 2
        assert says in done.stderr


def run_named(*words: str) -> config.Run:
    arguments = build_parser().parse_args(words)
    return run_of(arguments, arguments.out)


def teacher(folder: Path, *, data: tuple[str, ...] = ("phantoms",), data_before: tuple[str, ...] = ()) -> Path:
    """The folder of a LocNet that can teach, by its words and not by its weights, which are none."""
    folder.mkdir()
    config.save(LocNetRun(data=data, data_before=data_before), folder / "config.json")
    (folder / "best.ckpt").touch()
    return folder


@pytest.mark.parametrize(("network", "preset"), [(name, one) for name, known in presets().items() for one in known])
def test_the_same_command_resumes_a_run_of_a_preset(network: str, preset: str, tmp_path: Path) -> None:
    """With the settings that it was started with, or with more steps; another preset is refused."""
    words = [network, "--preset", preset, "-o", str(tmp_path), "--set", "loop.batch=1"]
    begun = run_named(*words, *(["--teacher", str(teacher(tmp_path / "teacher"))] if preset in TAUGHT else []))
    assert begun.loop.batch == 1
    expected = override(presets()[network][preset], ["loop.batch=1"])
    if preset in TAUGHT:
        assert isinstance(begun, LocNetRun)
        expected = replace(expected, distillation=begun.distillation)
    assert begun == expected
    config.save(begun, tmp_path / "config.json")
    (tmp_path / "last.ckpt").touch()
    assert run_named(*words) == begun
    assert run_named(*words[:1], *words[3:]) == begun
    longer = begun.loop.steps + 7
    assert run_named(*words, "--set", f"loop.steps={longer}").loop.steps == longer
    for other in presets()[network].keys() - {preset}:
        with pytest.raises(InputError, match="its own preset"):
            run_named(network, "--preset", other, *words[3:])


def test_a_preset_that_is_meant_for_a_teacher_is_not_trained_without(tmp_path: Path) -> None:
    words = ["locnet", "--preset", "half", "-o", str(tmp_path / "run")]
    with pytest.raises(InputError, match="--teacher RUN"):
        run_named(*words)
    tutor = teacher(tmp_path / "teacher")
    for named in (["--teacher", str(tutor)], ["--set", f"distillation.teacher={tutor}"]):
        run = run_named(*words, *named)
        assert isinstance(run, LocNetRun)
        assert run.distillation.teacher == str(tutor)
        assert len(run.distillation.weights_sha256) == 64
    assert run_named(*words, "--start-from", str(tutor)).loop.start_from == str(tutor)


def test_a_run_knows_all_data_that_its_weights_come_from(tmp_path: Path) -> None:
    """Its own, what it was trained on before, and what its start and its teacher saw, and their starts."""
    real = teacher(tmp_path / "verse", data=("verse",), data_before=("other",))
    words = ["locnet", "-o", str(tmp_path / "run")]
    assert run_named(*words).data_before == ()
    assert run_named(*words, "--start-from", str(real)).data_before == ("verse", "other")
    assert run_named(*words, "--set", f"loop.start_from={real}").data_before == ("verse", "other")
    taught = run_named(*words, "--preset", "half", "--teacher", str(real))
    assert data_seen(taught) == ("phantoms", "verse", "other")
    began = run_named(*words, "--data", "verse", "--data", "phantoms", "--start-from", str(real))
    assert began.data_before == ("other",)
    (tmp_path / "run").mkdir()
    config.save(began, tmp_path / "run" / "config.json")
    (tmp_path / "run" / "last.ckpt").touch()
    shutil.rmtree(real)
    assert run_named(*words) == began, "what it started from is not needed any more"
    assert run_named(*words, "--data", "phantoms").data_before == ("other", "verse")


def of_an_earlier_version(folder: Path, run: config.Run) -> Path:
    """The folder of a run that does not say what its weights saw before."""
    folder.mkdir()
    config.save(run, folder / "config.json")
    old = json.loads((folder / "config.json").read_text())
    del old["run"]["data_before"]
    (folder / "config.json").write_text(json.dumps(old))
    (folder / "last.ckpt").touch()
    return folder


def test_a_run_of_an_earlier_version_asks_what_it_started_from(tmp_path: Path) -> None:
    def started(name: str, start: str) -> Path:
        return of_an_earlier_version(tmp_path / name, override(LocNetRun(), [f"loop.start_from={start}"]))

    first = of_an_earlier_version(tmp_path / "first", LocNetRun(data=("verse",)))
    second = started("second", str(first))
    third = started("third", str(second))
    assert data_seen(config.load(third / "config.json")) == ("phantoms", "verse")
    assert run_named("locnet", "-o", str(third)).data_before == ("verse",)
    shutil.rmtree(first)
    unknown = f"unknown (started from {first})"
    assert data_seen(config.load(third / "config.json")) == ("phantoms", unknown)
    assert run_named("locnet", "-o", str(third)).data_before == (unknown,)
    itself = started("itself", str(tmp_path / "itself"))
    assert data_seen(config.load(itself / "config.json")) == ("phantoms", f"unknown (started from {itself})")


@pytest.mark.parametrize("start", ["weights alone", "a bundle"])
def test_a_preset_starts_from_weights_of_which_nothing_is_told(start: str, tmp_path: Path) -> None:
    folder = tmp_path / "start"
    if start == "a bundle":
        shutil.copytree(DEFAULT_BUNDLE, folder)
        told = json.loads((folder / "bundle.json").read_text())
        del told["training"]["locnet"]
        (folder / "bundle.json").write_text(json.dumps(told))
    else:
        folder.mkdir()
        (folder / "best.ckpt").touch()
    words = ["locnet", "-o", str(tmp_path / "run"), "--start-from", str(folder)]
    run = run_named(*words, "--preset", "half")
    assert run.loop.start_from == str(folder)
    assert run.data_before == (f"unknown (started from {folder})",)
    with pytest.raises((InputError, BundleError)):
        run_named(*words)


@pytest.mark.parametrize("network", ["locnet", "fracsegnet", "levelnet"])
def test_the_bundle_that_ships_tells_all_that_its_networks_saw(network: str, tmp_path: Path) -> None:
    assert run_named(network, "-o", str(tmp_path), "--start-from", str(DEFAULT_BUNDLE)).data_before == ()


def test_a_folder_in_other_words_is_not_named_twice(tmp_path: Path) -> None:
    words = ["locnet", "-o", str(tmp_path)]
    config.save(LocNetRun(data=("/data/verse", "other")), tmp_path / "config.json")
    (tmp_path / "last.ckpt").touch()
    went_on = run_named(*words, "--data", "/data/verse/")
    assert went_on.data_before == ("other",)
    assert data_seen(replace(went_on, data_before=("/data//verse", "other"))) == ("/data/verse/", "other")


def test_grades_stay_with_their_run_and_belong_to_scans(tmp_path: Path) -> None:
    words = ["fracsegnet", "-o", str(tmp_path)]
    with pytest.raises(InputError, match="--grades belongs to scans"):
        run_named(*words, "--grades", "list.csv")
    with pytest.raises(InputError, match="--grades belongs to scans"):
        run_named(*words, "--data", "phantoms", "--set", "grades=list.csv")
    began = run_named(*words, "--data", "verse", "--grades", "list.csv")
    assert began.grades == "list.csv"
    config.save(began, tmp_path / "config.json")
    (tmp_path / "last.ckpt").touch()
    assert run_named(*words) == began
    assert run_named(*words, "--grades", "new.csv").grades == "new.csv"
    assert run_named(*words, "--data", "phantoms").grades == "list.csv", "for when the scans come back"


@pytest.mark.parametrize(("network", "other"), [("fracnet", "fracsegnet"), ("fracsegnet", "fracnet")])
def test_a_network_with_masks_and_one_without_do_not_resume_each_other(
    network: str, other: str, tmp_path: Path
) -> None:
    config.save(presets()[other]["thesis"], tmp_path / "config.json")
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(InputError, match="interrupted run of a Frac"):
        run_named(network, "-o", str(tmp_path))
    assert run_named(other, "-o", str(tmp_path)) == presets()[other]["thesis"]


def test_what_a_run_starts_from_brings_its_networks_shape(tmp_path: Path) -> None:
    """Unless a preset is named, whose shape then has to be the same."""
    half = presets()["locnet"]["half"]
    config.save(half, tmp_path / "config.json")
    words = ["locnet", "-o", str(tmp_path / "run"), "--start-from", str(tmp_path)]
    run = run_named(*words)
    assert run.network == half.network
    default = presets()["locnet"]["default"]
    assert replace(run, network=default.network, loop=default.loop) == default
    assert run_named(*words, "--preset", "default").network == default.network
    with pytest.raises(InputError, match="holds no levelnet; met a run of LocNet"):
        run_named("levelnet", *words[1:])


@pytest.mark.parametrize(
    ("network", "start", "preset", "differs"),
    [
        ("locnet", "locnet", "fine", "spacing_mm"),
        ("locnet", "locnet", "thesis", "spacing_mm"),
        ("fracsegnet", "fracsegnet", "thesis", "spacing_mm"),
        ("fracsegnet", "fracnet", "thesis", "masks"),
    ],
)
def test_what_was_trained_on_other_images_is_not_gone_on_with_unasked(
    network: str, start: str, preset: str, differs: str, tmp_path: Path
) -> None:
    found = presets()[start][preset]
    config.save(found, tmp_path / "config.json")
    words = [network, "-o", str(tmp_path / "run"), "--start-from", str(tmp_path)]
    with pytest.raises(InputError, match=differs):
        run_named(*words)
    if start == network:
        assert run_named(*words, "--preset", preset).network == found.network


@pytest.mark.parametrize("network", ["locnet", "fracsegnet", "levelnet"])
def test_training_can_start_from_the_bundle_that_ships(network: str, tmp_path: Path) -> None:
    """As the recipe for VerSe does, without a preset."""
    run = run_named(network, "-o", str(tmp_path), "--start-from", str(DEFAULT_BUNDLE))
    wanted = task_of(run).network().state_dict()
    assert fitting(weights_to_start_from(DEFAULT_BUNDLE, network), wanted, source="the bundle").keys() == wanted.keys()


def test_what_it_cannot_do_is_said_without_a_trace(tmp_path: Path) -> None:
    for arguments, says in (
        (["locnet", "--preset", "none"], "no preset"),
        (["locnet", "--set", "loop.nothing=1"], "no setting"),
        (["locnet", "--data", str(tmp_path)], "rawdata"),
        (["fracsegnet", "--set", "grade_loss=fcoal"], "grade loss is one of cross_entropy, "),
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
