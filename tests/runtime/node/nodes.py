"""Configurations and nodes for tests, in this process or as one of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.node.commands import main
from runtime.node.config import Config, load_config
from runtime.node.database import QUEUE_FILE
from runtime.node.service import Node, open_identity
from tests.runtime.node.fake_processor import FakeProcessor, opener_of
from tests.runtime.node.peers import ARCHIVE, NODE, SENDER, free_port, wait_until

START_S = 900.0
"""The real pipeline compiles its kernels when it is started for the first time."""
ROOT = Path(__file__).resolve().parents[3]


def settings(home: Path, archive_port: int, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a quick node that one sender sends to and that delivers to one archive; changes are merged in."""
    values: dict[str, Any] = {
        "node": {"data": str(home / "data"), "ae_title": NODE, "log_level": "debug"},
        "receive": {"port": free_port(), "accept": ["sender", "archive"]},
        "complete": {"idle_s": 1.2, "ask_every_s": 0.2},
        "analyse": {"retry_s": 0.1},
        "deliver": {"to": ["archive"], "first_retry_s": 0.1, "max_retry_s": 0.4},
        "storage": {"fsync": False, "min_free_gib": 0},
        "dicom": [
            {"name": "sender", "ae_title": SENDER, "host": "127.0.0.1", "port": 1},
            {"name": "archive", "ae_title": ARCHIVE, "host": "127.0.0.1", "port": archive_port, "timeout_s": 60},
        ],
    }
    for table, fields in changes.items():
        if isinstance(fields, list):
            values[table] = [*values.get(table, []), *fields]
        else:
            values[table] = {**values.get(table, {}), **fields}
    return values


def write_toml(path: Path, values: Mapping[str, Any]) -> Path:
    """Write settings as TOML; JSON's texts, numbers and lists are TOML's."""
    lines = []
    for table, fields in values.items():
        for entry in fields if isinstance(fields, list) else [fields]:
            lines.append(f"[[{table}]]" if isinstance(fields, list) else f"[{table}]")
            for field, value in entry.items():
                if isinstance(value, dict):
                    inner = ", ".join(f"{name} = {json.dumps(one)}" for name, one in value.items())
                    lines.append(f"{field} = {{ {inner} }}")
                else:
                    lines.append(f"{field} = {json.dumps(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def config_of(home: Path, archive_port: int, **changes: Any) -> Config:
    """The same as a value."""
    return load_config(write_toml(home / "node.toml", settings(home, archive_port, **changes)))


@contextmanager
def running_node(config: Config, processor: FakeProcessor):
    """A node in this process."""
    hasher, redact = open_identity(config.data)
    with Node(config, opener_of(processor), hasher=hasher, redact=redact) as node:
        yield node


class NodeProcess:
    """A node as a process of its own, to be killed; its log is in ``log``."""

    def __init__(self, folder: Path, config: Path, *, real: bool = False) -> None:
        self._real, self.folder, self.config, self.log = real, folder, config, folder / "log.txt"
        self.processor = FakeProcessor(folder / "notes")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> NodeProcess:
        """Start, and wait until it is ready."""
        before = self.log.read_text().count(" ready: ") if self.log.exists() else 0
        fake = [str(Path(__file__).with_name("fake_node.py")), str(self.processor.notes)]
        program = ["-m", "runtime.node"] if self._real else fake
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *program, "--config", str(self.config), "run"],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        wait_until(
            lambda: self._is_ready(before),
            what=f"a node that is ready: {self.log}",
            deadline_s=START_S,
        )
        return self

    def _is_ready(self, before: int) -> bool:
        """Whether it said so once more than before; fails when it has ended."""
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        return self.log.read_text().count(" ready: ") > before

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)

    def end(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def is_delivered(self, capsys) -> bool:
        """Whether the one study is delivered; fails when it is dead."""
        counts = self.status(capsys)["counts"]
        assert not counts["dead"], self.log.read_text()[-3000:]
        return counts["delivered"] == 1

    def status(self, capsys) -> dict[str, Any]:
        """What ``status --json`` says."""
        capsys.readouterr()
        assert main(["--config", str(self.config), "status", "--json"]) == 0
        return json.loads(capsys.readouterr().out)


@contextmanager
def node_process(folder: Path, config: Path, *, real: bool = False):
    """A node process that is ended whatever happens, not started yet; ``real``: the one that is installed."""
    node = NodeProcess(folder, config, real=real)
    try:
        yield node
    finally:
        if node._process is not None and node._process.poll() is None:
            node.kill()


__all__ = ["QUEUE_FILE", "NodeProcess", "config_of", "node_process", "running_node", "settings", "write_toml"]
