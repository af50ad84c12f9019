"""The archive of the benchmarks, made strict about its callers, with DICOMweb, and asked for results."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import benchmarks.orthanc
from runtime.errors import InputError
from tests.runtime.node.peers import ARCHIVE, NODE

PLUGINS = Path("/usr/share/orthanc/plugins")
FORWARD = """
function OnStableStudy(study, tags, metadata)
  RestApiPost('/modalities/node/store', DumpJson({ Resources = { study }, Synchronous = false }, true))
end
"""
"""Sends every study that has become stable to the node, results that came back included."""


def installed() -> None:
    """Skips the test with the reason where Orthanc or its plugin for DICOMweb isn't."""
    try:
        benchmarks.orthanc.installed()
    except InputError as error:
        pytest.skip(str(error))
    if not (PLUGINS / "libOrthancDicomWeb.so").exists():
        pytest.skip("Orthanc's DICOMweb is not installed; on Debian: apt-get install orthanc-dicomweb")


class Orthanc(benchmarks.orthanc.Orthanc):
    """One archive; its data stay over ``kill`` and ``start``."""

    def __init__(self, folder: Path, node_port: int, **settings: Any) -> None:
        node = {
            "AET": NODE,
            "Host": "127.0.0.1",
            "Port": node_port,
            "AllowGet": True,
            "AllowMove": True,
            "AllowFind": True,
            "AllowStore": True,
            "AllowStorageCommitment": True,
            "UseDicomTls": bool(settings.get("DicomTlsEnabled")),
        }
        strict = {
            "Name": "archive",
            "DicomAet": ARCHIVE,
            "DicomCheckCalledAet": True,
            "DicomCheckModalityHost": True,
            "StrictAetComparison": True,
            "DicomAlwaysAllowStore": False,
            "DicomAlwaysAllowEcho": False,
            "DicomScuTimeout": 120,
            "DicomScpTimeout": 120,
            "StableAge": 60,
            "ConcurrentJobs": 1,
            "DicomModalities": {"node": node},
            "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        super().__init__(folder, node_port, **(strict | settings))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "forward.lua").write_text(FORWARD)

    @property
    def web_url(self) -> str:
        """The address of its DICOMweb server."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def instances(self, study_uid: str, modality: str = "") -> list[dict[str, Any]]:
        """Main tags of a study's instances, of one modality if it is given."""
        query = {"StudyInstanceUID": study_uid, **({"Modality": modality} if modality else {})}
        return self.post("/tools/find", {"Level": "Instance", "Expand": True, "Query": query})

    def results(self, study_uid: str) -> list[str]:
        """SOP instance UIDs of what is in a study beside its CT images."""
        images = {one["MainDicomTags"]["SOPInstanceUID"] for one in self.instances(study_uid, "CT")}
        everything = [one["MainDicomTags"]["SOPInstanceUID"] for one in self.instances(study_uid)]
        return [uid for uid in everything if uid not in images]

    def stays(self, study_uid: str, count: int, seconds: float) -> None:
        """Assert that for so long a study has exactly so many results."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            assert len(self.results(study_uid)) == count
            time.sleep(0.2)
