"""Peers that are down are part of these tests: pynetdicom drops the socket of a failed connection unclosed."""

import gc
import sys
from pathlib import Path

import pytest

_DROPPED = "ignore:unclosed <s(ocket.socket|sl.SSLSocket):ResourceWarning"
_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="the node needs POSIX file locks")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(_DROPPED))
            item.add_marker(_POSIX)


@pytest.fixture(autouse=True)
def dropped_sockets_are_collected_here():
    """Those that lie in reference cycles, before another test would be blamed for them."""
    yield
    gc.collect()
