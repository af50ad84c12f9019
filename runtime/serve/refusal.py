"""What a request is refused with."""

from __future__ import annotations


class RefusedRequestError(Exception):
    """A request that is answered with an error status and one line that says why.

    Args:
        status: of HTTP, from 400 on.
        detail: what was wrong, what was met, what to do.
        retry_after_s: after how many seconds the same request may be granted, or None.
    """

    def __init__(self, status: int, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s
