"""Command line: ``python -m train.phantom scan OUT.nii.gz`` and ``python -m train.phantom dataset DIR``.

Exit codes: 0 done, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from train.phantom.anatomy import sample_anatomy
from train.phantom.appearance import sample_appearance
from train.phantom.config import PhantomConfig
from train.phantom.fields import FIELDS, random_scan_grid
from train.phantom.render import make_scan, render
from train.phantom.verse import to_int16, write_nifti, write_verse

log = logging.getLogger("train.phantom")


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m train.phantom", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    scan = commands.add_parser("scan", help="one scan")
    scan.add_argument("out", type=Path)
    scan.add_argument("--seed", type=int, default=0)
    scan.add_argument("--spacing", type=float, default=None, metavar="MM", help="isotropic spacing; drawn when absent")
    scan.add_argument("--fov", choices=sorted(FIELDS), default=None, help="field of view; drawn when absent")
    scan.add_argument("--labels", action="store_true", help="also write the mask, as OUT-labels.nii.gz")
    dataset = commands.add_parser("dataset", help="many scans in VerSe's layout")
    dataset.add_argument("directory", type=Path)
    dataset.add_argument("--count", type=int, required=True)
    dataset.add_argument("--seed", type=int, default=0)
    dataset.add_argument("--spacing", type=float, default=None, metavar="MM")
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
    {"scan": _scan, "dataset": _dataset}[args.command](args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
