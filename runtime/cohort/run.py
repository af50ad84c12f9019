"""One run of a cohort: what its driver keeps of what the workers tell."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from runtime.cohort.columns import ScanRow
from runtime.cohort.dispatch import Attempt, WorkerInfo
from runtime.cohort.journal import History, Journal
from runtime.cohort.reporter import Reporter
from runtime.cohort.scan_table import CohortScan, ScanTable
from runtime.cohort.tables import Tables, where
from runtime.cohort.work import DONE, DONE_BEFORE, EXIT_STATUSES, FAILED, LOST, TIME, Orders, Task
from runtime.findings import Findings, from_json
from runtime.resume import finished_findings

_WRITE_EVERY_S = 60.0
_WRITE_SHARE = 20.0
"""Writing the tables takes at most one part in so many of the time."""


class CohortRun:
    """A ``runtime.cohort.dispatch.Watcher`` that writes journal and tables and tells the reporter.

    Args:
        orders: what the workers are told.
        listed: the scans.
        journal: of all runs.
        reporter: tells the person.
    """

    def __init__(self, orders: Orders, listed: ScanTable, journal: Journal, reporter: Reporter) -> None:
        self._orders, self._listed, self._output = orders, listed, orders.output
        self._journal, self._reporter = journal, reporter
        self._tables = Tables(listed, orders.output)
        self._runs: Counter[int] = Counter()
        self._statuses: dict[int, int] = {}
        self._before = 0
        self._engines: set[str] = set()
        self._next_writing_s = time.monotonic() + _WRITE_EVERY_S

    def load_complete(self) -> bool:
        """Put complete results that are there into the tables, of scans that these know nothing of; whether any was.

        At the start those of earlier runs, each of which is looked at again when its turn comes; at the end those of
        which the worker's word was still on its way.
        """
        found = False
        for number, scan in enumerate(self._listed.scans):
            if self._tables.knows(number):
                continue
            try:
                findings = finished_findings(
                    scan.folder,
                    bundle_sha256=self._orders.bundle_sha256,
                    outputs=self._orders.outputs,
                    named=self._orders.named,
                )
            except OSError:  # a worker will tell
                continue
            if findings is not None:
                self._tables.put(number, self._row_before(number, scan, findings))
                found = True
        return found

    @property
    def tasks(self) -> Sequence[Task]:
        """One for each scan, in the order of the list."""
        return [Task(number, scan.path, scan.folder) for number, scan in enumerate(self._listed.scans)]

    @property
    def status(self) -> int:
        """Exit status of the first scan in the list that failed, else 0."""
        return next((self._statuses[number] for number in sorted(self._statuses) if self._statuses[number]), 0)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Scans done in this run, done before it, and failed."""
        failed = sum(status != 0 for status in self._statuses.values())
        return len(self._statuses) - failed - self._before, self._before, failed

    def ended(self, attempt: Attempt) -> None:
        """Keep what a run of a scan gave."""
        if attempt.outcome.status == DONE_BEFORE and self._runs[attempt.outcome.number]:
            # Its worker died when the results were in place: they are this run's.
            attempt = replace(attempt, outcome=replace(attempt.outcome, status=DONE))
        outcome, scan = attempt.outcome, self._listed.scans[attempt.outcome.number]
        if outcome.status != DONE_BEFORE:
            self._runs[outcome.number] += 1
            self._journal.add(scan.id, where(scan, self._output), self._orders.run, attempt)
        if outcome.status == FAILED:
            self._tell_failure(scan, attempt)
        if not attempt.is_last:
            return
        self._before += outcome.status == DONE_BEFORE
        self._statuses[outcome.number] = EXIT_STATUSES[outcome.kind] if outcome.status == FAILED else 0
        self._tables.put(outcome.number, self._row(scan, attempt))
        done, before, failed = self.counts
        self._reporter.count(done=done, failed=failed, before=before)

    def _tell_failure(self, scan: CohortScan, attempt: Attempt) -> None:
        on = f" on {attempt.info.host}" if attempt.outcome.kind in (LOST, TIME) else ""
        then = "; it is given up" if attempt.attempt > 1 or attempt.outcome.may_pass else ""
        if not attempt.is_last:
            then = "; it will be tried again"
        self._reporter.warn(f"{scan.scan}: {attempt.outcome.reason.rstrip('.')}{on}{then}.")

    def _row(self, scan: CohortScan, attempt: Attempt) -> ScanRow:
        outcome, info = attempt.outcome, attempt.info
        results = where(scan, self._output)
        runs = self._journal.before.get(results, History()).runs + self._runs[outcome.number]
        if outcome.status == FAILED:
            times = f" ({attempt.attempt} times)" if attempt.attempt > 1 else ""
            return ScanRow(
                FAILED, outcome.kind, outcome.reason + times, runs, outcome.seconds, info.host, info.node, results, None
            )
        findings = from_json(outcome.findings)
        if outcome.status == DONE_BEFORE:
            return self._row_before(outcome.number, scan, findings)
        return ScanRow(DONE, None, None, runs, outcome.seconds, info.host, info.node, results, findings)

    def _row_before(self, number: int, scan: CohortScan, findings: Findings) -> ScanRow:
        results = where(scan, self._output)
        known = self._journal.before.get(results, History())
        host, node = known.host or None, known.node or None
        return ScanRow(DONE, None, None, known.runs + self._runs[number], known.seconds, host, node, results, findings)

    def joined(self, info: WorkerInfo) -> None:
        """Tell where workers compute with different engines: their findings differ a little."""
        if self._engines and info.engine not in self._engines:
            engines = "; ".join(sorted({*self._engines, info.engine}))
            self._reporter.warn(
                f"workers compute with different engines ({engines}); the table of scans says which. To "
                "have one, name it with --engine and --precision."
            )
        self._engines.add(info.engine)

    def died(self, reason: str) -> None:
        """Tell of a worker that died without a scan."""
        self._reporter.warn(f"{reason}; another one is asked for.")

    def tick(self, ready: int) -> None:
        """Redraw the progress, and write the tables when it is time."""
        self._reporter.tick(ready)
        start_s = time.monotonic()
        if start_s >= self._next_writing_s:
            self.write()
            now_s = time.monotonic()
            self._next_writing_s = now_s + max(_WRITE_EVERY_S, _WRITE_SHARE * (now_s - start_s))

    def write(self) -> None:
        """Write the tables."""
        self._tables.write()
