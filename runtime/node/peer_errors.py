"""What can go wrong with a peer."""

from __future__ import annotations

from runtime.errors import VertscanError


class PeerError(VertscanError):
    """A peer can't be reached, or did not do what it was asked; later it may."""

    exit_status = 5


class NotFoundError(PeerError):
    """A peer answered that it doesn't have what was asked for: waiting brings nothing."""


class RefusedError(PeerError):
    """A peer refused for good: to ask again would change nothing."""
