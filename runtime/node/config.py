"""Settings of the node, from a TOML file: frozen values, and one clear line per wrong field.

docs/node.md describes every field for those who write the file.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from runtime.engines import ENGINES, PRECISIONS
from runtime.errors import InputError
from runtime.node.toml_table import Table

OUTPUTS = ("seg", "sr", "sc", "pdf")
SERIES = ("sent", "all")
DAY_S = 86400.0
YEAR_S = 366 * DAY_S
AE_TITLE_LENGTH = 16


@dataclass(frozen=True)
class Tls:
    """Certificates for one direction of DICOM TLS; both sides always show theirs.

    Args:
        certificate: PEM, with the chain.
        key: PEM private key of the certificate.
        ca: PEM certificates that the other side's must descend from.
        server_name: the name that a server's certificate must bear; ``""``: the host that is called.
    """

    certificate: Path
    key: Path
    ca: Path
    server_name: str = ""


@dataclass(frozen=True)
class DicomPeer:
    """An application entity that is spoken to by DIMSE.

    Args:
        senders: networks from which its associations may come; empty: only its own host.
        retrieve: ``"move"`` or ``"get"``.
        commitment: ``"off"``, ``"ask"`` (where offered; no answer is noted) or ``"require"`` (no answer: sent anew).
    """

    name: str
    ae_title: str
    host: str
    port: int
    senders: tuple[str, ...]
    retrieve: str
    commitment: str
    tls: Tls | None
    timeout_s: float


@dataclass(frozen=True)
class WebPeer:
    """A DICOMweb server (QIDO-RS, WADO-RS, STOW-RS under one address).

    Args:
        user, password_file: basic authentication; or
        token_file: a bearer token, read anew for every connection, since tokens expire.
        ca, certificate, key: PEM files for TLS.
    """

    name: str
    url: str
    user: str
    password_file: Path | None
    token_file: Path | None
    ca: Path | None
    certificate: Path | None
    key: Path | None
    timeout_s: float


@dataclass(frozen=True)
class FolderPeer:
    """A folder that results are copied to, one folder per study."""

    name: str
    path: Path


Peer = DicomPeer | WebPeer | FolderPeer


@dataclass(frozen=True)
class Receive:
    """The C-STORE SCP."""

    ae_title: str
    bind: str
    port: int
    accept: tuple[str, ...]
    max_associations: int
    timeout_s: float
    tls: Tls | None


@dataclass(frozen=True)
class Complete:
    """When a study is held to have arrived; ``series`` that must be whole: ``"sent"`` or ``"all"`` in the archive."""

    idle_s: float
    ask: tuple[str, ...]
    series: str
    ask_every_s: float
    give_up_s: float


@dataclass(frozen=True, kw_only=True)
class Analyse:
    """The pipeline and what is written of its findings; ``attempts`` counts deaths of the process too."""

    bundle: Path | None
    engine: str
    precision: str
    device: int
    exhaustive: bool
    outputs: tuple[str, ...]
    attempts: int
    retry_s: float


@dataclass(frozen=True)
class Deliver:
    """Where results go, and how long it is tried: the wait doubles from ``first_retry_s`` to ``max_retry_s``."""

    to: tuple[str, ...]
    first_retry_s: float
    max_retry_s: float
    give_up_s: float
    commitment_s: float


@dataclass(frozen=True)
class Reconcile:
    """Which archives are asked, at start and then every ``every_s`` (0: never), for studies that never came.

    Args:
        series: ``"all"``: a CT series that didn't come is missing; ``"sent"``: only images of series that did.
    """

    ask: tuple[str, ...]
    series: str
    days: int
    every_s: float


@dataclass(frozen=True)
class Storage:
    """What is kept, for how long, and how much of the disk it may take."""

    quota_bytes: int
    min_free_bytes: int
    keep_images_s: float
    keep_results_s: float
    keep_records_s: float
    fsync: bool


@dataclass(frozen=True)
class Watch:
    """A folder whose files are taken in once they have not changed for ``settle_s``."""

    path: Path
    settle_s: float


@dataclass(frozen=True)
class Config:
    """All settings of a node."""

    data: Path
    health_bind: str
    health_port: int
    log_level: str
    receive: Receive
    complete: Complete
    analyse: Analyse
    deliver: Deliver
    reconcile: Reconcile
    storage: Storage
    watch: Watch | None
    peers: tuple[Peer, ...]

    def peer(self, name: str) -> Peer:
        """The peer of that name."""
        return next(peer for peer in self.peers if peer.name == name)

    def dicom_peers(self, names: tuple[str, ...]) -> tuple[DicomPeer, ...]:
        """Those of the named peers that are spoken to by DIMSE."""
        return tuple(p for p in self.peers if isinstance(p, DicomPeer) and p.name in names)


def load_config(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        InputError: the file can't be read, is no TOML, or has wrong fields, each of which is named on a line.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The configuration {path} can't be read ({error.strerror}); check --config.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML file ({error}); correct it.") from error
    errors: list[str] = []
    config = _config(Table(values, where="", errors=errors, folder=path.absolute().parent))
    errors += _dangling(config)
    if errors:
        raise InputError(f"{path} has {len(errors)} wrong field(s):\n" + "\n".join(f"  {line}" for line in errors))
    return config


def _config(root: Table) -> Config:
    node = root.table("node")
    data = node.path("data", required=True) or Path()
    ae_title = _ae_title(node, "VERTSCAN")
    health_bind, health_port = node.text("health_bind", "127.0.0.1"), node.whole("health_port", 0, least=0, most=65535)
    level = node.choice("log_level", ("debug", "info", "warning", "error"), "info")
    node.end()
    peers = (*root.tables("dicom", _dicom_peer), *root.tables("web", _web_peer), *root.tables("folder", _folder_peer))
    config = Config(
        data=data,
        health_bind=health_bind,
        health_port=health_port,
        log_level=level,
        receive=_receive(root.table("receive"), ae_title),
        complete=_complete(root.table("complete")),
        analyse=_analyse(root.table("analyse")),
        deliver=_deliver(root.table("deliver")),
        reconcile=_reconcile(root.table("reconcile")),
        storage=_storage(root.table("storage")),
        watch=_watch(root.optional_table("watch")),
        peers=peers,
    )
    root.end()
    return config


def _ae_title(table: Table, default: str | None = None) -> str:
    title = table.text("ae_title", default)
    if len(title) > AE_TITLE_LENGTH or not title.isascii() or not title.isprintable() or "\\" in title:
        table.wrong("ae_title", f"must be up to {AE_TITLE_LENGTH} printable ASCII characters; met {title!r}")
    return title


def _tls(table: Table | None) -> Tls | None:
    if table is None:
        return None
    files = [table.path(field, required=True, file=True) or Path() for field in ("certificate", "key", "ca")]
    tls = Tls(files[0], files[1], files[2], table.text("server_name", ""))
    table.end()
    return tls


def _receive(table: Table, ae_title: str) -> Receive:
    receive = Receive(
        ae_title=ae_title,
        bind=table.text("bind", "127.0.0.1"),
        port=table.whole("port", 11112, least=0, most=65535),
        accept=table.texts("accept"),
        max_associations=table.whole("max_associations", 20, least=1, most=1000),
        timeout_s=table.number("timeout_s", 60, least=1, most=3600),
        tls=_tls(table.optional_table("tls")),
    )
    table.end()
    return receive


def _complete(table: Table) -> Complete:
    complete = Complete(
        idle_s=table.number("idle_s", 30, least=0.1, most=DAY_S),
        ask=table.texts("ask"),
        series=table.choice("series", SERIES, "sent"),
        ask_every_s=table.number("ask_every_s", 15, least=0.1, most=3600),
        give_up_s=table.number("give_up_s", 3600, least=1, most=YEAR_S),
    )
    table.end()
    return complete


def _analyse(table: Table) -> Analyse:
    outputs = table.texts("outputs", OUTPUTS)
    for output in outputs:
        if output not in OUTPUTS:
            table.wrong("outputs", f"must be of {', '.join(OUTPUTS)}; met {output!r}")
    if not outputs:
        table.wrong("outputs", "is empty: nothing would be delivered")
    engines = ("auto", *(name for name in ENGINES if name != "triton"))
    analyse = Analyse(
        bundle=table.path("bundle"),
        engine=table.choice("engine", engines, "auto"),
        precision=table.choice("precision", ("auto", *PRECISIONS), "auto"),
        device=table.whole("device", 0, least=0, most=1000),
        exhaustive=table.flag("exhaustive", False),
        outputs=outputs,
        attempts=table.whole("attempts", 3, least=1, most=100),
        retry_s=table.number("retry_s", 60, least=0, most=DAY_S),
    )
    table.end()
    return analyse


def _deliver(table: Table) -> Deliver:
    deliver = Deliver(
        to=table.texts("to"),
        first_retry_s=table.number("first_retry_s", 10, least=0.1, most=DAY_S),
        max_retry_s=table.number("max_retry_s", 1800, least=0.1, most=7 * DAY_S),
        give_up_s=table.number("give_up_s", 7 * DAY_S, least=0.1, most=YEAR_S),
        commitment_s=table.number("commitment_s", 3600, least=0.1, most=7 * DAY_S),
    )
    table.end()
    return deliver


def _reconcile(table: Table) -> Reconcile:
    reconcile = Reconcile(
        ask=table.texts("ask"),
        series=table.choice("series", SERIES, "all"),
        days=table.whole("days", 2, least=1, most=366),
        every_s=table.number("every_s", 900, least=0, most=7 * DAY_S),
    )
    table.end()
    return reconcile


def _storage(table: Table) -> Storage:
    gib = float(2**30)
    storage = Storage(
        quota_bytes=int(gib * table.number("quota_gib", 100, least=0.001, most=1e6)),
        min_free_bytes=int(gib * table.number("min_free_gib", 2, least=0, most=1e6)),
        keep_images_s=3600 * table.number("keep_images_h", 24, least=0, most=24 * 366),
        keep_results_s=3600 * table.number("keep_results_h", 168, least=0, most=24 * 366),
        keep_records_s=DAY_S * table.number("keep_records_days", 366, least=1, most=10000),
        fsync=table.flag("fsync", True),
    )
    table.end()
    return storage


def _watch(table: Table | None) -> Watch | None:
    if table is None:
        return None
    watch = Watch(table.path("path", required=True) or Path(), table.number("settle_s", 5, least=0, most=3600))
    table.end()
    return watch


def _dicom_peer(table: Table) -> DicomPeer:
    senders = table.texts("senders")
    for sender in senders:
        try:
            ipaddress.ip_network(sender)
        except ValueError as error:
            table.wrong("senders", f"must be addresses or networks such as 10.1.2.0/24 ({error})")
    peer = DicomPeer(
        name=table.text("name"),
        ae_title=_ae_title(table),
        host=table.text("host"),
        port=table.whole("port", None, least=1, most=65535),
        senders=senders,
        retrieve=table.choice("retrieve", ("move", "get"), "move"),
        commitment=table.choice("commitment", ("off", "ask", "require"), "off"),
        tls=_tls(table.optional_table("tls")),
        timeout_s=table.number("timeout_s", 30, least=0.5, most=3600),
    )
    table.end()
    return peer


def _web_peer(table: Table) -> WebPeer:
    url = table.text("url")
    if wrong := _wrong_url(url):
        met = "" if "@" in url else f"; met {url!r}"  # which may hold a password
        table.wrong("url", f"{wrong}{met}; it must be such as https://pacs.example:8043/dicom-web")
    files = ("password_file", "token_file", "ca", "certificate", "key")
    paths = {field: table.path(field, file=True) for field in files}
    user = table.text("user", "")
    if bool(user) != (paths["password_file"] is not None):
        table.wrong("user", "and password_file go together")
    if (paths["certificate"] is None) != (paths["key"] is None):
        table.wrong("certificate", "and key go together")
    name, timeout_s = table.text("name"), table.number("timeout_s", 60, least=0.5, most=3600)
    table.end()
    return WebPeer(name=name, url=url.rstrip("/"), user=user, timeout_s=timeout_s, **paths)


def _wrong_url(url: str) -> str:
    """What is wrong with a server's address, if anything."""
    if not url.startswith(("http://", "https://")):
        return "must begin with http:// or https://"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"is no address ({error})"
    if not host or port == 0 or any(letter.isspace() for letter in url):
        return "has no host, port 0, or blanks"
    if parts.username or parts.password:
        return "must not hold a user; give user and password_file"
    return "must not hold ? or #" if parts.query or parts.fragment else ""


def _folder_peer(table: Table) -> FolderPeer:
    peer = FolderPeer(table.text("name"), table.path("path", required=True) or Path())
    table.end()
    return peer


def _dangling(config: Config) -> list[str]:
    """What is wrong between tables: names of peers that aren't there, aren't of the kind, or are there twice."""
    kinds = {peer.name: type(peer) for peer in config.peers}
    lines = [f"{name}: two peers have this name" for name, n in Counter(p.name for p in config.peers).items() if n > 1]
    both = (DicomPeer, WebPeer)
    uses: tuple[tuple[str, tuple[str, ...], tuple[type, ...], str], ...] = (
        ("receive.accept", config.receive.accept, (DicomPeer,), "a [[dicom]] peer"),
        ("complete.ask", config.complete.ask, both, "a [[dicom]] or [[web]] peer"),
        ("reconcile.ask", config.reconcile.ask, both, "a [[dicom]] or [[web]] peer"),
        ("deliver.to", config.deliver.to, (*both, FolderPeer), "a peer"),
    )
    for field, names, allowed, what in uses:
        lines += [f"{field}: there is no peer {name!r}" for name in names if name not in kinds]
        lines += [f"{field}: {n!r} is not {what}" for n in names if n in kinds and not issubclass(kinds[n], allowed)]
    if not config.deliver.to:
        lines.append("deliver.to: is empty; name at least one peer, or results go nowhere")
    if not config.receive.accept and config.watch is None and not config.reconcile.ask:
        lines.append("receive.accept: is empty; name who may send, or watch a folder: nothing would ever come in")
    return lines
