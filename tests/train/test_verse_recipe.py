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
import train.phantom.__main__

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*isinstance.*LeafSpec.*")
RECIPE = Path(__file__).resolve().parents[2] / "docs" / "verse.md"
COMMANDS = {
    "train": train.__main__.main,
    "train.phantom": train.phantom.__main__.main,
    "train.evaluate": train.evaluate.main,
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


@pytest.mark.slow
def test_the_recipe_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trials, training = commands("Trying the recipe without VerSe"), commands("Training")
    bundle = commands("The bundle, and what it is worth")
    assert (len(trials), len(training), len(bundle)) == (3, 3, 5), "no command was overlooked"
    for command in trials:
        assert run(*command) == 0
    for network in ("locnet", "fracsegnet", "levelnet"):
        assert run("train", network, "-o", f"runs/{network}") == 0
    assert run("export", "-o", "runtime/bundles/default") == 0
    for command in training + bundle:
        assert run(*command) == 0, command
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
