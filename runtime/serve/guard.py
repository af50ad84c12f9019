"""What stands before every route: the token, headers of every answer, and the last resort against defects."""

from __future__ import annotations

import hmac
import logging

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.serve.logs import where_from

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health"})
"""That need no token."""
_LARGEST_BODY = 2**16
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""What is sent belongs to a patient: no browser or proxy is to keep it, or take it for something else."""


class TokenGuard:
    """Answers 401 to requests without the token, whatever their path, but for ``OPEN_PATHS``.

    Args:
        app: what is guarded.
        token: printable ASCII.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"bearer {token}".encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._is_shown(scope):
            detail = "A token is needed; send it as 'Authorization: Bearer TOKEN'."
            answer = JSONResponse({"detail": detail}, 401, {"www-authenticate": "Bearer"})
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_shown(self, scope: Scope) -> bool:
        """Compares in constant time, so that nobody learns from answers how much of a guess was right."""
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = (shown[0] if len(shown) == 1 else b"").partition(b" ")
        return hmac.compare_digest(scheme.lower() + b" " + token.strip(), self._expected)


class SmallBodies:
    """Answers 413 to bodies of more than 64 KiB, which nobody needs but for uploads; these count on their own.

    Args:
        app: what is guarded.
        but_for: the path of uploads.
    """

    def __init__(self, app: ASGIApp, but_for: str) -> None:
        self._app, self._but_for = app, but_for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, whose body is taken in first."""
        if scope["type"] != "http" or scope["path"] == self._but_for:
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > _LARGEST_BODY:
                detail = f"The body has more than {_LARGEST_BODY} bytes, which only uploads may have."
                await JSONResponse({"detail": detail}, 413)(scope, receive, send)
                return
        taken: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return taken.pop() if taken else await receive()

        await self._app(scope, again, send)


class LastResort:
    """Adds what every answer bears, and turns what nobody caught into 500, without telling what it was."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            logger.info("a client went away")
        except Exception as error:  # noqa: BLE001  nobody above would tell the client
            logger.error("a request met a defect: %s", where_from(error))
            if not started:
                detail = "internal error; the server's log says where it arose. Please report it."
                await JSONResponse({"detail": detail}, 500)(scope, receive, send_with_headers)
