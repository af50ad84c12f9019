"""The HTTP server: its socket, its start and its end."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from runtime.errors import InputError
from runtime.serve.options import Listen

_CONNECTIONS = 256
_END_S = 5
_IDLE_S = 15


def bind(listen: Listen) -> socket.socket:
    """A socket at the address, on which nobody is answered yet.

    Raises:
        InputError: the address can't be had.
    """
    family = socket.AF_INET6 if ":" in listen.address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where reuse would share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((listen.address, listen.port))
    except OSError as error:
        bound.close()
        raise InputError(
            f"{listen.address}:{listen.port} can't be listened on ({error.strerror}); choose another --bind or --port."
        ) from error
    return bound


def check_tls(certificate: Path, key: Path) -> None:
    """Raise InputError unless the files can serve TLS without anybody being asked for a password."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        reason = error.strerror or getattr(error, "reason", "") or str(error)
        raise InputError(
            f"The TLS files {certificate} and {key} can't be used ({reason}); they must be PEM, and the key must be "
            "the certificate's and not encrypted."
        ) from error


def url_of(listen: Listen, bound: socket.socket) -> str:
    """Where clients find the server: by the first of its names."""
    scheme = "https" if listen.certificate is not None else "http"
    return f"{scheme}://{listen.hosts[0]}:{bound.getsockname()[1]}"


class Server(uvicorn.Server):
    """Answers until SIGTERM or Ctrl-C.

    Args:
        app: the application.
        listen: for TLS.
        on_ready: is called once requests are answered.
        on_end: is called when no more are taken, before those in progress are waited for.
    """

    def __init__(
        self, app: FastAPI, listen: Listen, *, on_ready: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_CONNECTIONS,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=_END_S,
                ssl_certfile=listen.certificate,
                ssl_keyfile=listen.key,
            )
        )
        self._on_ready, self._on_end = on_ready, on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, wait some seconds for those in progress."""
        self._on_end()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the server; they are not raised again afterwards, since that would show a trace."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
