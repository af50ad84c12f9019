"""The options of ``python -m runtime.infer``, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import InputError
from runtime.paths import is_file
from runtime.version import software_version

if TYPE_CHECKING:
    from runtime.engines.triton_server import TritonServer
    from runtime.output import Outputs

# What takes time to import is imported inside the functions: see ``runtime.infer.main``.

_SERVER_OPTIONS = ("url", "tls-ca", "tls-cert", "tls-key", "server-timeout")


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m runtime.infer``."""
    from runtime.argument_types import above_zero
    from runtime.scan_list import RULE

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
        help=".nii, .nii.gz, .nrrd, .mha, .mhd, a DICOM folder, zip or DICOMDIR, an enhanced DICOM file, or a "
        "folder of many of these (see below)",
    )
    _add_result_options(parser)
    add_engine_options(parser)
    _add_dicom_options(parser.add_argument_group("DICOM series, and results beside them"))
    add_server_options(parser.add_argument_group("a Triton server, for --engine triton"))
    parser.add_argument(
        "--memory",
        metavar="GIB",
        type=above_zero,
        help="so much memory may be used, such as 4 or 2.5: a scan that would need more is refused with exit status 4 "
        "before its voxels are read, and the next one is read ahead only where both fit (default: no limit)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no log, errors only")
    parser.add_argument("--debug", action="store_true", help="show the trace of an internal error")
    parser.add_argument("--version", action="version", version=f"vertscan {software_version()}")
    return parser


def _add_result_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="where the results go: this folder for one scan, <scan name>.vertebrae in it for several, in the same "
        "subfolders as the scans of a folder (default: <scan name>.vertebrae in the working directory)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where an interrupted run stopped: leave scans out whose complete results are there, of the same "
        "scan (by its hash) and the same bundle, made with --engine, --precision, --exhaustive and --seg-type as given "
        "where they are",
    )
    parser.add_argument("--no-overview", action="store_true", help="do not draw overview.png")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the findings instead of the table; of several scans, one JSON object per line",
    )


def add_engine_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options that say which networks run, and on what."""
    from runtime.engines import ENGINES

    add_model_options(parser, engines=tuple(ENGINES))
    parser.add_argument("--device", metavar="N", type=int, default=0, help="which GPU (default: 0)")


def add_model_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, engines: Sequence[str]) -> None:
    """The options that say which bundle runs, on which of ``engines``, in which precision and where in the scan."""
    from runtime.engines import PRECISIONS

    parser.add_argument(
        "--bundle", metavar="PATH", type=Path, help="model bundle, folder or zip (default: the one inside)"
    )
    parser.add_argument(
        "--engine", choices=("auto", *engines), default="auto", help="what runs the networks (default: the fastest)"
    )
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto", help="what they are computed in")
    parser.add_argument(
        "--exhaustive",
        action="store_true",
        help="look for vertebrae at full resolution everywhere, not only along the spine that a first look finds; "
        "slower on wide scans",
    )


def _add_dicom_options(group: argparse._ArgumentGroup) -> None:
    from runtime.series import add_reading_options

    add_reading_options(group)
    add_output_options(group)


def add_output_options(group: argparse._ArgumentGroup) -> None:
    """The options that say which DICOM objects are written."""
    from runtime.dicom import KINDS, SEG_TYPES

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
        type=str.upper,
        help="how seg.dcm is encoded; many archives and viewers refuse label maps (default: BINARY)",
    )


def add_server_options(group: argparse._ArgumentGroup) -> None:
    """The options that name a Triton server; ``server_of`` reads them."""
    from runtime.engines.triton_server import TIMEOUT_S

    group.add_argument("--url", help="grpc://HOST:8001, or grpcs://HOST:8001 for TLS; the scan's voxels are sent there")
    group.add_argument(
        "--tls-ca", metavar="FILE", type=Path, help="PEM certificates to trust instead of the usual ones"
    )
    group.add_argument("--tls-cert", metavar="FILE", type=Path, help="PEM certificate that shows the server who asks")
    group.add_argument("--tls-key", metavar="FILE", type=Path, help="PEM private key of that certificate")
    group.add_argument(
        "--server-timeout", metavar="S", type=float, help=f"seconds that a batch may take (default: {TIMEOUT_S:g})"
    )


def _scan_path(text: str) -> Path:
    """For argparse: an empty name, as an unset shell variable gives, is not the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; give a scan, or '.' for this folder")
    return Path(text)


def outputs_of(arguments: argparse.Namespace, scans: Sequence[Path]) -> Outputs:
    """What is to be written. Raises InputError for kinds that are unknown, or can't be made of these scans or here."""
    from runtime.dicom import BINARY, check_installed, parse_kinds
    from runtime.output import Outputs
    from runtime.readers import may_be_dicom

    if arguments.seg_type not in (None, BINARY) and "seg" not in arguments.output.lower().split(","):
        raise InputError(f"--seg-type is for --output seg; met --output {arguments.output or 'nothing'}.")
    if not arguments.output:
        return Outputs(overview=not arguments.no_overview)
    kinds = parse_kinds(arguments.output)
    check_installed(kinds)
    for scan in scans:
        if is_file(scan) and not may_be_dicom(scan):
            raise InputError(f"{scan} is no DICOM series, so --output {arguments.output} has no images to refer to.")
    return Outputs(not arguments.no_overview, kinds, arguments.seg_type)


def server_of(arguments: argparse.Namespace) -> TritonServer | None:
    """The Triton server that was named, or None for an engine on this machine.

    Raises:
        InputError: an engine elsewhere without its address, or options of one without the engine.
    """
    from runtime.engines import ONLY_BY_NAME
    from runtime.engines.triton_server import TIMEOUT_S, TritonServer

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
