"""Command line of the main job: scans in, findings, masks and pictures out.

Exit status: 0 done (finding no vertebra is done), 2 usage or input refused, 3 bundle or engine, 4 out of memory,
130 interrupted, 1 a defect of this software. Of several scans that fail, the first one's status is given.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime.console import INTERRUPTED, complain, internal_error
from runtime.engines import ENGINES, ONLY_BY_NAME, PRECISIONS
from runtime.engines.triton_server import TIMEOUT_S, TritonServer
from runtime.errors import InputError, OutOfMemoryError, VertscanError
from runtime.output import check_is_kept, check_replaceable, result_folders
from runtime.scan_list import RULE, list_scans
from runtime.scan_runner import ScanRunner

_SERVER_OPTIONS = ("url", "tls-ca", "tls-cert", "tls-key", "server-timeout")


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m runtime.infer``."""
    parser = argparse.ArgumentParser(
        prog="vertscan-infer",
        description="Finds every vertebra in CT scans, draws its mask and grades its fracture after Genant.",
        epilog=f"{RULE} Of several scans the next is read while the networks run on the one before it. "
        "Exit status: 0 done, 2 usage or input refused, 3 bundle or engine, 4 out of memory, 130 interrupted. "
        "Of several scans that fail, the first one's status is given.",
    )
    parser.add_argument(
        "scans",
        metavar="SCAN",
        nargs="+",
        type=_scan_path,
        help=".nii, .nii.gz, .nrrd, .mha, .mhd, a DICOM folder or zip, or a folder of many of these (see below)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help="where the results go: this folder for one scan, <scan name>.vertebrae in it for several, in the same "
        "subfolders as the scans of a folder (default: <scan name>.vertebrae in the working directory)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where an interrupted run stopped: leave scans out whose complete results are there, of the same "
        "scan (by its hash) and the same bundle",
    )
    parser.add_argument(
        "--bundle", metavar="PATH", type=Path, help="model bundle, folder or zip (default: the one inside)"
    )
    parser.add_argument(
        "--engine", choices=("auto", *ENGINES), default="auto", help="what runs the networks (default: the fastest)"
    )
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto", help="what they are computed in")
    parser.add_argument("--device", metavar="N", type=int, default=0, help="which GPU (default: 0)")
    _add_server_options(parser.add_argument_group("a Triton server, for --engine triton"))
    parser.add_argument("--no-overview", action="store_true", help="do not draw overview.png")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the findings instead of the table; of several scans, one JSON object per line",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no log, errors only")
    parser.add_argument("--debug", action="store_true", help="show the trace of an internal error")
    parser.add_argument("--version", action="version", version=f"vertscan {_version()}")
    return parser


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
        raise argparse.ArgumentTypeError("the name is empty; give a scan, or '.' for this folder")
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
        return internal_error(error, debug=arguments.debug)


def _run(arguments: argparse.Namespace, *, talks: bool) -> int:
    """Run all scans over one open pipeline; the status of the first that failed, else 0."""
    scans, is_list = list_scans(arguments.scans)
    paths = [scan.path for scan in scans]
    folders = result_folders(paths, arguments.output, under=[scan.under for scan in scans] if is_list else None)
    for scan, folder in zip(paths, folders, strict=True):
        check_is_kept(scan, folder)
        check_replaceable(folder)
    server = _server(arguments)
    from runtime.pipeline import Pipeline

    with Pipeline.open(
        arguments.bundle,
        engine=arguments.engine,
        precision=arguments.precision,
        device=arguments.device,
        server=server,
    ) as pipeline:
        runner = ScanRunner(pipeline, arguments, is_list=is_list, talks=talks)
        return runner.run(list(zip(paths, folders, strict=True)))


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


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("vertscan")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
