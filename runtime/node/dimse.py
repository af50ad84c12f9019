"""DIMSE with a peer: echo, count, find, move, get, send, ask for commitment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
)
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from runtime.node.config import DicomPeer
from runtime.node.own import read_result
from runtime.node.peer_errors import PeerError
from runtime.node.records import ArchivedSeries, ResultRecord
from runtime.node.statuses import SUCCESS, is_stored
from runtime.node.store import CT_CLASSES
from runtime.node.tls import client_context
from runtime.readers.dicom_damage import damage

logger = logging.getLogger(__name__)

PENDING_STATUSES = (0xFF00, 0xFF01)

IMAGE_SYNTAXES = [
    uid for uid in ALL_TRANSFER_SYNTAXES if not uid.startswith(("1.2.840.10008.1.2.4.10", "1.2.840.10008.1.2.7."))
]
"""All but those of films: an association has room for 128 contexts, and each class needs one for each syntax."""

ALONGSIDE = (
    SecondaryCaptureImageStorage,
    EnhancedSRStorage,
    ComprehensiveSRStorage,
    XRayRadiationDoseSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    RawDataStorage,
)
"""What also lies in CT series: unless it can be sent, the archive says that the series did not come."""

_FIND = StudyRootQueryRetrieveInformationModelFind
_COMMIT = 1


@contextmanager
def associated(
    peer: DicomPeer,
    ae_title: str,
    contexts: Sequence[PresentationContext],
    *,
    needs: str = "",
    get: Callable[[evt.Event], int] | None = None,
) -> Iterator[Association]:
    """An association with a peer, released at the end.

    Args:
        needs: the UID of a service without which the association is of no use.
        get: receives what the peer sends on it after a C-GET; then contexts of storage classes take the SCP's role.

    Raises:
        PeerError: it can't be had, the peer does not offer what is needed, or it answered what can't be used.
    """
    entity = AE(ae_title=ae_title)
    entity.maximum_pdu_size = 0
    entity.connection_timeout = min(peer.timeout_s, 15.0)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = peer.timeout_s
    tls = None if peer.tls is None else (client_context(peer.tls), peer.tls.server_name or peer.host)
    roles = [] if get is None else [build_role(UID(uid), scp_role=True) for uid in (*sorted(CT_CLASSES), *ALONGSIDE)]
    association = entity.associate(
        peer.host,
        peer.port,
        contexts=list(contexts),
        ae_title=peer.ae_title,
        max_pdu=0,
        ext_neg=roles,  # type: ignore[arg-type]
        evt_handlers=[] if get is None else [(evt.EVT_C_STORE, get)],
        tls_args=tls,
    )
    if not association.is_established:
        raise PeerError(_why_not(peer, association))
    try:
        if needs and needs not in {context.abstract_syntax for context in association.accepted_contexts}:
            raise PeerError(_not_offered(peer, [needs]))
        yield association
    except damage() as error:  # what pynetdicom and pydicom raise at what a peer answers, or where it hangs up
        raise PeerError(f"the exchange with {peer.name} failed ({type(error).__name__})") from error
    finally:
        if association.is_established:
            association.release()


def _why_not(peer: DicomPeer, association: Association) -> str:
    if association.is_rejected:
        answer = association.acceptor.primitive
        return f"{peer.name} rejected the association ({'no reason' if answer is None else answer.reason_str})"
    if association.rejected_contexts:  # all of them, else it would be established
        return _not_offered(peer, [str(context.abstract_syntax) for context in association.rejected_contexts])
    where = f"{peer.name} at {peer.host}:{peer.port}"
    tls = " or its TLS handshake failed" if peer.tls else ""
    return f"{where} did not answer{tls}; check that it runs, its address, and its whitelist"


def _not_offered(peer: DicomPeer, services: Sequence[str]) -> str:
    names = ", ".join(sorted({UID(uid).name for uid in services}))
    return f"{peer.name} does not offer {names}; let it accept that from us"


def echo(peer: DicomPeer, ae_title: str) -> None:
    """C-ECHO.

    Raises:
        PeerError: no answer, or not success.
    """
    with associated(peer, ae_title, [build_context(Verification)], needs=Verification) as association:
        _checked(peer, "C-ECHO", association.send_c_echo())


def _checked(peer: DicomPeer, what: str, answer: Dataset) -> int:
    """The status of an answer that is success, a warning or pending."""
    if "Status" not in answer:
        raise PeerError(f"{peer.name} ended the association in the middle of a {what}")
    status = int(answer.Status)
    if status not in (SUCCESS, *PENDING_STATUSES) and not 0xB000 <= status < 0xC000:
        raise PeerError(f"{peer.name} answered a {what} with status {status:04X}")
    return status


def _find(peer: DicomPeer, association: Association, identifier: Dataset) -> list[Dataset]:
    found = []
    for status, answer in association.send_c_find(identifier, _FIND):
        if _checked(peer, "C-FIND", status) in PENDING_STATUSES and answer is not None:
            found.append(answer)
    return found


def series(peer: DicomPeer, ae_title: str, study_uid: str) -> Mapping[str, ArchivedSeries]:
    """Every series of a study in the archive, by its UID; empty if it doesn't know the study.

    Archives that don't count are asked for the images.

    Raises:
        PeerError: no answer, or not success.
    """
    fields = dict.fromkeys(("SeriesInstanceUID", "Modality", "NumberOfSeriesRelatedInstances"), "")
    query = _identifier("SERIES", StudyInstanceUID=study_uid, **fields)
    listed = {}
    with associated(peer, ae_title, [build_context(_FIND)], needs=_FIND) as association:
        for one in _find(peer, association, query):
            uid, count = str(one.SeriesInstanceUID), one.get("NumberOfSeriesRelatedInstances")
            if count is None:
                images = _identifier("IMAGE", StudyInstanceUID=study_uid, SeriesInstanceUID=uid, SOPInstanceUID="")
                count = len(_find(peer, association, images))
            listed[uid] = ArchivedSeries(int(count), is_ct=one.get("Modality") == "CT")
    return listed


def recent_studies(peer: DicomPeer, ae_title: str, since: str) -> list[str]:
    """UIDs of the archive's studies with CT from a date (``YYYYMMDD``) on.

    Raises:
        PeerError: no answer, or not success.
    """
    query = _identifier("STUDY", StudyInstanceUID="", StudyDate=f"{since}-", ModalitiesInStudy="CT")
    with associated(peer, ae_title, [build_context(_FIND)], needs=_FIND) as association:
        return [str(study.StudyInstanceUID) for study in _find(peer, association, query)]


def ct_series(peer: DicomPeer, ae_title: str, study_uid: str) -> list[str]:
    """UIDs of a study's CT series in the archive.

    Raises:
        PeerError: no answer, or not success.
    """
    query = _identifier("SERIES", StudyInstanceUID=study_uid, SeriesInstanceUID="", Modality="")
    with associated(peer, ae_title, [build_context(_FIND)], needs=_FIND) as association:
        found = _find(peer, association, query)
    return [str(one.SeriesInstanceUID) for one in found if one.get("Modality") == "CT"]


def move(peer: DicomPeer, ae_title: str, study_uid: str, series_uid: str) -> None:
    """C-MOVE of a series to ourselves: it comes in at our SCP.

    Raises:
        PeerError: it did not all come.
    """
    query = _identifier("SERIES", StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid)
    model = StudyRootQueryRetrieveInformationModelMove
    with associated(peer, ae_title, [build_context(model)], needs=model) as association:
        for answer, _ in association.send_c_move(query, ae_title, model):
            _check_all(peer, "C-MOVE", answer)


def get(peer: DicomPeer, ae_title: str, study_uid: str, series_uid: str, take: Callable[[bytes], int]) -> None:
    """C-GET of a series; ``take`` is given every image as a whole file and returns a C-STORE status.

    Raises:
        PeerError: it did not all come.
    """
    model = StudyRootQueryRetrieveInformationModelGet
    contexts = [build_context(model)]
    for syntax in IMAGE_SYNTAXES:
        contexts += [build_context(UID(uid), syntax) for uid in sorted(CT_CLASSES)]
    contexts += [build_context(UID(uid), [ExplicitVRLittleEndian, ImplicitVRLittleEndian]) for uid in ALONGSIDE]
    query = _identifier("SERIES", StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid)
    received = lambda event: take(event.encoded_dataset())  # noqa: E731
    with associated(peer, ae_title, contexts, needs=model, get=received) as association:
        for answer, _ in association.send_c_get(query, model):
            _check_all(peer, "C-GET", answer)


def _check_all(peer: DicomPeer, what: str, answer: Dataset) -> None:
    status = _checked(peer, what, answer)
    failed = int(answer.get("NumberOfFailedSuboperations") or 0)
    if status not in PENDING_STATUSES and failed:
        raise PeerError(f"{failed} image(s) did not come with a {what} from {peer.name}")


def send(
    peer: DicomPeer, ae_title: str, files: Sequence[tuple[ResultRecord, Path]], *, transaction_uid: str
) -> tuple[dict[str, int], bool]:
    """C-STORE of results, and if a transaction is named a request to commit to those that were stored.

    Returns:
        The status of each by its SOP instance UID (0x0122 where the peer does not take its class), and whether the
        request was accepted. What is in neither was not sent: the association ended before.

    Raises:
        PeerError: there is no association.
        InputError: a result can't be read.
    """
    contexts = [] if not transaction_uid else [build_context(StorageCommitmentPushModel)]
    for uid in sorted({result.sop_class for result, _ in files}):
        contexts += [build_context(UID(uid), [ExplicitVRLittleEndian, ImplicitVRLittleEndian])]
    statuses: dict[str, int] = {}
    with associated(peer, ae_title, contexts) as association:
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        for result, path in files:
            if result.sop_class not in accepted:
                statuses[result.sop_uid] = 0x0122
            elif association.is_established:
                answer = association.send_c_store(read_result(path))
                if "Status" in answer:
                    statuses[result.sop_uid] = int(answer.Status)
        stored = [result for result, _ in files if is_stored(statuses.get(result.sop_uid))]
        asked = StorageCommitmentPushModel in accepted and bool(stored) and association.is_established
        if asked:
            asked = _ask(association, stored, transaction_uid)
    return statuses, asked


def _ask(association: Association, stored: Sequence[ResultRecord], transaction_uid: str) -> bool:
    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = []
    for result in stored:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = result.sop_class, result.sop_uid
        request.ReferencedSOPSequence.append(item)
    answer, _ = association.send_n_action(
        request, _COMMIT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    return "Status" in answer and answer.Status == SUCCESS


def _identifier(level: str, **fields: str) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in fields.items():
        setattr(identifier, keyword, value)
    return identifier
