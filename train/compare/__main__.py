"""``python -m train.compare``: what grade losses, samplings, task weightings, mask losses and grade heads do.

Draws 726 vertebra crops from phantoms with VerSe's counts of Genant grades and 400 others to measure on. Losses and
samplings are compared on grade heads that read the body's true thickness; task weightings, mask losses and heads on
whole, small networks that go on from a shared start. What is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

from runtime.errors import InputError, VertscanError
from runtime.extras import stop_interrupted, stop_without

try:
    import torch

    from train.compare import crops as data
    from train.compare import heads, variants, whole
    from train.compare.figures import grade_figures
    from train.compare.table import Result, kept_result, markdown, write_text
    from train.compare.variants import Effort
    from train.config import FracSegNetRun
except ModuleNotFoundError as error:
    stop_without("train", error)
except KeyboardInterrupt:
    stop_interrupted()

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    effort = Effort()
    parser = argparse.ArgumentParser(prog="python -m train.compare", description=__doc__)
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("runs/compare"), help="folder; an interrupted one goes on"
    )
    parser.add_argument("--start-steps", type=_positive, default=effort.start_steps)
    parser.add_argument("--head-steps", type=_positive, default=effort.head_steps)
    parser.add_argument("--whole-steps", type=_positive, default=effort.whole_steps)
    parser.add_argument("--head-seeds", type=_positive, default=effort.head_seeds)
    parser.add_argument("--whole-seeds", type=_positive, default=effort.whole_seeds)
    parser.add_argument("--training", type=_counts, default=data.VERSE_COUNTS, help="crops of grades 0 to 3")
    parser.add_argument("--evaluation", type=_counts, default=data.EVALUATION_COUNTS, help="crops of grades 0 to 3")
    parser.add_argument("--threads", type=_positive, default=1)
    return parser


def _positive(text: str) -> int:
    """For argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number from 1 on; met {text!r}")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    """For argparse: four counts."""
    counts = tuple(_positive(part) for part in text.split(","))
    if len(counts) != 4:
        raise argparse.ArgumentTypeError(f"four counts such as 591,63,50,22; met {text!r}")
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and return the exit status."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(args.threads)
    effort = Effort(args.start_steps, args.head_steps, args.whole_steps, args.head_seeds, args.whole_seeds)
    try:
        compare(args.out, effort, args.training, args.evaluation)
    except VertscanError as error:
        print(f"train.compare: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("train.compare: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    print(f"{args.out}: comparison.md, comparison.json")
    return 0


def compare(out: Path, effort: Effort, training: Sequence[int], evaluation: Sequence[int]) -> list[Result]:
    """Everything, into ``out``; the tables are written anew after each run."""
    _settle(out, effort, training, evaluation)
    run = variants.SMALL
    train = data.kept_crops(out / "training.npz", training, run, seeds=data.TRAINING_SEEDS, seed=1)
    test = data.kept_crops(out / "evaluation.npz", evaluation, run, seeds=data.EVALUATION_SEEDS, seed=2)
    results: list[Result] = []
    for part in (_heads(out, effort, train, test, training), _whole(out, effort, train, test, training)):
        for result in part:
            log.info("%s, %s, seed %d: macro F1 %.3f", result.part, result.variant, result.seed, result.grades.macro_f1)
            results.append(result)
            _write(out, effort, training, evaluation, results)
    return results


def _settle(out: Path, effort: Effort, training: Sequence[int], evaluation: Sequence[int]) -> None:
    """Write what determines the results beside them. Raises InputError when those there were made otherwise.

    More seeds may be added later.
    """
    path = out / "settings.json"
    steps = {name: count for name, count in asdict(effort).items() if name.endswith("_steps")}
    values = {"training": list(training), "evaluation": list(evaluation), **steps, "run": asdict(variants.SMALL)}
    text = json.dumps(values, indent=2) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise InputError(f"{out} holds a comparison with other crops, steps or networks; name another folder with -o.")
    write_text(path, text)


def _heads(out: Path, effort: Effort, train: data.Crops, test: data.Crops, training: Sequence[int]) -> Iterator[Result]:
    """Grade losses times samplings, and task weightings, of heads on true thickness."""
    read, unseen = heads.thickness_of(train, variants.SMALL), heads.thickness_of(test, variants.SMALL)

    def result(part: str, variant: str, run: FracSegNetRun) -> Result:
        began = time.process_time()
        head = heads.train_head(read, run)
        seconds = time.process_time() - began
        found = grade_figures(heads.head_probabilities(head, unseen), test.grades, training)
        heights = heads.head_height_error_mm(head, unseen)
        return Result(part, variant, run.loop.seed, found, None, heights, seconds)

    for seed, (part, variant, run) in product(range(1, effort.head_seeds + 1), variants.head_variants(effort)):
        seeded = replace(run, loop=replace(run.loop, seed=seed))
        path = out / part.replace(" ", "-") / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}.json"
        yield kept_result(path, partial(result, part, variant, seeded))


def _whole(out: Path, effort: Effort, train: data.Crops, test: data.Crops, training: Sequence[int]) -> Iterator[Result]:
    """Task weightings, a mask loss and a grade head, from the shared start."""
    whole.train_whole(variants.start_run(effort), train, out / "start")

    def result(name: str, seed: int, folder: Path) -> Result:
        began = time.process_time()
        first = folder.with_name(f"{folder.name}-start")
        run = variants.whole_run(name, seed, effort, first)
        whole.fitting_start(out / "start", run, first)
        network = whole.train_whole(run, train, folder)
        seconds = time.process_time() - began
        found = whole.predict(network, test, run)
        grades = grade_figures(found.probabilities, test.grades, training)
        metrics = found.metrics
        return Result("whole", name, seed, grades, metrics["dice_vertebra"], metrics["height_error_mm"], seconds)

    for seed in range(1, effort.whole_seeds + 1):
        for name in variants.WHOLE if seed == 1 else variants.WEIGHTINGS:
            folder = out / "whole" / f"{name.replace(' ', '-')}-{seed}"
            yield kept_result(folder / "result.json", partial(result, name, seed, folder))


def _write(
    out: Path, effort: Effort, training: Sequence[int], evaluation: Sequence[int], results: Sequence[Result]
) -> None:
    document = {
        "effort": asdict(effort),
        "training": list(training),
        "evaluation": list(evaluation),
        "results": [asdict(r) for r in results],
    }
    write_text(out / "comparison.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    write_text(out / "comparison.md", markdown(results))


if __name__ == "__main__":
    sys.exit(main())
