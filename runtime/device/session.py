"""What an engine's session offers besides ``runtime.engines.base.Session`` where tensors may stay on the GPU."""

from __future__ import annotations

from typing import Protocol, TypeGuard

from runtime.device.stream import DeviceArray, Stream
from runtime.engines.base import Session


class DeviceSession(Session, Protocol):
    """A session whose tensors lie in the GPU's memory: fill its input there, enqueue, read its outputs there.

    The session owns the arrays. They are used again by the next ``enqueue``, so whoever reads the outputs enqueues that
    on the same stream before. While a stream holds work of a session, no other stream may be given any.
    """

    device: int
    max_batch: int

    def device_input(self, count: int) -> DeviceArray:
        """Where the next batch goes: (count, 1, z, y, x) float32, count at most ``max_batch``; always the same place.

        Raises:
            EngineError: the session is closed, or the count is not in 1..max_batch.
        """
        ...

    def enqueue(self, count: int, stream: Stream) -> tuple[DeviceArray, ...]:
        """Run the network on the first ``count`` images of its input, in the order of the stream, without waiting.

        Returns:
            The outputs in the order of ``output_names``, each float32 with ``count`` as its first axis.

        Raises:
            EngineError: the session is closed, the count is not in 1..max_batch, or the library fails.
        """
        ...


def offers_device_tensors(session: Session) -> TypeGuard[DeviceSession]:
    """Whether a session is a ``DeviceSession``."""
    return hasattr(session, "device_input") and hasattr(session, "enqueue")
