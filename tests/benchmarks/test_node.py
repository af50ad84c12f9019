"""How the node command reads the node's own records; the node itself is measured by hand, beside a real Orthanc."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.readers import read_scan
from runtime.volume import Grid, Volume

pytest.importorskip("pynetdicom", reason="the extra 'node' is not installed")
if sys.platform == "win32":
    pytest.skip("the node needs POSIX file locks", allow_module_level=True)

from benchmarks.node import IDLE_S, NETWORKS_ALONE, PROCESSOR_ALONE, REST, judged, stages_of, write_study
from benchmarks.orthanc import Orthanc

KEY = "0123456789abcdef"
LOG = f"""
2026-11-28 10:00:03,000 INFO study ffffffffffffffff: seconds: read 9.00, locate 9.00, objects 9.00
2026-11-28 10:00:12,000 INFO study {KEY}: seconds: read 0.50, locate 4.00, segment 2.00, objects 1.25
2026-11-28 10:00:12,100 INFO study {KEY}: networks: 5.500
2026-11-28 10:00:12,101 INFO study {KEY}: processor: 3.250
"""


def test_stages_come_from_queue_audit_and_log():
    study = {"key": KEY, "first_s": 100.0, "last_s": 104.0}
    events = [("complete", 106.2), ("analysis begins", 106.5), ("results ready", 114.5), ("delivered", 114.9),
              ("delivered", 115.5)]  # fmt: skip
    stages = stages_of(study, events, LOG)
    assert stages["receive"] == 4.0
    assert stages["read"] == 0.5
    assert stages["around these"] == pytest.approx(0.25)
    assert stages["send"] == pytest.approx(1.0)
    assert (stages[NETWORKS_ALONE], stages[PROCESSOR_ALONE]) == (5.5, 3.25)
    assert stages[REST] == pytest.approx(115.5 - 104.0 - 5.5 - IDLE_S)
    parts = [
        seconds for name, seconds in stages.items() if name not in (NETWORKS_ALONE, PROCESSOR_ALONE, REST, "receive")
    ]
    assert sum(parts) == pytest.approx(115.5 - 104.0)


def test_sessions_on_a_gpu_are_counted_by_their_stages():
    study = {"key": KEY, "first_s": 0.0, "last_s": 0.0}
    events = [("complete", 2.0), ("analysis begins", 2.0), ("results ready", 10.0), ("delivered", 10.0)]
    untimed = "\n".join(line for line in LOG.splitlines() if "networks:" not in line)
    assert stages_of(study, events, untimed)[NETWORKS_ALONE] == 6.0


def test_what_is_over_its_bound_is_said_to_be():
    assert "NOT under 5 s" in judged(REST, 5.2, 5.0, "s")
    assert "NOT" in judged(REST, 5.0, 5.0, "s")
    assert "NOT" not in judged(REST, 4.9, 5.0, "s")


def test_the_study_that_is_sent_is_the_volume(tmp_path):
    array = np.random.default_rng(0).integers(-1000, 1500, (5, 8, 6)).astype(np.int16)
    affine = np.diag([0.8, 0.9, 2.5, 1.0])
    affine[:3, 3] = [-40, 12, -300]
    volume = Volume(array, Grid(array.shape, affine), "v")
    _, files = write_study(volume, tmp_path / "study")
    read = read_scan(tmp_path / "study")
    assert len(files) == 5
    np.testing.assert_array_equal(read.array, array)
    np.testing.assert_allclose(read.grid.affine_ras, affine, atol=1e-6)


def test_without_orthanc_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *arguments, **options: None)
    with pytest.raises(InputError, match="Orthanc is not installed"):
        Orthanc(tmp_path, 1)
