"""A health endpoint: ``GET /health`` says how the node is, in JSON, without patient data."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from runtime.errors import InputError
from runtime.node.loops import log_defect

logger = logging.getLogger(__name__)

Report = Callable[[], Mapping[str, Any]]


class _Server(ThreadingHTTPServer):
    """Says in the log what a request met; the standard library's prints its trace past it."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called while the exception is handled."""
        error = sys.exception()
        if isinstance(error, ConnectionError | TimeoutError):
            logger.debug("a probe from %s hung up (%s)", client_address[0], type(error).__name__)
        else:
            log_defect("the health endpoint")


class HealthServer:
    """Serves reports from ``start`` to ``stop``; 200 where the report's ``status`` is ``"ok"``, else 503."""

    def __init__(self, bind: str, port: int, report: Report) -> None:
        """Begin to listen.

        Raises:
            InputError: the address can't be had.
        """
        try:
            self._server = _Server((bind, port), _handler(report))
        except OSError as error:
            raise InputError(
                f"{bind}:{port} can't be listened on for health ({error.strerror}); choose another health_port."
            ) from error
        self.port = int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _handler(report: Report) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET /health."""

        timeout = 10

        def do_GET(self) -> None:
            """The report, or 404."""
            if self.path.partition("?")[0] != "/health":
                self.send_error(404)
                return
            said = report()
            body = json.dumps(said).encode("ascii")
            self.send_response(200 if said.get("status") == "ok" else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests for health are not logged."""

    return Handler
