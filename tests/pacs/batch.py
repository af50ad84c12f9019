"""Many studies through one archive and one node with the real pipeline, and what became of each."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from runtime.dicom import KINDS
from runtime.dicom.headers import tolerant_of_values
from runtime.node.commands import main
from runtime.node.identity import open_hasher
from tests.pacs.orthanc import Orthanc
from tests.runtime.node.nodes import NodeProcess, node_process, settings, write_toml
from tests.runtime.node.peers import free_port, wait_until

RESULTS = {"SEG": "seg", "SR": "sr", "OT": "sc", "DOC": "pdf"}


@dataclass(frozen=True)
class Case:
    """A study that is sent, and what is to become of it.

    Args:
        make: writes its files into a folder that is there; returns the truth on each image's pixels, or nothing.
        state: that it ends in.
        said: what the report's warnings must say of it, or the reason why it is dead, in any order.
    """

    make: Callable[[Path], Mapping[str, np.ndarray] | None]
    state: str = "delivered"
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a study.

    Args:
        sent: folder of the files that were given to the archive.
        kept: folder of those that the node has.
        fetched: folder of all objects of the study as the archive gives them back, images and results.
        entry: of ``status``.
        log: the node's lines that name it.
        truth: on each image's own pixels.
    """

    study_uid: str
    sent: Path
    kept: Path
    fetched: Path
    entry: Mapping[str, Any]
    log: str
    truth: Mapping[str, np.ndarray]

    @cached_property
    def results(self) -> Mapping[str, Dataset]:
        """The objects that the node made, by kind, fetched from the archive; there is one of each kind at most."""
        found: dict[str, Dataset] = {}
        for path in sorted(self.fetched.iterdir()):
            result = dcmread(path)
            if result.get("Manufacturer") == "vertscan":
                kind = RESULTS[result.Modality]
                assert kind not in found
                found[kind] = result
        return found

    @property
    def warnings(self) -> list[str]:
        """Of the report."""
        remarks = self.results["sr"].ContentSequence[-1].ContentSequence
        return [item.TextValue for item in remarks if item.ConceptNameCodeSequence[0].CodeValue == "WARNING"]

    def labels(self) -> dict[str, np.ndarray]:
        """The segmentation, as it says itself, on each image's own pixels, in the shape of the truth."""
        seg = self.results["seg"]
        found = {uid: np.zeros_like(truth) for uid, truth in self.truth.items()}
        frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns).astype(bool)
        for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
            (source,) = groups.DerivationImageSequence[0].SourceImageSequence
            image = found[source.ReferencedSOPInstanceUID]
            plane = image[int(source.ReferencedFrameNumber) - 1] if image.ndim == 3 else image
            plane[frame] = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        return found


@contextmanager
def archive_and_node(
    folder: Path, bundle: Path | None, outputs: Sequence[str] = KINDS
) -> Iterator[tuple[Orthanc, NodeProcess]]:
    """An Orthanc and a node beside it that runs; ``bundle``: None for the one that ships."""
    analyse = {"engine": "openvino", "precision": "fp32", "outputs": list(outputs)} | (
        {} if bundle is None else {"bundle": str(bundle)}
    )
    with ExitStack() as stack:
        port = free_port()
        orthanc = Orthanc(folder / "orthanc", port)
        stack.callback(lambda: orthanc.stop())
        complete = {"idle_s": 0.5, "ask_every_s": 0.3, "ask": ["archive"]}
        values = settings(folder / "node", orthanc.port, analyse=analyse, complete=complete)
        values["receive"]["port"] = port
        config = write_toml(folder / "node" / "node.toml", values)
        node = stack.enter_context(node_process(folder / "node", config, real=True))
        orthanc.start()
        yield orthanc, node.start()


def run_cases(
    folder: Path, bundle: Path, cases: Mapping[str, Case], outputs: Sequence[str] = KINDS
) -> dict[str, Outcome]:
    """Put each study into the archive, have it sent to the node, wait until all are done, fetch what is there."""
    truths, uids = {}, {}
    with archive_and_node(folder, bundle, outputs) as (orthanc, node):
        for number, (name, case) in enumerate(cases.items()):
            sent = folder / "sent" / f"{number:02d}"
            sent.mkdir(parents=True)
            with tolerant_of_values():
                truths[name] = case.make(sent) or {}
            files = sorted(sent.iterdir())
            uids[name] = str(dcmread(files[0], specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
            orthanc.upload(files)
            orthanc.send_to_node([orthanc.study(uids[name])])
        assert len(set(uids.values())) == len(uids)
        wait_until(lambda: _all_done(node, len(cases)), what=f"studies that are done: {node.log}", deadline_s=600)
        entries = {entry["key"]: entry for entry in _status(node)["studies"]}
        hasher, log = open_hasher(node.folder / "data"), node.log.read_text()
        outcomes = {}
        for number, (name, uid) in enumerate(uids.items()):
            key, sent = hasher.short(uid), folder / "sent" / f"{number:02d}"
            lines = "\n".join(line for line in log.splitlines() if key in line)
            kept = node.folder / "data" / "images" / key
            fetched = fetch(orthanc, uid, folder / "fetched" / f"{number:02d}")
            outcomes[name] = Outcome(uid, sent, kept, fetched, entries[key], lines, truths[name])
    return outcomes


def _all_done(node: NodeProcess, count: int) -> bool:
    counts = _status(node)["counts"]
    return counts["delivered"] + counts["dead"] + counts["ignored"] == count


def _status(node: NodeProcess) -> dict[str, Any]:
    with StringIO() as said, redirect_stdout(said):
        assert main(["--config", str(node.config), "status", "--json"]) == 0
        return json.loads(said.getvalue())


def fetch(orthanc: Orthanc, study_uid: str, folder: Path) -> Path:
    """Every object of a study as the archive gives it back; the folder."""
    folder.mkdir(parents=True)
    for one in orthanc.instances(study_uid):
        url = f"http://127.0.0.1:{orthanc.http_port}/instances/{one['ID']}/file"
        with urllib.request.urlopen(url, timeout=60) as answer:
            modality = dcmread(BytesIO(encoded := answer.read()), specific_tags=["Modality"]).get("Modality", "")
            (folder / f"{modality}-{one['ID']}.dcm").write_bytes(encoded)
    return folder
