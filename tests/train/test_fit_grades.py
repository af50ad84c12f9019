"""Constants of the combined grade: they find what is informative, leave out what is not, and end in the bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize

from runtime.bundle import open_bundle, write_bundle
from runtime.errors import InputError
from runtime.grading import grade_probabilities
from runtime.height_loss import grade_of
from runtime.heights import BodyHeights
from train import evaluate, fit_grades
from train.evaluation import fit_grading as fitting
from train.evaluation.fit_grading import NEUTRAL, Sample, fit_constants, fit_grading
from train.evaluation.records import Comparison, Opinion, ScanRecord, VertebraRecord
from train.evaluation.truth import ScanItem
from train.phantom import write_verse
from train.phantom.render import make_scan
from train.stored_grading import read_grading


@pytest.fixture(autouse=True)
def _coarse_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "BIASES", (0.0, 0.06))
    monkeypatch.setattr(fitting, "SPREADS", (0.03, 0.10))
    monkeypatch.setattr(fitting, "SPREADS_PER_MM", (0.0,))


def samples(count: int, *, network_noise: float, loss_noise: float, bias: float = 0.0, seed: int = 0) -> list[Sample]:
    """Vertebrae with losses from 0 to 70 %, half of them unfractured, and two witnesses who err independently."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        true = rng.uniform(0.0, 0.12) if rng.random() < 0.5 else rng.uniform(0.0, 0.7)
        guess = np.array([0.1, 0.225, 0.325, 0.5]) - (true + rng.normal(0, network_noise))
        shares = np.exp(-0.5 * (guess / max(network_noise, 0.05)) ** 2) + 1e-3
        heights = BodyHeights(20.0 * (1 - true), 20.0, 21.0)
        found.append(
            Sample(
                f"scan{n // 6}",
                grade_of(true),
                tuple(float(p) for p in shares / shares.sum()),
                float(np.clip(true + bias + rng.normal(0, loss_noise), 0, 1)),
                1.0,
                heights,
                BodyHeights(*(heights.as_array() + rng.normal(1.0, 2.0, 3))),
                BodyHeights(*(heights.as_array() + rng.normal(-0.5, 0.5, 3))),
            )
        )
    return found


def test_two_witnesses_are_better_than_one_on_scans_left_out() -> None:
    fit = fit_grading(samples(600, network_noise=0.08, loss_noise=0.05, bias=0.06), reach=0.8)
    assert fit.combined.macro_f1 > max(fit.network.macro_f1, fit.measured.macro_f1) + 0.03
    assert fit.combined.log_loss < fit.network.log_loss
    assert fit.combined.auroc > fit.network.auroc
    assert fit.spec.loss_bias == pytest.approx(0.06)
    assert fit.spec.reach == 0.8
    assert sum(fit.by_grade) == fit.vertebrae == 600
    assert fit.patients == 100


def test_a_measurement_that_says_nothing_gets_no_weight() -> None:
    useless = [replace(s, loss=float(np.random.default_rng(n).random()))
               for n, s in enumerate(samples(600, network_noise=0.04, loss_noise=0.05))]  # fmt: skip
    spec = fit_constants(useless, reach=0.9)
    assert 0.0 <= spec.measured_weight < 0.05
    assert spec.network_weight > 0.5


def test_heights_lean_on_the_better_witness_and_lose_its_bias() -> None:
    spec = fit_constants(samples(400, network_noise=0.05, loss_noise=0.05), reach=0.9)
    assert all(share >= 0.85 for share in spec.height_shares)
    assert spec.height_offsets_mm == pytest.approx((0.4, 0.4, 0.4), abs=0.25)


def test_newton_finds_what_a_general_optimiser_finds() -> None:
    group = samples(200, network_noise=0.1, loss_noise=0.08)
    blur = replace(NEUTRAL, loss_sd=0.1)
    cost, spec = fitting._powers(group, blur)

    def cost_at(w: np.ndarray) -> float:
        tried = replace(blur, network_weight=w[0], measured_weight=w[1], prior=(0.0, w[2], w[3], w[4]))
        logs = [np.log(grade_probabilities(s.network, s.loss, voxel_mm=1.0, spec=tried)[s.grade]) for s in group]
        return float(-np.sum(logs) + 0.5 * fitting.RIDGE * ((w - [1, 0, 0, 0, 0]) ** 2).sum())

    oracle = minimize(cost_at, np.array([1.0, 0.2, 0.0, 0.0, 0.0]), method="BFGS")
    assert cost == pytest.approx(oracle.fun, abs=1e-3)
    assert [spec.network_weight, spec.measured_weight, *spec.prior[1:]] == pytest.approx(oracle.x, abs=0.01)


def test_a_witness_that_is_not_heard_has_no_weight() -> None:
    """A network that rules out what is true tells nothing; the ridge towards 1 is no weight of its."""
    wrong = [tuple(0.04 if n == grade else 0.32 for n in range(4)) for grade in range(4)]
    group = [replace(s, network=wrong[s.grade]) for s in samples(200, network_noise=0.05, loss_noise=0.03)]
    _, spec = fitting._powers(group, replace(NEUTRAL, loss_sd=0.05))
    assert spec.network_weight == 0
    assert spec.measured_weight > 0.3


@pytest.mark.parametrize("few", [samples(30, network_noise=0.1, loss_noise=0.1), []])
def test_too_little_to_fit_to_is_refused(few: list[Sample]) -> None:
    with pytest.raises(InputError, match="evaluate more scans"):
        fit_grading(few, reach=0.9)


def records(count: int) -> list[ScanRecord]:
    """As an evaluation would have kept them."""
    made = []
    for s in samples(count, network_noise=0.08, loss_noise=0.05):
        three = [h for h in (s.true_heights, s.network_heights, s.measured_heights) if h is not None]
        true, network, own = (tuple(h.as_array()) for h in three)
        v = VertebraRecord(
            "L1", s.grade, error_mm=1.0, heights_mm=true, network=Opinion(0, s.network, network, None),
            measured=Opinion(0, None, own, s.loss),
        )  # fmt: skip
        made.append(ScanRecord(f"s{len(made)}", s.patient, True, 1.0, "v", Comparison((v,), ()), voxel_mm=1.0))
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the shipped bundle's description with small files in its networks' places."""
    shipped = open_bundle().spec
    files = {}
    for name in shipped.files:
        files[name] = tmp_path / f"source-{name}"
        files[name].write_bytes(name.encode())
    return write_bundle(replace(shipped, grading=None), files, tmp_path / "bundle").folder


def test_the_command_writes_the_constants_and_their_origin(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []
    made = records(400)
    items = [ScanItem(r.name, r.name, lambda: None) for r in made]  # type: ignore[arg-type, return-value]

    def evaluated(arguments: list[str]) -> int:
        seen.append(arguments)
        return 0

    monkeypatch.setattr(evaluate, "main", evaluated)
    monkeypatch.setattr(fit_grades, "phantom_items", lambda *_, **__: items)
    monkeypatch.setattr(fit_grades, "ScanStore", lambda *_, **__: SimpleNamespace(done=lambda _: made))
    before = open_bundle(bundle)
    command = ["--bundle", str(bundle), "-o", str(tmp_path / "records"), "--quiet"]
    assert fit_grades.main([*command, "--dry-run"]) == 0
    assert open_bundle(bundle).sha256 == before.sha256
    assert fit_grades.main(command) == 0
    after = open_bundle(bundle).spec
    assert after.grading is not None
    assert replace(after, grading=None, training=before.spec.training) == before.spec
    origin = after.training["grading"]
    assert origin["command"].startswith("python -m train.fit_grades --bundle")
    assert origin["combined"]["macro_f1"] > origin["network"]["macro_f1"]
    assert "| combined |" in capsys.readouterr().out
    spec, made_so = read_grading(tmp_path / "records" / "fit.json")
    assert spec == after.grading
    assert made_so == origin
    assert made_so["vertebrae"] == 400
    neutral = open_bundle(seen[0][seen[0].index("--bundle") + 1]).spec
    assert neutral.grading == NEUTRAL, "the network's grades and heights as they are"
    assert str(fit_grades.TUNING_SEED) in seen[0]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_grades_of_a_data_set_may_lie_in_a_file_of_any_name(
    kind: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit and the evaluation before it, whose records it reads, both go by that file."""
    scan = make_scan(2**31 + 5, spacing_mm=8.0)
    write_verse(scan, tmp_path / "data" / "validation", "p1")
    (tmp_path / "data" / "validation" / "genant.json").unlink()
    graded = [v.label for v in scan.vertebrae if v.level[0] != "C"][:2]
    assert len(graded) == 2
    grades = tmp_path / f"by-a-reader.{kind}"
    if kind == "csv":
        grades.write_text("subject,label,grade\n" + "".join(f"sub-p1,{label},3\n" for label in graded))
    else:
        grades.write_text(json.dumps({f"sub-p1_{label}": 3 for label in graded}))
    seen: list[list[str]] = []
    items: list[ScanItem] = []
    monkeypatch.setattr(evaluate, "main", lambda arguments: seen.append(arguments) or 0)
    monkeypatch.setattr(
        fit_grades, "ScanStore", lambda *_, **__: SimpleNamespace(done=lambda of: items.extend(of) or records(400))
    )
    command = ["--bundle", str(bundle), "-o", str(tmp_path / "out"), "--data", str(tmp_path / "data")]
    assert fit_grades.main([*command, "--grades", str(grades), "--quiet"]) == 0
    assert {v.label: v.grade for v in items[0].load().vertebrae if v.grade is not None} == dict.fromkeys(graded, 3)
    options = evaluate.build_parser().parse_args(seen[0])
    assert (options.data, options.grades, options.split) == (tmp_path / "data", grades, "validation")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"grading": {}, "made": {}}'])
def test_a_file_that_holds_no_constants_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text(text)
    with pytest.raises(InputError, match=r"fit\.json is not what"):
        read_grading(tmp_path / "fit.json")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--first-seed", str(2**31)], "final figures"),
        (["--bundle", "nowhere"], "no folder"),
        (["--grades", "grades.csv"], "--grades belongs to --data"),
    ],
)
def test_what_it_cannot_do_is_said(
    arguments: list[str], says: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit_grades.main(["--bundle", str(bundle), "-o", str(tmp_path / "records"), *arguments]) == 2
    assert says in capsys.readouterr().err
