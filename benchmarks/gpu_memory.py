"""How much of a GPU's memory work takes, whichever library asks for it."""

from __future__ import annotations

import threading

import torch

_MIB = 2**20


class PeakGpuMemory:
    """By how much the GPU's used memory rises at most, whoever uses it, MiB; None without a GPU in torch.

    From its level at the beginning, once it is watched: what is needed for building an engine does not count.
    """

    def __init__(self, device: int, *, every_s: float = 0.005) -> None:
        self.rise_mb: float | None = None
        self._device, self._every_s = device, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakGpuMemory:
        if torch.cuda.is_available():
            self._before = self._used()
        return self

    def watch(self) -> None:
        """From now on."""
        if torch.cuda.is_available():
            self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self.rise_mb = max(self.rise_mb or 0.0, round((self._used() - self._before) / _MIB, 1))

    def _used(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free)
