"""The C-STORE SCP: who may speak to it, what it takes, and the answers to storage commitment."""

from __future__ import annotations

import ipaddress
import logging
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from runtime.errors import InputError
from runtime.node.config import DicomPeer, Receive
from runtime.node.left_aside import LeftAside
from runtime.node.loops import log_defect
from runtime.node.store import DiskFullError, Store
from runtime.node.tls import server_context

logger = logging.getLogger(__name__)

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND, PROCESSING_FAILURE = 0x0000, 0xA700, 0xC000, 0x0110
HANDSHAKE_S = 10.0
_MAPPED_BITS = 96
"""How many bits of an IPv6 address come before the IPv4 address that is mapped to it (RFC 4291, 2.5.5.2)."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
CommitmentHandler = Callable[[str, Sequence[str], Sequence[str]], None]


class _Server(ThreadedAssociationServer):
    """Closes connections from addresses that no sender has, and shakes TLS hands without keeping others waiting."""

    networks: tuple[Network, ...] = ()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection; its TLS handshake is left to its own thread."""
        connection, address = self.socket.accept()  # type: ignore[union-attr]
        if self.ssl_context:
            connection.settimeout(HANDSHAKE_S)
            connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the caller's address is one of a sender's."""
        address = address_of(client_address[0])
        allowed = any(address in network for network in self.networks)
        if not allowed:
            logger.warning("a connection from %s was closed: no sender has this address", address)
        return allowed

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands, then go on as an association."""
        if isinstance(request, ssl.SSLSocket):
            try:
                request.do_handshake()
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or type(error).__name__
                logger.warning("a connection from %s was closed: TLS failed (%s)", client_address[0], reason)
                self.shutdown_request(request)
                return
            request.settimeout(self.ae.network_timeout)
        super().finish_request(request, client_address)


def address_of(caller: object) -> IPAddress:
    """A caller's address; of an IPv4 caller that came to an IPv6 address (``::ffff:10.0.0.7``), its own."""
    address = ipaddress.ip_address(str(caller).partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def network_of(written: str) -> Network:
    """A network as callers' addresses are compared with it: of IPv4 ones in IPv6 (``::ffff:10.0.0.0/104``), their own.

    Raises:
        ValueError: it is no network.
    """
    network = ipaddress.ip_network(written)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))


def networks_of(peers: Sequence[DicomPeer]) -> dict[str, tuple[Network, ...]]:
    """The addresses from which each calling AE title may come.

    Raises:
        InputError: a host's name can't be resolved.
    """
    networks: dict[str, tuple[Network, ...]] = {}
    for peer in peers:
        of_peer = tuple(network_of(sender) for sender in peer.senders) or _addresses(peer.host)
        networks[peer.ae_title] = networks.get(peer.ae_title, ()) + of_peer
    return networks


def _addresses(host: str) -> tuple[Network, ...]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"The host {host!r} has no address ({error}); correct it, or give senders.") from error
    return tuple(network_of(str(entry[4][0]).partition("%")[0]) for entry in found)


class Receiver:
    """Listens from ``start`` to ``stop``."""

    def __init__(
        self, settings: Receive, senders: Sequence[DicomPeer], store: Store, *, on_commitment: CommitmentHandler
    ) -> None:
        self._settings, self._store, self._on_commitment = settings, store, on_commitment
        self._networks = networks_of(senders)
        self._server: _Server | None = None
        self._left_aside = LeftAside()
        self._entity = self._make_entity()

    def _make_entity(self) -> AE:
        settings = self._settings
        entity = AE(ae_title=settings.ae_title)
        entity.maximum_pdu_size = 0
        entity.maximum_associations = settings.max_associations
        entity.network_timeout = entity.dimse_timeout = settings.timeout_s
        entity.require_called_aet = True
        entity.require_calling_aet = sorted(self._networks) or ["nobody may"]
        for context in AllStoragePresentationContexts:
            if context.abstract_syntax is not None:
                entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        entity.add_supported_context(Verification)
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        return entity

    def start(self) -> None:
        """Begin to listen.

        Raises:
            InputError: the address can't be had, or a TLS file can't be used.
        """
        settings = self._settings
        context = None if settings.tls is None else server_context(settings.tls)
        try:
            server = self._entity.make_server(
                (settings.bind, settings.port),
                ssl_context=context,
                evt_handlers=[
                    (evt.EVT_C_STORE, self._on_store),
                    (evt.EVT_N_EVENT_REPORT, self._on_event_report),
                    (evt.EVT_REQUESTED, self._on_requested),
                    (evt.EVT_REJECTED, self._on_rejected),
                    (evt.EVT_ABORTED, self._on_broken),
                    (evt.EVT_CONN_CLOSE, self._on_closed),
                ],
                server_class=_Server,
            )
        except OSError as error:
            raise InputError(
                f"{settings.bind}:{settings.port} can't be listened on ({error.strerror}); choose another port, "
                "or end what uses it."
            ) from error
        assert isinstance(server, _Server)
        server.networks = tuple(network for of_peer in self._networks.values() for network in of_peer)
        self._entity._servers.append(server)
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.1,), name="receiver", daemon=True).start()
        tls = "" if context is None else " with TLS"
        logger.info("listening on %s:%d as %s%s", settings.bind, self.port, settings.ae_title, tls)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._settings.port if self._server is None else int(self._server.server_address[1])

    def stop(self) -> None:
        """End associations and stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None
            self._entity.shutdown()

    def take(self, encoded: bytes, *, peer: str) -> int:
        """Keep an object and return the C-STORE status that says so."""
        try:
            taken = self._store.take(encoded, peer=peer)
        except DiskFullError as error:
            logger.error("an image from %s was refused: %s", peer, error)
            return OUT_OF_RESOURCES
        except InputError as error:
            logger.warning("an object from %s was refused: %s", peer, error)
            return CANNOT_UNDERSTAND
        except (OSError, sqlite3.OperationalError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            logger.error("an image from %s was refused: it can't be kept (%s)", peer, reason)
            return OUT_OF_RESOURCES
        except Exception:  # noqa: BLE001  one object must not keep the others waiting
            log_defect(f"taking an object from {peer}")
            return PROCESSING_FAILURE
        logger.debug("study %s from %s: %s object", taken.study, peer, taken.outcome)
        if taken.outcome == "other":
            self._left_aside.tell_of(encoded, f"study {taken.study}: ")
        return SUCCESS

    def _on_store(self, event: evt.Event) -> int:
        return self.take(event.encoded_dataset(), peer=_caller(event))

    def _on_requested(self, event: evt.Event) -> None:
        """Reject an AE title that comes from an address of another's."""
        requestor = event.assoc.requestor
        if requestor.primitive is None:
            return
        title = requestor.primitive.calling_ae_title.strip()
        address = address_of(requestor.address)
        if title in self._networks and not any(address in network for network in self._networks[title]):
            logger.warning("an association of %s from %s was aborted: not its address", title, address)
            event.assoc.abort()

    def _on_rejected(self, event: evt.Event) -> None:
        logger.warning("an association from %s was rejected: unknown calling or wrong called AE title", _address(event))

    def _on_broken(self, event: evt.Event) -> None:
        logger.warning("an association with %s was aborted", _caller(event))

    def _on_closed(self, event: evt.Event) -> None:
        logger.debug("a connection from %s was closed", _address(event))

    def _on_event_report(self, event: evt.Event) -> tuple[int, Dataset | None]:
        answer = event.event_information
        stored = [str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence") or ()]
        failed = [str(item.ReferencedSOPInstanceUID) for item in answer.get("FailedSOPSequence") or ()]
        self._on_commitment(str(answer.get("TransactionUID", "")), stored, failed)
        return SUCCESS, None


def _caller(event: evt.Event) -> str:
    return str(event.assoc.requestor.ae_title).strip() or _address(event)


def _address(event: evt.Event) -> str:
    return str(event.assoc.requestor.address)
