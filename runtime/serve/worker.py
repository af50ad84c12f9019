"""The one thread that runs jobs, over one pipeline that stays warm."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from typing import TYPE_CHECKING, Literal

from runtime.dicom import SEG
from runtime.errors import InputError, OutOfMemoryError, OutputError, VertscanError
from runtime.output import Outputs, write_results
from runtime.serve.job_progress import JobProgress, StoppedError
from runtime.serve.jobs import INPUT, RESULTS, JobRecord, Jobs
from runtime.serve.logs import where_from
from runtime.serve.models import JobError
from runtime.serve.options import JobLimits
from runtime.serve.paths import Roots
from runtime.serve.refusal import RefusedRequestError
from runtime.serve.unpacked import check_unpacked

if TYPE_CHECKING:
    from runtime.pipeline import Analysis, Pipeline

logger = logging.getLogger(__name__)

Kind = Literal["input", "bundle-or-engine", "memory", "internal"]
_KINDS: dict[int, Kind] = {2: "input", 3: "bundle-or-engine", 4: "memory"}


class Worker:
    """Runs one job after the other, from ``start`` until the jobs are closed.

    Args:
        jobs: where they come from.
        pipeline: open, and used from this thread alone.
        roots: where scans may lie that were submitted by path.
        limits: what such a scan may unpack to, as when it was submitted.
    """

    def __init__(self, jobs: Jobs, pipeline: Pipeline, roots: Roots, limits: JobLimits) -> None:
        self._jobs, self._pipeline, self._roots, self._limits = jobs, pipeline, roots, limits
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are run."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> bool:
        """Wait until the thread has ended; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.claim()) is not None:
            start_s = time.perf_counter()
            ended = self._run_one(job)
            why = "" if ended.error is None else f" ({ended.error.kind})"
            logger.info("job %s is %s%s after %.1f s", job.id[:8], ended.state, why, time.perf_counter() - start_s)

    def _run_one(self, job: JobRecord) -> JobRecord:
        """Run a job; whatever happens, it has ended afterwards."""
        try:
            notes = self._analyse(job)
            shutil.rmtree(job.folder / INPUT, ignore_errors=True)
            names = tuple(sorted(entry.name for entry in (job.folder / RESULTS).iterdir()))
            return self._jobs.finish(job.id, names, notes)
        except StoppedError:
            return self._jobs.stop(job.id)
        except RefusedRequestError as error:
            return self._jobs.fail(job.id, _error(InputError.exit_status, error.detail))
        except OutputError as error:
            reason = getattr(error.__cause__, "strerror", None) or "it is not writable"
            logger.error("job %s: its results can't be written (%s); see to the disk of --work-dir", job.id[:8], reason)
            message = f"The server can't write the results ({reason}). Try again later, or tell who runs the server."
            return self._jobs.fail(job.id, _error(1, message))
        except VertscanError as error:
            return self._jobs.fail(job.id, _error(error.exit_status, _told(error, job)))
        except MemoryError:
            return self._jobs.fail(job.id, _error(OutOfMemoryError.exit_status, "Out of memory; crop the scan."))
        except Exception as error:  # noqa: BLE001  a defect met in one job must not keep the others waiting
            logger.error("job %s met a defect: %s", job.id[:8], where_from(error))
            message = f"internal error: {type(error).__name__}. Please report it; the server's log says where it arose."
            return self._jobs.fail(job.id, _error(1, message))

    def _analyse(self, job: JobRecord) -> tuple[str, ...]:
        """Write the job's results; what there is to note of them."""
        progress = JobProgress(lambda told: self._jobs.advance(job.id, told))
        if not job.source.is_relative_to(job.folder):
            self._roots.admit(str(job.source))  # once more: links and files may have changed while it waited
            if job.source.is_file():
                check_unpacked(job.source, self._limits)
        prepared = self._pipeline.prepare(job.source, progress=progress, reading=job.reading)
        analysis = self._pipeline.analyse(prepared, progress=progress)
        return self._write(job, analysis, progress)

    def _write(self, job: JobRecord, analysis: Analysis, progress: JobProgress) -> tuple[str, ...]:
        """With the DICOM objects that were asked for; where none were, with a segmentation if the scan allows one."""
        options, folder = job.options, job.folder / RESULTS
        is_dicom = analysis.volume.source is not None
        kinds = (SEG,) if options.dicom is None and is_dicom else tuple(options.dicom or ())
        notes: tuple[str, ...] = ()
        try:
            write_results(
                analysis, folder, outputs=Outputs(options.overview, kinds, options.seg_type), progress=progress
            )
        except OutputError:  # not of the scan's: without a segmentation it would be the same
            raise
        except InputError as error:
            if options.dicom is not None or not kinds:
                raise
            notes = (f"There is no segmentation in DICOM: {_told(error, job)}",)
            write_results(analysis, folder, outputs=Outputs(options.overview), progress=progress)
        return notes


def _error(status: int, message: str) -> JobError:
    return JobError(kind=_KINDS.get(status, "internal"), exit_status=status, message=" ".join(message.split()))


def _told(error: Exception, job: JobRecord) -> str:
    """The error's message with an upload's own names, not those of the server's folders."""
    text = str(error)
    for folder in (job.folder / INPUT, job.folder / RESULTS, job.folder):
        text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), "upload")
    return text
