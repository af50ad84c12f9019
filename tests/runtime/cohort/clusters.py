"""A real Ray cluster of two nodes on this machine, and drivers on it."""

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

REPOSITORY = Path(__file__).resolve().parents[3]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(REPOSITORY),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": uuid.uuid4().hex,
    "RAY_raylet_start_wait_time_s": "240",
}
_START_S = 240.0
_ADDRESS = re.compile(r"--address='([^']+)'")


class Node:
    """``ray start``, until it is stopped."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._log = Path(tempfile.mkstemp(dir=folder, suffix=".log")[1])
        common = ["--block", "--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"]
        ports = ["--min-worker-port=0", "--max-worker-port=0", "--node-ip-address=127.0.0.1"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, *common, *ports]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT, cwd=folder)

    def ready(self) -> str:
        """What it said, once it is there."""
        until_s = time.monotonic() + _START_S
        while "Ray runtime started" not in self._log.read_text():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < until_s, self._log.read_text()
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
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes with a core each."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: it holds sockets
    nodes = [Node(folder, "--head", "--port=0", "--include-dashboard=false", f"--temp-dir={folder}/s")]
    try:
        found = _ADDRESS.search(nodes[0].ready())
        assert found is not None
        nodes.append(Node(folder, f"--address={found[1]}"))
        nodes[1].ready()
        yield found[1]
    finally:
        for node in reversed(nodes):
            node.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Driver(subprocess.Popen):
    """``python -m runtime.cohort`` over the pipeline of ``hooks``, in ``folder``."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        command = [sys.executable, "-m", "tests.runtime.cohort.hooks", *map(str, arguments)]
        super().__init__(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=folder
        )

    def ended(self) -> tuple[int, str, str]:
        """Its exit status, and what it said on stdout and stderr."""
        out, err = self.communicate(timeout=600)
        return self.returncode, out, err


def wait_for(condition, what: str, driver: Driver | None = None, seconds: float = 400.0) -> None:
    until_s = time.monotonic() + seconds
    while not condition():
        if driver is not None and driver.poll() is not None:
            raise AssertionError(f"ended while it should have shown {what}: {driver.communicate()}")
        assert time.monotonic() < until_s, f"no {what}"
        time.sleep(0.05)
