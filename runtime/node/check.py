"""Whether a configuration works here: its fields, its folders, its files, and an echo of every peer."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.errors import VertscanError
from runtime.node.config import Config, DicomPeer, FolderPeer, Peer, WebPeer
from runtime.paths import nearest_there


@dataclass(frozen=True)
class Finding:
    """One thing that was tried: what, whether it works, and what was seen."""

    what: str
    works: bool
    seen: str


def check(config: Config) -> Iterator[Finding]:
    """Try everything, one thing after the other."""
    yield _data(config)
    if config.receive.tls is not None:
        yield _tried("receive.tls", lambda: _server_tls(config))
    yield _tried("analyse", lambda: _engine(config))
    yield _tried("receive.accept", lambda: _senders(config))
    for peer in config.peers:
        yield _tried(f"peer {peer.name}", lambda peer=peer: _echo(peer, config.receive.ae_title))  # type: ignore[misc]


def _tried(what: str, attempt: object) -> Finding:
    try:
        return Finding(what, True, attempt())  # type: ignore[operator]
    except VertscanError as error:
        return Finding(what, False, str(error))


def _data(config: Config) -> Finding:
    """The data folder, which may not be there yet, and the room that it has."""
    home = nearest_there(config.data)
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        return Finding("node.data", False, f"nothing can be written to {home}; give it to this user")
    free_bytes = shutil.disk_usage(home).free
    if free_bytes < config.storage.min_free_bytes:
        return Finding("node.data", False, f"only {free_bytes >> 20} MiB are free; storage.min_free_gib wants more")
    return Finding("node.data", True, f"{config.data}, {free_bytes >> 30} GiB free")


def _server_tls(config: Config) -> str:
    from runtime.node.tls import server_context

    assert config.receive.tls is not None
    server_context(config.receive.tls)
    return "certificate, key and authority can be used"


def _engine(config: Config) -> str:
    """The bundle and the engine that would be taken; the networks are not loaded."""
    from runtime.bundle import open_bundle
    from runtime.engines import select_engine

    settings = config.analyse
    bundle = open_bundle(settings.bundle)
    choice = select_engine(
        settings.engine, precision=settings.precision, device=settings.device, verified=bundle.spec.verified
    )
    return f"bundle {bundle.spec.name} {bundle.spec.version}; {choice.name} in {choice.precision}"


def _senders(config: Config) -> str:
    from runtime.node.receiver import networks_of

    networks = networks_of(config.dicom_peers(config.receive.accept))
    return "; ".join(f"{title} from {', '.join(map(str, nets))}" for title, nets in networks.items()) or "nobody"


def _echo(peer: Peer, ae_title: str) -> str:
    start_s = time.perf_counter()
    if isinstance(peer, FolderPeer):
        home = nearest_there(peer.path)
        if not os.access(home, os.W_OK | os.X_OK):
            raise VertscanError(f"nothing can be written to {home}")
        return f"{peer.path} can be written"
    if isinstance(peer, WebPeer):
        from runtime.node import web

        web.echo(peer)
    else:
        from runtime.node import dimse

        assert isinstance(peer, DicomPeer)
        dimse.echo(peer, ae_title)
    return f"answered after {1000 * (time.perf_counter() - start_s):.0f} ms"
