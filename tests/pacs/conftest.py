"""An Orthanc and a node beside it; pynetdicom drops the sockets of failed connections unclosed."""

import gc
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.pacs.orthanc import Orthanc, installed
from tests.runtime.conftest import ball_bundle  # noqa: F401  a fixture
from tests.runtime.node.nodes import node_process, settings, write_toml
from tests.runtime.node.peers import free_port
from tests.runtime.node.studies import make_study

_DROPPED = "ignore:unclosed <s(ocket.socket|sl.SSLSocket):ResourceWarning"
_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="the node needs POSIX file locks")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(_DROPPED))
            item.add_marker(_POSIX)
            item.add_marker(pytest.mark.slow)


class Bench:
    """An Orthanc, and nodes that know it as ``archive`` (DIMSE) and ``web`` (DICOMweb)."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        installed()
        self.folder, self._stack, self.node_port = folder, stack, free_port()
        self.orthanc = Orthanc(folder / "orthanc", self.node_port)
        stack.callback(lambda: self.orthanc.stop())

    def node(self, *, archive=None, name="node", **changes):
        """A node process that is not started yet; ``archive`` changes the peer of this name."""
        folder = self.folder / name
        values = settings(folder, self.orthanc.port, **changes)
        values["receive"]["port"] = self.node_port
        values["dicom"][1].update(archive or {})
        values["web"] = [{"name": "web", "url": self.orthanc.web_url}]
        return self._stack.enter_context(node_process(folder, write_toml(folder / "node.toml", values)))


@pytest.fixture
def bench(tmp_path):
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "study", slices=8)


@pytest.fixture(autouse=True)
def dropped_sockets_are_collected_here():
    """Those that lie in reference cycles, before another test would be blamed for them."""
    yield
    gc.collect()
