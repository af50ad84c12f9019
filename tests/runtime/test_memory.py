"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from runtime.memory import MIB, give_back_memory, keep_freed_memory

_SCRIPT = """
from runtime.memory import give_back_memory

def resident_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))

blocks = [bytearray(b"x" * 60_000) for _ in range(4000)]
del blocks[1::2], blocks[1::2]  # three of four, between others that stay
with_holes = resident_mib()
give_back_memory()
print(with_holes - resident_mib(), sum(block == b"x" * 60_000 for block in blocks))
"""
"""240 MB in pieces that the C library does not take from the system one by one."""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no such call"
)
def test_what_was_freed_between_blocks_that_stay_is_given_back():
    said = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, check=True, text=True).stdout
    given_mib, whole = map(float, said.split())
    assert given_mib > 120
    assert whole == 1000


_TWO_ROUNDS = """
import resource, sys
import numpy as np
from runtime.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [np.ones(3 * 2**18, np.float32) for _ in range(60)]
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    del held
print(faults[-1])
"""
"""Four times 180 MiB in arrays such as the windows' outputs are."""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no such call"
)
def test_what_is_kept_is_used_again_without_asking_the_system():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", _TWO_ROUNDS, how], capture_output=True, check=True).stdout)
        for how in ("kept", "left alone")
    }
    assert faults["kept"] < 0.05 * faults["left alone"]


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is done there")
@pytest.mark.parametrize(("most", "kept"), [(2**31 - 1, 128), (32 * MIB, 32), (0, None)])
def test_a_c_library_that_takes_no_such_size_is_asked_for_a_smaller_one_or_left_alone(monkeypatch, most, kept):
    """With the other option alone every array would be mapped and given back."""
    asked = []

    class Library:
        def __init__(self, name):
            self.mallopt = self

        def __call__(self, option, value):
            asked.append((option, value))
            return int(option == -1 or value <= most)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    keep_freed_memory()
    accepted = [value for option, value in asked if option == -3 and value <= most]
    assert accepted == ([] if kept is None else [kept * MIB])
    assert [option for option, _ in asked][-1] == (-3 if kept is None else -1)


def test_it_may_be_called_anywhere_at_any_time():
    give_back_memory()
    give_back_memory()


def test_the_peak_is_that_of_the_program_and_not_of_what_started_it():
    large = bytearray(b"x" * 400 * 2**20)
    script = "from runtime.memory import peak_memory_mb as p; a = p(); b = bytearray(b'x' * 2**26); print(a, p())"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, after = map(float, said.split())
    assert len(large) / 2**20 > 400 - 1 > before > 1
    assert 120 < after - before < 150  # the bytes and their copy
