"""What a worker does with a scan. Knows nothing of what started it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.cohort.output_folder import COHORT_SCRATCH, OutputLock, is_run
from runtime.errors import BundleError, EngineError, InputError, OutOfMemoryError, VertscanError
from runtime.findings import to_json
from runtime.kernels.threads import limit_threads
from runtime.memory import keep_freed_memory
from runtime.output import Outputs, write_results
from runtime.progress import NoProgress
from runtime.readers.options import ReadOptions
from runtime.resume import DoneBefore, Named, prepare_unless_done
from runtime.version import software_version

if TYPE_CHECKING:
    from runtime.memory_limit import MemoryLimit
    from runtime.pipeline import Pipeline

DONE, DONE_BEFORE, FAILED = "done", "done before", "failed"
INPUT, ENGINE, MEMORY, DEFECT, LOST, TIME = "input", "engine", "memory", "defect", "worker lost", "time limit"
"""Why a scan failed; the last two: its worker died, or was ended since it took too long."""
SPOILS_WORKER = frozenset({ENGINE, DEFECT})
"""After these a worker is not trusted any more: a GPU's error stays with the process."""
EXIT_STATUSES = {INPUT: 2, ENGINE: 3, MEMORY: 4, DEFECT: 1, LOST: 5, TIME: 5}


@dataclass(frozen=True)
class Orders:
    """What all workers of a run are told.

    Args:
        run: names it; stands in the output folder's lock.
        output: folder of the results.
        root: folder of the scans.
        bundle: path, or None for the one that ships.
        bundle_sha256: as the driver sees it.
        engine: by name, or ``"auto"``.
        precision: by name, or ``"auto"``.
        exhaustive: as ``Pipeline.open``.
        threads: that a worker may use.
        outputs: what is written of each scan.
        accept_gaps: as ``ReadOptions``.
        version: of the driver's software.
        memory_gib: that a worker may use, or None.
    """

    run: str
    output: Path
    root: Path
    bundle: Path | None
    bundle_sha256: str
    engine: str
    precision: str
    exhaustive: bool
    threads: int
    outputs: Outputs
    accept_gaps: bool
    version: str
    memory_gib: float | None = None

    @property
    def named(self) -> Named:
        """How results of earlier runs must have been made to be kept."""
        return Named(self.engine, self.precision, self.exhaustive)


@dataclass(frozen=True)
class Task:
    """One scan to be run: its place in the list, its path and where its results go."""

    number: int
    scan: Path
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """How one run of a scan ended.

    Args:
        number: of the task.
        status: ``DONE``, ``DONE_BEFORE`` or ``FAILED``.
        seconds: the run took, with reading and writing.
        findings: as JSON text, or ``""`` where it failed.
        kind: why it failed, of the keys of ``EXIT_STATUSES``; ``""`` where it didn't.
        reason: the same in words.
        may_pass: whether another run of it, elsewhere or later, may go well.
    """

    number: int
    status: str
    seconds: float
    findings: str = ""
    kind: str = ""
    reason: str = ""
    may_pass: bool = False


Opener = Callable[[Orders], "Pipeline"]


def open_pipeline(orders: Orders) -> Pipeline:
    """The networks, as ordered."""
    from runtime.pipeline import Pipeline

    return Pipeline.open(
        orders.bundle,
        engine=orders.engine,
        precision=orders.precision,
        threads=orders.threads,
        exhaustive=orders.exhaustive,
    )


class Worker:
    """Keeps the networks open and runs scans one after the other.

    Args:
        orders: what to do.
        opener: opens the networks.

    Raises:
        InputError: this machine doesn't see the folders of results and scans, or has another version of the software.
        BundleError: the bundle is another one here, missing or damaged.
        EngineError: the engine can't be had here.
    """

    def __init__(self, orders: Orders, opener: Opener = open_pipeline) -> None:
        self._orders = orders
        if software_version() != orders.version:
            raise InputError(f"it has version {software_version()} of this software, the driver {orders.version}")
        if not is_run(orders.output, orders.run):
            raise InputError(
                f"it doesn't see the folder of results {orders.output}; results and scans must be on storage that all "
                "nodes share, under the same path"
            )
        if not orders.root.is_dir():
            raise InputError(f"it doesn't see the folder of scans {orders.root}; mount it there under the same path")
        try:
            self._lock = OutputLock(orders.output)
        except OSError as error:
            raise InputError(
                f"it can't write to the folder of results {orders.output} ({error.strerror or error})"
            ) from error
        if not self._lock.share():
            raise InputError(f"another run of a cohort is writing to {orders.output}")
        limit_threads(orders.threads)
        if orders.memory_gib is None:
            keep_freed_memory()
        self._pipeline = opener(orders)
        if self._pipeline.bundle_sha256 != orders.bundle_sha256:
            name = orders.bundle or "that ships"
            raise BundleError(
                f"its bundle {name} has the hash {self._pipeline.bundle_sha256[:12]}, the driver's "
                f"{orders.bundle_sha256[:12]}; give all nodes the same bundle"
            )

        self._limit = None if orders.memory_gib is None else _limit(orders, orders.memory_gib, self._pipeline)

    @property
    def engine(self) -> str:
        """The engine, its version, precision and device in words."""
        info = self._pipeline.engine_info
        return f"{info.name} {info.version}, {info.precision}, {info.device}"

    def run(self, task: Task) -> Outcome:
        """Run one scan, or find that its complete results are there; never raises for what a scan can do."""
        start_s = time.perf_counter()

        def ended(status: str, **what: str | bool) -> Outcome:
            return Outcome(task.number, status, round(time.perf_counter() - start_s, 3), **what)  # type: ignore[arg-type]

        try:
            task.scan.stat()
        except OSError as error:
            said = f"{socket.gethostname()} can't see {task.scan} ({error.strerror or error}); is the storage mounted?"
            return ended(FAILED, kind=INPUT, reason=said, may_pass=True)
        try:
            findings, status = self._findings(task)
            return ended(status, findings=findings)
        except VertscanError as error:
            kind = _kind_of(error)
            return ended(FAILED, kind=kind, reason=str(error), may_pass=kind != INPUT)
        except MemoryError:
            return ended(FAILED, kind=MEMORY, reason="the node has too little memory for this scan", may_pass=True)
        except Exception as error:  # noqa: BLE001  a defect met in one scan does not stop the others
            said = f"internal error: {type(error).__name__}: {error}. Please report it."
            return ended(FAILED, kind=DEFECT, reason=said, may_pass=True)
        finally:
            if self._limit is not None:
                self._limit.through(task)

    def _findings(self, task: Task) -> tuple[str, str]:
        outputs, named = self._orders.outputs, self._orders.named
        reading = ReadOptions(accept_gaps=self._orders.accept_gaps)
        if self._limit is not None:
            reading = self._limit.applied_to(reading, task)
        prepared = prepare_unless_done(
            self._pipeline, task.scan, task.folder, outputs=outputs, named=named, reading=reading
        )
        if isinstance(prepared, DoneBefore):
            return to_json(prepared.findings, indent=None), DONE_BEFORE
        analysis = self._pipeline.analyse(prepared)
        findings = write_results(analysis, task.folder, outputs=outputs, progress=NoProgress(), scratch=COHORT_SCRATCH)
        return to_json(findings, indent=None), DONE


def _limit(orders: Orders, memory_gib: float, pipeline: Pipeline) -> MemoryLimit:
    from runtime.memory_limit import GIB, MemoryLimit

    return MemoryLimit(memory_gib * GIB, pipeline.spec, writes_dicom=bool(orders.outputs.dicom))


def _kind_of(error: VertscanError) -> str:
    if isinstance(error, OutOfMemoryError):
        return MEMORY
    return ENGINE if isinstance(error, (EngineError, BundleError)) else INPUT
