"""``python -m train.fit_grades``: how a bundle's network grades go together with the measured ones, fitted and stored.

Runs the bundle on phantoms that are neither trained on nor evaluated (or on scans in VerSe's layout), fits the
constants of ``runtime.grading`` to what it said, prints how good they are on scans left out of the fit, and writes them
into the bundle. Every scan's record is kept: the same command goes on where an interrupted one stopped.

Exit codes: as ``python -m train.evaluate``.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, open_bundle
from runtime.engines import select_engine
from runtime.errors import InputError, VertscanError
from train import evaluate
from train.evaluation.fit_grading import NEUTRAL, Fit, FitFigures, fit_grading, samples_of
from train.evaluation.plain import to_plain
from train.evaluation.records import ScanRecord
from train.evaluation.run import Extras
from train.evaluation.store import ScanStore
from train.evaluation.summary import code_version
from train.evaluation.truth import HELD_OUT_SEED, ScanItem, phantom_items, verse_items
from train.stored_grading import with_grading, write_grading
from train.verse import SPLITS

TUNING_SEED = HELD_OUT_SEED + 10_000
"""Phantoms from here on choose constants; those before it are for the final figures."""
DEFAULT_PHANTOMS = 80


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    head = str(__doc__).split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m train.fit_grades", description=head)
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle's folder; its bundle.json is rewritten")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the scans' records; can be resumed")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--phantoms", type=evaluate.positive, default=DEFAULT_PHANTOMS, metavar="N",
        help=f"N phantoms (default {DEFAULT_PHANTOMS})",
    )  # fmt: skip
    what.add_argument("--data", type=Path, help="folder in VerSe's layout, with grades")
    parser.add_argument("--split", choices=SPLITS, default="validation", help="of --data (default: validation)")
    parser.add_argument("--grades", type=Path, help="csv or json of Genant grades (default: genant*.json in --data)")
    parser.add_argument(
        "--first-seed", type=int, default=TUNING_SEED, metavar="S", help="of the phantoms (default 2^31 + 10000)"
    )
    parser.add_argument(
        "--reach", type=float, default=NEUTRAL.reach,
        help="how far towards the rims heights are measured (default %(default)s, see runtime.heights)",
    )  # fmt: skip
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto", help="auto: FP32 on a processor, whatever the bundle says")
    parser.add_argument("--threads", type=evaluate.positive, help="CPU threads for the networks")
    parser.add_argument("--jobs", type=evaluate.positive, default=1, help="processes that share the scans")
    parser.add_argument("--dry-run", action="store_true", help="print the figures and leave the bundle as it is")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, fit, store, and return the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(given)
    try:
        return _fit(args, "python -m train.fit_grades " + shlex.join(given))
    except VertscanError as error:
        print(f"fit_grades: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("fit_grades: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130


def _fit(args: argparse.Namespace, command: str) -> int:
    if args.data is None and args.grades is not None:
        raise InputError("--grades belongs to --data; phantoms know their grades.")
    if args.data is None and not args.first_seed >= TUNING_SEED:
        raise InputError(
            f"Phantoms from 2^31 to 2^31 + 9999 are for final figures and must choose nothing; --first-seed must be "
            f"{TUNING_SEED} or more, met {args.first_seed}."
        )
    if not args.bundle.is_dir():
        raise InputError(f"{args.bundle} is no folder; constants are written into a bundle's folder, not into a zip.")
    bundle = open_bundle(args.bundle)
    # constants that leave the network's grades and heights as they are; this copy lies beside the records
    neutral = with_grading(bundle, args.out / "neutral-bundle", replace(NEUTRAL, reach=args.reach), None)
    status = _evaluate(neutral, args)
    if status:
        return status
    fit = fit_grading(samples_of(_records(neutral, args)), reach=args.reach)
    print(as_text(fit))
    made = {**_origin(fit, args, command), "network_sha256": dict(bundle.spec.files)}
    write_grading(args.out / "fit.json", fit.spec, made)
    if not args.dry_run:
        with_grading(bundle, bundle.folder, fit.spec, made)
        print(f"written into {bundle.folder}")
    return 0


def _evaluate(neutral: Bundle, args: argparse.Namespace) -> int:
    """Run the evaluation of the scans that have no record yet; its report is not shown."""
    what = ["--phantoms", str(args.phantoms), "--first-seed", str(args.first_seed)]
    if args.data is not None:
        what = ["--data", str(args.data), "--split", args.split]
        what += ["--grades", str(args.grades)] if args.grades else []
    options = ["--engine", args.engine, "--precision", args.precision, "--jobs", str(args.jobs)]
    options += ["--threads", str(args.threads)] if args.threads else []
    options += ["--quiet"] if args.quiet else []
    with contextlib.redirect_stdout(None):
        return evaluate.main([*what, "--bundle", str(neutral.folder), "-o", str(args.out), *options])


def _records(neutral: Bundle, args: argparse.Namespace) -> list[ScanRecord]:
    choice = select_engine(args.engine, precision=args.precision)
    store = ScanStore(args.out, neutral.spec, engine=f"{choice.name} {choice.precision}", extras=Extras())
    return store.done(_items(args))


def _items(args: argparse.Namespace) -> list[ScanItem]:
    if args.data is not None:
        return verse_items(args.data, args.grades, split=args.split)
    return phantom_items(args.phantoms, first_seed=args.first_seed)


def _origin(fit: Fit, args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Where the constants come from, as the bundle keeps it under ``training``."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": code_version(),
        "data": f"{args.data.resolve().name}, {args.split}" if args.data else f"phantoms, seeds from {args.first_seed}",
        **to_plain({name: value for name, value in asdict(fit).items() if name != "spec"}),
    }


def as_text(fit: Fit) -> str:
    """The figures as a Markdown table, and the constants."""
    header = "| by cross-validation | F1: 0 | 1 | 2 | 3 | macro | AUROC (2 or more) | log loss | heights, mm |"
    rows = [
        _row(name, figures)
        for name, figures in (("combined", fit.combined), ("network", fit.network), ("mask", fit.measured))
    ]
    constants = ", ".join(f"{name} {value}" for name, value in asdict(fit.spec).items())
    told = f"{fit.vertebrae} vertebrae of {fit.patients} scans, {', '.join(map(str, fit.by_grade))} of grades 0 to 3."
    return "\n".join([told, "", header, "|" + "---|" * 9, *rows, "", f"Constants: {constants}."])


def _row(name: str, figures: FitFigures) -> str:
    numbers = [*figures.f1, figures.macro_f1, figures.auroc, figures.log_loss, figures.heights_mm]
    return f"| {name} | " + " | ".join("-" if n != n else f"{n:.3f}" for n in numbers) + " |"


if __name__ == "__main__":
    sys.exit(main())
