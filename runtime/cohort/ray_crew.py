"""Workers as actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # workers without a GPU see none
import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from runtime.cohort.dispatch import Died, Event, Finished, Ready, WorkerInfo
from runtime.cohort.work import DEFECT, FAILED, Opener, Orders, Outcome, Task, Worker
from runtime.engines.checks import usable_cores
from runtime.errors import InputError, VertscanError

LOCAL = "local"
_CONNECT_S = 10.0
_OBJECT_STORE_BYTES = 100 * 2**20
"""Of a local Ray; what goes through it are findings, some ten kB each."""
_DEFAULT_CPUS = 4


@dataclass(frozen=True)
class Share:
    """What a worker gets of a node: processor cores, and GPUs or a part of one."""

    cpus: int
    gpus: float


@dataclass(frozen=True)
class Plan:
    """How many workers there will be at most, and what each gets."""

    workers: int
    share: Share
    nodes: int


@dataclass(frozen=True)
class _Refusal:
    """Why a worker can't be used."""

    error: type[VertscanError]
    reason: str


class _Actor:
    """A process on a node of the cluster."""

    def open(self, orders: Orders, opener: Opener) -> WorkerInfo | _Refusal:
        """Open the networks."""
        host, node = socket.gethostname(), ray.get_runtime_context().get_node_id()
        try:
            self._worker = Worker(orders, opener)
        except VertscanError as error:
            return _Refusal(type(error), f"node {host} ({node[:8]}) can't take part: {error}")
        return WorkerInfo(host, node, os.getpid(), self._worker.engine)

    def run(self, task: Task) -> Outcome:
        """Run a scan."""
        return self._worker.run(task)


@contextlib.contextmanager
def joined_cluster(address: str | None) -> Iterator[None]:
    """Join the cluster meanwhile, or start one on this machine that ends with it.

    Args:
        address: None for this machine alone; ``"auto"`` for the cluster that this machine is part of, ``HOST:PORT`` of
            its head, or ``ray://HOST:PORT`` from outside.

    Raises:
        InputError: there is no such cluster, or it has another version of Ray or Python.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL", "configure_logging": True}
    if address is None:
        options |= {
            "num_cpus": usable_cores(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    elif address != "auto":
        _check_reachable(address)
    try:
        ray.init(address or LOCAL, **options)
    except Exception as error:  # Ray raises bare Exceptions where its processes don't start in time
        where = "on this machine" if address is None else f"at {address}"
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        advice = "" if address is None else "; start it with: ray start --head (docs/cohort.md)"
        raise InputError(f"There is no Ray cluster to be used {where} ({first}){advice}.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise InputError, at once, where nothing answers: Ray itself tries for long."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.scheme not in ("", "ray"):
        raise InputError(f"--address should be auto, HOST:PORT or ray://HOST:PORT; met {address or 'nothing'}.")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise InputError(
            f"Nothing answers at {address} ({error.strerror or error}); start a cluster there with: "
            f"ray start --head --port={port} (docs/cohort.md)."
        ) from error


def plan(*, workers: int | None, cpus: int | None, gpus: float | None) -> Plan:
    """How many workers fit the cluster as it is now: one for each GPU, or without GPUs for each share of processors.

    Args:
        workers: at most so many; None for as many as fit.
        cpus: that each gets; None for up to 4.
        gpus: that each gets, or the part of one; None for one where the cluster has any, else none.

    Raises:
        InputError: no node has as much.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) for node in nodes) else 0.0
    usable = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus]
    if cpus is None:
        per_node = [node["CPU"] // max(node["GPU"] // gpus, 1) if gpus else node["CPU"] for node in usable]
        cpus = int(max(1, min([_DEFAULT_CPUS, *per_node])))
    fit = [_fitting(node, cpus, gpus) for node in usable]
    if not sum(fit):
        met = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise InputError(
            f"No node of the cluster has {cpus} CPUs and {gpus:g} GPUs for a worker; there are nodes with {met}. "
            "Ask for less with --cpus-per-worker and --gpus-per-worker."
        )
    return Plan(min(workers or sum(fit), sum(fit)), Share(cpus, gpus), sum(count > 0 for count in fit))


def _fitting(node: dict[str, float], cpus: int, gpus: float) -> int:
    by_cpu = int(node["CPU"] // cpus)
    return min(by_cpu, int(node["GPU"] / gpus + 1e-9)) if gpus else by_cpu


class RayCrew:
    """Workers on the cluster that ``joined_cluster`` joined; a ``runtime.cohort.dispatch.Crew``. Use it in ``with``.

    Args:
        orders: for every worker.
        share: what each gets of its node.
        opener: opens the networks there.
    """

    def __init__(self, orders: Orders, share: Share, opener: Opener) -> None:
        self._orders, self._opener = orders, opener
        self._class = ray.remote(_Actor).options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, tuple[int, Task | None]] = {}
        self._count = 0

    def __enter__(self) -> RayCrew:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for worker in list(self._actors):
            self.dismiss(worker)

    def hire(self) -> int:
        """Ask Ray for one more actor."""
        worker, self._count = self._count, self._count + 1
        actor = self._class.remote()
        self._actors[worker] = actor
        self._pending[actor.open.remote(self._orders, self._opener)] = (worker, None)
        return worker

    def give(self, worker: int, task: Task) -> None:
        """Let an actor run a scan."""
        self._pending[self._actors[worker].run.remote(task)] = (worker, task)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """What the actors did."""
        pending = list(self._pending)
        done, _ = ray.wait(pending, timeout=timeout_s)
        if done:  # the first is enough to come back with, but all others that are done count, too
            done, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        return [self._event(ref) for ref in done]

    def _event(self, ref: Any) -> Event:
        worker, task = self._pending.pop(ref)
        try:
            answer = ray.get(ref, timeout=_CONNECT_S)
        except RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            said = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[-1]}"
            if task is not None:
                reason = f"internal error: {said}. Please report it."
                return Finished(worker, Outcome(task.number, FAILED, 0.0, kind=DEFECT, reason=reason, may_pass=True))
            self.dismiss(worker)
            return Died(worker, f"it could not be set up ({said}); is this software installed on its node?")
        except RayError as error:
            self.dismiss(worker)
            return Died(worker, death_reason(error))
        if isinstance(answer, _Refusal):
            raise answer.error(answer.reason)
        return Finished(worker, answer) if isinstance(answer, Outcome) else Ready(worker, answer)

    def dismiss(self, worker: int) -> None:
        """End an actor's process at once; what it still does is not heard of."""
        ray.kill(self._actors.pop(worker), no_restart=True)
        self._pending = {ref: given for ref, given in self._pending.items() if given[0] != worker}


def death_reason(error: Exception) -> str:
    """In a few words what Ray says in many of an actor's death."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        return "Ray ended the worker, since its node ran out of memory"
    if getattr(error, "_actor_init_failed", False) or "creation task" in text:
        return f"the worker could not be started ({text.strip().splitlines()[-1]}); is this software on its node?"
    if "node has died" in text or "node was terminated" in text or "node is dead" in text:
        return "the worker's node was lost"
    return "the worker died (it was killed, ran out of memory or crashed)"
