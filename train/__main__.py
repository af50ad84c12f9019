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
    from train.config import FracSegNetRun, LocNetRun, Run, load, override, seen_by_start
    from train.data_seen import data_seen, each_once, seen_before, taught_on
    from train.presets import TAUGHT, presets
    from train.run_differences import differences_in_images
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
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set loop.learning_rate=0.0005"
    )
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
    from train.real_scans import check_grades
    from train.sources import make_source

    out = args.out or Path("runs") / args.network
    run = run_of(args, out)
    if args.threads:
        torch.set_num_threads(args.threads)
    source = make_source(run.data, grades=Path(run.grades) if run.grades else None, cache=args.cache)
    if isinstance(run, FracSegNetRun):
        check_grades(run, source)
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
    """What the folder's interrupted run was started with, or the preset; then the settings.

    Raises InputError where these can't be followed: another network's run, a preset that wants a teacher and has none.
    """
    start, resumed = _beginning(args, out)
    run = override(start, args.set)
    if resumed and run.network != start.network:
        raise InputError(f"The network of the interrupted run in {out} can't be changed; name another folder with -o.")
    if args.start_from:
        run = replace(run, loop=replace(run.loop, start_from=str(args.start_from)))
    if args.data:
        run = replace(run, data=tuple(args.data))
    if args.grades:
        run = replace(run, grades=str(args.grades))
    if run.grades and set(run.data) == {"phantoms"} and (args.grades or run.grades != start.grades):
        raise InputError("--grades belongs to scans named with --data; phantoms know their grades.")
    run = _taught(run, args, start if resumed else None)
    return replace(run, data_before=_data_before(run, start if resumed else None))


def _beginning(args: argparse.Namespace, out: Path) -> tuple[Run, bool]:
    """The run before any setting, and whether it is the folder's interrupted one."""
    known = presets()[args.network]
    preset = args.preset or ("default" if "default" in known else "thesis")
    if preset not in known:
        raise InputError(f"{args.network} has no preset {preset!r}; there are {', '.join(known)}.")
    start: Run = known[preset]
    if (out / "last.ckpt").is_file():
        found = load(out / "config.json")
        if _kind(found) != _kind(start) or (args.preset and not _is_one_recipe(start, found, args.set)):
            raise InputError(
                f"{out} holds an interrupted run of a {_kind(found)}. Resume it with its own network and settings, "
                "with its own preset or without --preset, or name another folder with -o."
            )
        return found, True
    if args.start_from and not args.preset:
        return _going_on_with(args.start_from, start, args.set), False
    return start, False


def _kind(run: Run) -> str:
    """The network's name: a FracSegNet without masks is a FracNet."""
    if isinstance(run, FracSegNetRun) and not run.network.mask_channels:
        return "FracNet"
    return type(run).__name__.removesuffix("Run")


def _taught(run: Run, args: argparse.Namespace, resumed: Run | None) -> Run:
    """The run with its teacher's digest and data, if it has a teacher: one named now, or the resumed run's."""
    if not isinstance(run, LocNetRun):
        if args.teacher:
            raise InputError(f"Only locnet has a --teacher; met {args.network}.")
        return run
    teacher = str(args.teacher or run.distillation.teacher)
    if not teacher:
        if args.preset in TAUGHT and resumed is None and not run.loop.start_from:
            raise InputError(
                f"The preset {args.preset} learns from another LocNet and none is named: train one with python -m "
                "train locnet -o RUN and name it with --teacher RUN, or begin with weights of its shape: --start-from."
            )
        return run
    if isinstance(resumed, LocNetRun) and resumed.distillation.teacher == teacher:
        return run  # the same one has to have the weights that it had
    from train.distillation import taught_by

    return replace(run, distillation=taught_by(Path(teacher), run.distillation))


def _data_before(run: Run, resumed: Run | None) -> tuple[str, ...]:
    """The data that the run's weights come from beside its own and its teacher's: see ``data_seen``."""
    if resumed is None and run.loop.start_from:
        run = replace(run, data_before=(*run.data_before, seen_by_start(run.loop.start_from)))
    seen = (*seen_before(run), *(data_seen(resumed) if resumed is not None else ()))
    return each_once(seen, but=(*run.data, *taught_on(run)))


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
    """Whether two runs, both changed by the settings, differ at most in how they run and in what they learn from.

    Args:
        one: a run.
        other: of the same network.
        settings: as ``override``.
    """
    first, second = (vars(override(run, settings)) for run in (one, other))
    apart = ("loop", "data", "data_before", "grades", "distillation")
    return all(first[name] == second[name] for name in first if name not in apart)


if __name__ == "__main__":
    sys.exit(main())
