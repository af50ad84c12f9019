"""``python -m export.calibrate``: which parts of a bundle's networks may be FP16 and INT8, measured and then checked.

Every tensor that typed graphs hold in fewer bits is measured in the FP32 graph on windows and crops of phantoms, or of
a user's scans. What comes too near to the end of FP16's range, or among its subnormals, stays FP32. Then the graphs are
put to the gate on other windows and crops; what it finds is written down, and INT8 that fails it is not offered.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from runtime.bundle import Bundle, open_bundle, write_bundle
from runtime.console import INTERRUPTED, complain
from runtime.engines.parity import LIMITS, NetworkSpec, compare_networks, faults, processor_session, rounding_session
from runtime.errors import InputError, VertscanError
from runtime.extras import stop_interrupted, stop_without
from runtime.precision_plan import PrecisionPlan
from runtime.typed_graph import load_graph, typed_graph

try:
    from export.calibration_inputs import phantom_images, scan_images
    from export.ranges import Range, clip_range, int8_inputs, keep_fp32, low_tensors, measure
    from export.reload import torch_fracsegnet, torch_levelnet, torch_locnet
    from runtime.rounded_graph import rounded_graph
except ModuleNotFoundError as error:
    stop_without("export", error)
except KeyboardInterrupt:
    stop_interrupted()

PRECISIONS = ("fp16", "bf16", "int8")


@dataclass(frozen=True)
class Samples:
    """How many windows, and how many crops, calibration takes.

    Args:
        ranges: to measure the ranges on.
        gate: others, to put the graphs to the gate on.
        source: what they are of, in a word.
    """

    ranges: int = 16
    gate: int = 4
    source: str = "inputs of phantoms"


def calibrate(path: Path, spec: NetworkSpec, images: Sequence[np.ndarray], samples: Samples) -> PrecisionPlan:
    """The plan for one network.

    Args:
        path: its FP32 ONNX file.
        spec: how it is run.
        images: (1, 1, z, y, x) float32, normalised, as many as ``samples`` says: first those for the ranges.
        samples: which are for what.
    """
    model = load_graph(path)
    ranges = measure(model, low_tensors(model), images[: samples.ranges])
    keep = keep_fp32(model, ranges)
    left = low_tensors(model, keep)
    plan = PrecisionPlan(
        source=samples.source,
        samples=samples.ranges,
        fp16_keep_fp32=keep,
        int8_ranges={name: clip_range(np.concatenate(ranges[name].values)) for name in int8_inputs(model, keep)},
    )
    plan = _with_worst(plan, {name: ranges[name] for name in left})
    others = images[samples.ranges :]
    tried = {p: gate(path, plan, spec, others, p) for p in PRECISIONS if p != "int8" or plan.int8_ranges}
    figures = {precision: found for precision, (found, _) in tried.items()}
    passes_int8 = "int8" in tried and not tried["int8"][1]
    return replace(plan, int8_ranges=plan.int8_ranges if passes_int8 else {}, gates=figures)


def gate(
    path: Path, plan: PrecisionPlan, spec: NetworkSpec, images: Sequence[np.ndarray], precision: str
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Put a network's typed graph to the gate on the processor, rounded as a GPU would.

    Returns:
        Every finite figure of ``runtime.engines.parity.Parity`` by its name, and what is past the limits.
    """
    with tempfile.TemporaryDirectory() as scratch:
        rounded = Path(scratch) / path.name
        rounded.write_bytes(rounded_graph(typed_graph(path, precision, plan=plan)))
        with processor_session(path) as reference, rounding_session(rounded) as candidate:
            found = compare_networks(reference, candidate, spec, images)
    figures = {**asdict(found), "dice": found.dice}
    figures.pop("failed")
    return {name: float(v) for name, v in figures.items() if np.isfinite(v)}, faults(found, LIMITS[precision])


def _with_worst(plan: PrecisionPlan, ranges: Mapping[str, Range]) -> PrecisionPlan:
    """The plan with the largest value, and the roughest rounding, of the tensors that stay FP16."""
    if not ranges:
        return plan
    largest = max(ranges, key=lambda name: ranges[name].largest)
    roughest = max(ranges, key=lambda name: ranges[name].rounding)
    return replace(
        plan,
        fp16_largest=ranges[largest].largest,
        fp16_largest_at=largest,
        fp16_rounding=ranges[roughest].rounding,
        fp16_rounding_at=roughest,
    )


def calibrate_bundle(bundle: Bundle, images: Mapping[str, Sequence[np.ndarray]], samples: Samples) -> Bundle:
    """The bundle with plans for all its networks; on disk it stays as it was. ``images`` are by network file."""
    plans = {
        network.file: calibrate(bundle.path_of(network.file), network, images[network.file], samples)
        for network in bundle.spec.networks
    }
    return replace(bundle, spec=replace(bundle.spec, precision=plans))


def summary(plans: Mapping[str, PrecisionPlan]) -> str:
    """What calibration found, a few lines for each network."""
    lines = []
    for file, plan in plans.items():
        kept = ", ".join(plan.fp16_keep_fp32) or "nothing"
        lines += [
            f"{file}: {plan.samples} {plan.source}",
            f"  fp16: largest value {plan.fp16_largest:.4g} ({plan.fp16_largest_at}) of 65504; roughest rounding "
            f"{plan.fp16_rounding:.1e} ({plan.fp16_rounding_at}); kept in fp32: {kept}",
        ]
        for precision, figures in plan.gates.items():
            told = [f"{name} {figures[name]:.3g}" for name in _TOLD if figures.get(name)]
            wrong = " - NOT OFFERED" if precision == "int8" and not plan.int8_ranges else ""
            lines.append(f"  {precision} at the gate: {', '.join(told)}{wrong}")
    return "\n".join(lines)


_TOLD = (
    "not_finite", "heatmap", "offsets", "centres", "centres_lost", "centre_shift_mm", "mask", "dice", "smallest_dice",
    "grade", "grades_changed", "heights_mm", "level", "levels_changed",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m export.calibrate", description=__doc__)
    parser.add_argument("scans", metavar="SCAN", nargs="*", type=Path, help="calibrate on these (default: on phantoms)")
    parser.add_argument("--bundle", type=Path, help="default: the one that ships")
    parser.add_argument(
        "--samples", metavar="N", type=int, default=Samples.ranges, help="windows, and crops, to measure"
    )
    parser.add_argument("--gate-samples", metavar="N", type=int, default=Samples.gate, help="others, to check on")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the calibrated bundle")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate, write the new bundle, and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        bundle = _calibrated(args)
        written = write_bundle(bundle.spec, {name: bundle.path_of(name) for name in bundle.spec.files}, args.out)
    except VertscanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    print(summary(written.spec.precision))
    print(f"{written.folder}: sha256 {written.sha256[:16]}")
    return 0


def _calibrated(args: argparse.Namespace) -> Bundle:
    if min(args.samples, args.gate_samples) < 1:
        raise InputError(f"Calibration needs samples; met {args.samples} and {args.gate_samples} for the gate.")
    bundle, count = open_bundle(args.bundle), args.samples + args.gate_samples
    samples = Samples(args.samples, args.gate_samples, "inputs of scans" if args.scans else "inputs of phantoms")
    if args.scans:
        return calibrate_bundle(bundle, scan_images(bundle, args.scans, count), samples)
    trained = [torch_locnet(bundle), torch_fracsegnet(bundle), torch_levelnet(bundle)]
    images = {
        network.file: phantom_images(one.run, one.example_zyx, count)
        for network, one in zip(bundle.spec.networks, trained, strict=False)
        if one is not None
    }
    return calibrate_bundle(bundle, images, samples)


if __name__ == "__main__":
    sys.exit(main())
