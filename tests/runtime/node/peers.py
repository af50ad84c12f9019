"""Peers of the node inside the test's process, ports, and waiting with a deadline."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

from benchmarks.orthanc import free_port
from runtime.node.config import DicomPeer

DEADLINE_S = 180.0
SENDER, ARCHIVE, NODE = "SENDER", "ARCHIVE", "NODE"


def nobody(name: str, *, retrieve: str = "move") -> DicomPeer:
    """A peer's settings, at a port where nobody is."""
    return DicomPeer(
        name=name,
        ae_title=name.upper(),
        host="127.0.0.1",
        port=1,
        senders=(),
        retrieve=retrieve,
        commitment="off",
        tls=None,
        timeout_s=5,
    )


def wait_until(condition: Callable[[], Any], *, what: str = "", deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of a condition, asked over and over; fails when the deadline passes.

    It is asked every 20 ms, and after a while at intervals of a twentieth of the time waited: asking takes the time of
    what is waited for.
    """
    begin_s = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited_s = time.monotonic() - begin_s
        assert waited_s < deadline_s, f"not seen within {deadline_s} s: {what or condition}"
        time.sleep(min(0.5, max(0.02, waited_s / 20)))


def send(files: Sequence[Path | Dataset], port: int, *, calling=SENDER, called=NODE, tls=None) -> list[int | None]:
    """C-STORE of files; the status of each, None where there was no answer."""
    datasets = [dcmread(file) if isinstance(file, Path) else file for file in files]
    entity = AE(ae_title=calling)
    pairs = {(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in datasets}
    contexts = [build_context(*pair) for pair in sorted(pairs)]
    association = entity.associate("127.0.0.1", port, ae_title=called, contexts=contexts, tls_args=tls)
    if not association.is_established:
        return [None] * len(files)
    statuses = []
    for dataset in datasets:
        answer = association.send_c_store(dataset) if association.is_established else {}
        statuses.append(int(answer.Status) if "Status" in answer else None)
    if association.is_established:
        association.release()
    return statuses


def echo(port: int, *, calling=SENDER, called=NODE, tls=None) -> bool:
    """Whether a C-ECHO is answered."""
    association = AE(ae_title=calling).associate(
        "127.0.0.1", port, ae_title=called, contexts=[build_context(Verification)], tls_args=tls
    )
    if not association.is_established:
        return False
    answer = association.send_c_echo()
    association.release()
    return "Status" in answer and answer.Status == 0


class Archive:
    """A storage SCP that counts: keeps what it is sent, answers C-FIND with the counts it is told, and those of images
    that it ``holds``, which it gives by C-GET."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or free_port()
        self.received: list[Dataset] = []
        self.counts: dict[str, int] = {}
        self.holds: list[Dataset] = []
        self.status: Callable[[Dataset], int] = lambda dataset: 0
        self.classes: list[str] | None = None
        self.commit: Callable[[Dataset], tuple[list[str], list[str]]] | None = None
        self.node_port = 0
        self.finds, self.find_s = 0, 0.0
        self.gets: list[str] = []
        self._server = None

    @property
    def uids(self) -> list[str]:
        """SOP instance UIDs in the order in which they came."""
        return [dataset.SOPInstanceUID for dataset in self.received]

    def start(self) -> Archive:
        """Begin to listen."""
        entity = AE(ae_title=ARCHIVE)
        for context in AllStoragePresentationContexts:
            if self.classes is None or context.abstract_syntax in self.classes:
                entity.add_supported_context(context.abstract_syntax)
        entity.add_supported_context(Verification)
        entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        if self.holds:
            entity.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
            entity.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
        if self.commit is not None:
            entity.add_supported_context(StorageCommitmentPushModel)
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_GET, self._get),
            (evt.EVT_N_ACTION, self._action),
        ]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _store(self, event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        status = self.status(dataset)
        if status == 0:
            self.received.append(dataset)
        return status

    def _find(self, event: evt.Event):
        self.finds += 1
        time.sleep(self.find_s)
        asked = event.identifier
        if asked.QueryRetrieveLevel == "STUDY":
            for study_uid in {image.StudyInstanceUID for image in self.holds}:
                answer = Dataset()
                answer.QueryRetrieveLevel, answer.StudyInstanceUID = "STUDY", study_uid
                yield 0xFF00, answer
            return
        held = Counter(i.SeriesInstanceUID for i in self.holds if i.StudyInstanceUID == asked.StudyInstanceUID)
        for series_uid, count in (self.counts | held).items():
            answer = Dataset()
            answer.QueryRetrieveLevel, answer.SeriesInstanceUID, answer.Modality = "SERIES", series_uid, "CT"
            answer.StudyInstanceUID = asked.StudyInstanceUID
            answer.NumberOfSeriesRelatedInstances = count
            yield 0xFF00, answer

    def _get(self, event: evt.Event):
        images = [image for image in self.holds if image.SeriesInstanceUID == event.identifier.SeriesInstanceUID]
        self.gets.append(event.identifier.SeriesInstanceUID)
        yield len(images)
        for image in images:
            yield 0xFF00, image

    def _action(self, event: evt.Event):
        request = event.action_information
        stored, failed = self.commit(request)
        threading.Thread(target=self._report, args=(request, stored, failed), daemon=True).start()
        return 0, None

    def _report(self, request: Dataset, stored: list[str], failed: list[str]) -> None:
        report = Dataset()
        report.TransactionUID = request.TransactionUID
        for keyword, uids in (("ReferencedSOPSequence", stored), ("FailedSOPSequence", failed)):
            items = [i for i in request.ReferencedSOPSequence if i.ReferencedSOPInstanceUID in uids]
            if items:
                setattr(report, keyword, items)
        from pynetdicom import build_role

        association = AE(ae_title=ARCHIVE).associate(
            "127.0.0.1",
            self.node_port,
            ae_title=NODE,
            contexts=[build_context(StorageCommitmentPushModel, ExplicitVRLittleEndian)],
            ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
        )
        assert association.is_established
        kind = 2 if failed else 1
        association.send_n_event_report(report, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
        association.release()


@contextmanager
def running(archive: Archive):
    """An archive that listens."""
    archive.start()
    try:
        yield archive
    finally:
        archive.stop()
