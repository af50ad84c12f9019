"""Command line of the main job: scans in, findings, masks and pictures out.

Exit status: 0 done (finding no vertebra is done), 2 usage or input refused, 3 bundle or engine, 4 out of memory,
130 interrupted, 1 a defect of this software. Of several scans that fail, the first one's status is given.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.console import INTERRUPTED, complain, say
from runtime.dicom import KINDS, SEG_TYPES, check_installed, parse_kinds
from runtime.engines import ENGINES, ONLY_BY_NAME, PRECISIONS
from runtime.engines.triton_server import TIMEOUT_S, TritonServer
from runtime.errors import InputError, OutOfMemoryError, VertscanError
from runtime.findings import to_json
from runtime.output import Outputs, check_is_kept, check_replaceable, result_folders, write_results
from runtime.readers import may_be_dicom, scan_name
from runtime.report import table
from runtime.version import software_version

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline
    from runtime.progress import Progress

_SERVER_OPTIONS = ("url", "tls-ca", "tls-cert", "tls-key", "server-timeout")
DEFECT = 1


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m runtime.infer``."""
    parser = argparse.ArgumentParser(
        prog="vertscan-infer",
        description="Finds every vertebra in CT scans, draws its mask and grades its fracture after Genant.",
        epilog="Exit status: 0 done, 2 usage or input refused, 3 bundle or engine, 4 out of memory, 130 interrupted. "
        "Of several scans that fail, the first one's status is given.",
    )
    parser.add_argument(
        "scans",
        metavar="SCAN",
        nargs="+",
        type=_scan_path,
        help=".nii, .nii.gz, .nrrd, .mha, .mhd, a DICOM folder or zip",
    )
    parser.add_argument(
        "-o",
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="where the results go: this folder for one scan, <scan name>.vertebrae in it for several "
        "(default: <scan name>.vertebrae in the working directory)",
    )
    parser.add_argument(
        "--bundle", metavar="PATH", type=Path, help="model bundle, folder or zip (default: the one inside)"
    )
    parser.add_argument(
        "--engine", choices=("auto", *ENGINES), default="auto", help="what runs the networks (default: the fastest)"
    )
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto", help="what they are computed in")
    parser.add_argument("--device", metavar="N", type=int, default=0, help="which GPU (default: 0)")
    _add_dicom_options(parser.add_argument_group("DICOM results, for scans that are DICOM series"))
    _add_server_options(parser.add_argument_group("a Triton server, for --engine triton"))
    parser.add_argument("--no-overview", action="store_true", help="do not draw overview.png")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the findings instead of the table; of several scans, one JSON object per line",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no log, errors only")
    parser.add_argument("--debug", action="store_true", help="show the trace of an internal error")
    parser.add_argument("--version", action="version", version=f"vertscan {software_version()}")
    return parser


def _add_dicom_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output",
        metavar="KINDS",
        default="",
        help=f"which of {', '.join(KINDS)} to write as well, with commas between: segmentation, structured report, "
        "secondary capture of the picture, report as PDF",
    )
    group.add_argument(
        "--seg-type",
        choices=SEG_TYPES,
        default=SEG_TYPES[0],
        type=str.upper,
        help="how seg.dcm is encoded; LABELMAP is smaller, but many archives and viewers refuse it (default: BINARY)",
    )


def _outputs(arguments: argparse.Namespace) -> Outputs:
    """What is to be written. Raises InputError for kinds that are unknown, or can't be made of these scans or here."""
    if not arguments.output:
        return Outputs(overview=not arguments.no_overview)
    kinds = parse_kinds(arguments.output)
    check_installed(kinds)
    for scan in arguments.scans:
        if scan.is_file() and not may_be_dicom(scan):
            raise InputError(f"{scan} is no DICOM series, so --output {arguments.output} has no images to refer to.")
    return Outputs(not arguments.no_overview, kinds, arguments.seg_type)


def _add_server_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--url", help="grpc://HOST:8001, or grpcs://HOST:8001 for TLS; the scan's voxels are sent there")
    group.add_argument(
        "--tls-ca", metavar="FILE", type=Path, help="PEM certificates to trust instead of the usual ones"
    )
    group.add_argument("--tls-cert", metavar="FILE", type=Path, help="PEM certificate that shows the server who asks")
    group.add_argument("--tls-key", metavar="FILE", type=Path, help="PEM private key of that certificate")
    group.add_argument(
        "--server-timeout", metavar="S", type=float, help=f"seconds that a batch may take (default: {TIMEOUT_S:g})"
    )


def _server(arguments: argparse.Namespace) -> TritonServer | None:
    """The Triton server that was named, or None for an engine on this machine.

    Raises:
        InputError: an engine elsewhere without its address, or options of one without the engine.
    """
    options = {f"--{name}": getattr(arguments, name.replace("-", "_")) for name in _SERVER_OPTIONS}
    given = [option for option, value in options.items() if value is not None]
    if arguments.engine not in ONLY_BY_NAME:
        if given:
            raise InputError(f"{given[0]} is for --engine triton; met --engine {arguments.engine}.")
        return None
    if arguments.url is None:
        raise InputError("--engine triton needs the server's address: --url grpc://HOST:8001.")
    timeout_s = TIMEOUT_S if arguments.server_timeout is None else arguments.server_timeout
    return TritonServer(arguments.url, arguments.tls_ca, arguments.tls_cert, arguments.tls_key, timeout_s)


def _scan_path(text: str) -> Path:
    """For argparse: an empty name, as an unset shell variable gives, is not the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; give a scan, or '.' for the DICOM series in this folder")
    return Path(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; argparse itself exits with 2 on wrong usage."""
    arguments = build_parser().parse_args(argv)
    talks = sys.stderr.isatty() and not arguments.quiet
    try:
        with _log_to(logging.StreamHandler(sys.stderr) if talks else logging.NullHandler()):
            return _run(arguments, talks=talks)
    except KeyboardInterrupt:
        complain("interrupted; no half-written result was left")
        return INTERRUPTED
    except VertscanError as error:
        complain(str(error))
        return error.exit_status
    except MemoryError:
        complain("out of memory while the networks were loaded; close other programs or allow more memory")
        return OutOfMemoryError.exit_status
    except Exception as error:  # noqa: BLE001  the last resort: users get a message, never a trace
        return _internal_error(error, debug=arguments.debug)


def _run(arguments: argparse.Namespace, *, talks: bool) -> int:
    """Run all scans over one open pipeline; the status of the first that failed, else 0."""
    outputs = _outputs(arguments)
    folders = result_folders(arguments.scans, arguments.output_dir)
    for scan, folder in zip(arguments.scans, folders, strict=True):
        check_is_kept(scan, folder)
        check_replaceable(folder)
    server = _server(arguments)
    from runtime.pipeline import Pipeline

    status = 0
    with Pipeline.open(
        arguments.bundle,
        engine=arguments.engine,
        precision=arguments.precision,
        device=arguments.device,
        server=server,
    ) as pipeline:
        for scan, folder in zip(arguments.scans, folders, strict=True):
            outcome = _one_scan(pipeline, scan, folder, arguments, outputs, talks=talks)
            status = status or outcome
    return status


def _one_scan(
    pipeline: Pipeline, scan: Path, folder: Path, arguments: argparse.Namespace, outputs: Outputs, *, talks: bool
) -> int:
    """Run one scan and write its results; what fails is told on stderr and given as the status."""
    from runtime.progress import NoProgress, TerminalProgress

    progress: Progress = TerminalProgress(sys.stderr, scan_name(scan)) if talks else NoProgress()
    try:
        try:
            analysis = pipeline.analyse(scan, progress=progress)
            findings = write_results(analysis, folder, outputs=outputs, progress=progress)
        finally:
            progress.finish()
    except VertscanError as error:
        complain(f"{scan}: {error}")
        return error.exit_status
    except Exception as error:  # noqa: BLE001  a defect met in one scan does not stop the others
        return _internal_error(error, debug=arguments.debug)
    if arguments.json:
        text = to_json(findings, indent=2 if len(arguments.scans) == 1 else None)
    else:
        text = f"{table(findings, notice=analysis.notice)}\n\nresults in {_shown(folder)}\n"
    say(text, else_say="; the results are on disk")
    return 0


@contextlib.contextmanager
def _log_to(handler: logging.Handler) -> Iterator[None]:
    """Send this software's log, and what libraries warn of, to ``handler`` and nowhere else."""
    root, own = logging.getLogger(), logging.getLogger("runtime")
    level = own.level
    root.addHandler(handler)
    own.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        own.setLevel(level)
        root.removeHandler(handler)


def _shown(path: Path) -> str:
    """The path as it can be copied from the terminal; what that can't show is escaped."""
    text = str(path)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ascii(text)[1:-1]
    return text if text.isprintable() else ascii(text)[1:-1]


def _internal_error(error: Exception, *, debug: bool) -> int:
    """Tell of a defect of this software without a trace, unless it was asked for."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    complain(
        f"internal error: {type(error).__name__}: {error}. Please report it"
        f"{'.' if debug else '; --debug shows the trace.'}"
    )
    return DEFECT


if __name__ == "__main__":
    sys.exit(main())
