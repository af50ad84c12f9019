"""A real Orthanc on free loopback ports, as the archive that the node is measured beside."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.processes import ChildError
from runtime.errors import InputError

NODE_TITLE, ARCHIVE_TITLE = "VERTSCAN", "ARCHIVE"
_START_S = 60.0


def free_port() -> int:
    """A port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Orthanc:
    """An archive with its data below a folder, from ``with`` to its end."""

    def __init__(self, folder: Path, node_port: int) -> None:
        """Nothing is started yet.

        Raises:
            InputError: Orthanc is not installed.
        """
        found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
        if found is None:
            raise InputError("Orthanc is not installed, and the node is measured beside it; on Debian: apt-get install "
                             "orthanc.")  # fmt: skip
        self._program, self._folder = found, folder
        self.port, self._http_port = free_port(), free_port()
        self._settings = {
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "DicomAet": ARCHIVE_TITLE,
            "DicomPort": self.port,
            "HttpPort": self._http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomModalities": {"node": [NODE_TITLE, "127.0.0.1", node_port]},
        }

    def __enter__(self) -> Orthanc:
        self._folder.mkdir(parents=True)
        (self._folder / "orthanc.json").write_text(json.dumps(self._settings), encoding="utf-8")
        with (self._folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._folder / "orthanc.json")],
                stdout=log, stderr=log, env={**os.environ, "TCP_NODELAY": "1"},
            )  # fmt: skip
        end_s = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end_s:
                said = (self._folder / "log.txt").read_text(errors="replace")[-500:]
                raise ChildError(f"Orthanc did not start: {said}")
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            return bool(self._ask("/system"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        method = "GET" if body is None else "POST"
        request = urllib.request.Request(f"http://127.0.0.1:{self._http_port}{path}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read() or b"null")

    def upload(self, files: Iterable[Path]) -> None:
        """Put DICOM files into the archive."""
        for path in files:
            self._ask("/instances", path.read_bytes())

    def send(self, study_uid: str) -> None:
        """Have it send a study to the node by C-STORE, and wait until that is done."""
        (name,) = self._find("Study", study_uid)
        self._ask("/modalities/node/store", json.dumps({"Resources": [name], "Synchronous": True}).encode())

    def count(self, study_uid: str) -> int:
        """How many instances of a study are there."""
        return len(self._find("Instance", study_uid))

    def _find(self, level: str, study_uid: str) -> list[str]:
        query = {"Level": level, "Query": {"StudyInstanceUID": study_uid}}
        found: list[str] = self._ask("/tools/find", json.dumps(query).encode())
        return found
