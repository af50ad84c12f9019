"""A real Orthanc on free loopback ports, started and stopped by process id."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.node.peers import ARCHIVE, NODE, free_port, wait_until

PLUGINS = Path("/usr/share/orthanc/plugins")
FORWARD = """
function OnStableStudy(study, tags, metadata)
  RestApiPost('/modalities/node/store', DumpJson({ Resources = { study }, Synchronous = false }, true))
end
"""
"""Sends every study that has become stable to the node, results that came back included."""


def installed() -> str:
    """Where Orthanc is; skips the test with the reason where it isn't."""
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    if found is None or not (PLUGINS / "libOrthancDicomWeb.so").exists():
        pytest.skip("Orthanc is not installed; on Debian: apt-get install orthanc orthanc-dicomweb")
    return found


class Orthanc:
    """One archive; its data stay over ``kill`` and ``start``."""

    def __init__(self, folder: Path, node_port: int, **settings: Any) -> None:
        self._program, self.folder = installed(), folder
        self.port, self.http_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "forward.lua").parent.mkdir(parents=True, exist_ok=True)
        (folder / "forward.lua").write_text(FORWARD)
        self.settings: dict[str, Any] = {
            "Name": "archive",
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "DicomAet": ARCHIVE,
            "DicomPort": self.port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomCheckCalledAet": True,
            "DicomCheckModalityHost": True,
            "StrictAetComparison": True,
            "DicomAlwaysAllowStore": False,
            "DicomAlwaysAllowEcho": False,
            "DicomScuTimeout": 120,
            "DicomScpTimeout": 120,
            "StableAge": 60,
            "ConcurrentJobs": 1,
            "DicomModalities": {
                "node": {
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
            },
            "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **settings,
        }

    @property
    def web_url(self) -> str:
        """The address of its DICOMweb server."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def start(self) -> Orthanc:
        """Start, and wait until it answers."""
        config = self.folder / "orthanc.json"
        config.write_text(json.dumps(self.settings))
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(config)], stdout=log, stderr=log, env={**os.environ, "TCP_NODELAY": "1"}
            )
        wait_until(self._answers, what=f"Orthanc that answers: {self.folder / 'log.txt'}")
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log.txt").read_text()[-2000:]
        try:
            return bool(self.get("/system"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(number)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(30)
            self._process = None

    # Its REST interface -------------------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        """GET of JSON."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: Any) -> Any:
        """POST of JSON, or of bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=data, method="POST")
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or b"null")

    def upload(self, files: Sequence[Path]) -> list[str]:
        """Put files into the archive; their names there."""
        return [self.post("/instances", path.read_bytes())["ID"] for path in files]

    def send_to_node(self, names: Sequence[str]) -> None:
        """Have it send instances, series or studies to the node by C-STORE."""
        self.post("/modalities/node/store", {"Resources": list(names), "Synchronous": True})

    def study(self, uid: str) -> str:
        """The name of a study in the archive."""
        (name,) = self.post("/tools/find", {"Level": "Study", "Query": {"StudyInstanceUID": uid}})
        return name

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
