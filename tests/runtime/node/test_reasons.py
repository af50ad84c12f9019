"""The reason of every series is in the node's log, also where none is run on."""

from __future__ import annotations

import pytest

from runtime.errors import InputError
from runtime.node.processor import PipelineProcessor
from runtime.readers import read_scan
from tests.runtime.node.studies import capture, make_study


class OnlyReads:
    """A pipeline that goes no further than reading."""

    def analyse(self, folder):
        return read_scan(folder)


def test_of_a_refused_study_the_reason_of_every_series_is_logged(tmp_path, caplog):
    (gone, *rest) = make_study(tmp_path / "one", study_uid="2.25.1", series_uid="2.25.11", slices=1).files
    assert rest == []
    holed = make_study(tmp_path / "two", study_uid="2.25.1", series_uid="2.25.12", slices=6)
    capture("2.25.1", "2.25.99", manufacturer="Others").save_as(tmp_path / "capture.dcm", enforce_file_format=True)
    files = [gone, *holed.files[:2], *holed.files[3:], tmp_path / "capture.dcm"]
    (tmp_path / "out").mkdir()
    with caplog.at_level("INFO", "runtime.node"), pytest.raises(InputError, match="misses 1 slices"):
        PipelineProcessor(OnlyReads(), ("sc",))(files, tmp_path / "out")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert all(line.startswith("Not read: series 1 (") for line in said)
    for reason in ("only one slice", "misses 1 slices", "no CT images but Secondary Capture Image (OT)"):
        assert sum(reason in line for line in said) == 1, said
