"""Tables, journal and progress of a cohort."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

pytest.importorskip("pyarrow", reason="needs the extra cluster")

import pyarrow.parquet as pq

from runtime.cohort.columns import FAILED_COLUMNS, RESERVED, SCAN_COLUMNS, VERTEBRA_COLUMNS, ScanRow
from runtime.cohort.dispatch import Attempt, WorkerInfo
from runtime.cohort.journal import History, Journal
from runtime.cohort.reporter import Reporter
from runtime.cohort.scan_table import CohortScan, ScanTable
from runtime.cohort.tables import Tables
from runtime.cohort.work import DONE, FAILED, LOST, Outcome
from runtime.engines.base import EngineInfo
from runtime.findings import (
    COMBINED,
    BundleInfo,
    Findings,
    Heights,
    Measured,
    NetworkOpinion,
    ScanInfo,
    Vertebra,
)

VERTEBRA = Vertebra(
    1, "T12", 0.91, (1.5, -2.5, 3.5), 0.83, True, 2, (0.05, 0.15, 0.7, 0.1), COMBINED, True, None, "crush",
    Heights(20.1, 15.2, 21.3), Heights(26.1, 25.2, 27.3), 0.31,
    NetworkOpinion(3, (0.01, 0.02, 0.03, 0.94), Heights(19.1, 14.2, 20.3), 0.42),
    Measured(1, 0.23, Heights(22.1, 17.2, 23.3)), 33.25, 151.5, 121.75, 7,
)  # fmt: skip
UNGRADED = replace(
    VERTEBRA, index=2, level=None, level_confidence=None, grade=None, grade_probabilities=None, grade_from=None,
    grades_differ=False, no_grade_reason="it is cut", shape=None, heights_mm=None, expected_heights_mm=None,
    height_loss=None, network=None, measured=None, mean_hu=None, trabecular_hu=None,
)  # fmt: skip
FINDINGS = Findings(
    ScanInfo("a", "f" * 64, (30, 20, 10), (0.5, 0.75, 2.0), "LPS"), BundleInfo("balls", "1.0", "b" * 64),
    EngineInfo("openvino", "2026", "fp32", "CPU", "asked for"), {"total": 3.25}, 512.5, ("Look.",),
    (VERTEBRA, UNGRADED),
)  # fmt: skip


@pytest.fixture
def listed(tmp_path):
    names = ["c", "a", "empty", "bad", "not yet"]
    scans = tuple(
        CohortScan(
            f"p-{n}", f"x/{n}.nii", tmp_path / f"{n}.nii", tmp_path / "out" / f"{n}.vertebrae", (f"{n}-site", "")
        )
        for n in names
    )
    (tmp_path / "out").mkdir()
    return ScanTable(scans, ("site", "note"), tmp_path)


def done(findings):
    return ScanRow(DONE, None, None, 1, 4.5, "host", "node", "x", findings)


@pytest.fixture
def written(listed, tmp_path):
    tables = Tables(listed, tmp_path / "out")
    tables.put(1, done(FINDINGS))
    tables.put(3, ScanRow(FAILED, LOST, 'it "died",\nthrice', 3, 0.0, "host", "node", "x", None))
    tables.put(2, done(replace(FINDINGS, vertebrae=())))
    tables.put(0, done(replace(FINDINGS, vertebrae=(UNGRADED,))))
    tables.write()
    return tmp_path / "out"


def test_rows_are_in_the_order_of_the_list_and_no_scan_vanishes(written):
    vertebrae = pq.read_table(written / "vertebrae.parquet").to_pylist()
    assert [(row["id"], row["vertebra"], row["site"]) for row in vertebrae] == [
        ("p-c", 2, "c-site"), ("p-a", 1, "a-site"), ("p-a", 2, "a-site"),
    ]  # fmt: skip
    scans = pq.read_table(written / "scans.parquet").to_pylist()
    assert [(row["id"], row["status"], row["vertebrae"], row["worst_grade"], row["note"]) for row in scans] == [
        ("p-c", "done", 1, None, None), ("p-a", "done", 2, 2, None), ("p-empty", "done", 0, None, None),
        ("p-bad", "failed", None, None, None), ("p-not yet", "waiting", None, None, None),
    ]  # fmt: skip
    assert scans[4]["results"] == "not yet.vertebrae"
    assert scans[1]["warnings"] == ["Look."]


def leaves(value):
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in leaves(one)]
    if isinstance(value, list | tuple):
        return [leaf for one in value for leaf in leaves(one)]
    return [value]


def test_everything_that_the_findings_say_of_a_vertebra_is_in_the_table(written):
    from runtime.findings import to_json

    rows = pq.read_table(written / "vertebrae.parquet").to_pylist()
    for vertebra, row in zip(json.loads(to_json(FINDINGS))["vertebrae"], rows[1:], strict=True):
        in_table = [value for name, value in row.items() if name in VERTEBRA_COLUMNS and value is not None]
        in_findings = [value for value in leaves(vertebra) if value is not None]
        assert sorted(map(str, in_table)) == sorted(map(str, in_findings))


def test_values_stand_under_their_names(written):
    row = pq.read_table(written / "vertebrae.parquet").to_pylist()[1]
    assert (row["centre_r_mm"], row["centre_a_mm"], row["centre_s_mm"]) == (1.5, -2.5, 3.5)
    assert (row["grade"], row["network_grade"], row["measured_grade"]) == (2, 3, 1)
    assert (row["grade_probability_2"], row["network_grade_probability_3"]) == (0.7, 0.94)
    assert (row["height_middle_mm"], row["expected_height_middle_mm"]) == (15.2, 25.2)
    assert (row["network_height_middle_mm"], row["measured_height_middle_mm"]) == (14.2, 17.2)
    assert (row["height_loss"], row["network_height_loss"], row["measured_height_loss"]) == (0.31, 0.42, 0.23)
    scan = pq.read_table(written / "scans.parquet").to_pylist()[1]
    assert [scan[f"voxels_{axis}"] for axis in "xyz"] == [10, 20, 30]
    assert [scan[f"spacing_{axis}_mm"] for axis in "xyz"] == [0.5, 0.75, 2.0]
    assert (scan["engine"], scan["bundle_sha256"], scan["analysis_s"]) == ("openvino", "b" * 64, 3.25)


def test_failures_are_listed_with_their_reasons(written):
    with (written / "failed.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["id", "scan", "site", "note", *FAILED_COLUMNS]
    assert (row["id"], row["failure"], row["reason"], row["runs"]) == ("p-bad", LOST, 'it "died",\nthrice', "3")


def test_tables_are_replaced_whole_and_a_scan_that_is_done_leaves_the_failed(written, listed):
    tables = Tables(listed, written)
    tables.put(3, done(FINDINGS))
    tables.write()
    assert (written / "failed.csv").read_text().count("\n") == 1
    assert sorted(path.name for path in written.iterdir()) == ["failed.csv", "scans.parquet", "vertebrae.parquet"]


def test_an_empty_cohort_has_tables_of_the_same_columns(written, listed):
    before = pq.read_schema(written / "vertebrae.parquet")
    Tables(listed, written).write()
    assert pq.read_schema(written / "vertebrae.parquet").equals(before, check_metadata=True)
    assert before.metadata[b"vertscan_table_version"] == b"1"


def test_every_own_column_is_reserved():
    assert {*VERTEBRA_COLUMNS, *SCAN_COLUMNS, *FAILED_COLUMNS} <= RESERVED


def attempt(status, *, number=0, seconds=2.0, is_last=True):
    outcome = Outcome(number, status, seconds, kind="" if status == DONE else LOST, reason="died")
    return Attempt(outcome, 1, WorkerInfo("host", "node", 7, "engine"), is_last)


def test_the_journal_tells_the_next_run_of_every_run_but_half_a_line(tmp_path):
    path = tmp_path / "runs.jsonl"
    journal = Journal(path)
    assert journal.before == {}
    journal.add("p1", "a.vertebrae", "run", attempt(FAILED, is_last=False))
    journal.add("p1", "a.vertebrae", "run", attempt(DONE, seconds=3.0))
    journal.add("p2", "b.vertebrae", "run", attempt(FAILED))
    journal.close()
    whole = path.read_bytes()
    for cut in (len(whole), len(whole) - 1, len(whole) - 40):
        path.write_bytes(whole[:cut])
        journal = Journal(path)
        journal.add("p3", "c.vertebrae", "run", attempt(DONE))
        journal.close()
        again = Journal(path)
        again.close()
        expected = {"a.vertebrae": History(2, "host", "node", 3.0), "c.vertebrae": History(1, "host", "node", 2.0)}
        if cut >= len(whole) - 1:
            expected["b.vertebrae"] = History(1)
        assert again.before == expected


def test_the_line_tells_rate_and_time_left():
    reporter = Reporter(io.StringIO(), 40, shows_progress=True)
    assert reporter.line(2, 0.0) == "0/40 scans, 2 workers"
    reporter.count(done=9, failed=1, before=10)
    assert reporter.line(2, 600.0) == ("20/40 scans, 10 done before, 1 failed, 2 workers, 60 scans/h, 20 min 00 s left")
    assert "left" not in Reporter(io.StringIO(), 0, shows_progress=True).line(1, 5.0)


def test_warnings_stay_and_the_line_goes():
    stream = io.StringIO()
    reporter = Reporter(stream, 3, shows_progress=True)
    reporter.tick(1)
    reporter.warn("a scan failed")
    reporter.finish()
    assert stream.getvalue().endswith("\rwarning: a scan failed\n")
    quiet = io.StringIO()
    reporter = Reporter(quiet, 3, shows_progress=False)
    reporter.tick(1)
    reporter.finish()
    assert quiet.getvalue() == ""
