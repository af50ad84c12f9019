"""A LocNet with a stem that learns from one without."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.checkpoint import load_trained
from export.onnx_export import export_onnx
from export.phantom_inputs import window_images
from runtime.bundle import DEFAULT_BUNDLE
from runtime.engines import open_session, select_engine
from runtime.errors import InputError
from runtime.typed_graph import typed_graph
from tests.export.tiny import trained
from tests.train.test_loop import TINY, Balls, loc_run, train
from train import config as configuration
from train.__main__ import build_parser, main, run_of
from train.config import FracSegNetRun, LocNetRun, override
from train.distillation import Teacher, taught_by
from train.loop import Trainer
from train.networks import LocNet, LocNetConfig
from train.presets import presets
from train.weights import run_in

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*isinstance.*LeafSpec.*")
STEMMED = LocNetConfig(TINY.without_first(), stem=TINY.channels[0])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    train(loc_run(), folder)
    return folder


def student_run(teacher: Path, **loop) -> LocNetRun:
    run = replace(loc_run(**loop), network=STEMMED)
    return replace(run, distillation=taught_by(teacher, run.distillation))


def test_both_have_the_same_outputs_and_the_same_features_at_half_the_resolution() -> None:
    image = torch.randn(2, 1, 16, 8, 24)
    for config in (LocNetConfig(TINY), STEMMED):
        network = LocNet(config).eval()
        with torch.inference_mode():
            said, (entering, leaving) = network(image, with_features=True)
            torch.testing.assert_close(said, network(image))
        assert [tuple(one.shape) for one in said] == [(2, 1, 16, 8, 24), (2, 3, 16, 8, 24)]
        assert entering.shape == (2, TINY.channels[0], 8, 4, 12)
        assert leaving.shape == (2, TINY.channels[1], 8, 4, 12)


def test_it_begins_with_the_weights_of_the_levels_that_both_have(teacher: Path) -> None:
    """What leaves those levels is then the teacher's, where what enters them is."""
    tutor, student = Teacher(student_run(teacher)), LocNet(STEMMED).eval()
    tutor.begin(student)
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        _, (entering, leaving) = tutor.network(image, with_features=True)
        torch.testing.assert_close(student.unet(entering)[-1], leaving)


def test_a_network_that_says_the_same_is_not_set_apart(teacher: Path) -> None:
    tutor, image = Teacher(student_run(teacher)), torch.rand(1, 1, 16, 16, 16)
    (heat, offsets), features = tutor.says(image)
    same = tutor.losses(image, (heat, offsets), features)
    assert same == {"heat_apart": 0.0, "offsets_apart": 0.0, "features_apart": 0.0}
    other = tutor.losses(image, (1 - heat, offsets + 3.0), (features[0] + 1.0, features[1] - 1.0))
    assert min(map(float, other.values())) > 0.01


def test_a_teacher_on_a_processor_says_what_torch_says(teacher: Path) -> None:
    """Of images of all sizes, in fp32."""
    tutor = Teacher(student_run(teacher, precision="32-true"))
    for shape in ((2, 1, 16, 16, 16), (1, 1, 24, 16, 8)):
        image = torch.rand(shape)
        with torch.inference_mode():
            expected = tutor.network(image, with_features=True)
        torch.testing.assert_close(tutor.says(image), expected, atol=1e-3, rtol=1e-3)


def test_learning_brings_it_nearer_to_its_teacher(teacher: Path, tmp_path: Path) -> None:
    run = student_run(teacher, steps=40, learning_rate=3e-3, ema=0.0, validate_every=40)
    trainer = Trainer(run, Balls(), tmp_path, accelerator="cpu")
    batch = trainer.task.batch(Balls(), (9,), 2)

    def apart() -> float:
        with torch.no_grad():
            parts = trainer.task.losses(trainer.network, batch)
        return sum(float(parts[name]) for name in ("heat_apart", "offsets_apart", "features_apart"))

    before = apart()
    trainer.fit(progress=False)
    assert apart() < 0.8 * before


def test_student_and_teacher_compute_in_the_runs_precision(teacher: Path, tmp_path: Path, monkeypatch) -> None:
    """In bf16 where the processor has it, or is taken to have it."""
    for module in ("train.loop", "train.distillation"):
        monkeypatch.setattr(f"{module}.processor_has_bf16", lambda: True)
    assert _computed_in(student_run(teacher, precision="bf16-mixed"), tmp_path / "bf16") == {torch.bfloat16}
    assert _computed_in(student_run(teacher, precision="32-true"), tmp_path / "fp32") == {torch.float32}


def _computed_in(run: LocNetRun, folder: Path) -> set[torch.dtype]:
    """What the first convolutions of student and teacher give in one step."""
    trainer = Trainer(run, Balls(), folder, accelerator="cpu")
    met: list[torch.dtype] = []
    for network in (trainer.network.module, trainer.task._teacher.network):
        convolution = next(m for m in network.modules() if isinstance(m, torch.nn.Conv3d))
        convolution.register_forward_hook(lambda module, inputs, output: met.append(output.dtype))
    trainer.task.losses(trainer.network, trainer.task.batch(Balls(), (9,), 1))
    assert len(met) >= 2
    return set(met)


def test_a_finished_student_is_exported_and_run_without_its_teacher(teacher: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(teacher, tmp_path / "teacher")
    train(student_run(kept), tmp_path / "student")
    shutil.rmtree(kept)
    found = load_trained(tmp_path / "student")
    assert isinstance(found.run, LocNetRun)
    (image,) = window_images(found.run, (16, 16, 16), 1)
    found = replace(found, example_zyx=(16, 16, 16))
    export_onnx(found, tmp_path / "locnet.onnx")
    onnx.checker.check_model(onnx.load_from_string(typed_graph(tmp_path / "locnet.onnx", "fp16")))
    with torch.inference_mode():
        expected = [output.numpy() for output in found.network(torch.from_numpy(image))]
    with open_session(select_engine("openvino", precision="fp32"), tmp_path / "locnet.onnx", threads=1) as session:
        for one, other in zip(session(image), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    "network",
    [LocNetConfig(TINY), replace(STEMMED, stem=7), replace(STEMMED, unet=TINY), replace(STEMMED, variant="H")],
    ids=["no stem", "stem", "levels", "no offsets"],
)
def test_a_network_of_other_levels_is_refused(teacher: Path, network: LocNetConfig) -> None:
    with pytest.raises(InputError, match="must be a LocNetConfig"):
        Teacher(student_run(teacher)).begin(LocNet(network))


def test_what_cannot_teach_is_refused(teacher: Path, tmp_path: Path) -> None:
    train(student_run(teacher), tmp_path / "student")
    with pytest.raises(InputError, match="without a stem"):
        Teacher(student_run(tmp_path / "student"))
    with pytest.raises(InputError, match="cannot be read"):
        student_run(tmp_path / "none")
    configuration.save(FracSegNetRun(), tmp_path / "config.json")
    with pytest.raises(InputError, match="holds no locnet; met a run of FracSegNet"):
        student_run(tmp_path)
    with pytest.raises(InputError, match=r"spacing_mm 3\.0, what is to learn from it 2\.0"):
        Teacher(replace(student_run(teacher), spacing_mm=2.0))


def test_what_the_default_preset_makes_can_teach_what_half_makes(tmp_path: Path) -> None:
    teacher, student = (presets()["locnet"][name] for name in ("default", "half"))
    assert isinstance(teacher, LocNetRun)
    assert isinstance(student, LocNetRun)
    folder = trained(teacher, LocNet(teacher.network), tmp_path / "teacher")
    run = replace(student, distillation=taught_by(folder, student.distillation))
    assert run.distillation.data == ("phantoms",)
    Teacher(run).begin(LocNet(run.network))


def test_the_bundle_that_ships_holds_what_half_makes_and_cannot_teach() -> None:
    preset = presets()["locnet"]["half"]
    assert isinstance(preset, LocNetRun)
    shipped = run_in(DEFAULT_BUNDLE, "locnet", LocNetRun)
    assert shipped.network == preset.network
    with pytest.raises(InputError, match="python -m train locnet -o RUN"):
        Teacher(replace(preset, distillation=taught_by(DEFAULT_BUNDLE, preset.distillation)))


def test_a_teacher_whose_weights_have_changed_is_refused(teacher: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(teacher, tmp_path / "teacher")
    run = student_run(kept)
    state = torch.load(kept / "best.ckpt", weights_only=True)
    next(iter(state["network"].values())).add_(0.01)
    torch.save(state, kept / "best.ckpt")
    with pytest.raises(InputError, match=r"its weights are others.* under another path"):
        Teacher(run)
    Teacher(student_run(kept))


def test_the_same_command_resumes_a_student_with_the_teacher_that_it_had(teacher: Path, tmp_path: Path) -> None:
    """Another one has to be named: the path of the old one keeps the digest of what it held."""
    kept = shutil.copytree(teacher, tmp_path / "teacher")
    run = student_run(kept)
    (tmp_path / "run").mkdir()
    configuration.save(run, tmp_path / "run" / "config.json")
    (tmp_path / "run" / "last.ckpt").touch()
    (kept / "best.ckpt").write_bytes(b"other weights")

    def resumed(folder: Path) -> LocNetRun:
        arguments = build_parser().parse_args(["locnet", "-o", str(tmp_path / "run"), "--teacher", str(folder)])
        found = run_of(arguments, arguments.out)
        assert isinstance(found, LocNetRun)
        return found

    assert resumed(kept) == run
    assert resumed(teacher).distillation == replace(run.distillation, teacher=str(teacher))


def test_runs_of_versions_without_it_are_read(tmp_path: Path) -> None:
    configuration.save(loc_run(), tmp_path / "config.json")
    old = json.loads((tmp_path / "config.json").read_text())
    del old["run"]["distillation"], old["run"]["network"]["stem"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert configuration.load(tmp_path / "config.json") == loc_run()


def test_runs_that_did_not_keep_their_teachers_digest_are_read(teacher: Path, tmp_path: Path) -> None:
    run = student_run(teacher)
    configuration.save(run, tmp_path / "config.json")
    old = json.loads((tmp_path / "config.json").read_text())
    del old["run"]["distillation"]["weights_sha256"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    met = configuration.load(tmp_path / "config.json")
    assert isinstance(met, LocNetRun)
    assert met == replace(run, distillation=replace(run.distillation, weights_sha256=""))
    Teacher(met)


def test_what_makes_no_sense_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(InputError, match="stem"):
        override(loc_run(), ["network.stem=-1"])
    assert main(["levelnet", "-o", str(tmp_path), "--teacher", str(tmp_path)]) == 2
    assert "Only locnet has a --teacher" in capsys.readouterr().err
