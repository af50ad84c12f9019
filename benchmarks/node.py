"""The node command: a study from an archive through the node and back into the archive, stage by stage.

The stages' seconds are the node's own: of its queue, its audit log and its log. An archive asks for results soon after
the last image; what counts is how long that takes apart from the networks and from the configured idle time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from benchmarks.figures import Figure
from benchmarks.orthanc import ARCHIVE_TITLE, NODE_TITLE, Orthanc, free_port
from benchmarks.processes import ChildError, run_python
from benchmarks.report import Report, Table, number
from benchmarks.scans import Shape, enlarged_scan
from benchmarks.timed_node import NETWORKS, PROCESSOR
from runtime.node.audit import AUDIT_FILE
from runtime.node.processor import SECONDS
from runtime.volume import LPS_FROM_RAS, Volume

DEFAULT_ZYX = (300, 512, 512)
SPACING_MM = 0.8
IDLE_S = 2.0
MOST_S, MOST_MIB = 5.0, 500.0
"""What the rest may take, and what the idle node may hold without its engine."""
RECEIVE, COMPLETE, QUEUE, SEND = "receive", "idle time, count", "queue", "send"
NETWORKS_ALONE = "(of these: in the networks)"
PROCESSOR_ALONE = "(the processor's seconds for the analysis without the networks)"
REST = "last image to last result, without networks and idle time"
OWN_MEMORY = "idle, after the last study, without the engine"
"""What the idle node holds but for what engine and networks hold, as far as the node that is ready shows that."""
SETTLES_S = 10.0
"""After the last study: within this time the node gives back the memory that it does not need until the next."""
_DEADLINE_S = 1800.0


def node(shape_zyx: Shape, repeats: int, *, bundle: Path | None, engine: str, folder: Path) -> Report:
    """Figures of ``repeats`` studies, one after the other, through one node that is warm.

    Args:
        shape_zyx: slices, rows and columns of the phantom, voxels of ``SPACING_MM``.
        repeats: measured studies.
        bundle: None for the one that ships.
        engine: name of the engine table, or auto.
        folder: for archive, node and scans.
    """
    volume = enlarged_scan(shape_zyx, spacing_mm=SPACING_MM)
    studies: list[Mapping[str, float]] = []
    port = free_port()
    with Orthanc(folder / "archive", port) as archive:
        config = _write_config(folder, archive.port, port, bundle=bundle, engine=engine)
        bare_mib = float(run_python(["-c", _BARE]))
        with _running_node(config) as running:
            loaded_mib = running.resident_mib()
            for number_ in range(repeats):
                study_uid, files = write_study(volume, folder / f"study{number_}")
                archive.upload(files)
                studies.append(_through(archive, running, study_uid, len(files)))
            time.sleep(SETTLES_S)
            idle_mib = running.resident_mib()
    stages = [name for name in studies[0] if name != REST]
    figures = [Figure("stage", name, "s", tuple(study[name] for study in studies)) for name in stages]
    rest = Figure("node", REST, "s", tuple(study[REST] for study in studies))
    own_mib = idle_mib - (loaded_mib - bare_mib)
    memory = [
        Figure("resident memory", name, "MiB", (mib,))
        for name, mib in (
            ("without engine and networks", bare_mib),
            ("ready, before the first study", loaded_mib),
            ("idle, after the last study", idle_mib),
            (OWN_MEMORY, own_mib),
        )
    ]
    rows = [(figure.name, number(figure.median)) for figure in (*figures, rest)]
    return Report(
        figures=(*figures, rest, *memory),
        tables=(
            Table(f"{shape_zyx[0]} slices of {shape_zyx[1]} x {shape_zyx[2]}", ("stage", "s"), tuple(rows)),
            Table("the node's resident memory", ("", "MiB"), tuple((m.name, number(m.median)) for m in memory)),
        ),
        settings={"engine": engine, "shape_zyx": list(shape_zyx), "idle_s": IDLE_S},
        notes=(judged(REST, rest.median, MOST_S, "s"), judged(OWN_MEMORY, own_mib, MOST_MIB, "MiB")),
    )


_BARE = """
import runtime.node.commands, runtime.node.service, runtime.dicom.writer, runtime.dicom.pdf, runtime.pipeline
print(next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""
"""MiB of a process that has loaded all of the node's code but no engine and no network."""


def _write_config(folder: Path, archive_port: int, port: int, *, bundle: Path | None, engine: str) -> Path:
    analyse = {"engine": engine, **({} if bundle is None else {"bundle": str(bundle.absolute())})}
    tables: dict[str, Mapping[str, Any]] = {
        "[node]": {"data": str(folder / "node"), "ae_title": NODE_TITLE},
        "[receive]": {"port": port, "accept": ["archive"]},
        "[complete]": {"idle_s": IDLE_S, "ask_every_s": 1, "ask": ["archive"]},
        "[analyse]": analyse,
        "[deliver]": {"to": ["archive"]},
        "[storage]": {"min_free_gib": 0},
        "[[dicom]]": {"name": "archive", "ae_title": ARCHIVE_TITLE, "host": "127.0.0.1", "port": archive_port},
    }
    lines = [line for head, fields in tables.items()
             for line in (head, *(f"{field} = {json.dumps(value)}" for field, value in fields.items()))]  # fmt: skip
    config = folder / "node.toml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config


@dataclass(frozen=True)
class _Running:
    """A node that runs: its process, its settings, its log and its data folder."""

    process: subprocess.Popen[bytes]
    config: Path
    log: Path
    data: Path

    def resident_mib(self) -> float:
        """Its resident memory now; 0 where the system does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)

    def text(self) -> str:
        """Its log so far; fails when the node has ended."""
        said = self.log.read_text(encoding="utf-8", errors="replace")
        if self.process.poll() is not None:
            raise ChildError(f"The node ended: {said[-500:]}")
        return said

    def study(self, study_uid: str) -> Mapping[str, Any] | None:
        """What its queue says of a study."""
        said = json.loads(run_python(["-m", "runtime.node", "--config", str(self.config), "status", "--json"]))
        key = run_python(["-m", "runtime.node", "--config", str(self.config), "key", study_uid]).strip()
        return next((study for study in said["studies"] if study["key"] == key), None)


@contextmanager
def _running_node(config: Path) -> Iterator[_Running]:
    log = config.with_name("node.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.timed_node", "--config", str(config), "run"],
            stdout=stream,
            stderr=stream,
        )
    running = _Running(process, config, log, config.with_name("node"))
    try:
        _wait_for(lambda: " ready: " in running.text())
        yield running
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(condition: Any) -> None:
    end_s = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > end_s:
            raise ChildError(f"The node was not done within {_DEADLINE_S:g} s.")
        time.sleep(0.2)


def _through(archive: Orthanc, running: _Running, study_uid: str, images: int) -> dict[str, float]:
    """Send a study, wait until its results are in the archive, and say what each stage took."""
    archive.send_to_node([archive.study(study_uid)])
    _wait_for(lambda: running.text() and archive.count(study_uid) >= images + 4)
    _wait_for(lambda: (running.study(study_uid) or {}).get("state") == "delivered")
    study = running.study(study_uid)
    assert study is not None
    return stages_of(study, audit_of(running.data / AUDIT_FILE, study["key"]), running.text())


def audit_of(path: Path, key: str) -> list[tuple[str, float]]:
    """Events of a study with their times, seconds since 1970."""
    entries = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    return [(entry["event"], datetime.fromisoformat(entry["at"]).astimezone(UTC).timestamp())
            for entry in entries if entry.get("study") == key]  # fmt: skip


def judged(name: str, met: float, most: float, unit: str) -> str:
    """Whether a figure is under what it may be, in one sentence."""
    return f"{name}: {number(met)} {unit}, which is {'under' if met < most else 'NOT under'} {most:g} {unit}."


def stages_of(study: Mapping[str, Any], events: list[tuple[str, float]], log: str) -> dict[str, float]:
    """Seconds of each stage, in their order, and of the ``REST``.

    Args:
        study: of the node's ``status``.
        events: of the audit log.
        log: of the node.
    """
    at = dict(events)  # the last of each: the last object that was delivered
    analysis = _analysis_s(study["key"], log)
    networks_s = _last(NETWORKS, study["key"], log)
    if networks_s is None:  # sessions on a GPU can't be timed: all of the stages that hold them
        networks_s = sum(analysis.get(name, 0.0) for name in ("locate", "label", "segment"))
    around_s = at["results ready"] - at["analysis begins"] - sum(analysis.values())
    return {
        RECEIVE: study["last_s"] - study["first_s"],
        COMPLETE: at["complete"] - study["last_s"],
        QUEUE: at["analysis begins"] - at["complete"],
        **analysis,
        "around these": around_s,
        NETWORKS_ALONE: networks_s,
        PROCESSOR_ALONE: _last(PROCESSOR, study["key"], log) or 0.0,
        SEND: at["delivered"] - at["results ready"],
        REST: at["delivered"] - study["last_s"] - networks_s - IDLE_S,
    }


def _analysis_s(key: str, log: str) -> dict[str, float]:
    """Seconds of each stage of a study's analysis, as the node's log has them."""
    line = next(line for line in log.splitlines() if key in line and SECONDS in line)
    parts = (part.rsplit(" ", 1) for part in line.split(SECONDS)[1].split(", "))
    return {name: float(seconds) for name, seconds in parts}


def _last(head: str, key: str, log: str) -> float | None:
    """The number in the last line about a study that begins so."""
    lines = [line for line in log.splitlines() if key in line and head in line]
    return float(lines[-1].split(head)[1]) if lines else None


def write_study(volume: Volume, folder: Path) -> tuple[str, list[Path]]:
    """A volume whose axes grow to the right, front and head as axial CT slices of a study of its own; UID and files."""
    folder.mkdir(parents=True)
    study_uid, series_uid = generate_uid(None), generate_uid(None)
    affine_lps = LPS_FROM_RAS @ volume.grid.affine_ras
    row, column = (affine_lps[:3, axis] / np.linalg.norm(affine_lps[:3, axis]) for axis in (0, 1))
    x_mm, y_mm, z_mm = volume.grid.spacing_xyz_mm
    files = []
    for z in range(volume.grid.shape_zyx[0]):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID, image.Modality = CTImageStorage, generate_uid(None), "CT"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study_uid, series_uid, series_uid
        image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Phantom", "PH1", "", ""
        image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = f"{datetime.now():%Y%m%d}", "", "", ""
        image.ImageType, image.SeriesNumber, image.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 2, z + 1
        image.ImagePositionPatient = (affine_lps[:3, 3] + z * affine_lps[:3, 2]).tolist()
        image.ImageOrientationPatient = [*row.tolist(), *column.tolist()]
        image.PixelSpacing, image.SliceThickness = [y_mm, x_mm], z_mm
        image.RescaleSlope, image.RescaleIntercept, image.ConvolutionKernel = 1, -1024, "B30f"
        image.Rows, image.Columns = volume.grid.shape_zyx[1:]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.PixelData = (volume.array[z].astype(np.int32) + 1024).clip(0, 65535).astype(np.uint16).tobytes()
        files.append(folder / f"{z:04d}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    return study_uid, files
