"""Runs and a bundle of tiny networks, made once."""

from pathlib import Path

import pytest

from export.bundle import Choices, make_bundle
from tests.export.tiny import FRAC, LEVEL, LOC, trained
from train.networks import FracSegNet, LevelNet, LocNet


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    return trained(LOC, LocNet(LOC.network), root / "loc"), trained(FRAC, FracSegNet(FRAC.network), root / "frac")


@pytest.fixture(scope="session")
def levelnet(tmp_path_factory) -> Path:
    return trained(LEVEL, LevelNet(LEVEL.network), tmp_path_factory.mktemp("runs") / "level")


@pytest.fixture(scope="session")
def bundle(runs, levelnet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "b"
    choices = Choices(overlap=0.25, min_level_confidence=0.6)
    return make_bundle(*runs, folder, levelnet=levelnet, name="tiny", version="1.2.3", choices=choices)
