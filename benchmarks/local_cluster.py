"""A real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import ChildError

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(REPOSITORY),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": uuid.uuid4().hex,
    "RAY_raylet_start_wait_time_s": "240",
}
_START_S = 240.0
_ADDRESS = re.compile(r"--address='([^']+)'")


class Node:
    """``ray start``, until it is stopped."""

    def __init__(self, folder: Path, cpus: int, *arguments: str) -> None:
        self._log = Path(tempfile.mkstemp(dir=folder, suffix=".log")[1])
        share = ["--block", f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=80000000"]
        ports = ["--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, *share, *ports]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT, cwd=folder)

    def ready(self) -> str:
        """What it said, once it is there."""
        until_s = time.monotonic() + _START_S
        while "Ray runtime started" not in self._log.read_text():
            if self.process.poll() is not None or time.monotonic() > until_s:
                self.stop()
                last = (self._log.read_text().strip().splitlines() or ["it said nothing"])[-1]
                raise ChildError(f"A node of the cluster did not start: {last}")
            time.sleep(0.1)
        return self._log.read_text()

    def stop(self) -> None:
        """End it and all that it started."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def two_nodes(*, cpus: int = 1) -> Iterator[str]:
    """The address of a cluster of two nodes with so many cores each, reached with ``ENVIRONMENT``."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: it holds sockets
    nodes = [Node(folder, cpus, "--head", "--port=0", "--include-dashboard=false", f"--temp-dir={folder}/s")]
    try:
        found = _ADDRESS.search(nodes[0].ready())
        if found is None:
            raise ChildError("The cluster's head did not tell its address.")
        nodes.append(Node(folder, cpus, f"--address={found[1]}"))
        nodes[1].ready()
        yield found[1]
    finally:
        for node in reversed(nodes):
            node.stop()
        shutil.rmtree(folder, ignore_errors=True)
