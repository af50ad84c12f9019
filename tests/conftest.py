"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.engines.ort_library import refuse_telemetry

refuse_telemetry()  # tests import onnxruntime themselves, and before all else


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scans beside the checkout; tests that need them are skipped where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real scans in {folder}")
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Run folders of a tiny LocNet and a tiny FracSegNet."""
    from tests.export.tiny import FRAC, LOC, trained
    from train.networks import FracSegNet, LocNet

    root = tmp_path_factory.mktemp("runs")
    return trained(LOC, LocNet(LOC.network), root / "loc"), trained(FRAC, FracSegNet(FRAC.network), root / "frac")


@pytest.fixture(scope="session")
def levelnet(tmp_path_factory) -> Path:
    """The run folder of a tiny LevelNet."""
    from tests.export.tiny import LEVEL, trained
    from train.networks import LevelNet

    return trained(LEVEL, LevelNet(LEVEL.network), tmp_path_factory.mktemp("runs") / "level")


@pytest.fixture(scope="session")
def bundle(runs, levelnet, tmp_path_factory):
    """A bundle of these tiny networks, exported once: that takes a while."""
    from export.bundle import Choices, make_bundle

    folder = tmp_path_factory.mktemp("bundle") / "b"
    choices = Choices(overlap=0.25, min_level_confidence=0.6)
    return make_bundle(*runs, folder, levelnet=levelnet, name="tiny", version="1.2.3", choices=choices)
