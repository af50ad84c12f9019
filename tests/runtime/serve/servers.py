"""Real servers for tests: in this process on a port of their own, or as the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from runtime.pipeline import Pipeline
from runtime.serve.app import create_app
from runtime.serve.options import JobLimits, ServeOptions, build_parser, options_of
from runtime.serve.server import Server, bind, url_of
from runtime.serve.service import Service, open_service

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "correct-horse-battery-staple"
WAIT_S = 120.0


@dataclass(frozen=True, eq=False)
class Running:
    """A server that answers, and a client that has its token."""

    url: str
    http: httpx.Client
    service: Service
    folder: Path

    def upload(self, *files: Path, **fields: str) -> httpx.Response:
        parts = [("file", (file.name, file.read_bytes())) for file in files]
        return self.http.post("/v1/jobs/upload", files=parts, data=fields)

    def submitted(self, *files: Path, **fields: str) -> str:
        answer = self.upload(*files, **fields)
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
        return answer.json()["id"]

    def events(self, job: str) -> Iterator[tuple[str, dict]]:
        with self.http.stream("GET", f"/v1/jobs/{job}/events") as stream:
            assert stream.status_code == 200
            assert stream.headers["content-type"].startswith("text/event-stream")
            name = ""
            for line in stream.iter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    yield name, json.loads(value)

    def ended(self, job: str) -> dict:
        """The job once it has ended."""
        return list(self.events(job))[-1][1]

    def left(self) -> list[Path]:
        """All files that the server holds."""
        return sorted(path for path in (self.folder / "jobs").rglob("*") if path.is_file())


@contextmanager
def server(pipeline: Pipeline, folder: Path, *arguments: object, limits: JobLimits | None = None):
    """A real server on a free port of the loopback interface, ended and gone after the block."""
    given = options_of(build_parser().parse_args(["--port", "0", "--min-free-gib", "0", *map(str, arguments)]))
    options: ServeOptions = given if limits is None else replace(given, limits=limits)
    folder.mkdir(parents=True, exist_ok=True)
    ready = threading.Event()
    with bind(options.listen) as bound, open_service(pipeline, options, folder) as service:
        app = create_app(service, options.listen, TOKEN)
        one = Server(app, options.listen, on_ready=ready.set, on_end=service.jobs.close)
        thread = threading.Thread(target=one.run, args=([bound],))
        thread.start()
        try:
            assert ready.wait(WAIT_S)
            url = url_of(options.listen, bound)
            headers = {"Authorization": f"Bearer {TOKEN}"}
            with httpx.Client(base_url=url, headers=headers, timeout=WAIT_S, trust_env=False) as http:
                yield Running(url, http, service, folder)
        finally:
            one.should_exit = True
            thread.join()


class Gated:
    """A pipeline that waits before its networks, so that a test can have a job run as long as it wants.

    It waits in ``analyse`` until ``open`` is set; ``reached`` tells that it is there.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self.open, self.reached = pipeline, threading.Event(), threading.Event()

    def __getattr__(self, name: str):
        return getattr(self._pipeline, name)

    def analyse(self, prepared, *, progress, reading=None):
        progress.stage("locate")
        self.reached.set()
        assert self.open.wait(WAIT_S)
        progress.step(0, 2)
        return self._pipeline.analyse(prepared, progress=progress, reading=reading)


class ServerProcess:
    """The command as a process of its own."""

    def __init__(self, bundle: Path, work: Path, log: Path, *arguments: object) -> None:
        options = ["--bundle", bundle, "--precision", "fp32", "--port", "0", "--work-dir", work, "--json"]
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runtime.serve", *map(str, (*options, *arguments))],
                stdout=subprocess.PIPE,
                stderr=stream,
                cwd=work.parent,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                text=True,
            )
        line = self._process.stdout.readline()
        assert line, log.read_text()
        self.ready = json.loads(line)
        self.url, self.token_file = self.ready["url"], Path(self.ready["token_file"])
        self.token = self.token_file.read_text().strip()

    @property
    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=WAIT_S, trust_env=False)

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        if self._process.poll() is None:
            self.send(number)
        status = self._process.wait(WAIT_S)
        self._process.stdout.close()
        return status
