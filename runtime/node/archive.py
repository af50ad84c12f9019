"""What is asked of an archive, whichever of DIMSE and DICOMweb it speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.node.config import DicomPeer, Peer, WebPeer
from runtime.node.peer_errors import NotFoundError, PeerError
from runtime.node.records import ArchivedSeries


class Archive:
    """A peer that can be asked for studies.

    Args:
        ae_title: our own, with which we call and to which images are moved.
    """

    def __init__(self, peer: Peer, ae_title: str) -> None:
        if not isinstance(peer, (DicomPeer, WebPeer)):
            raise PeerError(f"{peer.name} is a folder and can't be asked for studies.")
        self.peer: DicomPeer | WebPeer = peer
        self._ae_title = ae_title

    @property
    def name(self) -> str:
        """The peer's name."""
        return self.peer.name

    def series(self, study_uid: str) -> Mapping[str, ArchivedSeries]:
        """Each of a study's series, by its UID; empty if the archive doesn't know it. Raises PeerError."""
        from runtime.node import dimse, web

        if isinstance(self.peer, WebPeer):
            return web.series(self.peer, study_uid)
        return dimse.series(self.peer, self._ae_title, study_uid)

    def recent_studies(self, since: str) -> list[str]:
        """UIDs of studies with CT since a date (``YYYYMMDD``). Raises PeerError."""
        from runtime.node import dimse, web

        if isinstance(self.peer, WebPeer):
            return web.recent_studies(self.peer, since)
        return dimse.recent_studies(self.peer, self._ae_title, since)

    def fetch(self, study_uid: str, take: Callable[[bytes], int]) -> int:
        """Have the study's CT series come: to ``take``, or by C-MOVE to our SCP. How many series came.

        Raises:
            NotFoundError: the archive has no CT series of the study.
            PeerError: it did not answer, or not all images came.
        """
        from runtime.node import dimse, web

        peer = self.peer
        if isinstance(peer, WebPeer):
            series = web.ct_series(peer, study_uid)
        else:
            series = dimse.ct_series(peer, self._ae_title, study_uid)
        if not series:
            raise NotFoundError(f"not found at {peer.name}: it has no CT series of a study with this UID")
        failed: PeerError | None = None
        for uid in series:  # each, though one does not come
            try:
                self._fetch_one(study_uid, uid, take)
            except PeerError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return len(series)

    def _fetch_one(self, study_uid: str, series_uid: str, take: Callable[[bytes], int]) -> None:
        from runtime.node import dimse, web

        if isinstance(self.peer, WebPeer):
            web.retrieve(self.peer, study_uid, series_uid, take)
        elif self.peer.retrieve == "move":
            dimse.move(self.peer, self._ae_title, study_uid, series_uid)
        else:
            dimse.get(self.peer, self._ae_title, study_uid, series_uid, take)
