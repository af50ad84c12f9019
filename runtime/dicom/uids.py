"""UIDs of results: derived from what they were made from, so that a second run gives the same ones."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

ROOT = uuid.UUID("c79dc605-3a2b-4200-ae63-3a24bf03cffd")
"""Namespace of all UIDs that this software derives."""
CONTENT_VERSION = 1
"""Goes up with every change of what the objects hold: what has another content must have another UID."""


def derived_uid(*parts: str) -> str:
    """A UID of the standard's form for UUIDs (PS3.5 B.2), always the same for the same texts."""
    return f"2.25.{uuid.uuid5(ROOT, chr(10).join(parts)).int}"


CODING_SCHEME_UID = derived_uid("coding scheme 99VERTSCAN")
DEVICE_UID = derived_uid("device vertscan")


@dataclass(frozen=True)
class ResultUids:
    """The UIDs of one run's results.

    Args:
        inputs_sha256: of the UIDs of the images that were read.
        bundle_sha256: of the bundle.
    """

    inputs_sha256: str
    bundle_sha256: str

    @classmethod
    def of(cls, series_uid: str, instance_uids: Iterable[str], bundle_sha256: str) -> ResultUids:
        """The UIDs of results from these images; their order does not matter."""
        text = "\n".join([series_uid, *sorted(instance_uids)])
        return cls(hashlib.sha256(text.encode("ascii", "replace")).hexdigest(), bundle_sha256)

    def series(self, kind: str, variant: str = "") -> str:
        """The Series Instance UID of one kind of results; ``variant`` tells apart what is made in several ways."""
        return self._uid(kind, variant, "series")

    def instance(self, kind: str, variant: str = "") -> str:
        """The SOP Instance UID of one kind of results."""
        return self._uid(kind, variant, "instance")

    def dimensions(self, kind: str, variant: str = "") -> str:
        """The Dimension Organization UID of one kind of results."""
        return self._uid(kind, variant, "dimensions")

    def tracking(self, index: int) -> str:
        """The Tracking UID of the vertebra with this index, the same in all kinds of results."""
        return self._uid("tracking", str(index))

    def _uid(self, *parts: str) -> str:
        return derived_uid(self.inputs_sha256, self.bundle_sha256, str(CONTENT_VERSION), *parts)
