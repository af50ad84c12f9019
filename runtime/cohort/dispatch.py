"""Hands scans out to workers, one at a time each, and again where a worker died; knows nothing of Ray."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtime.cohort.errors import ClusterError
from runtime.cohort.work import FAILED, LOST, SPOILS_WORKER, TIME, Outcome, Task

WAIT_S = 0.5
MOST_FAILED_STARTS = 5
"""So many workers in a row may die before they are ready; then the run ends."""


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker runs, and with what.

    Args:
        host: name of the machine.
        node: the cluster's name for the node; of several on one machine each has its own.
        pid: of its process there.
        engine: in words.
    """

    host: str
    node: str
    pid: int
    engine: str


@dataclass(frozen=True)
class Ready:
    """A worker has its networks open."""

    worker: int
    info: WorkerInfo


@dataclass(frozen=True)
class Finished:
    """A worker is through with its scan, well or not."""

    worker: int
    outcome: Outcome


@dataclass(frozen=True)
class Died:
    """A worker is no more."""

    worker: int
    reason: str


Event = Ready | Finished | Died


class Crew(Protocol):
    """Workers that can be asked for and given work; what they did is told by ``wait``."""

    def hire(self) -> int:
        """Ask for one more worker and return its number; ``Ready`` or ``Died`` follows, perhaps much later."""

    def give(self, worker: int, task: Task) -> None:
        """Let a worker that is ready and has nothing to do run a scan; ``Finished`` or ``Died`` follows."""

    def dismiss(self, worker: int) -> None:
        """End a worker's process, also in the middle of a scan, whatever that does; no event follows."""

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """All that happened since, at the latest after ``timeout_s``; a worker that is not in it is still at work.

        Raises:
            VertscanError: a worker can't be used as it is set up, such as for another bundle on its node.
        """


@dataclass(frozen=True)
class Attempt:
    """One run of a scan that has ended.

    Args:
        outcome: how.
        attempt: which run of this scan in this cohort's run it was, from 1 on.
        info: of the worker.
        is_last: False where the scan will be run once more.
    """

    outcome: Outcome
    attempt: int
    info: WorkerInfo
    is_last: bool


class Watcher(Protocol):
    """Is told what happens."""

    def ended(self, attempt: Attempt) -> None:
        """A run of a scan has ended."""

    def joined(self, info: WorkerInfo) -> None:
        """A worker is ready."""

    def died(self, reason: str) -> None:
        """A worker died that had no scan."""

    def tick(self, ready: int) -> None:
        """Time has passed; so many workers are ready or at work."""


@dataclass
class _Waiting:
    task: Task
    attempts: int = 0
    begun_s: float = 0.0
    failed_on: set[str] = field(default_factory=set)


@dataclass
class _State:
    queue: deque[_Waiting]
    opening: set[int] = field(default_factory=set)
    idle: dict[int, WorkerInfo] = field(default_factory=dict)
    busy: dict[int, tuple[WorkerInfo, _Waiting]] = field(default_factory=dict)
    failed_starts: int = 0

    @property
    def infos(self) -> dict[int, WorkerInfo]:
        """Of all workers that are ready or at work."""
        return {**self.idle, **{worker: info for worker, (info, _) in self.busy.items()}}


class Dispatcher:
    """Runs every task until it is done, failed for good, or was tried often enough.

    Workers take the next scan when they are through with one, so a slow scan holds up nobody. A scan whose worker died,
    or that may go well another time, goes to the end of the queue, and to another node where there is one. A scan that
    takes too long costs its worker and is not run again: it would most likely cost the next one too.

    Args:
        crew: the workers.
        watcher: is told what happens.
        workers: how many are asked for at most.
        retries: so often a scan is tried again.
        time_limit_s: for one run of a scan; None for none.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        crew: Crew,
        watcher: Watcher,
        *,
        workers: int,
        retries: int,
        time_limit_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._crew, self._watcher = crew, watcher
        self._workers, self._retries = workers, retries
        self._time_limit_s, self._clock = time_limit_s, clock

    def run(self, tasks: Sequence[Task]) -> None:
        """Until all are through.

        Raises:
            VertscanError: no worker can do the work, as they are set up.
        """
        state = _State(deque(_Waiting(task) for task in tasks))
        while state.queue or state.busy:
            self._hire(state)
            self._hand_out(state)
            for event in self._crew.wait(WAIT_S):
                match event:
                    case Ready(worker, info):
                        state.opening.remove(worker)
                        state.idle[worker], state.failed_starts = info, 0
                        self._watcher.joined(info)
                    case Finished(worker, outcome):
                        info, waiting = state.busy.pop(worker)
                        if outcome.kind in SPOILS_WORKER:
                            self._crew.dismiss(worker)
                        else:
                            state.idle[worker] = info
                        self._end(state, waiting, info, outcome)
                    case Died(worker, reason):
                        self._bury(state, worker, reason)
            self._end_what_takes_too_long(state)
            self._watcher.tick(len(state.idle) + len(state.busy))

    def _hire(self, state: _State) -> None:
        wanted = min(self._workers, len(state.queue) + len(state.busy))
        for _ in range(wanted - len(state.opening) - len(state.infos)):
            state.opening.add(self._crew.hire())

    def _hand_out(self, state: _State) -> None:
        nodes = {info.node for info in state.infos.values()}
        for worker, info in list(state.idle.items()):
            waiting = next(
                (one for one in state.queue if info.node not in one.failed_on or nodes <= one.failed_on), None
            )
            if waiting is None:
                continue
            state.queue.remove(waiting)
            del state.idle[worker]
            state.busy[worker] = (info, waiting)
            waiting.attempts, waiting.begun_s = waiting.attempts + 1, self._clock()
            self._crew.give(worker, waiting.task)

    def _end_what_takes_too_long(self, state: _State) -> None:
        if self._time_limit_s is None:
            return
        now_s = self._clock()
        for worker, (info, waiting) in list(state.busy.items()):
            seconds = now_s - waiting.begun_s
            if seconds <= self._time_limit_s:
                continue
            del state.busy[worker]
            self._crew.dismiss(worker)
            reason = (
                f"it was not done after {self._time_limit_s:g} s, so its worker was ended; see whether the scan is "
                "damaged or its storage hangs, or raise --time-limit"
            )
            late = Outcome(waiting.task.number, FAILED, round(seconds, 3), kind=TIME, reason=reason)
            self._end(state, waiting, info, late)

    def _end(self, state: _State, waiting: _Waiting, info: WorkerInfo, outcome: Outcome) -> None:
        again = outcome.status == FAILED and outcome.may_pass and waiting.attempts <= self._retries
        if again:
            waiting.failed_on.add(info.node)
            state.queue.append(waiting)
        self._watcher.ended(Attempt(outcome, waiting.attempts, info, is_last=not again))

    def _bury(self, state: _State, worker: int, reason: str) -> None:
        if worker in state.busy:
            info, waiting = state.busy.pop(worker)
            seconds = round(self._clock() - waiting.begun_s, 3)
            lost = Outcome(waiting.task.number, FAILED, seconds, kind=LOST, reason=reason, may_pass=True)
            self._end(state, waiting, info, lost)
            return
        if worker in state.opening:
            state.opening.remove(worker)
            state.failed_starts += 1
            if state.failed_starts >= MOST_FAILED_STARTS:
                raise ClusterError(f"{state.failed_starts} workers in a row died as they started: {reason}")
        state.idle.pop(worker, None)
        self._watcher.died(reason)
