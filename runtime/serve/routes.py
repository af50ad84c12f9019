"""The routes: what is asked for, and how it is answered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from runtime.dicom import FILES as DICOM_FILES
from runtime.output import FINDINGS_FILE, MASK_FILE, OVERVIEW_FILE
from runtime.serve.events import job_events
from runtime.serve.jobs import RESULTS, JobRecord
from runtime.serve.models import DicomKind, Health, Info, Job, JobList, JobOptions, PathRequest, Problem, State
from runtime.serve.refusal import RefusedRequestError
from runtime.serve.service import Service
from runtime.serve.unpacked import check_unpacked
from runtime.serve.uploads import receive

FINDINGS_SCHEMA = "Findings"
_JOBS = "/v1/jobs"
UPLOAD_PATH = f"{_JOBS}/upload"
_PIECE_BYTES = 2**18
_FILES = {"findings": FINDINGS_FILE, "mask": MASK_FILE, "overview": OVERVIEW_FILE, **DICOM_FILES}
"""From what a result is called to its file."""


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_service)]


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: statuses that come with a problem."""
    said = {
        400: "The request can't be understood.",
        401: "The token is missing or wrong.",
        403: "The path is not below a folder that the server may read, or is not there.",
        404: "There is no such job or result.",
        408: "The upload stopped coming.",
        409: "The job is not done.",
        413: "Too large: the upload, a file, or what it unpacks to.",
        415: "Of a kind that is not taken.",
        422: "A field is missing, unknown or holds what it can't.",
        503: "Too many jobs wait, or the server is ending; `Retry-After` says when to try again.",
        507: "The server's disk is full.",
    }
    return {status: {"model": Problem, "description": said[status]} for status in sorted({401, 422, *statuses})}


router = APIRouter()


@router.get("/health", tags=["server"], openapi_extra={"security": []}, responses={503: {"model": Health}})
def health(service: Served) -> JSONResponse:
    """Whether the server works; the only route that needs no token."""
    works = service.worker.is_alive
    body = Health(status="ok" if works else "failing")
    return JSONResponse(body.model_dump(), 200 if works else 503)


@router.get("/v1/info", tags=["server"], responses=_refusals())
def info(service: Served) -> Info:
    """What this server is: versions, networks, engine, limits, and the notice to be shown beside results."""
    return service.info


_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "array",
                            "items": {"type": "string", "contentMediaType": "application/octet-stream"},
                            "minItems": 1,
                            "description": "One `.nii`, `.nii.gz`, `.zip` (of a DICOM series) or DICOM file, or all "
                            "files of one DICOM series. Every part with a file name counts, whatever it is called.",
                        },
                        "name": {"type": "string", "description": "What to call a scan of several files."},
                    },
                }
            }
        },
    }
}


@router.post(
    UPLOAD_PATH,
    tags=["jobs"],
    status_code=202,
    openapi_extra=_UPLOAD,
    responses=_refusals(400, 408, 413, 415, 503, 507),
)
async def submit_upload(request: Request, response: Response, service: Served) -> Job:
    """Submit a scan with its files.

    `multipart/form-data`: the files, and the options of `POST /v1/jobs/path` as fields (`dicom` with commas between).
    The place in the queue is taken before the first byte of a file is. Limits are in `GET /v1/info`.
    """
    with service.jobs.reserve() as place:
        source, options = await receive(request, place.folder, service.limits)
        await to_thread.run_sync(check_unpacked, source, service.limits)
        job = service.jobs.submit(place, source, options)
    return _submitted(job, response, service)


@router.post(
    f"{_JOBS}/path",
    tags=["jobs"],
    status_code=202,
    responses=_refusals(400, 403, 413, 415, 503),
)
def submit_path(wanted: PathRequest, response: Response, service: Served) -> Job:
    """Submit a scan that lies where the server can read it; it is read in place and never changed."""
    source = service.roots.admit(wanted.path)
    if source.is_file():
        check_unpacked(source, service.limits)
    options = JobOptions.model_validate(wanted.model_dump(exclude={"path"}))
    with service.jobs.reserve() as place:
        job = service.jobs.submit(place, source, options)
    return _submitted(job, response, service)


@router.get(_JOBS, tags=["jobs"], responses=_refusals())
def list_jobs(service: Served) -> JobList:
    """All jobs that are kept, in the order in which they came."""
    return JobList(jobs=[_described(job, service) for job in service.jobs.all()])


@router.get(f"{_JOBS}/{{id}}", tags=["jobs"], responses=_refusals(404))
def get_job(id: str, service: Served) -> Job:
    """Where a job is."""
    return _described(service.jobs.get(id), service)


@router.delete(f"{_JOBS}/{{id}}", tags=["jobs"], responses=_refusals(404))
def cancel_job(id: str, service: Served) -> Job:
    """Cancel a job, or forget one that has ended; its files are removed.

    One that waits is `cancelled` at once. One that runs shows `cancel_requested` and stops at its next window or stage.
    One that had ended is returned as it was, and is gone.
    """
    return _described(service.jobs.cancel(id), service)


@router.get(
    f"{_JOBS}/{{id}}/events",
    tags=["jobs"],
    response_class=Response,
    responses={
        **_refusals(404),
        200: {
            "description": "Events named `queued`, `running`, `done`, `failed` or `cancelled`, each with the whole job "
            "(schema `Job`) as its data. The stream ends after `done`, `failed` or `cancelled`; or after `removed`, "
            "with a `detail`, when the job was removed meanwhile.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
)
async def follow_job(id: str, service: Served) -> StreamingResponse:
    """Follow a job by server-sent events: as it is now, then after every change until it has ended.

    After a broken connection ask again; the first event is how it is then. Browsers' `EventSource` can't send the
    token: read the stream with `fetch`.
    """
    await to_thread.run_sync(service.jobs.get, id)
    events = job_events(service.jobs, id, lambda job: _described(job, service))
    return StreamingResponse(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


_Handler = Callable[..., StreamingResponse]


def _result(name: str, kind: str, schema: dict[str, Any], said: str) -> Callable[[_Handler], _Handler]:
    """Declares the route of one of a job's results, a file of content type ``kind``."""
    responses = {**_refusals(404, 409), 200: {"description": said, "content": {kind: {"schema": schema}}}}
    return router.get(f"{_JOBS}/{{id}}/{name}", tags=["results"], response_class=Response, responses=responses)


_BINARY = {"type": "string", "contentMediaType": "application/octet-stream"}
_FINDINGS = {"$ref": f"#/components/schemas/{FINDINGS_SCHEMA}"}


@_result("findings", "application/json", _FINDINGS, "`findings.json`, as `vertscan-infer` writes it.")
def get_findings(id: str, service: Served) -> StreamingResponse:
    """Every vertebra with its level, grade, heights and more."""
    return _file(id, "findings", "application/json", service)


@_result("mask", "application/gzip", _BINARY, "`.nii.gz`, uint8 on the scan's own grid and affine.")
def get_mask(id: str, service: Served) -> StreamingResponse:
    """The mask: 0 background, 1 to n the vertebrae, cranial to caudal (`mask_label` of the findings)."""
    return _file(id, "mask", "application/gzip", service)


@_result("overview", "image/png", _BINARY, "PNG.")
def get_overview(id: str, service: Served) -> StreamingResponse:
    """The picture: sagittal and coronal views along the spine, vertebrae outlined, named and graded."""
    return _file(id, "overview", "image/png", service)


@_result("dicom/{kind}", "application/dicom", _BINARY, "A DICOM file that refers to the images of the series.")
def get_dicom(id: str, kind: DicomKind, service: Served) -> StreamingResponse:
    """Segmentation, structured report, secondary capture or PDF, of a scan that came as DICOM."""
    return _file(id, kind, "application/dicom", service)


def _file(id: str, result: str, media_type: str, service: Service) -> StreamingResponse:
    """A result; its file is open before the answer begins, so that it comes whole though the job is removed."""
    job = service.jobs.get(id)
    name = _FILES[result]
    if job.state is State.FAILED and job.error is not None:
        raise RefusedRequestError(409, f"The job failed: {job.error.message}")
    if job.state is not State.DONE:
        raise RefusedRequestError(409, f"The job is {job.state}.", retry_after_s=None if job.state.is_final else 2)
    if name not in job.results:
        raise RefusedRequestError(404, f"The job has no {result}; it has {', '.join(_links(job))}.")
    try:
        stream = (job.folder / RESULTS / name).open("rb")
    except FileNotFoundError as error:
        raise RefusedRequestError(404, "The job was removed.") from error

    def pieces() -> Iterator[bytes]:
        with stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece

    headers = {
        "content-length": str(os.fstat(stream.fileno()).st_size),
        "content-disposition": f'attachment; filename="{Path(name).name}"',
    }
    return StreamingResponse(pieces(), media_type=media_type, headers=headers)


def _submitted(job: JobRecord, response: Response, service: Service) -> Job:
    response.headers["location"] = f"{_JOBS}/{job.id}"
    return _described(job, service)


def _links(job: JobRecord) -> dict[str, str]:
    """From each result to its path."""
    return {
        result: f"{_JOBS}/{job.id}/{'dicom/' if result in DICOM_FILES else ''}{result}"
        for result, name in _FILES.items()
        if name in job.results
    }


def _described(job: JobRecord, service: Service) -> Job:
    return Job(
        id=job.id,
        state=job.state,
        position=service.jobs.position(job),
        progress=job.progress,
        cancel_requested=job.cancel_requested,
        error=job.error,
        notes=list(job.notes),
        results=_links(job),
        created=_time(job.created_s),
        started=None if job.started_s is None else _time(job.started_s),
        ended=None if job.ended_s is None else _time(job.ended_s),
        expires=None if (expires_s := service.jobs.expires_s(job)) is None else _time(expires_s),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
