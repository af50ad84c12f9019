"""``python -m export.verify``: do engines find what the torch networks find, on whole phantoms and given scans?

The reference is torch in FP32 on the processor. Every engine and precision of this machine is compared with it, or
those that are named. Exit status: 0 all are within their limits, 1 one is not, 2 and 3 as of the runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from runtime.argument_types import whole_from_zero
from runtime.bundle import DEFAULT_BUNDLE, Bundle, BundleSpec, open_bundle
from runtime.console import INTERRUPTED, complain
from runtime.crops import crop_grid
from runtime.engines import ONLY_BY_NAME, EngineChoice, engine_module, preflights, select_engine
from runtime.engines.base import EngineInfo
from runtime.engines.parity import Parity, joined
from runtime.errors import EngineError, InputError, OutOfMemoryError, VertscanError
from runtime.extras import stop_interrupted, stop_without
from runtime.readers import read_scan
from runtime.volume import Volume

try:
    import torch

    from export.checkpoint import Trained
    from export.parity_on_scans import (
        Networks,
        compare_on_scan,
        compare_with_itself,
        images_alone,
        opened,
        prepare,
        warm_up,
    )
    from export.parity_report import Outcome, as_json, table
    from export.reload import torch_fracsegnet, torch_levelnet, torch_locnet
    from export.verified import check_recordable, record
    from train.evaluate import positive
    from train.phantom import render, sample_anatomy, sample_appearance
except ModuleNotFoundError as error:
    stop_without("export", error)
except KeyboardInterrupt:
    stop_interrupted()

FIRST_SEED = 2**31 + 2**20
"""Beyond the seeds of training and of evaluation."""


class TorchSession:
    """A torch network behind the runtime's Session protocol: the reference."""

    def __init__(self, trained: Trained) -> None:
        self.info = EngineInfo("torch", torch.__version__, "fp32", "CPU", "the reference")
        self.output_names = trained.outputs
        self.network = trained.network

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """See Session."""
        with torch.inference_mode():
            return tuple(output.numpy() for output in self.network(torch.from_numpy(image)))

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def reference_networks(bundle: Bundle) -> Networks:
    """The bundle's networks in torch.

    Raises:
        BundleError: the bundle doesn't say how they were trained, or its weights bear other names.
    """
    levelnet = torch_levelnet(bundle)
    return Networks(
        TorchSession(torch_locnet(bundle)),
        TorchSession(torch_fracsegnet(bundle)),
        None if levelnet is None else TorchSession(levelnet),
    )


def verify(
    bundle: Bundle,
    engines: Sequence[tuple[EngineChoice, Networks]],
    scans: Iterator[Volume],
    *,
    refused: Sequence[Outcome] = (),
    after_scan: Callable[[str, list[Outcome]], None] | None = None,
) -> list[Outcome]:
    """Compare engines with torch, scan by scan; ``after_scan`` is told each scan and what was found so far.

    Seconds are those of the networks' calls, after one call of each. All engines are open at once: each scan is read,
    and run by torch, once. A network is compared with itself on the first scan that has an image for it; where none
    has, that is a fault.

    Args:
        bundle: the networks.
        engines: those to compare, open.
        scans: read one after the other.
        refused: what is to be told of engines that can't be opened, after the others.
        after_scan: see above.
    """
    reference, spec = reference_networks(bundle), bundle.spec
    outcomes = [
        Outcome(choice, networks.locnet.info.version, networks.locnet.info.device) for choice, networks in engines
    ]
    for warmed in (reference, *(networks for _, networks in engines)):
        warm_up(spec, warmed)
    unseen = {"locnet", "fracsegnet"} | ({"levelnet"} if spec.levelnet is not None else set())
    for scan in scans if engines else ():
        prepared = prepare(spec, scan, reference)
        of_scan = images_alone(spec, prepared) if unseen else {}
        images = {name: image for name, image in of_scan.items() if name in unseen}
        unseen -= images.keys()
        for outcome, (_, networks) in zip(outcomes, engines, strict=True):
            outcome.with_itself = joined([outcome.with_itself, compare_with_itself(images, networks)])
            parity, seconds = compare_on_scan(spec, prepared, networks)
            outcome.scans.append((scan.name, parity))
            outcome.seconds += seconds
            outcome.reference_seconds += prepared.seconds
        if after_scan is not None:
            after_scan(scan.name, [*outcomes, *refused])
    if unseen:
        said = f"no scan has anything for {', '.join(sorted(unseen))}, so batches and repetitions were not compared"
        for outcome in outcomes:
            outcome.with_itself = joined([outcome.with_itself, Parity(failed=said)])
    return [*outcomes, *refused]


def candidates(spec: BundleSpec, engine: str | None, precision: str | None, *, device: int = 0) -> list[EngineChoice]:
    """The engines and precisions to compare: those named, or all that can run here, verification included.

    Raises:
        EngineError: none can run here as named, or the bundle doesn't offer the precision that is named.
    """
    not_offered = spec.why_not_in(precision or "auto")
    if not_offered:
        raise EngineError(f"Bundle {spec.name} {spec.version} is not offered in {precision} ({not_offered}).")
    if engine is not None and engine != "auto":
        found = {engine: engine_module(engine).preflight(device=device)}
    else:
        found = {name: one for name, one in preflights(device=device).items() if name not in ONLY_BY_NAME}
    pairs = [
        (name, one_precision)
        for name, one in found.items()
        if one.available
        for one_precision in (*one.precisions, *one.verify_only)
        if precision in (None, "auto", one_precision) and not spec.why_not_in(one_precision)
    ]
    if not pairs:
        said = "; ".join(f"{name}: {one.reason}" for name, one in found.items())
        raise EngineError(f"No engine can run here{f' in {precision}' if precision else ''}. {said}.")
    return [select_engine(name, precision=one, device=device, verification=True) for name, one in pairs]


def phantoms(count: int) -> Iterator[Volume]:
    """Pieces of spine, 240 x 160 x 160 mm, of phantoms that neither training nor evaluation draws."""
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        rng = np.random.default_rng(seed)
        anatomy = sample_anatomy(seed)
        middle = anatomy.centre_ras_mm(anatomy.vertebrae[rng.integers(len(anatomy.vertebrae))])
        grid = crop_grid(middle, spacing_mm=2.5, shape_zyx=(96, 64, 64))
        scan = render(anatomy, grid, sample_appearance(rng), rng)
        yield replace(scan.volume, name=f"phantom-{seed}")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.verify",
        description="Compares engines with torch FP32 on the processor, on whole phantoms and given scans.",
        epilog="Exit status: 0 all within their limits, 1 one is not, 2 usage or input, 3 bundle or engine.",
    )
    parser.add_argument("scans", metavar="SCAN", nargs="*", type=Path, help="scans to compare on besides the phantoms")
    parser.add_argument("--bundle", type=Path, help="default: the one that ships")
    parser.add_argument("--engine", help="default: every engine that can run here")
    parser.add_argument("--precision", help="default: every precision that the engines offer")
    parser.add_argument("--device", metavar="N", type=int, default=0, help="which GPU (default: 0)")
    parser.add_argument("--phantoms", metavar="N", type=whole_from_zero, default=50, help="how many (default: 50)")
    parser.add_argument("--threads", metavar="N", type=positive, help="on the processor (default: all)")
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=Path, help="write all figures as JSON, anew after each scan"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="write into the bundle whether it passed in bf16 on the processor: auto then takes that where a processor "
        "has it; needs 50 scans, a real one among them",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, print the figures, and return 0 if all engines pass, else 1."""
    args = build_parser().parse_args(argv)
    try:
        outcomes = _run(args)
    except VertscanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    return 0 if all(not outcome.faults for outcome in outcomes) else 1


def _run(args: argparse.Namespace) -> list[Outcome]:
    if not args.scans and not args.phantoms:
        raise InputError("There is nothing to compare on: give scans, or --phantoms above 0.")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    bundle = open_bundle(args.bundle)
    choices = candidates(bundle.spec, args.engine, args.precision, device=args.device)
    if args.record:
        folder = args.bundle or DEFAULT_BUNDLE
        check_recordable(folder, choices, scans=args.phantoms + len(args.scans), given=len(args.scans))
    scans = chain(phantoms(args.phantoms), (read_scan(path) for path in args.scans))
    with ExitStack() as stack:
        engines, refused = [], []
        for choice in choices:
            try:
                engines.append((choice, stack.enter_context(opened(bundle, choice, threads=args.threads))))
            except (EngineError, OutOfMemoryError) as error:
                refused.append(Outcome(choice, with_itself=Parity(failed=f"not opened: {str(error).rstrip('.')}")))
        outcomes = verify(bundle, engines, scans, refused=refused, after_scan=_teller(bundle, args.out))
    if args.out is not None:
        _write(args.out, _figures(bundle, outcomes))
    print(table(outcomes))
    if args.record:
        verified = record(bundle, outcomes, given=len(args.scans)).spec.verified
        print(f"{bundle.folder}: verified in {', '.join(verified) or 'no precision but fp32'}")
    return outcomes


def _figures(bundle: Bundle, outcomes: Sequence[Outcome]) -> str:
    return json.dumps(as_json(bundle, outcomes), indent=1) + "\n"


def _teller(bundle: Bundle, out: Path | None) -> Callable[[str, list[Outcome]], None]:
    """Tells each scan on stderr and writes what was found so far: runs take long, and none is to be lost."""

    def tell(scan: str, outcomes: list[Outcome]) -> None:
        if out is not None:
            _write(out, _figures(bundle, outcomes))
        wrong = [f"{o.choice.name} {o.choice.precision}" for o in outcomes if o.faults]
        said = f"past the limits: {', '.join(wrong)}" if wrong else "all within the limits"
        print(f"{len(outcomes[0].scans)}: {scan}; {said}", file=sys.stderr, flush=True)

    return tell


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: it can't be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written ({error.strerror}).") from error


if __name__ == "__main__":
    sys.exit(main())
