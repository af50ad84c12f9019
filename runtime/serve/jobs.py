"""The jobs: who waits, what runs, what has ended and for how long it is kept."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from runtime.readers.options import ReadOptions
from runtime.serve.models import JobError, JobOptions, Progress, State
from runtime.serve.options import JobLimits
from runtime.serve.refusal import RefusedRequestError

INPUT, RESULTS = "input", "results"
RETRY_S = 15
"""What a client is told to wait when the queue is full."""
OnChange = Callable[[], None]


@dataclass(frozen=True)
class JobRecord:
    """One job, as it was when it was asked for.

    Args:
        id: 128 bits that can't be guessed, in hex.
        number: jobs run in this order.
        folder: of its upload and its results.
        source: the scan.
        options: what is wanted of it.
        state: where it is.
        created_s, started_s, ended_s: seconds since the epoch.
        progress: how far it is.
        cancel_requested: whether it is to stop.
        error: why it failed.
        notes: what to know of the results.
        results: names of the files in ``folder / RESULTS``.
    """

    id: str
    number: int
    folder: Path
    source: Path
    options: JobOptions
    state: State
    created_s: float
    started_s: float | None = None
    ended_s: float | None = None
    progress: Progress = field(default_factory=Progress)
    cancel_requested: bool = False
    error: JobError | None = None
    notes: tuple[str, ...] = ()
    results: tuple[str, ...] = ()

    @property
    def reading(self) -> ReadOptions:
        """How the scan is to be read."""
        return ReadOptions(series_uid=self.options.series_uid, accept_gaps=self.options.accept_gaps)


class Reservation:
    """A place in the queue and a folder, for a job that is still arriving.

    Args:
        id: that the job will have.
        folder: that is there, empty.
    """

    def __init__(self, id: str, folder: Path) -> None:
        self.id, self.folder, self.is_used = id, folder, False


class Jobs:
    """All jobs of a server, for several threads; what it gives out never changes.

    Args:
        folder: where each job gets a folder of its own.
        limits: how many wait and how long they are kept.
        clock: seconds since the epoch.
    """

    def __init__(self, folder: Path, limits: JobLimits, *, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._limits, self._clock = folder, limits, clock
        self._changed = threading.Condition()
        self._jobs: dict[str, JobRecord] = {}
        self._watchers: dict[str, list[OnChange]] = {}
        self._reserved, self._count, self._closing = 0, 0, False

    @contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """A place in the queue while the block runs; without a ``submit`` in it, place and folder are given back.

        Raises:
            RefusedRequestError: too many jobs wait, or the server is ending.
        """
        with self._changed:
            waiting = self._reserved + sum(job.state is State.QUEUED for job in self._jobs.values())
            if self._closing:
                raise RefusedRequestError(503, "The server is ending.", retry_after_s=RETRY_S)
            if waiting >= self._limits.max_queued:
                raise RefusedRequestError(
                    503, f"{waiting} jobs wait already, which is the most here; try again later.", retry_after_s=RETRY_S
                )
            self._reserved += 1
        id = secrets.token_hex(16)
        place = Reservation(id, self._folder / id)
        try:
            place.folder.mkdir(parents=True, mode=0o700)
            yield place
        finally:
            with self._changed:
                self._reserved -= 1
            if not place.is_used:
                shutil.rmtree(place.folder, ignore_errors=True)

    def submit(self, place: Reservation, source: Path, options: JobOptions) -> JobRecord:
        """Put the job into the queue.

        Raises:
            RefusedRequestError: the server is ending.
        """
        with self._changed:
            if self._closing:
                raise RefusedRequestError(503, "The server is ending.", retry_after_s=RETRY_S)
            self._count += 1
            job = JobRecord(place.id, self._count, place.folder, source, options, State.QUEUED, self._clock())
            place.is_used = True
            self._put(job)
            return job

    def get(self, id: str) -> JobRecord:
        """The job. Raises RefusedRequestError (404) where it is not known, or no longer."""
        self.sweep()
        with self._changed:
            job = self._jobs.get(id)
        if job is None:
            raise RefusedRequestError(404, "There is no such job; it was removed, or the server was started anew.")
        return job

    def all(self) -> list[JobRecord]:
        """In the order in which they came."""
        self.sweep()
        with self._changed:
            return sorted(self._jobs.values(), key=lambda job: job.number)

    def position(self, job: JobRecord) -> int | None:
        """How many jobs run before this one; None once it no longer waits."""
        with self._changed:
            if job.id not in self._jobs or self._jobs[job.id].state is not State.QUEUED:
                return None
            return sum(not other.state.is_final and other.number < job.number for other in self._jobs.values())

    def expires_s(self, job: JobRecord) -> float | None:
        """When an ended job is removed at the latest."""
        return None if job.ended_s is None else job.ended_s + self._limits.keep_s

    def claim(self) -> JobRecord | None:
        """Wait for the job that waits longest and mark it as running; None when the server ends."""
        with self._changed:
            while True:
                if self._closing:
                    return None
                queued = [job for job in self._jobs.values() if job.state is State.QUEUED]
                if queued:
                    job = min(queued, key=lambda one: one.number)
                    return self._put(replace(job, state=State.RUNNING, started_s=self._clock()))
                self._changed.wait()

    def advance(self, id: str, progress: Progress) -> bool:
        """Note how far the running job is; whether it may go on."""
        with self._changed:
            return not self._put(replace(self._jobs[id], progress=progress)).cancel_requested

    def finish(self, id: str, results: tuple[str, ...], notes: tuple[str, ...]) -> JobRecord:
        """The running job is done; or cancelled, if that was asked for meanwhile."""
        with self._changed:
            job = self._jobs[id]
            if not job.cancel_requested:
                full = job.progress.model_copy(update={"fraction": 1.0})
                return self._end(replace(job, results=results, notes=notes, progress=full), State.DONE)
        return self.stop(id)

    def fail(self, id: str, error: JobError) -> JobRecord:
        """The running job failed; it leaves no files."""
        self._remove_files(id)
        with self._changed:
            return self._end(replace(self._jobs[id], error=error), State.FAILED)

    def stop(self, id: str) -> JobRecord:
        """The running job stopped because it was cancelled; it leaves no files."""
        self._remove_files(id)
        with self._changed:
            return self._end(self._jobs[id], State.CANCELLED)

    def _remove_files(self, id: str) -> None:
        """Before the job is told to have ended: who follows it must find none afterwards."""
        with self._changed:
            folder = self._jobs[id].folder
        shutil.rmtree(folder, ignore_errors=True)

    def cancel(self, id: str) -> JobRecord:
        """Cancel a job that waits or runs, forget one that has ended; in both cases its files go.

        A job that runs stops at its next window or stage.

        Returns:
            The job afterwards; one that is forgotten as it was.
        """
        job = self.get(id)
        with self._changed:
            job = self._jobs.get(id, job)
            if job.state is State.RUNNING:
                return self._put(replace(job, cancel_requested=True))
            if job.state is State.QUEUED:
                job = self._end(job, State.CANCELLED)
            else:
                self._jobs.pop(id, None)
        shutil.rmtree(job.folder, ignore_errors=True)
        return job

    def sweep(self) -> int:
        """Remove ended jobs whose time is over, and the oldest where too many are kept; how many went."""
        with self._changed:
            ended = sorted(
                (job for job in self._jobs.values() if job.ended_s is not None),
                key=lambda job: (job.ended_s or 0.0, job.number),
            )
            too_many = len(ended) - self._limits.keep_jobs
            before_s = self._clock() - self._limits.keep_s
            due = [job for n, job in enumerate(ended) if n < too_many or (job.ended_s or 0.0) <= before_s]
            for job in due:
                del self._jobs[job.id]
        for job in due:
            shutil.rmtree(job.folder, ignore_errors=True)
        return len(due)

    @contextmanager
    def watched(self, id: str, on_change: OnChange) -> Iterator[None]:
        """Have ``on_change`` called, from any thread, after every change of the job, of its place in the queue too."""
        with self._changed:
            self._watchers.setdefault(id, []).append(on_change)
        try:
            yield
        finally:
            with self._changed:
                self._watchers[id].remove(on_change)
                if not self._watchers[id]:
                    del self._watchers[id]

    @property
    def is_closing(self) -> bool:
        """Whether the server is ending."""
        return self._closing

    def close(self) -> None:
        """Take nothing in any more, cancel what waits and runs."""
        with self._changed:
            self._closing = True
            for job in list(self._jobs.values()):
                if job.state is State.QUEUED:
                    self._end(job, State.CANCELLED)
                elif job.state is State.RUNNING:
                    self._put(replace(job, cancel_requested=True))
            self._changed.notify_all()

    def _end(self, job: JobRecord, state: State) -> JobRecord:
        return self._put(replace(job, state=state, ended_s=self._clock(), cancel_requested=False))

    def _put(self, job: JobRecord) -> JobRecord:
        """With the lock held."""
        before = self._jobs.get(job.id)
        self._jobs[job.id] = job
        moved = before is None or before.state is not job.state
        watchers = self._watchers if moved else {job.id: self._watchers.get(job.id, [])}
        for on_change in [one for ones in watchers.values() for one in ones]:
            on_change()
        if moved:
            self._changed.notify_all()
        return job
