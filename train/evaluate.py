"""``python -m train.evaluate``: the whole pipeline on held-out phantoms or on scans in VerSe's layout.

Prints the figures as Markdown. With ``-o DIR`` every scan's record is kept as it is made: the same command goes on
where an interrupted one stopped, and several processes share the work (``--jobs``, or ``--shard`` on several machines).

Exit codes: 0 done, 2 data or options refused, 3 bundle or engine, 4 out of memory, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from runtime.bundle import Bundle, open_bundle
from runtime.engines import select_engine
from runtime.errors import InputError, VertscanError
from runtime.extras import stop_interrupted, stop_without
from runtime.pipeline import Pipeline
from train.evaluation import plots
from train.evaluation.plain import to_plain, write_json, write_text
from train.evaluation.records import ScanRecord
from train.evaluation.report import as_markdown
from train.evaluation.run import Extras, SingleNetworks, evaluate_scan
from train.evaluation.store import ScanStore
from train.evaluation.summary import Provenance, Summary, code_version, left_out_note, summarise, training_note
from train.evaluation.truth import (
    HELD_OUT_SEED,
    ScanItem,
    TrueScan,
    TrueVertebra,
    made_ahead,
    phantom_items,
    verse_items,
    without_centres,
)
from train.phantom import PhantomConfig
from train.verse import SPLITS

try:
    from tqdm import tqdm
except ModuleNotFoundError as error:
    stop_without("train", error)
except KeyboardInterrupt:
    stop_interrupted()

__all__ = [
    "HELD_OUT_SEED",
    "TrueScan",
    "TrueVertebra",
    "build_parser",
    "evaluate_scan",
    "made_ahead",
    "main",
    "phantom_scans",
    "positive",
    "summarise",
]
DEFAULT_PHANTOMS = 100


def phantom_scans(count: int, *, first_seed: int = HELD_OUT_SEED) -> Iterator[TrueScan]:
    """Phantoms that no training run draws, all variations on."""
    return made_ahead(lambda item: item.load(), phantom_items(count, first_seed=first_seed))


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; met {number}")
    return number


def shard(text: str) -> tuple[int, int]:
    """``2/3``, the second of three parts, for argparse."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"must be K/N with K from 1 to N; met {text}")
    return part, parts


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    head = str(__doc__).split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=head)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--phantoms", type=positive, metavar="N", help=f"N phantoms (default {DEFAULT_PHANTOMS})")
    what.add_argument("--data", type=Path, help="folder in VerSe's layout")
    parser.add_argument(
        "--first-seed", type=int, default=HELD_OUT_SEED, metavar="S",
        help="of the phantoms (default 2^31; training draws below it)",
    )  # fmt: skip
    parser.add_argument("--split", choices=SPLITS, help="only this part of --data (default: all of it)")
    parser.add_argument("--grades", type=Path, help="csv or json of Genant grades (default: genant*.json in --data)")
    parser.add_argument("--bundle", type=Path, help="bundle to evaluate (default: the one that ships)")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto", help="auto: FP32 on a processor, whatever the bundle says")
    parser.add_argument("--threads", type=positive, help="CPU threads for the networks")
    parser.add_argument("--true-centres", action="store_true", help="also the second network alone, on true centres")
    parser.add_argument("--compare-heatmap", action="store_true", help="also LocNet-F beside LocNet-H")
    parser.add_argument("-o", "--out", type=Path, help="FILE.json for the figures, or a folder that can be resumed")
    parser.add_argument(
        "--report", type=Path, help="write the report, FILE.md or into a folder, and pictures beside it"
    )
    parser.add_argument("--jobs", type=positive, default=1, help="processes that share the scans; needs -o DIR")
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="K/N", help="only this part; needs -o DIR")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print the report, and return the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(given)
    try:
        return _evaluate(args, given)
    except VertscanError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("evaluate: interrupted; with -o DIR the same command goes on from here.", file=sys.stderr)
        return 130


def _evaluate(args: argparse.Namespace, given: Sequence[str]) -> int:
    items = _items(args)
    splits = _splits(items)
    left_out = tuple(without_centres(args.data, split=args.split)) if args.data else ()
    if args.shard == (1, 1):  # shards share one report, which says it too
        for warning in (*training_note(splits), *left_out_note(left_out)):
            print(f"evaluate: {warning}", file=sys.stderr)
    folder = _folder(args)
    if args.report:
        plots.check_available()
    bundle, choice = open_bundle(args.bundle), select_engine(args.engine, precision=args.precision)
    extras = Extras(args.true_centres, args.compare_heatmap)
    engine = f"{choice.name} {choice.precision}"
    store = ScanStore(folder, bundle.spec, engine=engine, extras=extras)
    if args.jobs > 1:
        status = _share_out(args, given)
        if status:
            return status
    else:
        part, parts = args.shard
        _run([item for item in items[part - 1 :: parts] if store.get(item) is None], store, extras, args)
    records = store.done(items)
    if len(records) < len(items):
        print(f"{len(records)} of {len(items)} scans are done; the figures come with the last of them.")
        return 0
    provenance = replace(_provenance(records, args, given, bundle, engine), splits=splits, without_centres=left_out)
    summary = summarise(records, provenance=provenance)
    _write(summary, records, folder, args)
    return 0


def _items(args: argparse.Namespace) -> list[ScanItem]:
    """What is to be evaluated. Raises InputError for data, or options, that can't be used."""
    if args.data:
        return verse_items(args.data, args.grades, split=args.split)
    if args.grades or args.split:
        raise InputError("--grades and --split belong to --data; phantoms know their grades.")
    return phantom_items(args.phantoms or DEFAULT_PHANTOMS, first_seed=args.first_seed)


def _splits(items: Sequence[ScanItem]) -> dict[str, int]:
    """How many scans there are of each split that occurs; nothing for phantoms."""
    counts = {split: sum(item.split == split for item in items) for split in SPLITS}
    return {split: count for split, count in counts.items() if count}


def _folder(args: argparse.Namespace) -> Path | None:
    """Where each scan's record is kept: ``-o``, unless that is a file's name."""
    if args.out is not None and args.out.suffix != ".json":
        return Path(args.out)
    if args.jobs > 1 or args.shard != (1, 1):
        raise InputError("--jobs and --shard keep every scan's record in a folder: name one with -o DIR.")
    return None


def _run(items: Sequence[ScanItem], store: ScanStore, extras: Extras, args: argparse.Namespace) -> None:
    """Evaluate these scans, the next one being read or rendered meanwhile."""
    if not items:
        return
    version = code_version()
    with ExitStack() as stack:
        choice = select_engine(args.engine, precision=args.precision)  # as the records say: never by the bundle's word
        options = {"engine": choice.name, "precision": choice.precision, "threads": args.threads}
        pipeline = stack.enter_context(Pipeline.open(args.bundle, **options))
        single = stack.enter_context(SingleNetworks(args.bundle, extras, **options))
        scans = made_ahead(lambda item: item.load(), items)
        for item, scan in tqdm(zip(items, scans, strict=True), total=len(items), disable=args.quiet, unit="scan"):
            record = evaluate_scan(pipeline, scan, code_version=version)
            store.put(item, single.add_to(record, scan))


def _share_out(args: argparse.Namespace, given: Sequence[str]) -> int:
    """Run one process for each part of this process's shard; returns the first exit status that isn't 0."""
    part, parts = args.shard
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    own = ["--jobs", "1", "--threads", str(threads), "--quiet"]
    shards = [f"{part + k * parts}/{parts * args.jobs}" for k in range(args.jobs)]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "train.evaluate", *given, *own, "--shard", own_shard], stdout=subprocess.DEVNULL
        )
        for own_shard in shards
    ]
    try:
        return next((status for status in [child.wait() for child in children] if status), 0)
    except KeyboardInterrupt:
        for child in children:
            child.terminate()
        raise


def _provenance(
    records: Sequence[ScanRecord], args: argparse.Namespace, given: Sequence[str], bundle: Bundle, engine: str
) -> Provenance:
    return Provenance(
        command="python -m train.evaluate " + shlex.join(given),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        code_versions=tuple(sorted({r.code_version for r in records})),
        bundle=f"{bundle.spec.name} {bundle.spec.version}",
        bundle_sha256=bundle.sha256,
        network_sha256=bundle.spec.files,
        engine=engine,
        data=args.data.resolve().name if args.data else "phantoms",
        first_seed=None if args.data else args.first_seed,
        phantoms={} if args.data else PhantomConfig().to_json(),
    )


def _write(summary: Summary, records: Sequence[ScanRecord], folder: Path | None, args: argparse.Namespace) -> None:
    """Print the report and write what was asked for."""
    print(as_markdown(summary), end="")
    if folder is not None:
        write_json(folder / "summary.json", {"summary": to_plain(summary)})
    elif args.out:
        write_json(args.out, {"summary": to_plain(summary), "scans": [to_plain(r) for r in records]})
    if args.report:
        file = args.report if args.report.suffix == ".md" else args.report / "report.md"
        pictures = plots.write_plots(file.parent, summary, records)
        write_text(file, as_markdown(summary, pictures=pictures))


if __name__ == "__main__":
    sys.exit(main())
