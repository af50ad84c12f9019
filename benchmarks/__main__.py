"""``python -m benchmarks COMMAND``: what things cost, beside what one would otherwise use, measured in the same run.

Every command tells the machine's ceiling first, then its tables, and one JSON document in the last line. Ratios are
what to quote: machines differ and are noisy. Exit status: 0 done, 1 a measured process failed, else as the runtime.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.argument_types import whole_from_one, whole_from_zero
from runtime.bundle import Bundle, open_bundle
from runtime.console import INTERRUPTED, complain
from runtime.engines import ENGINES, PRECISIONS
from runtime.errors import EngineError, InputError, VertscanError
from runtime.extras import stop_without
from runtime.readers import read_scan

if TYPE_CHECKING:
    from benchmarks.ceiling import Ceiling, Cost
    from benchmarks.report import Report


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, repeats, said) in COMMANDS.items():
        command = commands.add_parser(name, help=said, description=said)
        _common_options(command, repeats)
        _own_options(command, name)
    return parser


def _common_options(parser: argparse.ArgumentParser, repeats: int) -> None:
    parser.add_argument("--repeats", metavar="N", type=whole_from_one, default=repeats,
                        help=f"measured runs, after the warm-up (default: {repeats})")  # fmt: skip
    parser.add_argument("--threads", metavar="N", type=whole_from_one, help="on the processor (default: all)")
    parser.add_argument("--bundle", type=Path, help="default: the one that ships")
    parser.add_argument("--matrix", metavar="N", type=whole_from_zero, default=2048,
                        help="side of the matrices that measure the ceiling (default: 2048; 0: none)")  # fmt: skip
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, help="write the JSON document here as well")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the figures into a .png, .svg or .pdf")
    parser.add_argument("--compare", metavar="OLD.json", type=Path,
                        help="tell what moved beyond the noise since that document was written")  # fmt: skip


def _own_options(parser: argparse.ArgumentParser, name: str) -> None:
    if name in ("latency", "stages", "accuracy", "scaling", "startup", "memory", "cohort", "node"):
        one = name in ("scaling", "startup", "memory", "cohort", "node")
        parser.add_argument("--engines", metavar="NAME", nargs="+", default=[],
                            help="the one to use" if one else "only these")  # fmt: skip
    if name in ("latency", "stages", "accuracy"):
        parser.add_argument("--device", metavar="N", type=whole_from_zero, default=0, help="which GPU (default: 0)")
    if name in ("latency", "stages", "accuracy", "memory", "kernels"):
        parser.add_argument("--scan", metavar="FILE", nargs="+", type=Path, default=[],
                            help="measure on these" if name == "accuracy" else "instead of phantoms")  # fmt: skip
    if name in ("latency", "stages", "kernels", "memory", "startup", "cohort", "node"):
        parser.add_argument("--shape", metavar="Z,Y,X", type=_shape, help="of the phantom, voxels")
    if name in ("latency", "stages", "cohort"):
        parser.add_argument("--spacing", metavar="MM", type=float, help="of the phantom")
    if name == "latency":
        parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
        parser.add_argument("--precisions", nargs="+", default=[], choices=PRECISIONS,
                            help="of the engines, only these; torch runs in its own")  # fmt: skip
        parser.add_argument("--no-scan", action="store_true", help="windows and crops alone, no whole scans")
    if name == "stages":
        peers = parser.add_mutually_exclusive_group()
        peers.add_argument("--no-peers", action="store_true", help="this software alone")
        peers.add_argument("--peers-bundle", metavar="BUNDLE", type=Path,
                           help="whose networks peers run (default: the same)")  # fmt: skip
    if name == "kernels":
        parser.add_argument("--only", metavar="GROUP", nargs="+", default=[], help="only these groups of the table")
    if name == "accuracy":
        parser.add_argument("--phantoms", metavar="N", type=whole_from_zero, default=10, help="how many (default: 10)")
    if name == "cohort":
        parser.add_argument("--scans", metavar="N", type=whole_from_one, default=40, help="how many (default: 40)")
    if name == "scaling":
        parser.add_argument("--scale", metavar="F", type=float, default=1.0, help="on all lengths (default: 1)")


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"should be three numbers of voxels such as 300,290,340, met {text}")
    z, y, x = (int(part) for part in parts)
    return z, y, x


@dataclass(frozen=True)
class Frame:
    """What every command is given.

    Args:
        args: the command line.
        bundle: opened.
        threads: on the processor.
        ceiling: of the machine, or None where it was left out.
        costs: of the bundle's networks.
        folder: for scans that are made; removed in the end.
        keep: writes the document of what was measured so far to ``--out``, where that is given.
    """

    args: argparse.Namespace
    bundle: Bundle
    threads: int
    ceiling: Ceiling | None
    costs: dict[str, Cost]
    folder: Path
    keep: Callable[[Report], None]

    @property
    def engine(self) -> str:
        """The one engine of commands that take one.

        Raises:
            InputError: several were named.
        """
        names = self.args.engines
        if len(names) > 1:
            raise InputError(f"{self.args.command} measures one engine; met {', '.join(names)}.")
        return names[0] if names else "auto"


def _latency(frame: Frame) -> Report:
    from benchmarks.latency import SCAN_SPACING_MM, SCAN_ZYX, latency
    from benchmarks.scans import phantom_scan

    args = frame.args
    scans = [] if args.no_scan else [read_scan(path) for path in args.scan]
    if not args.no_scan and not scans:
        scans = [phantom_scan(args.shape or SCAN_ZYX, spacing_mm=args.spacing or SCAN_SPACING_MM)]
    return latency(
        frame.bundle, scans, args.repeats, engines=args.engines, device=args.device, threads=frame.threads,
        precisions=args.precisions, compiled=not args.no_compile, ceiling=frame.ceiling, costs=frame.costs,
        keep=frame.keep,
    )  # fmt: skip


def _stages(frame: Frame) -> Report:
    from benchmarks.scans import LARGE_ZYX, SMALL_ZYX, phantom_scan, save
    from benchmarks.stages import stages

    args = frame.args
    paths = list(args.scan)
    for shape in () if paths else [args.shape] if args.shape else [SMALL_ZYX, LARGE_ZYX]:
        scan = phantom_scan(shape, spacing_mm=args.spacing or 1.0)
        paths.append(save(scan, frame.folder / f"{scan.name}.nii.gz"))
    of_peers = frame.bundle if args.peers_bundle is None else open_bundle(args.peers_bundle)
    return stages(
        frame.bundle, paths, args.repeats, engines=args.engines, device=args.device, threads=frame.threads,
        peers_bundle=None if args.no_peers else of_peers, ceiling=frame.ceiling, costs=frame.costs,
    )  # fmt: skip


def _kernels(frame: Frame) -> Report:
    from benchmarks.kernels import DEFAULT_ZYX, GROUPS, kernels

    args = frame.args
    if unknown := [name for name in args.only if name not in GROUPS]:
        raise InputError(f"There is no group {unknown[0]!r}; there are {', '.join(map(repr, GROUPS))}.")
    scan = read_scan(args.scan[0]) if args.scan else None
    return kernels(frame.bundle, scan, args.shape or DEFAULT_ZYX, args.repeats, only=args.only)


def _accuracy(frame: Frame) -> Report:
    from benchmarks.accuracy import accuracy

    args = frame.args
    if not args.scan and not args.phantoms:
        raise InputError("There is nothing to compare on: give --scan, or --phantoms above 0.")
    return accuracy(
        frame.bundle, args.scan, args.phantoms, engines=args.engines, device=args.device, threads=frame.threads
    )


def _scaling(frame: Frame) -> Report:
    from benchmarks.scaling import scaling

    args = frame.args
    return scaling(args.repeats, bundle=args.bundle, engine=frame.engine, threads=frame.threads, scale=args.scale)


def _startup(frame: Frame) -> Report:
    from benchmarks.startup import SCAN_ZYX, startup

    args = frame.args
    shape = args.shape or SCAN_ZYX
    return startup(args.repeats, bundle=args.bundle, engine=frame.engine, threads=frame.threads, shape_zyx=shape)


def _memory(frame: Frame) -> Report:
    from benchmarks.memory import DEFAULT_ZYX, memory

    args = frame.args
    return memory(args.scan, args.shape or DEFAULT_ZYX, args.repeats, bundle=args.bundle, engine=frame.engine,
                  threads=frame.threads)  # fmt: skip


def _cohort(frame: Frame) -> Report:
    from benchmarks.cohort import SHAPE_ZYX, SPACING_MM, cohort

    args = frame.args
    return cohort(
        args.scans, args.shape or SHAPE_ZYX, args.spacing or SPACING_MM, bundle=args.bundle, engine=frame.engine,
        threads=frame.threads, folder=frame.folder,
    )  # fmt: skip


def _node(frame: Frame) -> Report:
    try:
        from benchmarks.node import DEFAULT_ZYX, node
    except ModuleNotFoundError as error:
        stop_without("node", error)
    args = frame.args
    return node(args.shape or DEFAULT_ZYX, args.repeats, bundle=args.bundle, engine=frame.engine, folder=frame.folder)


COMMANDS: dict[str, tuple[Callable[[Frame], Report], int, str]] = {
    "latency": (_latency, 7, "one window, one crop, a whole scan: torch and every engine and precision"),
    "stages": (_stages, 3, "where the time of a whole case goes, beside MONAI, scikit-image, nibabel and SimpleITK"),
    "kernels": (_kernels, 7, "the steps around the networks, each beside the libraries that do it too"),
    "accuracy": (_accuracy, 1, "centres, masks, grades and levels of every engine and precision against torch FP32"),
    "scaling": (_scaling, 3, "time and peak memory of ten sizes: spine against field of view"),
    "startup": (_startup, 5, "cold imports, the first window, the second scan, the size on disk"),
    "memory": (_memory, 1, "peak memory of a large scan"),
    "cohort": (_cohort, 1, "many scans on a Ray cluster of two nodes, one worker killed, beside the same one by one"),
    "node": (_node, 1, "a study from an Orthanc through the node and back, stage by stage, and the node's memory"),
}
"""By name: what runs it, how often by default, and what it shows."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        document, texts = _measured(args)
        text = json.dumps(document)
        print("\n\n".join([*texts, text]), flush=True)  # before what may fail: measuring takes long
        if args.out is not None:
            _write(args.out, text)
        if args.plot is not None:
            from benchmarks.plots import draw

            draw(document, args.plot)
    except VertscanError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    return 0


def _measured(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The document and the tables."""
    try:
        from benchmarks.ceiling import ceiling_json, ceiling_tables, measure_ceiling, network_costs
        from benchmarks.machine import describe_machine, load_average, usable_cores, using_threads, versions
        from benchmarks.report import SCHEMA_VERSION
    except ModuleNotFoundError as error:
        stop_without("bench", error)
    _check_early(args)
    old = _earlier_document(args)
    bundle = open_bundle(args.bundle)
    threads = args.threads or usable_cores()
    machine = describe_machine(gpu=getattr(args, "device", 0))
    with ExitStack() as stack:
        stack.enter_context(using_threads(threads))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ceiling = measure_ceiling(side=args.matrix) if args.matrix else None
        costs = network_costs(bundle) if ceiling else {}

        def document_of(found: Report) -> dict[str, Any]:
            own = found.as_json()
            asked = {"threads": threads, "bundle": bundle.sha256, **{k: machine[k] for k in ("processor", "gpu")}}
            return {
                "schema_version": SCHEMA_VERSION,
                "command": args.command,
                "machine": {**machine, "load_average_after": load_average()},
                "versions": versions(),
                "threads": threads,
                "repeats": args.repeats,
                "bundle": {"name": bundle.spec.name, "version": bundle.spec.version, "sha256": bundle.sha256},
                "ceiling": None if ceiling is None else ceiling_json(ceiling, costs),
                **own,
                "settings": {**own["settings"], **asked},
            }

        def keep(found: Report) -> None:
            if args.out is not None:
                _write(args.out, json.dumps(document_of(found)))

        report = COMMANDS[args.command][0](Frame(args, bundle, threads, ceiling, costs, folder, keep))
    document = document_of(report)
    heading = f"{machine['processor']}, {threads} of {machine['cores']} threads, load {machine['load_average']}"
    said = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    tables = [] if ceiling is None else [table.text() for table in ceiling_tables(ceiling, costs)]
    texts = [f"{heading}\n{said}", *tables, report.text()]
    if old is not None:
        texts.append(_compared(document, old, args.compare))
    return document, texts


def _check_early(args: argparse.Namespace) -> None:
    """Refuse what would fail after the measuring.

    Raises:
        InputError: a file can't be written, a plot can't be drawn, or two scans have one name.
        EngineError: there is no engine of a name.
    """
    names = Counter(path.name for path in getattr(args, "scan", ()))
    if shared := [name for name, count in names.items() if count > 1]:
        raise InputError(f"Figures are told apart by the scans' file names; {', '.join(shared)} is there twice.")
    if args.plot is not None:
        from benchmarks.plots import check_plot

        check_plot(args.plot)
    for path in (args.out, args.plot):
        if path is not None:
            _check_writable(path)
    for name in getattr(args, "engines", ()):
        if name not in ENGINES and name != "auto":
            raise EngineError(f"There is no engine {name!r}; there are {', '.join(ENGINES)}.")


def _check_writable(path: Path) -> None:
    """Raise InputError where a file can't be written; what it holds is left as it is, and no new one is left behind."""
    was_there = path.exists()
    try:
        path.open("ab").close()
        if not was_there:
            path.unlink()
    except OSError as error:
        raise InputError(
            f"{path} can't be written ({error.strerror or error}); name a file in a folder that is there."
        ) from error


def _earlier_document(args: argparse.Namespace) -> dict[str, Any] | None:
    """That of ``--compare``, read before anything is measured: ``--out`` may name the same file.

    Raises:
        InputError: it can't be had, or is of another command.
    """
    from benchmarks.comparison import check_command, load

    if args.compare is None:
        return None
    old = load(args.compare)
    check_command(old, args.command)
    return old


def _compared(document: dict[str, Any], old: dict[str, Any], old_path: Path) -> str:
    from benchmarks.comparison import compare, comparison_text

    found = compare(old, document)
    document["compared"] = {"with": str(old_path), **found.as_json()}
    return comparison_text(found, old_path)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror or error}).") from error


if __name__ == "__main__":
    sys.exit(main())
