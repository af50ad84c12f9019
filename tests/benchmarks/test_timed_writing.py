"""The seconds of writing hold what comes after the findings were made."""

import time

import numpy as np
import pytest

from benchmarks.timed_writing import timed_writing
from runtime.disk import flush_with_files
from runtime.progress import NoProgress
from runtime.volume import Grid, Volume
from tests.runtime.dicom.series import analysis_of


def test_bringing_results_onto_the_disk_counts_as_writing(tmp_path, monkeypatch) -> None:
    def slowly(folder):
        time.sleep(0.5)
        flush_with_files(folder)

    monkeypatch.setattr("runtime.output.flush_with_files", slowly)
    scan = Volume(np.zeros((20, 12, 12), np.int16), Grid((20, 12, 12), np.eye(4)))
    start_s = time.perf_counter()
    findings, times = timed_writing(analysis_of(scan), tmp_path / "out", progress=NoProgress())
    took_s = time.perf_counter() - start_s
    said = findings.timings_s
    assert 0.5 <= times["write"] - said["write"] < took_s
    assert times["total"] - said["total"] == pytest.approx(times["write"] - said["write"])
    assert times["total"] == pytest.approx(1.0 + took_s, abs=0.05)
