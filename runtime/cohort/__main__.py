"""``python -m runtime.cohort SCANS.csv -o DIR [--address ...]``: many scans over the machines of a Ray cluster.

Exit status: 0 all done, 2 usage, list or a scan refused, 3 bundle or engine, 4 out of memory, 5 workers of the cluster
died or a scan took too long, 130 interrupted, 1 a defect of this software. Of several scans that fail, the first one's
status is given.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from runtime.console import interrupted_by_sigterm, say, shown, status_after
from runtime.extras import stop_without

if TYPE_CHECKING:
    from runtime.cohort.output_folder import OutputLock
    from runtime.cohort.run import CohortRun
    from runtime.cohort.scan_table import ScanTable
    from runtime.cohort.work import Opener, Orders

# What takes time to import is imported inside ``main``, where Ctrl-C ends it as it ends the rest.


def main(argv: Sequence[str] | None = None, *, opener: Opener | None = None) -> int:
    """Run the command line and return its exit status; argparse itself exits with 2 on wrong usage.

    Args:
        argv: the arguments.
        opener: opens the networks on the workers; None for the usual way.
    """
    debug = False
    try:
        from runtime.cohort.options import build_parser

        arguments = build_parser().parse_args(argv)
        debug = arguments.debug
        return _run(arguments, opener)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  users get a message, never a trace
        return status_after(
            error,
            interrupted="interrupted; what is done is kept, and the same command goes on from there",
            out_of_memory="out of memory in the driver; the scans' own results are kept. Close other programs and run "
            "it again",
            debug=debug,
        )


def _run(arguments: argparse.Namespace, opener: Opener | None) -> int:
    """Check everything that can be checked before anything starts, then run the scans."""
    try:
        from runtime.cohort import ray_crew  # noqa: F401
        from runtime.cohort.tables import Tables  # noqa: F401
    except ModuleNotFoundError as error:
        stop_without("cluster", error)
    from runtime.cohort.columns import RESERVED
    from runtime.cohort.output_folder import close_output, open_output
    from runtime.cohort.scan_table import read_scan_table

    output = arguments.output_dir.absolute()
    listed = read_scan_table(arguments.list, output=output, root=arguments.root, reserved=RESERVED)
    orders = _orders(arguments, listed, output)
    folders = [scan.folder for scan in listed.scans]
    lock = open_output(output, orders.run, folders=folders, on_wait=_tell_of_waiting)
    try:
        return _run_on_cluster(arguments, listed, orders, lock, opener)
    finally:
        close_output(lock, folders=folders)


def _tell_of_waiting() -> None:
    print("an earlier run is still ending; waiting for it", file=sys.stderr)


def _orders(arguments: argparse.Namespace, listed: ScanTable, output: Path) -> Orders:
    from runtime.bundle import open_bundle
    from runtime.cohort.work import Orders
    from runtime.infer_options import outputs_of
    from runtime.version import software_version

    bundle = None if arguments.bundle is None else arguments.bundle.absolute()
    return Orders(
        run=uuid.uuid4().hex,
        output=output,
        root=listed.root,
        bundle=bundle,
        bundle_sha256=open_bundle(bundle).sha256,
        engine=arguments.engine,
        precision=arguments.precision,
        exhaustive=arguments.exhaustive,
        threads=1,
        outputs=outputs_of(arguments, [scan.path for scan in listed.scans]),
        accept_gaps=arguments.accept_gaps,
        version=software_version(),
        memory_gib=arguments.memory,
    )


def _run_on_cluster(
    arguments: argparse.Namespace, listed: ScanTable, orders: Orders, lock: OutputLock, opener: Opener | None
) -> int:
    from dataclasses import replace

    from runtime.cohort.dispatch import Dispatcher
    from runtime.cohort.journal import JOURNAL_FILE, Journal
    from runtime.cohort.ray_crew import RayCrew, joined_cluster, plan
    from runtime.cohort.reporter import Reporter
    from runtime.cohort.run import CohortRun
    from runtime.cohort.work import open_pipeline

    with contextlib.closing(Journal(orders.output / JOURNAL_FILE)) as journal, _terminal_for_us_alone() as stream:
        talks = stream.isatty() and not arguments.quiet
        reporter = Reporter(stream, len(listed.scans), shows_progress=talks)
        with joined_cluster(arguments.address), interrupted_by_sigterm():
            planned = plan(workers=arguments.workers, cpus=arguments.cpus_per_worker, gpus=arguments.gpus_per_worker)
            run = CohortRun(orders, listed, journal, reporter)
            run.load_complete()
            orders = replace(orders, threads=planned.share.cpus)
            try:
                with RayCrew(orders, planned.share, opener or open_pipeline) as crew:
                    Dispatcher(
                        crew,
                        run,
                        workers=planned.workers,
                        retries=arguments.retries,
                        time_limit_s=arguments.time_limit or None,
                    ).run(run.tasks)
            finally:
                reporter.finish()
                run.load_complete()
                run.write()
                # A worker that was ended may have put its last results just now; alone here, nobody does any more.
                if lock.take_alone(wait_s=5.0) and run.load_complete():
                    run.write()
    _tell_the_end(run, orders.output)
    return run.status


def _tell_the_end(run: CohortRun, output: Path) -> None:
    from runtime.cohort.tables import FAILED_FILE

    done, before, failed = run.counts
    parts = [f"{done} scans done", *([f"{before} were done before"] if before else []), f"{failed} failed"]
    reasons = f", reasons in {shown(output / FAILED_FILE)}" if failed else ""
    say(f"{', '.join(parts)}{reasons}\nresults in {shown(output)}", else_say="; the results are on disk")


@contextlib.contextmanager
def _terminal_for_us_alone() -> Iterator[TextIO]:
    """The stream of stderr; what Ray prints meanwhile, from threads of its own and on both streams, goes nowhere."""
    stream = sys.stderr
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        yield stream


if __name__ == "__main__":
    sys.exit(main())
