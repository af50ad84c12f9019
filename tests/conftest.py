"""Fixtures that several test files share, and the order in which files are given to xdist's workers."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.engines import openvino_library, ort_library
from runtime.engines.file_lock import file_lock

for library in (openvino_library, ort_library):  # tests import both themselves, and before all else
    library.refuse_telemetry()
if "PYTEST_XDIST_WORKER" in os.environ:  # workers take all cores: more threads of OpenMP would spin beside each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST_FIRST = (
    "pacs/test_through_the_archive.py", "test_default_bundle.py", "runtime/cohort/test_cohort_on_ray.py",
    "export/test_verify.py", "pacs/test_acceptance.py", "export/test_export.py", "benchmarks/test_benchmarks.py",
    "runtime/device/test_in_simulator.py", "export/test_triton.py", "export/test_calibrate.py",
    "pacs/test_real_pipeline.py", "pacs/test_real_study.py", "runtime/node/test_kill.py",
    "train/test_verse_recipe.py", "train/test_compare.py", "runtime/test_trt_build.py",
    "runtime/dicom/test_validators.py", "train/test_command.py",
)  # fmt: skip
"""Files that take long, the longest first: begun last, one of them would run while the other workers have nothing."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One worker more than there are cores: many tests wait for processes, for peers and for clocks."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish():
    """What was imported stays: no collection of garbage is to go through it, and some tests ask for one each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scans beside the checkout; tests that need them are skipped where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real scans in {folder}")
    return folder


@pytest.fixture(scope="session")
def shared_by_workers(tmp_path_factory):
    """Makes a folder once for all workers: ``shared_by_workers(name, make)`` calls ``make(folder)`` in the first."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def shared(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / name
        with file_lock(folder.with_suffix(".lock")):
            if not folder.exists():
                make(made := folder.with_suffix(".half"))
                made.rename(folder)
        return folder

    return shared


@pytest.fixture(scope="session")
def runs(shared_by_workers) -> tuple[Path, Path]:
    """Run folders of a tiny LocNet and a tiny FracSegNet, not to be changed."""
    from tests.export.tiny import FRAC, LOC, trained
    from train.networks import FracSegNet, LocNet

    return (
        shared_by_workers("tiny-locnet", lambda folder: trained(LOC, LocNet(LOC.network), folder)),
        shared_by_workers("tiny-fracsegnet", lambda folder: trained(FRAC, FracSegNet(FRAC.network), folder)),
    )


@pytest.fixture(scope="session")
def levelnet(shared_by_workers) -> Path:
    """The run folder of a tiny LevelNet, not to be changed."""
    from tests.export.tiny import LEVEL, trained
    from train.networks import LevelNet

    return shared_by_workers("tiny-levelnet", lambda folder: trained(LEVEL, LevelNet(LEVEL.network), folder))


@pytest.fixture(scope="session")
def bundle(runs, levelnet, shared_by_workers):
    """A bundle of these tiny networks, which takes a while to export; not to be changed."""
    from export.bundle import Choices, make_bundle
    from runtime.bundle import open_bundle

    def make(folder: Path) -> None:
        choices = Choices(overlap=0.25, min_level_confidence=0.6)
        make_bundle(*runs, folder, levelnet=levelnet, name="tiny", version="1.2.3", choices=choices)

    return open_bundle(shared_by_workers("tiny-bundle", make))
