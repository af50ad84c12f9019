"""``python -m export``: trained runs to a bundle (their ONNX files and everything the runtime must know)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from runtime.console import INTERRUPTED, complain
from runtime.errors import InputError, VertscanError
from runtime.extras import stop_without
from train.stored_grading import read_grading

DEFAULT_LEVELNET = Path("runs/levelnet")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument(
        "--locnet", type=Path, default=Path("runs/locnet"), help="run folder of the trained LocNet, or a bundle"
    )
    parser.add_argument(
        "--fracsegnet", type=Path, default=Path("runs/fracsegnet"), help="run folder of FracSegNet, or a bundle"
    )
    levels = parser.add_mutually_exclusive_group()
    levels.add_argument(
        "--levelnet", type=Path, help=f"run folder of LevelNet, or a bundle (default: {DEFAULT_LEVELNET}, if trained)"
    )
    levels.add_argument("--no-levelnet", action="store_true", help="a bundle that tells no levels")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the bundle's folder; a bundle there is replaced")
    parser.add_argument("--name", default="default")
    parser.add_argument("--bundle-version", default="0.1.0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set overlap=0.25")
    parser.add_argument("--note", default="", help="stored in the bundle: what the runs' configurations don't say")
    parser.add_argument(
        "--calibration-samples", metavar="N", type=int, default=16,
        help="phantom windows and crops on which FP16's and INT8's ranges are measured (default: 16)",
    )  # fmt: skip
    parser.add_argument("--accuracy", type=Path, help="JSON written by python -m train.evaluate, stored in the bundle")
    parser.add_argument(
        "--grading", type=Path, help="fit.json of python -m train.fit_grades -o: how grades go with measured heights"
    )
    parser.add_argument(
        "--intended-use", help="shown to users (default: synthetic training data, not for clinical use)"
    )
    parser.add_argument(
        "--clinical", action="store_true", help="drop the not-for-clinical-use marks; needs --intended-use"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        return _export(args)
    except VertscanError as error:
        print(f"export: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        complain("interrupted; no half-written bundle was left")
        return INTERRUPTED


def _export(args: argparse.Namespace) -> int:
    try:
        from export.bundle import Choices, make_bundle
        from export.calibrate import Samples, summary
    except ModuleNotFoundError as error:
        stop_without("export", error)

    if args.clinical and not args.intended_use:
        raise InputError("--clinical needs --intended-use: who may use the bundle, for what, on what evidence.")
    settings: dict[str, Any] = {}
    for setting in args.set:
        key, _, value = setting.partition("=")
        if key not in {field.name for field in fields(Choices)}:
            raise InputError(f"{key!r} can't be set; settings are {', '.join(f.name for f in fields(Choices))}.")
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"{setting!r} has no number or list after the equals sign.") from error
        settings[key] = tuple(parsed) if isinstance(parsed, list) else parsed
    if args.calibration_samples < 1:
        raise InputError(f"Calibration needs samples; met --calibration-samples {args.calibration_samples}.")
    accuracy = _read_accuracy(args.accuracy) if args.accuracy else None
    bundle = make_bundle(
        args.locnet,
        args.fracsegnet,
        args.out,
        levelnet=levelnet_folder(args),
        name=args.name,
        version=args.bundle_version,
        choices=Choices(**settings),
        clinical=args.clinical,
        intended_use=args.intended_use,
        note=args.note,
        accuracy=accuracy,
        samples=Samples(ranges=args.calibration_samples),
        grading=read_grading(args.grading) if args.grading else None,
    )
    print(f"{bundle.folder}: {bundle.spec.name} {bundle.spec.version}, sha256 {bundle.sha256[:16]}")
    print(summary(bundle.spec.precision))
    print(json.dumps(bundle.spec.training["largest_difference_from_torch_with_exact_norms"], indent=2))
    return 0


def levelnet_folder(args: argparse.Namespace) -> Path | None:
    """The run folder of the network for levels, or None where the bundle is to have none."""
    if args.no_levelnet:
        return None
    if args.levelnet is not None:
        return Path(args.levelnet)
    return DEFAULT_LEVELNET if (DEFAULT_LEVELNET / "best.ckpt").is_file() else None


def _read_accuracy(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text())["summary"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not what train.evaluate -o writes ({error}).") from error


if __name__ == "__main__":
    sys.exit(main())
