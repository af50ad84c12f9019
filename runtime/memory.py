"""How much memory this process has used at most, on every system, and whether it keeps what it has freed."""

from __future__ import annotations

import ctypes
import gc
import sys

MIB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
_MAPPED_FROM_BYTES = (128 * MIB, 32 * MIB)
"""The first is enough for the labels of most scans; glibc before 2.35 takes no more than the second. Larger arrays stay
mappings, which are given back at once: the holes that they would leave may be too small for the next scan's."""


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, MiB; 0.0 where the system does not tell."""
    if sys.platform == "win32":
        return _windows_counters().peak_working_set_size / MIB
    if sys.platform == "linux":
        return _linux_kib("VmHWM") / 1024
    import resource  # there on POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def used_memory_mb() -> float:
    """Resident memory of this process now, MiB; where the system does not tell, its peak so far, or 0.0."""
    if sys.platform == "win32":
        return _windows_counters().working_set_size / MIB
    if sys.platform == "linux":
        return _linux_kib("VmRSS") / 1024
    return peak_memory_mb()


def _linux_kib(field: str) -> float:
    """Of this program alone: what ``getrusage`` tells begins with the memory of the process that started it."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            line = next((line for line in status if line.startswith(f"{field}:")), "")
        return float(line.split()[1]) if line else 0.0
    except (OSError, ValueError, IndexError):
        return 0.0


def keep_freed_memory() -> None:
    """Have this process keep what it frees, for its next scan, until ``give_back_memory``.

    By itself glibc hands the outputs of the windows back at the end of each scan, and the next one takes them page by
    page: tens of thousands of page faults. For processes that run many scans and have no limit on their memory to keep:
    holes between what is used count as used. It holds for the process's life. Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        options = getattr(ctypes.CDLL(None), "mallopt", None)
        if options is not None:
            options.argtypes, options.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
            # Without a threshold of its own every array would be a mapping as soon as the other one is set.
            if any(options(_M_MMAP_THRESHOLD, size) == 1 for size in _MAPPED_FROM_BYTES):
                options(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """Give the system what this process has freed: glibc keeps most of it, for itself and for each of its threads.

    To be called when nothing is to be done for a while, since it takes a tenth of a second or two. Other C libraries
    keep less, and nothing is done there.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
            trim(0)


class _ProcessMemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of psapi.h."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("page_fault_count", ctypes.c_uint32),
        ("peak_working_set_size", ctypes.c_size_t),
        ("working_set_size", ctypes.c_size_t),
        ("quota_peak_paged_pool_usage", ctypes.c_size_t),
        ("quota_paged_pool_usage", ctypes.c_size_t),
        ("quota_peak_non_paged_pool_usage", ctypes.c_size_t),
        ("quota_non_paged_pool_usage", ctypes.c_size_t),
        ("pagefile_usage", ctypes.c_size_t),
        ("peak_pagefile_usage", ctypes.c_size_t),
    )


def _windows_counters() -> _ProcessMemoryCounters:
    """All zero where the system does not tell."""
    counters = _ProcessMemoryCounters(cb=ctypes.sizeof(_ProcessMemoryCounters))
    libraries = getattr(ctypes, "windll", None)
    if libraries is not None:
        current = libraries.kernel32.GetCurrentProcess
        current.restype = ctypes.c_void_p
        query = libraries.psapi.GetProcessMemoryInfo
        query.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
        query(current(), ctypes.byref(counters), counters.cb)
    return counters
