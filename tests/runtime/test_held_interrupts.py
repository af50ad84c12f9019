"""Signals while a library is at work wait until it is through."""

import os
import signal

import pytest

from runtime.console import interrupted_by_sigterm
from runtime.engines.held_interrupts import held_interrupts


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_does_what_ctrl_c_does_is_held_until_the_block_is_left(name):
    through = []

    def work():
        with held_interrupts() as held:
            signal.raise_signal(getattr(signal, name))
            through.append(held.interrupted)
        through.append("after")

    with interrupted_by_sigterm(and_sighup=True), pytest.raises(KeyboardInterrupt):
        work()
    assert through == [True]
