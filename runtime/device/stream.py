"""One GPU's memory and one order of work on it: the only place where this software speaks to the CUDA driver.

numba-cuda is the binding: it launches the kernels, so its arrays and streams are there anyway, and they run in its
simulator. CUDA graphs, which it lacks, come from cuda-python's ``cuda.bindings``, on which it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.errors import EngineError, OutOfMemoryError, VertscanError

DeviceArray = Any
"""An array in the GPU's memory (``numba.cuda`` calls it DeviceNDArray): shape, dtype, size, slices, ``ravel``."""

_BLOCK = 256
_FEWEST_BLOCKS = 128
"""Kernels stride over their items, so more blocks than these cost nothing; fewer make numba-cuda warn."""
_MOST_BLOCKS = 65_536
_SIMULATED_BLOCKS, _SIMULATED_THREADS = 2, 3
_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"


class Graph(Protocol):
    """Recorded work that is launched as one."""

    def launch(self, stream: Stream) -> None:
        """Enqueue the recorded work."""

    def close(self) -> None:
        """Free it."""


class Stream:
    """Memory and work on one GPU: what is enqueued here runs in that order. Use it in ``with``.

    Arrays that it gives are freed when nothing refers to them any more, at the latest when ``active`` is left; they
    must not be used after the stream was closed. May be used from one thread at a time, inside ``active()``.

    Args:
        device: GPU number.

    Raises:
        EngineError: the driver refuses.
    """

    def __init__(self, device: int = 0) -> None:
        self._device = device
        self._stream: Any = None
        with self.active():
            from numba import cuda

            self._stream = cuda.stream()

    @contextmanager
    def active(self) -> Iterator[Stream]:
        """The GPU is this thread's current one; errors of the driver become errors of this software.

        Raises:
            OutOfMemoryError: the GPU's memory is full.
            EngineError: the driver fails otherwise.
        """
        from numba import cuda
        from numba.cuda.cudadrv.error import CudaSupportError

        try:
            with cuda.gpus[self._device]:
                try:
                    yield self
                finally:
                    if self._stream is not None:
                        self.synchronise()
                    _free_unused(cuda.current_context())
        except VertscanError:
            raise
        except (cuda.cudadrv.driver.CudaAPIError, CudaSupportError) as error:
            raise self._translated(error) from error

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """A new C-contiguous array whose content is not defined."""
        from numba import cuda

        return cuda.device_array(shape, dtype=dtype, stream=self._stream)

    def zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> DeviceArray:
        """A new C-contiguous array of zeros."""
        from runtime.device.kernels.windows import fill

        array = self.empty(shape, dtype)
        self.launch(fill, array.size, array.ravel(), dtype(0))
        return array

    def upload(self, host: np.ndarray) -> DeviceArray:
        """A new array with the content of one of the host's, which may be changed at once."""
        array = self.empty(host.shape, host.dtype)
        self.copy_in(array, host)
        return array

    def copy_in(self, target: DeviceArray, host: np.ndarray) -> None:
        """Fill an array with the content of one of the host's, which may be changed at once."""
        if host.size:
            target.copy_to_device(np.ascontiguousarray(host), stream=self._stream)
            self.synchronise()

    def download(self, array: DeviceArray) -> np.ndarray:
        """A copy on the host; waits for everything that was enqueued."""
        host: np.ndarray = array.copy_to_host(stream=self._stream)
        self.synchronise()
        return host

    def launch(self, kernel: Any, items: int, *args: Any) -> None:
        """Enqueue a kernel of ``runtime.device.kernels`` over a number of items."""
        from runtime.device.kernels.jit import SIMULATED

        if not items:
            return
        blocks, threads = min(max(-(-items // _BLOCK), _FEWEST_BLOCKS), _MOST_BLOCKS), _BLOCK
        if SIMULATED:  # each thread is one of Python's
            blocks, threads = _SIMULATED_BLOCKS, _SIMULATED_THREADS
        kernel[blocks, threads, self._stream](*args)

    def synchronise(self) -> None:
        """Wait until everything that was enqueued is done."""
        self._stream.synchronize()

    @property
    def handle(self) -> int:
        """The CUstream, for libraries that enqueue work of their own."""
        return int(self._stream.handle)

    def address(self, array: DeviceArray) -> int:
        """Where an array lies in the GPU's memory."""
        return int(array.device_ctypes_pointer.value or 0)

    def record(self, work: Callable[[], None]) -> Graph | None:
        """Record what ``work`` enqueues here as a CUDA graph, instead of running it; None where that can't be."""
        from runtime.device.graph import record

        return record(self.handle, work)

    def close(self) -> None:
        """Wait for what was enqueued and give the stream up; closing twice is fine."""
        if self._stream is None:
            return
        with self.active():
            self.synchronise()
            self._stream = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _translated(self, error: Exception) -> VertscanError:
        said = " ".join(str(getattr(error, "msg", error)).split())[:200].rstrip(" .:") or type(error).__name__
        if _OUT_OF_MEMORY in str(error):
            return OutOfMemoryError(
                f"The memory of GPU {self._device} is full ({said}): close other programs that use it, crop the "
                "scan to the spine, or use --engine openvino."
            )
        return EngineError(f"GPU {self._device} failed: {said}.")


def _free_unused(context: Any) -> None:
    """Return what nothing refers to any more to the driver; numba-cuda would wait until it has piled up."""
    pending = getattr(context, "deallocations", None)
    if pending is not None:
        pending.clear()
