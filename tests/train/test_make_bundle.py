"""``make bundle``: each command reads what the one before it writes, and the evaluation is whole and can be resumed."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import export.__main__
import train.__main__
import train.evaluate
import train.fit_grades

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"
PARSERS = {
    "train": train.__main__.build_parser(),
    "train.fit_grades": train.fit_grades.build_parser(),
    "train.evaluate": train.evaluate.build_parser(),
    "export": export.__main__.build_parser(),
}


def commands(target: str) -> Iterator[tuple[str, list[str]]]:
    """The ``python -m`` commands of a target: module and arguments."""
    lines = MAKEFILE.read_text(encoding="utf-8").split(f"\n{target}: ")[1].split("\n\n")[0].splitlines()[1:]
    for words in map(shlex.split, lines):
        if "-m" in words:
            yield words[2], words[3:]


def test_the_bundle_carries_all_figures_and_the_fit() -> None:
    met = [(module, PARSERS[module].parse_args(words)) for module, words in commands("bundle")]
    assert [module for module, _ in met] == [
        *["train"] * 4, "export", "train.fit_grades", "train.evaluate", "export",
    ]  # fmt: skip
    (_, teacher), (_, student) = met[:2]
    assert student.teacher == teacher.out != student.out
    assert (teacher.preset, student.preset) == (None, "half")
    (_, first), (_, fit), (_, evaluation), (_, last) = met[4:]
    assert first.out == fit.bundle == evaluation.bundle == last.out
    assert last.grading == fit.out / "fit.json"
    assert last.accuracy == evaluation.out / "summary.json"


@pytest.mark.parametrize("target", ["bundle", "evaluate"])
def test_evaluation_is_whole_and_can_be_resumed(target: str) -> None:
    (words,) = (words for module, words in commands(target) if module == "train.evaluate")
    options = PARSERS["train.evaluate"].parse_args(words)
    assert options.phantoms == 200
    assert options.true_centres
    assert options.compare_heatmap
    assert options.out is not None
    assert options.out.suffix == "", "a folder keeps each scan's record; a file keeps none"
    assert options.out.parts[0] == "runs", "which make clean leaves alone"
