"""The options of ``python -m runtime.serve``, and what they mean."""

from __future__ import annotations

import argparse
import ipaddress
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from runtime.errors import InputError
from runtime.version import software_version

TOKEN_VARIABLE = "VERTSCAN_SERVE_TOKEN"
GIB = 2**30
PORT = 8417
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Listen:
    """Where the server listens, and to whom.

    Args:
        address: an IP address of this machine.
        port: 0 for one that is free.
        hosts: what a request may call the server, lower case, without port; IPv6 addresses in brackets.
        origins: of web pages that may use it.
        certificate, key: PEM files for TLS, or None for plain HTTP.
    """

    address: str
    port: int
    hosts: tuple[str, ...]
    origins: tuple[str, ...]
    certificate: Path | None
    key: Path | None


@dataclass(frozen=True)
class JobLimits:
    """How much is taken in and kept.

    Args:
        max_upload_bytes: of one request.
        max_unpacked_bytes: of a zip's members together, or of a NIfTI file's voxels.
        max_files: of one upload or zip.
        min_free_bytes: what the disk must have left.
        max_queued: jobs that wait.
        keep_s: how long ended jobs are kept.
        keep_jobs: how many of them.
    """

    max_upload_bytes: int = 2 * GIB
    max_unpacked_bytes: int = 4 * GIB
    max_files: int = 20_000
    min_free_bytes: int = GIB
    max_queued: int = 20
    keep_s: float = 24 * 3600.0
    keep_jobs: int = 100


@dataclass(frozen=True)
class ServeOptions:
    """Everything but what the pipeline is opened with.

    Args:
        listen: where and to whom.
        limits: how much.
        roots: folders, without links, whose scans may be submitted by path.
        work_dir: where the server makes its own folder.
        token_file: that holds the token, or None.
    """

    listen: Listen
    limits: JobLimits
    roots: tuple[Path, ...]
    work_dir: Path
    token_file: Path | None


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m runtime.serve``."""
    from runtime.infer_options import add_engine_options, add_server_options

    parser = argparse.ArgumentParser(
        prog="vertscan-serve",
        description="Serves this software over HTTP to viewers on this machine: scans in, findings, masks and pictures "
        "out. Prints its address and where its token is once it is ready.",
        epilog="Exit status: 0 ended by SIGTERM or Ctrl-C, 2 usage refused, 3 bundle or engine, 4 out of memory, 130 "
        "interrupted before it was ready. docs/serve.md describes the API and what protects it.",
    )
    _add_listen_options(parser.add_argument_group("who may use it"))
    _add_limit_options(parser.add_argument_group("how much"))
    add_engine_options(parser.add_argument_group("networks"))
    add_server_options(parser.add_argument_group("a Triton server, for --engine triton"))
    parser.add_argument(
        "--json", action="store_true", help="say that it is ready as one JSON object: url, token_file, engine"
    )
    parser.add_argument("--quiet", action="store_true", help="no log, errors only")
    parser.add_argument("--version", action="version", version=f"vertscan {software_version()}")
    return parser


def _add_listen_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--port", type=int, default=PORT, help=f"0 takes one that is free (default: {PORT})")
    group.add_argument(
        "--bind",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="IP address to listen on; any but a loopback address needs a token of your own, --tls-server-cert or "
        "--plain-http, and 0.0.0.0 or :: also --allow-host (default: 127.0.0.1)",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help=f"holds the token that clients must show; others must not be able to read it "
        f"(default: ${TOKEN_VARIABLE}, else a token is made up and written into the server's work folder)",
    )
    group.add_argument(
        "--allow-path",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="scans below this folder may be submitted by path; may be given several times (default: none)",
    )
    group.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="a web page's origin, such as https://viewer.example, that may use the server (default: none)",
    )
    group.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a host name that requests may call the server by, besides the address it is bound to",
    )
    group.add_argument("--tls-server-cert", metavar="FILE", type=Path, help="PEM certificate to serve HTTPS with")
    group.add_argument("--tls-server-key", metavar="FILE", type=Path, help="PEM private key of that certificate")
    group.add_argument(
        "--plain-http",
        action="store_true",
        help="listen beyond this machine without TLS: images and token can then be read on the network",
    )


def _add_limit_options(group: argparse._ArgumentGroup) -> None:
    limits = JobLimits()
    group.add_argument("--max-upload-gib", metavar="GIB", type=float, default=limits.max_upload_bytes / GIB)
    group.add_argument(
        "--max-unpacked-gib",
        metavar="GIB",
        type=float,
        default=limits.max_unpacked_bytes / GIB,
        help="what a zip or the voxels of a scan may unpack to (default: 4)",
    )
    group.add_argument("--max-files", metavar="N", type=int, default=limits.max_files, help="of one upload or zip")
    group.add_argument(
        "--min-free-gib", metavar="GIB", type=float, default=limits.min_free_bytes / GIB, help="left on the disk"
    )
    group.add_argument("--max-queued", metavar="N", type=int, default=limits.max_queued, help="jobs that wait")
    group.add_argument(
        "--keep-hours", metavar="H", type=float, default=limits.keep_s / 3600, help="results are kept (default: 24)"
    )
    group.add_argument("--keep-jobs", metavar="N", type=int, default=limits.keep_jobs, help="ended jobs kept at most")
    group.add_argument(
        "--work-dir",
        metavar="DIR",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="uploads and results are kept in a folder of the server's own in it, removed when it ends (default: the "
        "system's folder for temporary files)",
    )


def options_of(arguments: argparse.Namespace) -> ServeOptions:
    """What was asked for.

    Raises:
        InputError: an option can't be, or a server that others reach would not be protected.
    """
    return ServeOptions(
        listen=_listen(arguments),
        limits=_limits(arguments),
        roots=tuple(_root(folder) for folder in arguments.allow_path),
        work_dir=arguments.work_dir.absolute(),
        token_file=arguments.token_file,
    )


def _listen(arguments: argparse.Namespace) -> Listen:
    try:
        address = ipaddress.ip_address(arguments.bind)
    except ValueError as error:
        raise InputError(f"--bind takes an IP address of this machine; met {arguments.bind!r}.") from error
    if not 0 <= arguments.port < 65536:
        raise InputError(f"--port must be 0 to 65535; met {arguments.port}.")
    certificate, key = arguments.tls_server_cert, arguments.tls_server_key
    if (certificate is None) != (key is None):
        raise InputError("--tls-server-cert and --tls-server-key go together; one of them is missing.")
    if not address.is_loopback and certificate is None and not arguments.plain_http:
        raise InputError(
            f"{address} can be reached from other machines, where images and token could be read on the network; give "
            "--tls-server-cert and --tls-server-key, or --plain-http if something else protects the way."
        )
    if address.is_unspecified and not arguments.allow_host:
        raise InputError(f"--bind {address} needs --allow-host NAME: what clients call this machine.")
    own = _LOOPBACK_NAMES if address.is_loopback else ()
    bound = () if address.is_unspecified else (str(address),)
    names = dict.fromkeys(_host(name) for name in (*bound, *own, *arguments.allow_host))
    origins = tuple(_origin(origin) for origin in arguments.allow_origin)
    return Listen(str(address), arguments.port, tuple(names), origins, certificate, key)


def _host(name: str) -> str:
    """A host name as requests show it. Raises InputError for what is none, wildcards among it."""
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        if not name or not all(c.isascii() and (c.isalnum() or c in "-.") for c in name):
            raise InputError(f"--allow-host takes a host name without scheme and port; met {name!r}.") from None
        return name.lower()
    return f"[{address}]" if address.version == 6 else str(address)


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or text != f"{parts.scheme}://{parts.netloc}":
        raise InputError(f"--allow-origin takes scheme, host and port, such as https://viewer.example; met {text!r}.")
    return text.lower()


def _limits(arguments: argparse.Namespace) -> JobLimits:
    for name in ("max_upload_gib", "max_unpacked_gib", "max_files", "max_queued", "keep_hours", "keep_jobs"):
        if not 0 < getattr(arguments, name) < 1e9:
            option = name.replace("_", "-")
            raise InputError(f"--{option} must be greater than 0; met {getattr(arguments, name):g}.")
    if not 0 <= arguments.min_free_gib < 1e9:
        raise InputError(f"--min-free-gib must be 0 or more; met {arguments.min_free_gib:g}.")
    return JobLimits(
        max_upload_bytes=int(arguments.max_upload_gib * GIB),
        max_unpacked_bytes=int(arguments.max_unpacked_gib * GIB),
        max_files=arguments.max_files,
        min_free_bytes=int(arguments.min_free_gib * GIB),
        max_queued=arguments.max_queued,
        keep_s=arguments.keep_hours * 3600,
        keep_jobs=arguments.keep_jobs,
    )


def _root(folder: Path) -> Path:
    try:
        resolved = folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"--allow-path {folder} is not there or can't be read; name a folder.") from error
    if not resolved.is_dir():
        raise InputError(f"--allow-path {folder} is no folder; name one.")
    return resolved
