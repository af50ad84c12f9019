"""Scans one after the other over one open pipeline, each read while the networks run on the one before it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.console import complain, internal_error, say, shown
from runtime.errors import OutOfMemoryError, OverLimitError, VertscanError
from runtime.findings import Findings, to_json
from runtime.memory import give_back_memory
from runtime.memory_limit import GIB, MemoryLimit
from runtime.output import Outputs, write_results
from runtime.progress import NoProgress, Progress, TerminalProgress
from runtime.read_ahead import Begun, one_ahead
from runtime.readers import scan_name
from runtime.report import table
from runtime.resume import DoneBefore, Named, prepare_unless_done
from runtime.series import reading_options

if TYPE_CHECKING:
    from runtime.pipeline import Analysis, Pipeline, PreparedScan

logger = logging.getLogger(__name__)

Job = tuple[Path, Path]
"""A scan and the folder of its results."""


class ScanRunner:
    """Runs scans, writes their results and tells of them; a scan that fails does not stop the others.

    Args:
        pipeline: the open networks.
        arguments: of ``runtime.infer``.
        outputs: what is written of each scan.
        is_list: whether there may be several scans: findings then go one to a line.
        talks: whether progress is shown on stderr.
    """

    def __init__(
        self, pipeline: Pipeline, arguments: argparse.Namespace, outputs: Outputs, *, is_list: bool, talks: bool
    ) -> None:
        self._pipeline, self._arguments, self._outputs = pipeline, arguments, outputs
        self._is_list, self._talks = is_list, talks
        self._limit: MemoryLimit | None = None
        if arguments.memory is not None:
            self._limit = MemoryLimit(arguments.memory * GIB, pipeline.spec, writes_dicom=bool(outputs.dicom))
        self._progress: Progress = NoProgress()

    def run(self, jobs: Sequence[Job]) -> int:
        """The status of the first scan that failed, else 0."""
        statuses, skipped = [], 0
        try:
            for job, begun in one_ahead(self._prepare, jobs, on_wait=self._show):
                status, was_done = self._finish(job, begun)
                if self._limit is not None:
                    self._limit.through(job)
                statuses.append(status)
                skipped += was_done
        finally:  # an interrupt may come while a scan is waited for
            self._progress.finish()
        if len(jobs) > 1 and not self._arguments.json:
            failed = sum(status != 0 for status in statuses)
            parts = [f"{len(jobs) - failed - skipped} scans done", f"{skipped} were done before", f"{failed} failed"]
            say(", ".join(parts if self._arguments.resume else parts[::2]))
        return next((status for status in statuses if status), 0)

    def _show(self, job: Job) -> None:
        self._progress = TerminalProgress(sys.stderr, scan_name(job[0])) if self._talks else NoProgress()
        self._progress.stage("read")

    def _prepare(self, job: Job) -> PreparedScan | DoneBefore:
        """What comes before the networks; on a thread of its own."""
        scan, folder = job
        reading = reading_options(self._arguments)
        if self._limit is not None:
            reading = self._limit.applied_to(reading, job)
        if not self._arguments.resume:
            return self._pipeline.prepare(scan, reading=reading)
        named = Named(self._arguments.engine, self._arguments.precision, self._arguments.exhaustive)
        return prepare_unless_done(self._pipeline, scan, folder, outputs=self._outputs, named=named, reading=reading)

    def _finish(self, job: Job, begun: Begun[PreparedScan | DoneBefore]) -> tuple[int, bool]:
        """Run the networks and write the results; the status, and whether they were there already.

        What fails is told on stderr.
        """
        scan, folder = job
        try:
            try:
                outcome = self._analysed(job, begun)
            finally:
                self._progress.finish()
        except VertscanError as error:
            complain(f"{scan}: {error}")
            return error.exit_status, False
        except MemoryError:
            complain(f"{scan}: out of memory while its results were written; close other programs or crop the scan.")
            return OutOfMemoryError.exit_status, False
        except Exception as error:  # noqa: BLE001  a defect met in one scan does not stop the others
            return internal_error(error, debug=self._arguments.debug), False
        findings, notice, was_done = outcome
        if self._arguments.json:
            text = to_json(findings, indent=None if self._is_list else 2)
        elif was_done:
            text = f"{scan_name(scan)}: done before, results in {shown(folder)}\n"
        else:
            text = f"{table(findings, notice=notice)}\n\nresults in {shown(folder)}\n"
        say(text, else_say="; the results are on disk")
        return 0, was_done

    def _analysed(self, job: Job, begun: Begun[PreparedScan | DoneBefore]) -> tuple[Findings, str, bool]:
        """Findings, what the table must say of the bundle, and whether an earlier run had made them."""
        outcome = self._beside_others(job, begun)
        if outcome is None:
            logger.info("%s did not fit in memory beside another scan; it is run again alone", job[0])
            if begun.following is not None and self._following_takes_room(job, begun):
                begun.following.drop()
            give_back_memory()
            self._progress.stage("read")
            outcome = self._analysis_of(self._prepare(job))
        if isinstance(outcome, DoneBefore):
            return outcome.findings, "", True
        findings = write_results(outcome, job[1], outputs=self._outputs, progress=self._progress)
        return findings, outcome.notice, False

    def _beside_others(self, job: Job, begun: Begun[PreparedScan | DoneBefore]) -> Analysis | DoneBefore | None:
        """What came of a scan; None where memory ran out while another scan took a part of it.

        All that the try had in memory is free again when this returns, the error with it.
        """
        was_taken = False
        try:
            prepared = begun.take()
            was_taken = True
            return self._analysis_of(prepared)
        except OverLimitError:
            raise
        except OutOfMemoryError:
            if not (self._following_takes_room(job, begun) if was_taken else begun.beside_another):
                raise
        return None

    def _following_takes_room(self, job: Job, begun: Begun[PreparedScan | DoneBefore]) -> bool:
        """Whether the next scan has memory already; one that a limit keeps waiting has none until this one is through.

        To be asked when memory ran out: a limit lets no further one in then.
        """
        return begun.following is not None and (self._limit is None or self._limit.keep_alone(job))

    def _analysis_of(self, prepared: PreparedScan | DoneBefore) -> Analysis | DoneBefore:
        if isinstance(prepared, DoneBefore):
            return prepared
        return self._pipeline.analyse(prepared, progress=self._progress)
