"""What a run's driver keeps of what its workers tell, and of what they did not live to tell."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

pytest.importorskip("pyarrow", reason="needs the extra cluster")

import pyarrow.parquet as pq

from runtime.bundle import open_bundle
from runtime.cohort.dispatch import Attempt, WorkerInfo
from runtime.cohort.journal import JOURNAL_FILE, Journal
from runtime.cohort.output_folder import close_output, open_output
from runtime.cohort.reporter import Reporter
from runtime.cohort.run import CohortRun
from runtime.cohort.scan_table import CohortScan, ScanTable
from runtime.cohort.tables import SCANS_FILE
from runtime.cohort.work import DONE_BEFORE, FAILED, LOST, Orders, Outcome, Worker
from runtime.output import Outputs
from runtime.version import software_version

INFO = WorkerInfo("host", "node", 1, "any engine")


@pytest.fixture
def orders(tmp_path, ball_bundle):
    return Orders(
        run="run", output=tmp_path / "out", root=tmp_path, bundle=ball_bundle,
        bundle_sha256=open_bundle(ball_bundle).sha256, engine="openvino", precision="fp32", exhaustive=False, threads=1,
        outputs=Outputs(overview=False), accept_gaps=False, version=software_version(),
    )  # fmt: skip


@pytest.fixture
def run(orders, tmp_path, ball_scan, save):
    scan = save(ball_scan(2).volume, tmp_path / "a.nii.gz")
    folders = [orders.output / f"{name}.vertebrae" for name in "ab"]
    listed = ScanTable(
        tuple(CohortScan(f"p-{f.stem}", f.stem, scan, f, ()) for f in folders), (), tmp_path
    )  # fmt: skip
    lock = open_output(orders.output, "run", folders=folders, on_wait=lambda: None)
    journal = Journal(orders.output / JOURNAL_FILE)
    yield CohortRun(orders, listed, journal, Reporter(io.StringIO(), 2, shows_progress=False))
    journal.close()
    close_output(lock, folders=folders, wait_s=0)


def rows(orders):
    return {row["id"]: row for row in pq.read_table(orders.output / SCANS_FILE).to_pylist()}


def test_results_made_otherwise_than_named_are_no_results_of_this_run(run, orders):
    Worker(orders).run(run.tasks[0])
    run._orders = replace(orders, exhaustive=True)
    assert not run.load_complete()
    run._orders = replace(orders, precision="bf16")
    assert not run.load_complete()
    run._orders = replace(orders, engine="auto", precision="auto")
    assert run.load_complete()


def test_complete_results_that_nobody_told_of_are_in_the_tables(run, orders):
    assert not run.load_complete()
    Worker(orders).run(run.tasks[0])  # and is ended before its word arrives
    assert run.load_complete()
    assert not run.load_complete()
    run.write()
    assert {name: row["status"] for name, row in rows(orders).items()} == {"p-a": "done", "p-b": "waiting"}


def test_a_worker_that_died_with_the_results_in_place_has_done_them_in_this_run(run, orders):
    task = run.tasks[0]
    findings = Worker(orders).run(task).findings
    lost = Outcome(task.number, FAILED, 1.0, kind=LOST, reason="it died", may_pass=True)
    run.ended(Attempt(lost, 1, INFO, is_last=False))
    run.ended(Attempt(Outcome(task.number, DONE_BEFORE, 0.1, findings=findings), 2, INFO, is_last=True))
    run.write()
    row = rows(orders)["p-a"]
    assert (row["status"], row["runs"]) == ("done", 2)
    assert run.counts == (1, 0, 0)
    assert '"done"' in (orders.output / JOURNAL_FILE).read_text().splitlines()[-1]
