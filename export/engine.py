"""``python -m export.engine``: build a bundle's engines for TensorRT and TensorRT-RTX, list them, remove old ones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from runtime.argument_types import whole_from_one
from runtime.bundle import Bundle, open_bundle, write_bundle
from runtime.engines.trt_build import HARDWARE_COMPATIBILITY, BuildOptions, engine_file, why_stale
from runtime.engines.trt_cache import check_engine, engine_folder, list_engines, prune, read_sidecar
from runtime.engines.trt_gate import gate_for
from runtime.engines.trt_key import Sidecar
from runtime.engines.trt_library import MODULES
from runtime.errors import EngineError, InputError, VertscanError
from runtime.progress import NoProgress, Progress, TerminalProgress
from runtime.typed_graph import TYPED_PRECISIONS


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.engine",
        description=__doc__,
        epilog="Exit status: 0 done, 2 usage or input, 3 bundle or engine.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build the engines of a bundle's networks, unless they are there")
    build.add_argument("--bundle", type=Path, help="default: the one that ships")
    build.add_argument("--network", action="append", metavar="NAME", help="only this one, e.g. locnet; may be repeated")
    build.add_argument("--engine", choices=list(MODULES), help="default: the first of these that is installed")
    build.add_argument("--precision", choices=TYPED_PRECISIONS, default="fp16", help="default: fp16")
    build.add_argument("--device", metavar="N", type=int, default=0, help="which GPU (default: 0)")
    defaults = BuildOptions()
    build.add_argument(
        "--batch", metavar="N", type=whole_from_one, default=defaults.max_batch,
        help=f"largest batch, which the engine is tuned for (default: {defaults.max_batch})",
    )  # fmt: skip
    build.add_argument(
        "--workspace", metavar="MIB", type=whole_from_one, default=defaults.workspace_mb,
        help=f"scratch memory the builder may plan with (default: {defaults.workspace_mb})",
    )  # fmt: skip
    build.add_argument(
        "--targets", nargs="+", metavar="SM", default=[], help="tensorrt-rtx: build for these GPUs, e.g. 89 120"
    )
    build.add_argument("--hardware-compatibility", choices=HARDWARE_COMPATIBILITY, default="none")
    build.add_argument(
        "--version-compatible", action="store_true",
        help="newer versions of the library may load it; not loaded unless its hash is in the bundle",
    )  # fmt: skip
    build.add_argument(
        "--no-gate",
        action="store_true",
        help="install the engine without comparing it with the network; the runtime will before it uses it",
    )
    listing = commands.add_parser("list", help="what is there, and what of it this machine can use")
    listing.add_argument("--json", action="store_true", help="as JSON")
    cleaning = commands.add_parser(
        "prune", help="remove damaged engines and those that this machine can't use any more"
    )
    cleaning.add_argument("--bundle", type=Path, help="also those that aren't of this bundle's networks")
    cleaning.add_argument("--all", action="store_true", help="remove every engine")
    trusting = commands.add_parser(
        "trust", help="list version-compatible engines in a bundle, so that the runtime may load them"
    )
    trusting.add_argument("engines", metavar="ENGINE", nargs="+", type=Path, help="engine files that you built")
    trusting.add_argument("--bundle", type=Path, help="default: the one that ships")
    trusting.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="where the new bundle goes")
    for command in (build, listing, cleaning):
        command.add_argument(
            "-o", "--out", metavar="DIR", type=Path, help="where engines are (default: the user's cache)"
        )
        command.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    args = build_parser().parse_args(argv)
    commands = {"build": _build, "list": _list, "prune": _prune, "trust": _trust}
    try:
        commands[args.command](args)
    except VertscanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted: nothing was left behind", file=sys.stderr)
        return 130
    return 0


def _build(args: argparse.Namespace) -> None:
    bundle = open_bundle(args.bundle)
    options = BuildOptions(
        max_batch=args.batch,
        workspace_mb=args.workspace,
        targets=tuple(args.targets),
        hardware_compatibility=args.hardware_compatibility,
        version_compatible=args.version_compatible,
    )
    library = args.engine or _installed_library()
    for file in _files(bundle, args.network):
        onnx, progress = bundle.path_of(file), _progress(args)
        gate = None if args.no_gate else gate_for(onnx, precision=args.precision, library=library, device=args.device)
        try:
            path = engine_file(
                onnx, precision=args.precision, library=library, device=args.device, options=options,
                plan=bundle.spec.precision.get(file), folder=args.out, progress=progress, gate=gate,
            )  # fmt: skip
        finally:
            progress.finish()
        print(_described(path, read_sidecar(path)))


def _installed_library() -> str:
    for name, module in MODULES.items():
        if find_spec(module) is not None:
            return name
    raise EngineError(f"None of {', '.join(MODULES)} is installed; install one, e.g. with: pip install tensorrt-rtx")


def _files(bundle: Bundle, names: Sequence[str] | None) -> list[str]:
    """The network files to build. Raises InputError when one that is asked for isn't there."""
    files = [network.file for network in bundle.spec.networks]
    asked = [name.removesuffix(".onnx") + ".onnx" for name in names or files]
    unknown = [name for name in asked if name not in files]
    if unknown:
        raise InputError(f"The bundle has no network {', '.join(unknown)}; it has {', '.join(files)}.")
    return asked


def _list(args: argparse.Namespace) -> None:
    folder = args.out or engine_folder()
    found = list(list_engines(folder)) if folder.exists() else []
    if args.json:
        print(json.dumps([_as_json(path, one) for path, one in found], indent=1))
        return
    for path, one in found:
        print(f"{path}: damaged: {one}" if isinstance(one, EngineError) else _described(path, one))
    if not found:
        print(f"no engines in {folder}" + ("" if folder.exists() else ", which is not there yet"))


def _prune(args: argparse.Namespace) -> None:
    hashes = set(open_bundle(args.bundle).spec.files.values()) if args.bundle else None

    def is_kept(sidecar: Sidecar) -> bool:
        of_bundle = hashes is None or sidecar.key.onnx_sha256 in hashes
        return not args.all and of_bundle and not why_stale(sidecar)

    folder = args.out or engine_folder()
    removed = prune(folder, is_kept)
    for path in removed:
        print(f"removed {path}")
    print(f"{len(removed)} files removed from {folder}")


def _trust(args: argparse.Namespace) -> None:
    bundle = open_bundle(args.bundle)
    digests = {path.name: _to_trust(path, bundle) for path in args.engines}
    spec = replace(bundle.spec, trusted_engines={**bundle.spec.trusted_engines, **digests})
    written = write_bundle(spec, {name: bundle.path_of(name) for name in spec.files}, args.out)
    for name, digest in digests.items():
        print(f"{name}: sha256 {digest}")
    print(f"{written.folder}: trusts {len(spec.trusted_engines)} engines")


def _to_trust(path: Path, bundle: Bundle) -> str:
    """The digest of an engine file that a bundle may list. Raises InputError where listing it makes no sense."""
    sidecar = check_engine(path, trusted=(read_sidecar(path).sha256,))
    if not sidecar.host_code:
        raise InputError(f"{path} carries no code for the host: it is loaded without being listed.")
    if bundle.spec.files.get(sidecar.key.network) != sidecar.key.onnx_sha256:
        raise InputError(f"{path} was built from another {sidecar.key.network} than this bundle's.")
    return sidecar.sha256


def _described(path: Path, sidecar: Sidecar) -> str:
    key, build = sidecar.key, sidecar.build
    target = build.gpu or f"SM {', '.join(build.targets)}"
    gate = f"passed by {' and '.join(sidecar.gates)}" if sidecar.gates else "not asked"
    stale = why_stale(sidecar)
    return (
        f"{path}\n  {key.network} {key.precision}, batch 1..{key.max_batch}, {key.library} {key.library_version}, for "
        f"{target}; {sidecar.size / 2**20:.1f} MiB, built {sidecar.built} in {sidecar.build_s:.1f} s; gate: {gate}; "
        f"sha256 {sidecar.sha256[:16]}" + (f"\n  cannot be used any more: {stale}" if stale else "")
    )


def _as_json(path: Path, found: Sidecar | EngineError) -> dict[str, object]:
    if isinstance(found, EngineError):
        return {"path": str(path), "damaged": str(found)}
    return {"path": str(path), **asdict(found), "stale": why_stale(found)}


def _progress(args: argparse.Namespace) -> Progress:
    return NoProgress() if args.quiet or not sys.stderr.isatty() else TerminalProgress(sys.stderr, "engine")


if __name__ == "__main__":
    sys.exit(main())
