"""Peers that are down are part of these tests: pynetdicom drops the socket of a failed connection unclosed."""

from pathlib import Path

import pytest

_DROPPED = "ignore:unclosed <s(ocket.socket|sl.SSLSocket):ResourceWarning"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(_DROPPED))
