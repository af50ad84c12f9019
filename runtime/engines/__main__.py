"""``python -m runtime.engines``: which engines this machine has, what the others need, and which would be chosen.

Exit status: 0 some engine can run, 2 usage, 3 none can, or the one that was named can't.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from runtime.bundle_checks import VERIFIABLE
from runtime.console import INTERRUPTED, complain
from runtime.engines import ENGINES, ONLY_BY_NAME, PRECISIONS, EngineChoice, preflights, select_engine
from runtime.engines.base import Preflight
from runtime.engines.checks import usable_cores
from runtime.engines.cuda_probe import Gpu, driver_version, find_gpu
from runtime.errors import EngineError

NEEDS: Mapping[str, str] = {
    "openvino": "any x86-64 or ARM64 processor; pip install openvino (comes with vertscan)",
    "tensorrt": "NVIDIA GPU from SM 75 on; pip install 'vertscan[gpu]'; engines are built on first use",
    "tensorrt-rtx": "NVIDIA RTX GPU (SM 75, 80, 86, 89, 120, 121); pip install 'vertscan[rtx]'; builds in seconds",
    "onnxruntime-tensorrt": "NVIDIA GPU; pip install 'onnxruntime-gpu[cuda,cudnn]' 'tensorrt<11'; builds on first use",
    "onnxruntime": "any processor: pip install onnxruntime; NVIDIA GPU: pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "triton": "a Triton server, named with --url grpc://HOST:8001; pip install 'vertscan[triton]'",
}
"""What to have for each engine of the table, in one line."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.engines",
        description="Says which engines this machine has, what the others need, and which would be chosen and why.",
        epilog="Exit status: 0 some engine can run, 2 usage, 3 none can, or the one that was named can't.",
    )
    parser.add_argument("--engine", choices=("auto", *ENGINES), default="auto", help="ask whether this one can be used")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto")
    parser.add_argument("--device", metavar="N", type=int, default=0, help="which GPU (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the machine, every engine's preflight and the choice; returns the exit status."""
    try:
        return _main(argv)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED


def _main(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    gpu, found = find_gpu(args.device), preflights(device=args.device)
    chosen, refusal = _choice(args, found)
    if args.json:
        report = {
            "machine": {"system": platform.system(), "machine": platform.machine(), "cores": usable_cores()},
            "gpu": None if gpu is None else asdict(gpu),
            "driver": driver_version(),
            "engines": {name: {**asdict(one), "needs": NEEDS[name]} for name, one in found.items()},
            "chosen": chosen,
            "refusal": None if refusal is None else str(refusal),
        }
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write(_text(gpu, found, args.device))
        if chosen is not None:
            sys.stdout.write("{asked} -> {engine} in {precision}: {reason}\n".format(asked=args.engine, **chosen))
    if refusal is None:
        return 0
    sys.stderr.write(f"error: {refusal}\n")
    return refusal.exit_status


def _choice(
    args: argparse.Namespace, found: Mapping[str, Preflight]
) -> tuple[dict[str, Any] | None, EngineError | None]:
    """What would be chosen, or why nothing can be.

    Which of several engines on the processor a run takes is measured with its bundle, which also says in what it may
    compute there; of that nothing is known here.
    """
    try:
        choice = select_engine(args.engine, precision=args.precision, device=args.device)
    except EngineError as error:
        return None, error
    return {
        "engine": choice.name,
        "precision": choice.precision,
        "device": choice.device,
        "reason": choice.reason + _unless_measured(args, found, choice) + _unless_verified(args, found, choice),
    }, None


def _unless_measured(args: argparse.Namespace, found: Mapping[str, Preflight], choice: EngineChoice) -> str:
    others = [
        name
        for name, one in found.items()
        if name not in (*ONLY_BY_NAME, choice.name) and one.available and one.device == "CPU"
        if choice.precision in one.precisions
    ]
    if args.engine != "auto" or found[choice.name].device != "CPU" or not others:
        return ""
    return f"; unless {' or '.join(others)} was measured to be clearly faster in it, when a bundle was first used"


def _unless_verified(args: argparse.Namespace, found: Mapping[str, Preflight], choice: EngineChoice) -> str:
    others = [one for one in found[choice.name].precisions[1:] if one in VERIFIABLE]
    if args.precision != "auto" or found[choice.name].device != "CPU" or not others:
        return ""
    return f"; in {' or '.join(others)} with a bundle that was verified in it"


def _text(gpu: Gpu | None, found: Mapping[str, Preflight], device: int) -> str:
    """The machine and a paragraph for each engine."""
    lines = [_machine(gpu, device), ""]
    width = max(map(len, found))
    for name, one in found.items():
        can = "yes" if one.available else "no"
        lines.append(f"{name:{width}}  {can:3}  {one.reason}")
        if not one.available:
            lines.append(f"{'':{width}}       needs {NEEDS[name]}")
    only = ", ".join(name for name in found if name in ONLY_BY_NAME)
    return "\n".join([*lines, "", *([f"never chosen by auto: {only}"] if only else [])]) + "\n"


def _machine(gpu: Gpu | None, device: int) -> str:
    where = f"{platform.system()} {platform.machine()}, {usable_cores()} usable cores"
    if gpu is None:
        driver = driver_version()
        return f"{where}; no NVIDIA GPU {device}" + (f" (driver {driver})" if driver else " (no driver)")
    capability = ".".join(map(str, gpu.compute_capability))
    return (
        f"{where}; GPU {gpu.index}: {gpu.name}, {gpu.memory_mb} MiB, compute capability {capability}, "
        f"driver {gpu.driver or 'unknown'} (CUDA {gpu.cuda[0]}.{gpu.cuda[1]})"
    )


if __name__ == "__main__":
    sys.exit(main())
