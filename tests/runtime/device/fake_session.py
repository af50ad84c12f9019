"""A network made of a function, with its tensors in the memory of Numba's simulator."""

from __future__ import annotations

import numpy as np

from runtime.engines.base import EngineInfo
from runtime.errors import EngineError


class FakeDeviceSession:
    """Fulfils ``runtime.device.session.DeviceSession``, and on the host ``Session``.

    Args:
        network: from (n, 1, z, y, x) to a tuple of outputs.
        window: z, y, x.
        names: of the outputs.
        max_batch: images at once.
    """

    info = EngineInfo("fake", "1", "fp32", "simulator", "test")
    device = 0

    def __init__(self, network, window, *, names=("heatmap", "offsets"), max_batch=3):
        self.network, self.output_names, self.max_batch = network, names, max_batch
        self.batches, self._input, self._window = [], None, window

    def device_input(self, count):
        from numba import cuda

        if not 1 <= count <= self.max_batch:
            raise EngineError(f"a batch of {count}")
        if self._input is None:
            self._input = cuda.to_device(np.full((self.max_batch, 1, *self._window), np.nan, np.float32))
        return self._input[:count]

    def enqueue(self, count, stream):
        from numba import cuda

        self.batches.append(count)
        return tuple(cuda.to_device(output) for output in self.network(self._input[:count].copy_to_host()))

    def __call__(self, image):
        return self.network(image)

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()
