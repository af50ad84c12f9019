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

from runtime.console import interrupted_by_sigterm, status_after
from runtime.errors import InputError
from runtime.infer_options import build_parser, outputs_of, server_of
from runtime.memory import keep_freed_memory

# What takes time to import is imported inside ``main``, where Ctrl-C ends it as it ends the rest.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; argparse itself exits with 2 on wrong usage."""
    debug = False
    try:
        arguments = build_parser().parse_args(argv)
        debug = arguments.debug
        talks = sys.stderr.isatty() and not arguments.quiet
        handler = logging.StreamHandler(sys.stderr) if talks else logging.NullHandler()
        with interrupted_by_sigterm(and_sighup=True), _log_to(handler):
            return _run(arguments, talks=talks)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  users get a message, never a trace
        return status_after(
            error,
            interrupted="interrupted; no half-written result was left",
            out_of_memory="out of memory while the networks were loaded; close other programs or allow more memory",
            debug=debug,
        )


def _run(arguments: argparse.Namespace, *, talks: bool) -> int:
    """Run all scans over one open pipeline; the status of the first that failed, else 0."""
    from runtime.output import check_is_kept, check_replaceable, result_folders
    from runtime.scan_list import list_scans

    scans, is_list = list_scans(arguments.scans)
    paths = [scan.path for scan in scans]
    outputs = outputs_of(arguments, paths)
    under = [scan.under for scan in scans] if is_list else None
    folders = result_folders(paths, arguments.output_dir, under=under)
    for scan, folder in zip(paths, folders, strict=True):
        check_is_kept(scan, folder)
        check_replaceable(folder)
    if arguments.series is not None and len(scans) > 1:
        raise InputError(f"--series names one series; met {len(scans)} scans. Run them one by one.")
    server = server_of(arguments)
    if len(scans) > 1 and arguments.memory is None:
        keep_freed_memory()
    from runtime.pipeline import Pipeline
    from runtime.scan_runner import ScanRunner

    with Pipeline.open(
        arguments.bundle,
        engine=arguments.engine,
        precision=arguments.precision,
        device=arguments.device,
        server=server,
        exhaustive=arguments.exhaustive,
    ) as pipeline:
        runner = ScanRunner(pipeline, arguments, outputs, is_list=is_list, talks=talks)
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


if __name__ == "__main__":
    sys.exit(main())
