"""A real Orthanc on free loopback ports: the archive that the node is measured and tested beside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.processes import ChildError
from runtime.errors import InputError

NODE_TITLE, ARCHIVE_TITLE = "VERTSCAN", "ARCHIVE"
_START_S = 180.0


def free_port() -> int:
    """A port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def installed() -> str:
    """Where Orthanc is.

    Raises:
        InputError: nowhere.
    """
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    if found is None:
        raise InputError(
            "Orthanc is not installed, and the node is measured beside it; on Debian: apt-get install orthanc."
        )
    return found


class Orthanc:
    """An archive with its data below a folder; these stay over ``stop``, ``kill`` and ``start``.

    ``with`` starts it and stops it at its end.

    Args:
        folder: of configuration, log and data; it is made.
        node_port: where the node listens, which it knows as the modality ``node``.
        settings: of its configuration file, beside and in place of the usual ones.

    Raises:
        InputError: Orthanc is not installed.
    """

    def __init__(self, folder: Path, node_port: int, **settings: Any) -> None:
        self._program, self.folder = installed(), folder
        self.port, self.http_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.settings: dict[str, Any] = {
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "DicomAet": ARCHIVE_TITLE,
            "DicomPort": self.port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomModalities": {"node": [NODE_TITLE, "127.0.0.1", node_port]},
            **settings,
        }

    def start(self) -> Self:
        """Start it, and wait until it answers.

        Raises:
            ChildError: it ends, or doesn't answer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        config, said = self.folder / "orthanc.json", self.folder / "log.txt"
        config.write_text(json.dumps(self.settings), encoding="utf-8")
        with said.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(config)], stdout=log, stderr=log, env={**os.environ, "TCP_NODELAY": "1"}
            )
        end_s = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end_s:
                self.kill()
                raise ChildError(f"Orthanc did not start: {said.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, by SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            return bool(self.get("/system"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def get(self, path: str) -> Any:
        """What its REST interface answers to GET, from JSON."""
        return self._ask(urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}"))

    def post(self, path: str, body: Any) -> Any:
        """What it answers to POST of bytes, or of anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask(urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=data, method="POST"))

    def _ask(self, request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read() or b"null")

    def upload(self, files: Iterable[Path]) -> list[str]:
        """Put DICOM files into the archive; their names there."""
        return [self.post("/instances", path.read_bytes())["ID"] for path in files]

    def study(self, uid: str) -> str:
        """The name of a study in the archive."""
        (name,) = self.post("/tools/find", {"Level": "Study", "Query": {"StudyInstanceUID": uid}})
        return str(name)

    def send_to_node(self, names: Sequence[str]) -> None:
        """Have it send instances, series or studies to the node by C-STORE, and wait until that is done."""
        self.post("/modalities/node/store", {"Resources": list(names), "Synchronous": True})

    def count(self, study_uid: str) -> int:
        """How many instances of a study are there."""
        return len(self.post("/tools/find", {"Level": "Instance", "Query": {"StudyInstanceUID": study_uid}}))
