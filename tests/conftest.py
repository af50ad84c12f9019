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
