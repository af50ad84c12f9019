"""What the statuses of C-STORE and the failure reasons of STOW-RS say."""

from __future__ import annotations

SUCCESS = 0x0000
_KEPT = (SUCCESS, 0x0001, 0x0107, 0x0116)
NO_ROOM = frozenset({0x0213, *range(0xA700, 0xA800)})
"""The peer is out of resources, such as room on its disk: nothing is wrong with the object."""
TRANSIENT = frozenset({0x0110, 0x0210, 0x0211, *range(0xC000, 0xD000)})
"""It is worth to try again a few times: processing failure, cannot understand (which some archives also answer when
their disk is full)."""
_REASONS = {
    **dict.fromkeys(NO_ROOM, "it has no room"),
    0x0122: "it does not take objects of this class",
    0x0110: "it failed to process it",
    0x0124: "we are not authorised",
}


def is_stored(status: int | None) -> bool:
    """Whether a status says that the object is there, warnings included."""
    return status is not None and (status in _KEPT or 0xB000 <= status < 0xC000)


def meaning(status: int) -> str:
    """What a status of failure means, for people."""
    return _REASONS.get(status, "see its log")
