"""The comparison: crops as counted, figures against independent ones, variants from one start, runs that go on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.errors import InputError
from train.compare import __main__ as command
from train.compare import crops as data
from train.compare import variants, whole
from train.compare.figures import grade_figures
from train.compare.heads import SHIFTED_VIEWS, head_probabilities, thickness_of, train_head
from train.compare.table import Result, markdown
from train.compare.variants import SMALL, Effort
from train.config import FracSegNetRun
from train.networks import HEIGHT_UNIT_MM, FracSegNet

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*isinstance.*LeafSpec.*")
COUNTS = (5, 1, 1, 1)


@pytest.fixture(scope="module")
def crops(tmp_path_factory) -> data.Crops:
    path = tmp_path_factory.mktemp("crops") / "crops.npz"
    return data.kept_crops(path, COUNTS, SMALL, seeds=data.EVALUATION_SEEDS, seed=4)


def test_the_set_has_the_counts_asked_for_and_losses_of_its_grades(crops: data.Crops) -> None:
    assert np.bincount(crops.grades).tolist() == list(COUNTS)
    assert crops.masks.shape == (8, 2, 32, 32, 32)
    worst = crops.heights[:, 3:].max(axis=1)
    for grade, low, high in ((0, -1.0, 0.2), (1, 0.2, 0.25), (2, 0.25, 0.4), (3, 0.4, 1.0)):
        assert ((low <= worst) & (worst < high))[crops.grades == grade].all()


def test_crops_are_drawn_once_and_for_one_purpose(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "crops.npz"
    first = data.kept_crops(path, (1, 0, 0, 0), SMALL, seeds=data.TRAINING_SEEDS, seed=1)
    monkeypatch.setattr(data, "draw_crops", lambda *_, **__: pytest.fail("drawn again"))
    again = data.kept_crops(path, (1, 0, 0, 0), SMALL, seeds=data.TRAINING_SEEDS, seed=1)
    for name in ("hu", "masks", "grades", "heights"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    with pytest.raises(InputError, match="drawn differently"):
        data.kept_crops(path, (1, 0, 0, 0), SMALL, seeds=data.TRAINING_SEEDS, seed=2)


def test_mirrored_crops_are_the_same_vertebra(crops: data.Crops) -> None:
    plain, mirrored = crops.sample(0), crops.sample(0, mirrored=True)
    np.testing.assert_array_equal(plain.hu, mirrored.hu[:, :, ::-1])
    np.testing.assert_array_equal(plain.masks, mirrored.masks[..., ::-1])
    np.testing.assert_array_equal(plain.heights, mirrored.heights)


def head_run(name: str, *, steps: int = 1) -> FracSegNetRun:
    """What is compared under that name."""
    return next(run for _, other, run in variants.head_variants(Effort(head_steps=steps)) if other == name)


def test_heads_differ_in_what_their_names_say() -> None:
    runs = {name: run for _, name, run in variants.head_variants(Effort())}
    assert len(runs) == 15 + 3
    assert (runs["focal, natural"].grade_loss, runs["focal, natural"].sampling) == ("focal", "as_found")
    assert runs["Nash-MTL"] == replace(runs["fixed weights"], task_weighting="nash", nash_every=4)


@pytest.mark.parametrize(("sampling", "share"), [("natural", 5 / 8), ("balanced", 0.5), ("equal", 0.25)])
def test_samplings_draw_the_set_s_grades_as_often_as_they_say(crops: data.Crops, sampling: str, share: float) -> None:
    run = head_run(f"focal, {sampling}")
    rng, source = np.random.default_rng(0), data.CropsSource(crops)
    grades = [crops.grades[source.draw(rng, run)[0]] for _ in range(2000)]
    assert np.mean(np.array(grades) == 0) == pytest.approx(share, abs=0.05)


def drawn(frequencies, size: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that tell something, and grades, of a sample with these frequencies."""
    rng = np.random.default_rng(5)
    grades = np.repeat(np.arange(4), (np.array(frequencies) / np.sum(frequencies) * size).astype(int))
    logits = rng.normal(size=(len(grades), 4)) + 1.5 * np.eye(4)[grades]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), grades


def test_figures_of_the_population_itself_are_scikit_learn_s() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    p, grades = drawn(data.VERSE_COUNTS)
    found = grade_figures(p, grades, np.bincount(grades).tolist())
    called = p.argmax(axis=1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(grades, called)
    np.testing.assert_allclose(found.precision, precision, atol=1e-4)
    np.testing.assert_allclose(found.recall, recall, atol=1e-9)
    np.testing.assert_allclose(found.f1, f1, atol=1e-4)
    assert found.macro_f1 == pytest.approx(metrics.f1_score(grades, called, average="macro"), abs=1e-4)
    assert found.auroc == pytest.approx(metrics.roc_auc_score(grades >= 2, p[:, 2:].sum(axis=1)), abs=1e-9)
    assert found.log_loss == pytest.approx(metrics.log_loss(grades, p), abs=1e-9)


def test_figures_of_a_sample_with_more_rare_grades_are_those_of_the_population() -> None:
    p, grades = drawn((1, 1, 1, 1))
    repeats = np.array([30, 4, 3, 1])
    copies = np.repeat(np.arange(len(grades)), repeats[grades])
    weighted = grade_figures(p, grades, repeats.tolist())
    whole_population = grade_figures(p[copies], grades[copies], repeats.tolist())
    for name in ("macro_f1", "auroc", "log_loss", "calibration_error"):
        assert getattr(weighted, name) == pytest.approx(getattr(whole_population, name), abs=1e-4), name


def test_heads_read_true_thickness_and_learn(crops: data.Crops) -> None:
    views = thickness_of(crops, SMALL)
    assert views.values.shape == (2, SHIFTED_VIEWS, 8, 12, 12)
    volume_mm3 = crops.masks[:, 1].sum(axis=(1, 2, 3)) * 3.0**3
    np.testing.assert_allclose(views.values[0, 0].sum(dim=(1, 2)) * HEIGHT_UNIT_MM * 6.0**2, volume_mm3, rtol=0.02)
    run = head_run("cross_entropy, equal", steps=300)
    trained = train_head(views, run)
    assert (head_probabilities(trained, views).argmax(axis=1) == crops.grades).all()
    run = head_run("cross_entropy, equal", steps=3)
    first, again = train_head(views, run), train_head(views, run)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["Nash-MTL", "pooled head"])
def test_variants_begin_with_the_shared_start_where_it_fits(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    shared = FracSegNet(SMALL.network).state_dict()
    (tmp_path / "start").mkdir()
    torch.save({"network": shared, "step": 1, "metrics": {}}, tmp_path / "start" / "best.ckpt")
    run = variants.whole_run(name, 1, Effort(), tmp_path / "own")
    whole.fitting_start(tmp_path / "start", run, tmp_path / "own")
    own = torch.load(tmp_path / "own" / "best.ckpt", weights_only=True)["network"]
    FracSegNet(run.network).load_state_dict(own)
    assert all(torch.equal(own[k], v) for k, v in shared.items() if k.startswith("unet"))


def test_the_command_compares_and_goes_on(tmp_path: Path, capsys, monkeypatch) -> None:
    few = {"fixed weights": variants.WHOLE["fixed weights"]}
    monkeypatch.setattr(variants, "WHOLE", few)
    monkeypatch.setattr(variants, "WEIGHTINGS", tuple(few))
    monkeypatch.setattr(variants, "GRADE_LOSSES", ("focal",))
    arguments = ["-o", str(tmp_path), "--start-steps", "1", "--head-steps", "1", "--whole-steps", "1",
                 "--head-seeds", "2", "--whole-seeds", "1", "--training", "1,1,1,1",
                 "--evaluation", "1,1,1,1"]  # fmt: skip
    assert command.main(arguments) == 0
    table, results = (tmp_path / "comparison.md").read_text(), json.loads((tmp_path / "comparison.json").read_text())
    assert len(results["results"]) == (3 + 1) * 2 + 1
    assert "| focal, natural | 2 |" in table
    monkeypatch.setattr(command.heads, "train_head", lambda *_: pytest.fail("trained again"))
    assert command.main(arguments) == 0
    assert json.loads((tmp_path / "comparison.json").read_text()) == results
    capsys.readouterr()
    assert command.main([*arguments, "--head-steps", "2"]) == 2
    assert "other crops, steps or networks" in capsys.readouterr().err


def test_tables_say_where_nothing_was_measured() -> None:
    figures = grade_figures(np.eye(4), np.arange(4), data.VERSE_COUNTS)
    runs = [Result("heads", "focal, equal", seed, figures, None, None, 1.0) for seed in (1, 2)]
    (row,) = [line for line in markdown(runs).splitlines() if line.startswith("| focal")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["focal, equal", "2", "1.00 1.00 1.00 1.00", "1.00 1.00 1.00 1.00"]
    assert cells[4:] == ["1.000 ± 0.000", "1.000 ± 0.000", "0.000", "0.000", "-", "-"]
