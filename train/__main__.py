"""``python -m train NETWORK``: train LocNet, FracSegNet, FracNet or LevelNet on phantoms or scans in VerSe's layout."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.errors import InputError, VertscanError
from runtime.extras import stop_interrupted, stop_without
from runtime.locks import try_lock

try:
    from train.config import FracSegNetRun, LocNetRun, Run, differences_in_images, load, override
    from train.presets import presets
except ModuleNotFoundError as error:
    stop_without("train", error)
except KeyboardInterrupt:
    stop_interrupted()


def _presets_text() -> str:
    return "; ".join(f"{network} has {', '.join(known)}" for network, known in presets().items())


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("network", choices=sorted(presets()))
    parser.add_argument("--preset", help=f"which recipe (docs/training.md): {_presets_text()}")
    parser.add_argument(
        "-o", "--out", type=Path, help="run folder; an interrupted run in it is resumed (default runs/NETWORK)"
    )
    parser.add_argument(
        "--data", action="append", help="'phantoms' (default) or a folder in VerSe's layout; repeatable"
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="RUN|BUNDLE",
        help="begin with the best weights of a run or a bundle, and without --preset with their network's shape",
    )
    parser.add_argument(
        "--teacher", type=Path, metavar="RUN|BUNDLE", help="of a LocNet at half the resolution: learn from this one"
    )
    parser.add_argument("--grades", type=Path, help="csv or json of Genant grades for the folders")
    parser.add_argument("--cache", type=Path, default=Path(".cache/scans"), help="where resampled scans are kept")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set loop.steps=2000")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--devices", type=_devices, default=1, help="how many, or auto; several are launched from here")
    parser.add_argument("--threads", type=int, help="CPU threads for the network")
    parser.add_argument("--quiet", action="store_true")
    return parser


def _devices(text: str) -> int | str:
    """For argparse: how many devices."""
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number from 1 on, or auto; met {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING if args.quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return _train(args)
    except VertscanError as error:
        print(f"train: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("train: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130


def _train(args: argparse.Namespace) -> int:
    import torch

    from train.loop import Trainer
    from train.sources import make_source

    out = args.out or Path("runs") / args.network
    run = run_of(args, out)
    if args.threads:
        torch.set_num_threads(args.threads)
    source = make_source(run.data, grades=args.grades, cache=args.cache)
    with sole_run_in(out):
        trainer = Trainer(run, source, out, accelerator=args.accelerator, devices=args.devices)
        best = trainer.fit(progress=not args.quiet)
    print(f"{out}: " + ", ".join(f"{name} {value:.4f}" for name, value in best.items()))
    return 0


@contextmanager
def sole_run_in(folder: Path) -> Iterator[None]:
    """Inside the block no other training goes on in the folder: two would overwrite each other's checkpoints.

    Of several processes of one training the first one holds the folder. Where the file system has no locks, nothing is
    held.

    Raises:
        InputError: another training holds it, or nothing can be written there.
    """
    if any(os.environ.get(rank, "0") != "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(folder / "training.lock", "ab")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}); name another folder with -o.") from error
    with stream:
        try:
            is_alone = try_lock(stream.fileno())
        except OSError:
            is_alone = True
        if not is_alone:
            raise InputError(
                f"Another training is running in {folder}. Wait until it ends, stop it, or name another folder with -o."
            )
        yield


def run_of(args: argparse.Namespace, out: Path) -> Run:
    """What the folder's interrupted run was started with, or the preset; then the settings."""
    known = presets()[args.network]
    preset = args.preset or ("default" if "default" in known else "thesis")
    if preset not in known:
        raise InputError(f"{args.network} has no preset {preset!r}; there are {', '.join(known)}.")
    start: Run = known[preset]
    resumed = (out / "last.ckpt").is_file()
    if resumed:
        found = load(out / "config.json")
        if type(found) is not type(start) or (args.preset and not _is_one_recipe(start, found, args.set)):
            raise InputError(
                f"{out} holds an interrupted run of a {type(found).__name__.removesuffix('Run')}. Resume it with its "
                "own network and settings, with its own preset or without --preset, or name another folder with -o."
            )
        start = found
    elif args.start_from and not args.preset:
        start = _going_on_with(args.start_from, start, args.set)
    run = override(start, args.set)
    if resumed and run.network != start.network:
        raise InputError(f"The network of the interrupted run in {out} can't be changed; name another folder with -o.")
    if args.start_from:
        run = replace(run, loop=replace(run.loop, start_from=str(args.start_from)))
    if args.teacher:
        from train.distillation import taught_by

        if not isinstance(run, LocNetRun):
            raise InputError(f"Only locnet has a --teacher; met {args.network}.")
        kept = run.distillation
        if not resumed or kept.teacher != str(args.teacher):  # the same one has to have the weights that it had
            run = replace(run, distillation=taught_by(args.teacher, kept))
    return replace(run, data=tuple(args.data)) if args.data else run


def _going_on_with(folder: Path, start: Run, settings: list[str]) -> Run:
    """The run, of the network that another run's folder or a bundle holds, whose weights it starts from.

    Raises InputError where that network's outputs are others, or its images once the settings are applied.
    """
    from train.tasks import task_of
    from train.weights import run_in

    theirs = run_in(folder, task_of(start).name, type(start))
    network: Any = theirs.network
    if isinstance(start, FracSegNetRun) and bool(network.mask_channels) != bool(start.network.mask_channels):
        raise InputError(f"Of a network with masks and one without neither goes on with the other; met {folder}.")
    run = replace(start, network=network)
    if differ := differences_in_images(theirs, override(run, settings)):
        raise InputError(
            f"What {folder} holds was trained otherwise than the preset that would go on with it: "
            f"{', '.join(differ)}. Name the preset that it is of with --preset."
        )
    return run


def _is_one_recipe(one: Run, other: Run, settings: list[str]) -> bool:
    """Whether two runs, both changed by the settings, differ at most in how long they run and in what they learn from.

    Args:
        one: a run.
        other: of the same network.
        settings: as ``override``.
    """
    first, second = (vars(override(run, settings)) for run in (one, other))
    return all(first[name] == second[name] for name in first if name not in ("loop", "data", "distillation"))


if __name__ == "__main__":
    sys.exit(main())
