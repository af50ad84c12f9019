"""A CUDA driver and streams that behave as the real ones where mistakes would show.

Work is only done when a stream is waited for, memory is undefined (NaN) until it is written, arrays can't be read but
through the driver, memory that was freed or is too small is refused, and while a stream records nothing may be copied.
"""

from __future__ import annotations

import itertools
import math
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from runtime.errors import EngineError, OutOfMemoryError


class MisuseError(AssertionError):
    """What would be undefined behaviour on a GPU."""


_HANDLES = itertools.count(1)


@dataclass
class Driver:
    """Memory by address, and queues of work by stream handle."""

    limit_bytes: int = 2**40
    records: bool = True
    memory: dict[int, np.ndarray] = field(default_factory=dict)
    queues: dict[int, list] = field(default_factory=dict)
    recording: set[int] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    next_address: int = 0x7000_0000

    @property
    def used_bytes(self):
        return sum(block.nbytes for block in list(self.memory.values()))

    def allocate(self, nbytes):
        if self.used_bytes + nbytes > self.limit_bytes:
            raise OutOfMemoryError(f"The memory of GPU 0 is full: {nbytes} bytes.")
        address = self.next_address
        self.next_address += 4096 + nbytes // 256 * 256 + 256
        self.memory[address] = np.full(nbytes, 0xFF, np.uint8)  # 0xFFFFFFFF is NaN
        return address

    def free(self, address):
        del self.memory[address]

    def view(self, address, nbytes):
        """The bytes at an address, which may lie inside an allocation."""
        for start, block in list(self.memory.items()):
            if start <= address and address + nbytes <= start + block.size:
                return block[address - start : address - start + nbytes]
        raise MisuseError(f"{nbytes} bytes at {address:#x} are not allocated")

    def enqueue(self, handle, name, work):
        if handle not in self.queues:
            raise MisuseError(f"{name} on a stream that is not there")
        self.queues[handle].append((name, work))

    def run(self, handle):
        if handle in self.recording:
            raise MisuseError("waited for a stream that records")
        queue, self.queues[handle] = self.queues[handle], []
        for name, work in queue:
            self.log.append(name)
            work()


@dataclass
class Array:
    """An array in the driver's memory, or a part of one."""

    shape: tuple[int, ...]
    dtype: np.dtype
    address: int
    owner: object

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.size * self.dtype.itemsize

    def __getitem__(self, part):
        first, end, step = part.indices(self.shape[0])
        assert step == 1
        row = self.nbytes // self.shape[0]
        return Array((end - first, *self.shape[1:]), self.dtype, self.address + first * row, self.owner)


class _Allocation:
    """Frees its memory when nothing refers to it any more, as Numba's arrays do."""

    def __init__(self, driver, nbytes):
        self.address = driver.allocate(nbytes)
        weakref.finalize(self, driver.free, self.address)


class FakeGraph:
    def __init__(self, driver, work):
        self._driver, self._work = driver, work

    def launch(self, stream):
        if self._work is None:
            raise MisuseError("launched a graph that was freed")
        self._driver.enqueue(stream.handle, "graph", lambda work=tuple(self._work): [run() for _, run in work])

    def close(self):
        self._work = None


class FakeStream:
    """The interface of ``runtime.device.stream.Stream``, on a ``Driver``."""

    def __init__(self, driver, device=0):
        self._driver, self.device, self.is_active = driver, device, False
        self.handle = next(_HANDLES)
        driver.queues[self.handle] = []

    @contextmanager
    def active(self):
        was, self.is_active = self.is_active, True
        try:
            yield self
        finally:
            if self.handle in self._driver.queues:
                self.synchronise()
            self.is_active = was

    def _check(self):
        if not self.is_active:
            raise MisuseError("the GPU is not current on this thread")

    def empty(self, shape, dtype):
        self._check()
        dtype = np.dtype(dtype)
        owner = _Allocation(self._driver, math.prod(shape) * dtype.itemsize)
        return Array(tuple(shape), dtype, owner.address, owner)

    def copy_in(self, target, host):
        self._check()
        assert (target.shape, target.dtype) == (host.shape, host.dtype)
        if self.handle in self._driver.recording:
            raise MisuseError("copied while the stream records")
        content = np.ascontiguousarray(host).tobytes()
        self._driver.enqueue(self.handle, "upload", lambda: self._write(target, content))

    def _write(self, target, content):
        self._driver.view(target.address, target.nbytes)[:] = np.frombuffer(content, np.uint8)

    def download(self, array):
        self._check()
        self.synchronise()
        return self._driver.view(array.address, array.nbytes).copy().view(array.dtype).reshape(array.shape)

    def synchronise(self):
        self._check()
        self._driver.run(self.handle)

    def address(self, array):
        return array.address

    def record(self, work):
        self._check()
        driver, before = self._driver, self._driver.queues[self.handle]
        driver.queues[self.handle] = []
        driver.recording.add(self.handle)
        failed = not driver.records
        try:
            work()
        except EngineError:
            failed = True
        finally:
            driver.recording.discard(self.handle)
            recorded, driver.queues[self.handle] = driver.queues[self.handle], before
        return None if failed else FakeGraph(driver, recorded)

    def close(self):
        if self._driver.queues.pop(self.handle, None):
            raise MisuseError("closed a stream with work left")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()
