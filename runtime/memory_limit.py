"""A limit on memory that a run keeps: what would exceed it is refused or put off before it is begun."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.errors import OverLimitError
from runtime.memory import MIB, used_memory_mb
from runtime.memory_need import RUN_BYTES, MemoryNeed, memory_need
from runtime.readers.options import ReadOptions, ScanHeader

if TYPE_CHECKING:
    from runtime.bundle import BundleSpec

GIB = 2**30


class MemoryLimit:
    """Lets scans be read as long as all that was let in fits into the limit together.

    To be made once the networks are open: what the process has by then is what every scan comes on top of. A scan
    that does not fit alone is refused. One that does not fit beside those that were begun before it waits, with only
    its header read, until they are through; their order is that in which ``applied_to`` met them.

    Args:
        limit_bytes: that the process may use.
        spec: of the bundle that is run.
        threads: that vertebrae are read on; None for as many as the kernels have.
        writes_dicom: whether DICOM objects are written too.
    """

    def __init__(
        self, limit_bytes: float, spec: BundleSpec, *, threads: int | None = None, writes_dicom: bool = False
    ) -> None:
        self._limit, self._spec, self._writes_dicom = limit_bytes, spec, writes_dicom
        self._threads = _kernel_threads() if threads is None else threads
        self.before_bytes = round(used_memory_mb() * MIB) + RUN_BYTES
        """What the process needs beside its scans."""
        self._ranks: dict[Hashable, int] = {}
        self._inside: dict[Hashable, MemoryNeed] = {}
        self._alone: Hashable | None = None
        self._changed = threading.Condition()

    def applied_to(self, reading: ReadOptions, scan: Hashable) -> ReadOptions:
        """The same options for the scan, such that reading it waits, or is refused, as the limit demands."""
        with self._changed:
            self._ranks.setdefault(scan, len(self._ranks))
        return replace(reading, on_header=lambda header: self._let_in(scan, header))

    def need_of(self, header: ScanHeader) -> MemoryNeed:
        """What the process will have at most with this scan as its only one, bytes."""
        need = memory_need(header, self._spec, threads=self._threads, writes_dicom=self._writes_dicom)
        return MemoryNeed(self.before_bytes + need.to_prepare, self.before_bytes + need.to_finish)

    def _let_in(self, scan: Hashable, header: ScanHeader) -> None:
        """Wait until the scan fits beside those that were begun before it, and count it in until ``through``.

        Raises:
            OverLimitError: it does not fit alone.
        """
        need = self.need_of(header)
        if need.to_finish > self._limit:
            raise OverLimitError(_refusal(header, need, self.before_bytes, self._limit))
        with self._changed:
            if scan not in self._inside:
                self._changed.wait_for(lambda: self._fits(scan, need))
                self._inside[scan] = need

    def through(self, scan: Hashable) -> None:
        """Of a scan nothing is kept any more."""
        with self._changed:
            self._inside.pop(scan, None)
            if self._alone == scan:
                self._alone = None
            self._changed.notify_all()

    def keep_alone(self, scan: Hashable) -> bool:
        """Let no later scan in until this one is through; whether one is inside already."""
        with self._changed:
            self._alone = scan
            return any(self._ranks[name] > self._ranks[scan] for name in self._inside)

    def _fits(self, scan: Hashable, need: MemoryNeed) -> bool:
        """Whether it can be prepared while those before it are finished. Of later ones none is waited for."""
        if self._alone is not None and self._ranks[self._alone] < self._ranks[scan]:
            return False
        before = [other for name, other in self._inside.items() if self._ranks[name] < self._ranks[scan]]
        beside = sum(other.to_finish - self.before_bytes for other in before)
        return not before or beside + need.to_prepare <= self._limit


def _kernel_threads() -> int:
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)


def _refusal(header: ScanHeader, need: MemoryNeed, before: float, limit: float) -> str:
    z, y, x = header.grid.shape_zyx
    return (
        f"{header.name} ({x} x {y} x {z} voxels) needs up to {_gib_up(need.to_finish)} GiB of memory, "
        f"{_gib_up(before)} of it whatever the scan, and --memory allows {limit / GIB:g}. Crop the scan to the spine, "
        f"or allow more: --memory {_gib_up(need.to_finish)}."
    )


def _gib_up(size: float) -> str:
    """Rounded up, so that what is read here is enough."""
    return f"{math.ceil(size / GIB * 100) / 100:g}"
