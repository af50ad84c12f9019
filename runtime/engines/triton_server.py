"""Where a Triton server is, and how it is asked: one connection, time limits, another try, errors in plain words."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from runtime.errors import EngineError, InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_S = 120.0
"""How long one batch may take unless said otherwise: enough for a server without a GPU."""
UNAVAILABLE = "StatusCode.UNAVAILABLE"
_TOO_LATE = "StatusCode.DEADLINE_EXCEEDED"
_TLS_OF_SCHEME = {"grpc": False, "grpcs": True}
_DEFAULT_PORT = 8001
_CHANNEL = (
    # Windows and masks are larger than gRPC's 4 MB.
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # Left to itself gRPC waits up to two minutes before it connects again, and fails at once what is asked meanwhile.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    # Patient data go to the server that was named, not to a proxy that the environment names.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True)
class TritonServer:
    """Where a server is and how to talk to it.

    Args:
        url: ``grpc://host:port``, or ``grpcs://host:port`` for TLS; without a port it is 8001.
        ca_file: PEM certificates to trust instead of the usual ones; TLS only.
        certificate_file: PEM certificate chain that shows the server who asks; TLS only, with ``key_file``.
        key_file: PEM private key of that certificate.
        timeout_s: how long one batch may take, from sending it to its result.

    Raises:
        InputError: the address is of another kind, or the TLS files make no sense with it.
    """

    url: str
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        files = [file for file in (self.ca_file, self.certificate_file, self.key_file) if file is not None]
        self._address()
        if files and not self.uses_tls:
            raise InputError(f"Certificates and keys are for TLS: name the server grpcs://{self.host}, not {self.url}.")
        if (self.certificate_file is None) != (self.key_file is None):
            raise InputError("A client certificate and its private key go together; met only one of them.")
        for file in files:
            if not file.is_file():
                raise InputError(f"There is no certificate or key at {file}.")
        if not 0 < self.timeout_s < float("inf"):
            raise InputError(f"The time limit of a Triton server should be positive, met {self.timeout_s:g} s.")

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return _TLS_OF_SCHEME[self._address()[0]]

    @property
    def host(self) -> str:
        """``host:port``, as gRPC takes it."""
        _, host, port = self._address()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def is_this_machine(self) -> bool:
        """Whether the address is a loopback one."""
        host = self._address()[1]
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def _address(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, _DEFAULT_PORT if parts.port is None else parts.port
        except ValueError:
            host, port = None, 0
        if not host or not port or parts.scheme not in _TLS_OF_SCHEME or self.url != _plain_url(parts):
            raise InputError(
                f"A Triton server is named grpc://HOST:{_DEFAULT_PORT}, or grpcs://HOST:{_DEFAULT_PORT} for TLS "
                f"(its gRPC port, not that of HTTP); met {self.url!r}."
            )
        return parts.scheme, host, port


def _plain_url(parts: Any) -> str:
    """The address without anything that a gRPC server's does not have: user, path, query."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


@contextmanager
def connection(server: TritonServer) -> Iterator[Any]:
    """A client of ``tritonclient.grpc`` inside the block; see ``connect``."""
    client = connect(server)
    try:
        yield client
    finally:
        client.close()


def connect(server: TritonServer) -> Any:
    """A client of ``tritonclient.grpc``; nothing is sent yet, and the caller closes it.

    Raises:
        EngineError: a TLS file can't be read.
    """
    from tritonclient.grpc import InferenceServerClient

    ca, key, certificate = (
        None if file is None else str(file) for file in (server.ca_file, server.key_file, server.certificate_file)
    )
    try:
        return InferenceServerClient(
            server.host,
            ssl=server.uses_tls,
            root_certificates=ca,
            private_key=key,
            certificate_chain=certificate,
            channel_args=list(_CHANNEL),
        )
    except OSError as error:
        raise EngineError(f"a certificate or key for {server.url} can't be read ({error.strerror})") from error


def asked(server: TritonServer, ask: Callable[[], T], *, pauses_s: Sequence[float] = (), doing: str = "") -> T:
    """The server's answer to a question of ``tritonclient``.

    Args:
        server: which is asked.
        ask: sends the question.
        pauses_s: when the server can't be reached it is asked again, after each of these.
        doing: what for, such as ``"locnet.onnx"``; goes into the error's message.

    Raises:
        EngineError: it can't be reached, takes too long, or refuses.
    """
    from tritonclient.utils import InferenceServerException

    for pause_s in pauses_s:
        try:
            return ask()
        except InferenceServerException as error:
            if error.status() != UNAVAILABLE:
                raise EngineError(_refusal(server, error, doing, tries=1)) from error
            logger.warning(
                "the Triton server at %s does not answer (%s); again in %g s", server.host, first_line(error), pause_s
            )
        time.sleep(pause_s)
    try:
        return ask()
    except InferenceServerException as error:
        raise EngineError(_refusal(server, error, doing, tries=len(pauses_s) + 1)) from error


def first_line(error: Any) -> str:
    """What an exception of ``tritonclient`` says, short and without a full stop."""
    lines = str(error.message() or error.status() or type(error).__name__).strip().splitlines()
    return (lines or ["no reason given"])[0].rstrip(".")[:300]


def _refusal(server: TritonServer, error: Any, doing: str, *, tries: int) -> str:
    """What to tell: a sentence where it says what was being done, else a part of one."""
    status, text = error.status(), first_line(error)
    who, during, end = f"the Triton server at {server.url}", "", ""
    if doing:
        who, during, end = f"The Triton server at {server.url}", f" in the middle of {doing}", "."
    if status == _TOO_LATE:
        return f"{who} took longer than it may{during}: it is overloaded or out of reach{end}"
    if status != UNAVAILABLE:
        return f"{who} refused{during} ({text}){end}"
    if doing:
        return f"{who} stopped answering{during} ({text}; asked {tries} times){end}"
    return f"no Triton server answers at {server.url} ({text}); see that it runs and that this is its gRPC port"
