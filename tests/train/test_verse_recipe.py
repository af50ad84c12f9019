"""The commands of docs/verse.md, as written there, on phantoms in VerSe's layout and with tiny networks."""

import json
import re
import shlex
from pathlib import Path

import pytest

import export.__main__
import runtime.infer
import train.__main__
import train.evaluate
import train.fit_grades
import train.phantom.__main__
from runtime.bundle import open_bundle
from train.evaluation import fit_grading as fitting
from train.evaluation.fit_grading import NEUTRAL, Sample
from train.evaluation.records import ScanRecord
from train.stored_grading import read_grading

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*isinstance.*LeafSpec.*")
RECIPE = Path(__file__).resolve().parents[2] / "docs" / "verse.md"
COMMANDS = {
    "train": train.__main__.main,
    "train.phantom": train.phantom.__main__.main,
    "train.evaluate": train.evaluate.main,
    "train.fit_grades": train.fit_grades.main,
    "export": export.__main__.main,
    "runtime.infer": runtime.infer.main,
}
LOOP = {
    "loop.steps": "2", "loop.batch": "1", "loop.workers": "0", "loop.validate_every": "2", "loop.precision": "32-true",
    "loop.validation_samples": "4",
}  # fmt: skip
UNET = {"network.unet.channels": "[4,4,4]", "network.unet.bottleneck": "4"}
TINY = {
    "locnet": LOOP | UNET | {"crop_shapes": "[[32,32,32]]"},
    "fracsegnet": LOOP | UNET | {"network.crop": "16", "spacing_mm": "6.0"},
    "levelnet": LOOP
    | {
        "loop.batch": "2", "crops_per_scan": "2", "network.stem": "4", "network.channels": "[4,4]",
        "network.squeeze": "4", "network.hidden": "8", "network.crop_zyx": "[16,16,16]", "spacing_mm": "8.0",
    },
}  # fmt: skip


def commands(heading: str) -> list[list[str]]:
    """The ``python -m`` commands of one section, as argument lists."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", RECIPE.read_text("utf-8"), re.M | re.S)
    assert section is not None, heading
    blocks = re.findall(r"^```sh\n(.*?)^```", section[1], re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python -m ")]
    return [shlex.split(line.replace("$VERSE", "verse"))[2:] for line in lines]


def run(module: str, *arguments: str) -> int:
    """One command, made tiny where it trains."""
    words = list(arguments)
    if module == "train":
        words += ["--quiet", "--accelerator", "cpu"]
        words += [word for setting in TINY[arguments[0]].items() for word in ("--set", "=".join(setting))]
    if "*" in " ".join(words):
        words = [p for word in words for p in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    return COMMANDS[module](words)


@pytest.fixture
def fitted_to(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scans whose records reach the fit. Untrained networks find nothing in them, so it gets other vertebrae."""
    names: list[str] = []

    def samples_of(records: list[ScanRecord]) -> list[Sample]:
        names.extend(record.name for record in records)
        certain = [tuple(0.7 if n == grade else 0.1 for n in range(4)) for grade in range(4)]
        losses = (0.05, 0.22, 0.33, 0.5)
        return [Sample(f"scan{n}", n % 4, certain[n % 4], losses[n % 4], 1.0) for n in range(80)]

    for name in ("BIASES", "SPREADS", "SPREADS_PER_MM"):
        monkeypatch.setattr(fitting, name, getattr(fitting, name)[:1])
    monkeypatch.setattr(train.fit_grades, "samples_of", samples_of)
    return names


@pytest.mark.slow
def test_the_recipe_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitted_to: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    trials, training = commands("Trying the recipe without VerSe"), commands("Training")
    bundle = commands("The bundle, and what it is worth")
    assert (len(trials), len(training), len(bundle)) == (3, 3, 6), "no command was overlooked"
    for command in trials:
        assert run(*command) == 0
    for network in ("locnet", "fracsegnet", "levelnet"):
        assert run("train", network, "-o", f"runs/{network}") == 0
    assert run("export", "-o", "runtime/bundles/default") == 0
    for command in training + bundle:
        assert run(*command) == 0, command
        if command[0] == "train.fit_grades":
            fitted = open_bundle(Path("runs/verse/bundle"))
    assert fitted_to == ["sub-phantom900200_ct"], "the validation scan and no other"
    constants, made = read_grading(Path("runs/verse/grading/fit.json"))
    final = open_bundle(Path("runs/verse/bundle")).spec
    assert final.grading == fitted.spec.grading == constants != NEUTRAL
    assert final.training["grading"] == made
    assert made["data"] == "verse, validation"
    assert final.accuracy["provenance"]["bundle_sha256"] == fitted.sha256, "the test was of the fitted bundle"
    accuracy = json.loads(Path("runs/verse/bundle/bundle.json").read_text())["accuracy"]
    assert accuracy["scans"] == 2
    assert accuracy["alone"] is not None
    assert accuracy["locnet_h"] is not None
    assert accuracy["provenance"]["command"].startswith("python -m train.evaluate --data verse --split test")
    assert {p.name for p in Path("runs/verse/test").glob("*.png")} >= {"confusion.png", "roc.png"}
    started = json.loads(Path("runs/verse/locnet/config.json").read_text())["run"]
    assert started["loop"]["start_from"] == "runtime/bundles/default"
    cached = {path.name.split("-")[1] for path in Path(".cache/scans").iterdir()}
    assert cached <= {f"phantom{n:05d}" for n in (900100, 900101, 900102, 900200)}, "test scans were never opened"
    assert "phantom900200" in cached, "validation has scans of its own"
