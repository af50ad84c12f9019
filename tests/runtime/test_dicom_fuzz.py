from __future__ import annotations

import warnings

import pytest

from tests.runtime.dicom_fuzz import FAULTS, OUTCOMES, trial
from tests.runtime.dicom_mutations import MUTATIONS

ALWAYS_READ = ("acquisition numbers", "end slices missing", "misleading numbers", "positions rounded")
ALWAYS_REFUSED = ("all files cut off", "file there twice", "inner slices missing", "other image in the same place")


@pytest.mark.parametrize("kind", sorted(MUTATIONS))
def test_no_mutated_series_crashes_hangs_or_is_silently_wrong(kind, tmp_path):
    """Two of each here; ``python -m tests.runtime.dicom_fuzz --count 500`` tries as many as it is told."""
    for seed in range(2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydicom, while it writes what it should not
            one = trial(kind, seed, folder)
        assert one.outcome not in FAULTS, one
        assert one.outcome in OUTCOMES
        if kind in ALWAYS_READ:
            assert one.outcome == "read", one
        if kind in ALWAYS_REFUSED:
            assert one.outcome == "refused", one
        if kind == "gantry tilted":
            assert one.outcome == "warned", one
