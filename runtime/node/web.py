"""DICOMweb with a peer: echo, count, find, retrieve, store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import Dataset

from runtime.errors import InputError
from runtime.node.config import WebPeer
from runtime.node.own import read_result
from runtime.node.peer_errors import PeerError, RefusedError
from runtime.node.records import ArchivedSeries, ResultRecord
from runtime.readers.dicom_damage import damage

CHUNK_BYTES = 1 << 26
_WORTH_RETRYING = (401, 403, 404, 408, 425, 429)
"""Of the answers from 400 to 499: those that say nothing of the objects, and that an administrator can mend."""
_NOT_FOUND = 404
_SERIES_UID, _STUDY_UID, _MODALITY, _COUNT = "0020000E", "0020000D", "00080060", "00201209"


@contextmanager
def connected(peer: WebPeer) -> Iterator[DICOMwebClient]:
    """A client of the peer; what is raised inside, of its answers or for want of them, comes out as a PeerError.

    Raises:
        PeerError: it did not answer, or with an error, or what can't be used.
        RefusedError: it refused what was asked for good.
        InputError: a file with a password or token can't be read.
    """
    with requests.Session() as session:
        session.trust_env = False
        session.verify = True if peer.ca is None else str(peer.ca)
        if peer.certificate is not None:
            session.cert = (str(peer.certificate), str(peer.key))
        if peer.password_file is not None:
            session.auth = (peer.user, _secret(peer.password_file))
        headers = {} if peer.token_file is None else {"Authorization": f"Bearer {_secret(peer.token_file)}"}
        try:
            client = DICOMwebClient(
                peer.url,
                session=session,
                headers=headers,
                chunk_size=CHUNK_BYTES,
                permissive_uid=True,
                timeout=(min(peer.timeout_s, 15.0), peer.timeout_s),
            )
            client.set_http_retry_params(retry=False)
            yield client
        except requests.HTTPError as error:
            raise _http_error(peer, error) from error
        except (requests.RequestException, OSError) as error:
            did = "answered no JSON" if isinstance(error, requests.JSONDecodeError) else "did not answer"
            raise PeerError(f"{peer.name} at {peer.url} {did} ({type(error).__name__})") from error
        except damage() as error:  # what dicomweb-client and pydicom raise at an answer of another kind, or a cut one
            reason = f"answered what is not DICOMweb's ({type(error).__name__})"
            raise PeerError(f"{peer.name} at {peer.url} {reason}") from error


def _secret(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read; it must hold a password or token.") from error


def _http_error(peer: WebPeer, error: requests.HTTPError) -> PeerError:
    status = 0 if error.response is None else error.response.status_code
    text = f"{peer.name} answered {status}"
    if 400 <= status < 500 and status not in _WORTH_RETRYING:
        return RefusedError(text)
    return PeerError(text)


def echo(peer: WebPeer) -> None:
    """Ask for at most one study.

    Raises:
        PeerError: no answer, or an error.
    """
    with connected(peer) as client:
        client.search_for_studies(limit=1)


def series(peer: WebPeer, study_uid: str) -> Mapping[str, ArchivedSeries]:
    """Every series of a study in the archive, by its UID; empty if it doesn't know the study.

    Raises:
        PeerError: no answer, or an error.
    """
    with connected(peer) as client:
        listed = {}
        for one in client.search_for_series(study_uid, fields=["Modality", "NumberOfSeriesRelatedInstances"]):
            uid, count = str(_value(one, _SERIES_UID)), _value(one, _COUNT)
            if count is None:
                count = len(client.search_for_instances(study_uid, uid))
            listed[uid] = ArchivedSeries(int(count), is_ct=_value(one, _MODALITY) == "CT")
    return listed


def recent_studies(peer: WebPeer, since: str) -> list[str]:
    """UIDs of the archive's studies with CT from a date (``YYYYMMDD``) on.

    Raises:
        PeerError: no answer, or an error.
    """
    filters = {"StudyDate": f"{since}-", "ModalitiesInStudy": "CT"}
    with connected(peer) as client:
        return [str(_value(study, _STUDY_UID)) for study in client.search_for_studies(search_filters=filters)]


def ct_series(peer: WebPeer, study_uid: str) -> list[str]:
    """UIDs of a study's CT series in the archive; none where it answers that it doesn't know the study.

    Raises:
        PeerError: no answer, or an error.
    """
    with connected(peer) as client:
        try:
            found = client.search_for_series(study_uid)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code != _NOT_FOUND:
                raise
            client.search_for_studies(limit=1)  # else the address is wrong
            found = []
    return [str(_value(one, _SERIES_UID)) for one in found if _value(one, _MODALITY) == "CT"]


def _value(entry: Mapping[str, Any], tag: str) -> Any:
    values = entry.get(tag, {}).get("Value") or [None]
    return values[0]


def retrieve(peer: WebPeer, study_uid: str, series_uid: str, take: Callable[[bytes], int]) -> None:
    """WADO-RS of a series as it is stored; ``take`` is given every image as a whole file, returns a C-STORE status.

    Raises:
        PeerError: it did not all come, or was not taken.
    """
    failed = 0
    with connected(peer) as client:
        for image in client.iter_series(study_uid, series_uid, media_types=(("application/dicom", "*"),)):
            with BytesIO() as stream:
                image.save_as(stream, enforce_file_format=True)
                failed += take(stream.getvalue()) != 0
    if failed:
        raise PeerError(f"{failed} image(s) from {peer.name} could not be kept")


def store(peer: WebPeer, files: Sequence[tuple[ResultRecord, Path]]) -> dict[str, int]:
    """STOW-RS of one study's results.

    Returns:
        For each that the answer names its SOP instance UID and status, 0 or the reason why it failed. Whoever is not
        named was not stored: a server may answer 200 and have kept nothing.

    Raises:
        PeerError: no answer, or an error that says nothing of the single results.
        InputError: a result can't be read.
    """
    results = [read_result(path) for _, path in files]
    with connected(peer) as client:
        try:
            answer = client.store_instances(results)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code not in (409, 202):
                raise
            answer = _dataset_of(error.response)
    statuses = {str(item.ReferencedSOPInstanceUID): 0 for item in answer.get("ReferencedSOPSequence") or ()}
    for item in answer.get("FailedSOPSequence") or ():
        statuses[str(item.ReferencedSOPInstanceUID)] = int(item.get("FailureReason") or 0x0110)
    return statuses


def _dataset_of(response: requests.Response) -> Dataset:
    """The answer of a server that kept some or none; an empty one if it can't be read."""
    try:
        return Dataset.from_json(response.json())
    except (ValueError, KeyError, TypeError):
        return Dataset()
