"""The parts of a server that routes use, and the life they share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from runtime.describe import notice
from runtime.findings import SCHEMA_VERSION
from runtime.serve.jobs import Jobs
from runtime.serve.models import BundleModel, DicomKind, EngineModel, Info, Limits
from runtime.serve.options import JobLimits, ServeOptions
from runtime.serve.paths import Roots
from runtime.serve.worker import Worker
from runtime.version import software_version

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline

logger = logging.getLogger(__name__)

_END_S = 30.0
"""A job stops at its next window or stage; one that does not in this time is left to end with the process."""


@dataclass(frozen=True)
class Service:
    """What the routes need.

    Args:
        jobs: all of them.
        worker: runs them.
        roots: where scans may lie that are submitted by path.
        limits: how much is taken in.
        info: what the server says of itself.
    """

    jobs: Jobs
    worker: Worker
    roots: Roots
    limits: JobLimits
    info: Info


@contextmanager
def open_service(pipeline: Pipeline, options: ServeOptions, folder: Path) -> Iterator[Service]:
    """Run jobs over an open pipeline while the block runs; at its end all that wait or run are cancelled.

    Args:
        pipeline: is used by one thread of this service.
        options: of the server.
        folder: is there; each job gets a folder in it.
    """
    jobs, roots = Jobs(folder / "jobs", options.limits), Roots(options.roots)
    worker = Worker(jobs, pipeline, roots, options.limits)
    worker.start()
    try:
        yield Service(jobs, worker, roots, options.limits, _info(pipeline, options))
    finally:
        jobs.close()
        if not worker.join(_END_S):
            logger.warning("a job did not stop in %.0f s; it ends with the process", _END_S)


def _info(pipeline: Pipeline, options: ServeOptions) -> Info:
    spec, engine, limits = pipeline.spec, pipeline.engine_info, options.limits
    return Info(
        software=software_version(),
        findings_schema_version=SCHEMA_VERSION,
        bundle=BundleModel(name=spec.name, version=spec.version, sha256=pipeline.bundle_sha256),
        engine=EngineModel(
            name=engine.name,
            version=engine.version,
            precision=engine.precision,
            device=engine.device,
            reason=engine.reason,
        ),
        notice=notice(spec),
        dicom=list(get_args(DicomKind)),
        allows_paths=bool(options.roots),
        limits=Limits(
            max_upload_bytes=limits.max_upload_bytes,
            max_unpacked_bytes=limits.max_unpacked_bytes,
            max_files=limits.max_files,
            max_queued=limits.max_queued,
            keep_hours=limits.keep_s / 3600,
            keep_jobs=limits.keep_jobs,
        ),
    )
