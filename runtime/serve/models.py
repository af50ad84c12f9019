"""What goes over the wire as JSON; its descriptions are those of the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DicomKind = Literal["seg", "sr", "sc", "pdf"]


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self not in (State.QUEUED, State.RUNNING)


class JobOptions(BaseModel):
    """What is wanted of a scan."""

    model_config = ConfigDict(extra="forbid")

    overview: bool = Field(default=True, description="Draw the picture.")
    dicom: list[DicomKind] | None = Field(
        default=None,
        description="DICOM objects to make: segmentation, structured report, secondary capture of the picture, report "
        "as PDF. They need a scan in DICOM: for any other the job fails. By default a segmentation where the scan is "
        "DICOM and allows one (`notes` says why it does not), and none else.",
    )
    seg_type: Literal["BINARY", "LABELMAP", "LABELMAP-RLE"] = Field(
        default="BINARY", description="How the segmentation is encoded; many archives and viewers refuse LABELMAP."
    )
    series_uid: str | None = Field(
        default=None,
        pattern=r"^[0-9.]{1,64}$",
        description="Series Instance UID of the DICOM series to run on. By default the best one is chosen; "
        "`warnings` of the findings says why.",
    )
    accept_gaps: bool = Field(
        default=False,
        description="Read a DICOM series though slices are missing, damaged or there twice; findings warn of it.",
    )


class PathRequest(JobOptions):
    """A scan that lies where the server can read it."""

    path: str = Field(
        min_length=1,
        max_length=4096,
        description="Absolute path, below a folder that the server was started with (`--allow-path`): a `.nii` or "
        "`.nii.gz` file, a DICOM folder, zip or DICOMDIR, or an enhanced DICOM file.",
        examples=["/data/scans/series-4"],
    )


class Progress(BaseModel):
    """How far a job is."""

    model_config = ConfigDict(frozen=True)

    stage: str | None = Field(
        default=None,
        description="What it is at: `read`, `resample`, `locate`, `label`, `segment`, `measure`, `paste`, `overview`, "
        "`dicom`, `write`; there may be others later. Null before it runs.",
    )
    done: int | None = Field(
        default=None, description="Windows or crops of this stage that are through, where it counts them."
    )
    total: int | None = Field(default=None, description="How many there are.")
    fraction: float = Field(default=0.0, ge=0, le=1, description="Of the whole job, 0 to 1; it never goes back.")


class JobError(BaseModel):
    """Why a job failed."""

    kind: Literal["input", "bundle-or-engine", "memory", "internal"] = Field(
        description="`input`: this scan can't be used, and to try again changes nothing."
    )
    exit_status: int = Field(description="What `vertscan-infer` would end with: 2, 3, 4 or 1.")
    message: str = Field(description="One line for people: what was wrong, what was met, what to do.")


class Job(BaseModel):
    """A scan that was submitted."""

    id: str = Field(description="Names the job in paths; can't be guessed.")
    state: State
    position: int | None = Field(description="How many jobs run before this one; null once it runs or has ended.")
    progress: Progress
    cancel_requested: bool = Field(description="It was cancelled and has not stopped yet.")
    error: JobError | None = Field(description="Of a failed job.")
    notes: list[str] = Field(description="What to know of the results, such as why there is no segmentation.")
    results: dict[str, str] = Field(
        description="What a done job has, and at which path: `findings`, `mask`, `overview`, `seg`, `sr`, `sc`, `pdf`.",
        examples=[{"findings": "/v1/jobs/0f3c/findings", "mask": "/v1/jobs/0f3c/mask"}],
    )
    created: datetime
    started: datetime | None
    ended: datetime | None
    expires: datetime | None = Field(
        description="When an ended job and its results are removed; earlier when many more have ended by then."
    )


class JobList(BaseModel):
    """All jobs that are kept."""

    jobs: list[Job] = Field(description="In the order in which they came.")


class Health(BaseModel):
    """Whether the server works."""

    status: Literal["ok", "failing"] = Field(description="`failing`: the thread that runs jobs has ended.")


class BundleModel(BaseModel):
    """The networks."""

    name: str
    version: str
    sha256: str


class EngineModel(BaseModel):
    """What runs them."""

    name: str
    version: str
    precision: str
    device: str
    reason: str


class Limits(BaseModel):
    """What is refused beyond."""

    max_upload_bytes: int
    max_unpacked_bytes: int = Field(description="Of a zip or of a scan's voxels.")
    max_files: int = Field(description="Of one upload, or of one zip.")
    max_queued: int = Field(description="Jobs that wait, uploads that arrive among them.")
    keep_hours: float = Field(description="For which an ended job and its results are kept.")
    keep_jobs: int = Field(description="Ended jobs that are kept at most.")


class Info(BaseModel):
    """What this server is."""

    software: str = Field(description="Version of this software.")
    findings_schema_version: int
    bundle: BundleModel
    engine: EngineModel
    notice: str = Field(description="To be shown wherever results are; empty for a bundle that is for clinical use.")
    dicom: list[DicomKind] = Field(description="DICOM objects that can be made here.")
    allows_paths: bool = Field(description="Whether any folder is open to `POST /v1/jobs/path`.")
    limits: Limits


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="One line for people.")
