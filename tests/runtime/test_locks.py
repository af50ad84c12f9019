"""Locks on files: alone or shared, and gone with their holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from runtime.locks import HAS_POSIX_LOCKS, try_lock, unlock


@pytest.fixture
def files(tmp_path):
    """Three descriptors of one file, each of which can hold its lock."""
    opened = [os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(3)]
    yield opened
    for file in opened:
        os.close(file)


def test_one_alone_has_it_until_it_is_given_back(files):
    one, other, _ = files
    assert try_lock(one)
    assert not try_lock(other)
    unlock(one)
    assert try_lock(other)


@pytest.mark.skipif(not HAS_POSIX_LOCKS, reason="the system's locks can't be shared")
def test_many_share_it_and_nobody_has_it_alone_meanwhile(files):
    one, other, third = files
    assert try_lock(one, shared=True)
    assert try_lock(other, shared=True)
    assert not try_lock(third)
    unlock(one)
    assert not try_lock(third)
    unlock(other)
    assert try_lock(third)
    assert not try_lock(one, shared=True)


@pytest.mark.skipif(not HAS_POSIX_LOCKS, reason="sends a POSIX signal")
def test_it_is_free_when_its_holder_was_killed(files, tmp_path):
    program = (
        "import os, sys, time\nfrom runtime.locks import try_lock\n"
        "print(try_lock(os.open(sys.argv[1], os.O_RDWR)), flush=True)\ntime.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        assert not try_lock(files[0])
        holder.send_signal(signal.SIGKILL)
    assert try_lock(files[0])
