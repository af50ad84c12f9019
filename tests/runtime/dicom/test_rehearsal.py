"""The rehearsal goes the way that results go, and leaves nothing behind."""

from __future__ import annotations

import tempfile

import pydicom
import pytest

pytest.importorskip("highdicom", reason="the extra 'dicom' is not installed")

from runtime.dicom import KINDS, rehearsal
from runtime.dicom.writer import write_dicom


def test_it_makes_every_kind_that_is_asked_for_and_leaves_no_file(tmp_path, monkeypatch):
    written = {}

    def watched(analysis, folder, kinds):
        write_dicom(analysis, folder, kinds)
        written.update({path.stem: pydicom.dcmread(path) for path in folder.glob("*.dcm")})

    monkeypatch.setattr(rehearsal, "write_dicom", watched)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rehearsal.rehearse(KINDS)
    assert set(written) == set(KINDS)
    assert list(tmp_path.iterdir()) == []
    (segment,) = written["seg"].SegmentSequence
    assert segment.SegmentLabel == "L1"
    codes = {item.ConceptNameCodeSequence[0].CodeValue for item in _items(written["sr"])}
    assert {"GENANT", "P-GENANT-3", "HEIGHT-MID-MEAS", "HU-TRABECULAR", "LOSS-NET"} <= codes


def test_it_makes_no_more_than_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(rehearsal, "write_dicom", lambda analysis, folder, kinds: asked.append(kinds))
    rehearsal.rehearse(("sr",))
    assert asked == [("sr",)]


def _items(item):
    for child in item.get("ContentSequence", ()):
        yield child
        yield from _items(child)
