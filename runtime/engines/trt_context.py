"""One execution context of an engine, and the recording of what it enqueues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.device.stream import Graph, Stream
from runtime.engines.trt_library import failed


class Context:
    """An execution context: shapes, addresses, runs. Whatever the library refuses is an EngineError, or an
    OutOfMemoryError.

    Args:
        context: the library's IExecutionContext, or None where it made none.
        log: the library's log, for the reasons.
        model: the network's name, for messages.
    """

    def __init__(self, context: Any, log: Any, model: str) -> None:
        self._context, self._log, self._model = context, log, model
        self._shape: tuple[int, ...] = ()
        if context is None:
            raise failed(f"The engine of {model} cannot be made ready", log)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Say how large the input is; every other shape follows from that."""
        if shape != self._shape:
            self._accepted(self._context.set_input_shape(name, shape), f"an input of {shape}")
            self._shape = shape

    def shape_of(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, for the input's as it was set."""
        return tuple(int(n) for n in self._context.get_tensor_shape(name))

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Say where every tensor lies in the GPU's memory."""
        for name, address in addresses.items():
            self._accepted(self._context.set_tensor_address(name, address), f"the memory of {name}")

    def run(self, stream: Stream) -> None:
        """Enqueue one run."""
        self._accepted(self._context.execute_async_v3(stream.handle), f"to run with {self._shape}")

    def _accepted(self, answer: bool, what: str) -> None:
        if not answer:
            raise failed(f"The engine of {self._model} refuses {what}", self._log)


class Recording:
    """A context whose run, always with one shape, is recorded as a CUDA graph.

    The first run is a plain one, in which the library finishes what a new shape needs; the second is recorded. Where it
    can't be recorded, runs stay plain.

    Args:
        context: with shape and addresses set, used for nothing else.
        count: the batch size.
    """

    def __init__(self, context: Context, count: int) -> None:
        self.count = count
        self._context = context
        self._graph: Graph | None = None
        self._runs = 0

    def run(self, stream: Stream) -> None:
        """Enqueue one run."""
        if self._runs == 1:
            self._graph = stream.record(lambda: self._context.run(stream))
        self._runs += 1
        if self._graph is None:
            self._context.run(stream)
        else:
            self._graph.launch(stream)

    def close(self) -> None:
        """Free the recording."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
