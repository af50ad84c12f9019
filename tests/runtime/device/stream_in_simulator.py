"""Numba's simulator as the memory that the TensorRT stand-in works on: an array's address is where it lies here."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager

import numpy as np

from runtime.device.stream import Stream


class HostDriver:
    """What ``fake_tensorrt`` asks of a driver; work is done at once, as everything in the simulator."""

    def __init__(self):
        self.recording, self.log = set(), []

    def enqueue(self, handle, name, work):
        assert handle == 1
        self.log.append(name)
        work()

    def view(self, address, nbytes):
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


class CountingStream(Stream):
    """A stream that keeps account of what crosses between host and GPU, bytes."""

    def __init__(self, device=0):
        self.uploaded, self.downloaded = [], []
        super().__init__(device)

    @property
    def handle(self):
        return 1

    def address(self, array):
        return array._ary.ctypes.data

    def empty(self, shape, dtype):
        """Aligned as the driver aligns, for the stand-in insists on that; undefined means NaN."""
        from numba import cuda

        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        room = np.full(nbytes + 256, 0xFF, np.uint8)
        first = -room.ctypes.data % 256
        array = cuda.device_array(shape, dtype)
        array._ary = room[first : first + nbytes].view(dtype).reshape(shape)
        return array

    def copy_in(self, target, host):
        self.uploaded.append(host.nbytes)
        super().copy_in(target, host)

    def download(self, array):
        self.downloaded.append(array.nbytes)
        return super().download(array)

    def record(self, work):
        return None

    @contextmanager
    def counted(self):
        """What crossed meanwhile."""
        self.uploaded.clear()
        self.downloaded.clear()
        yield self
