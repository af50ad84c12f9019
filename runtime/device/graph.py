"""CUDA graphs: work that a library enqueued once is recorded, and launched again as one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, OutOfMemoryError

if TYPE_CHECKING:
    from runtime.device.stream import Stream

logger = logging.getLogger(__name__)


class DriverGraph:
    """A graph that the driver is ready to launch."""

    def __init__(self, executable: Any) -> None:
        self._executable: Any = executable

    def launch(self, stream: Stream) -> None:
        """Enqueue the recorded work."""
        from cuda.bindings import driver

        _checked(driver.cuGraphLaunch(self._executable, driver.CUstream(stream.handle)), "cuGraphLaunch")

    def close(self) -> None:
        """Free it; closing twice is fine."""
        from cuda.bindings import driver

        if self._executable is not None:
            executable, self._executable = self._executable, None
            _checked(driver.cuGraphExecDestroy(executable), "cuGraphExecDestroy")


def record(stream_handle: int, work: Callable[[], None]) -> DriverGraph | None:
    """Record what ``work`` enqueues on a stream; None, and a line in the log, where the driver can't record it.

    Other threads may use the GPU meanwhile: only what this thread does is bound by the rules of recording.
    """
    from cuda.bindings import driver

    stream = driver.CUstream(stream_handle)
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _checked(driver.cuStreamBeginCapture(stream, mode), "cuStreamBeginCapture")
    reason = ""
    try:
        work()
    except (EngineError, OutOfMemoryError) as error:
        reason = str(error)
    # Ends the recording in any case: the stream is of no use before that.
    status, graph = driver.cuStreamEndCapture(stream)
    executable: Any = None
    if status == driver.CUresult.CUDA_SUCCESS:
        if not reason:
            status, executable = driver.cuGraphInstantiate(graph, 0)
        driver.cuGraphDestroy(graph)
    if executable is None or status != driver.CUresult.CUDA_SUCCESS:
        logger.info("no CUDA graph, work is enqueued piece by piece: %s", reason or status.name)
        return None
    return DriverGraph(executable)


def _checked(result: tuple[Any, ...], call: str) -> None:
    from cuda.bindings import driver

    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise EngineError(f"The NVIDIA driver failed in {call}: {result[0].name}.")
