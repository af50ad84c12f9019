"""Command line: ``python -m train.phantom scan OUT.nii.gz`` and ``python -m train.phantom dataset DIR``.

Exit codes: 0 done, 2 wrong arguments or a place that can't be written to, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np

from runtime.errors import InputError
from train.phantom.anatomy import sample_anatomy
from train.phantom.appearance import sample_appearance
from train.phantom.config import PhantomConfig
from train.phantom.fields import FIELDS, random_scan_grid
from train.phantom.render import make_scan, render
from train.phantom.verse import to_int16, write_nifti, write_verse

log = logging.getLogger("train.phantom")
SPACINGS_MM = (0.3, 20.0)


def _seed(text: str) -> int:
    return _whole_number(text, 0)


def _count(text: str) -> int:
    return _whole_number(text, 1)


def _whole_number(text: str, least: int) -> int:
    if not text.strip().lstrip("+").isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text!r}")
    return int(text)


def _spacing(text: str) -> float:
    low, high = SPACINGS_MM
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be between {low:g} and {high:g} mm, not {text!r}")
    return value


def _nifti(text: str) -> Path:
    if not text.endswith((".nii", ".nii.gz")):
        raise argparse.ArgumentTypeError(f"must end in .nii or .nii.gz, which {text!r} doesn't")
    return Path(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m train.phantom", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    scan = commands.add_parser("scan", help="one scan")
    scan.add_argument("out", type=_nifti, help="a .nii or .nii.gz file")
    scan.add_argument("--seed", type=_seed, default=0)
    scan.add_argument(
        "--spacing", type=_spacing, default=None, metavar="MM", help="isotropic spacing; drawn when absent"
    )
    scan.add_argument("--fov", choices=sorted(FIELDS), default=None, help="field of view; drawn when absent")
    scan.add_argument("--labels", action="store_true", help="also write the mask, as OUT-labels.nii.gz")
    dataset = commands.add_parser("dataset", help="many scans in VerSe's layout")
    dataset.add_argument("directory", type=Path)
    dataset.add_argument("--count", type=_count, required=True)
    dataset.add_argument("--seed", type=_seed, default=0)
    dataset.add_argument("--spacing", type=_spacing, default=None, metavar="MM")
    dataset.add_argument("--split", default="training")
    return parser


def _scan(args: argparse.Namespace) -> None:
    anatomy, rng = sample_anatomy(args.seed), np.random.default_rng([args.seed, 2])
    appearance = sample_appearance(rng, PhantomConfig())
    result = render(anatomy, random_scan_grid(anatomy, rng, spacing_mm=args.spacing, field=args.fov), appearance, rng)
    write_nifti(args.out, to_int16(result.volume.array), result.volume.grid)
    if args.labels:
        stem = args.out.name.removesuffix(".gz").removesuffix(".nii")
        write_nifti(args.out.with_name(f"{stem}-labels.nii.gz"), result.mask, result.volume.grid)
    log.info("wrote %s: %s voxels, %s vertebrae", args.out, result.volume.grid.shape_zyx, len(result.vertebrae))


def _dataset(args: argparse.Namespace) -> None:
    for n in range(args.count):
        scan = make_scan(args.seed + n, spacing_mm=args.spacing)
        write_verse(scan, args.directory, f"phantom{args.seed + n:05d}", split=args.split)
        log.info("wrote phantom %d of %d", n + 1, args.count)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        {"scan": _scan, "dataset": _dataset}[args.command](args)
    except InputError as error:
        print(f"train.phantom: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"train.phantom: can't write: {error}. Choose another place.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.phantom: interrupted; scans that were finished are kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
