"""One open pipeline of small networks that find balls, scans for it, and servers over it."""

from __future__ import annotations

import zipfile
from contextlib import ExitStack

import pytest
from pydicom.uid import generate_uid

from runtime.pipeline import Pipeline
from tests.pacs.scan_study import write_scan
from tests.runtime.conftest import make_scan, save_scan
from tests.runtime.serve.servers import server


@pytest.fixture(scope="session")
def pipeline(ball_bundle):
    with Pipeline.open(ball_bundle, engine="openvino", precision="fp32") as opened:
        yield opened


@pytest.fixture
def serve(pipeline, tmp_path):
    """Starts servers that end with the test; another pipeline by keyword."""
    with ExitStack() as stack:
        count = iter(range(100))

        def start(*arguments, over=pipeline, **options):
            return stack.enter_context(server(over, tmp_path / f"server{next(count)}", *arguments, **options))

        yield start


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """A folder with scans: two.nii.gz, three.nii, broken.nii.gz, and three balls as DICOM, as files and as a zip."""
    folder = tmp_path_factory.mktemp("scans")
    save_scan(make_scan(2).volume, folder / "two.nii.gz")
    save_scan(make_scan(3, orientation="PIR").volume, folder / "three.nii")
    (folder / "broken.nii.gz").write_bytes(b"no scan at all")
    scan = make_scan(3, orientation="LPS").volume
    study = write_scan(folder / "series", scan, study_uid=generate_uid(None), series_uid=generate_uid(None))
    with zipfile.ZipFile(folder / "series.zip", "w") as archive:
        for file in study.files:
            archive.write(file, file.name)
    return folder
