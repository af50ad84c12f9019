from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.readers import read_scan
from runtime.readers.options import ReadOptions
from runtime.volume import Grid, Volume
from tests.runtime.dicom_fuzz import FAULTS, OUTCOMES, trial, what_is_wrong
from tests.runtime.dicom_mutations import MUTATIONS, phantom

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


def regridded(volume: Volume, change: Callable[[np.ndarray], None]) -> Volume:
    """The volume on a grid whose affine was changed in place."""
    affine = volume.grid.affine_ras.copy()
    change(affine)
    return replace(volume, grid=Grid(volume.grid.shape_zyx, affine))


def straightened(affine: np.ndarray) -> None:
    """As readers do that know nothing of gantry tilt."""
    x, y = (affine[:3, axis] / np.linalg.norm(affine[:3, axis]) for axis in (0, 1))
    normal = np.cross(x, y)
    affine[:3, 2] = normal * (affine[:3, 2] @ normal)


def shifted(affine: np.ndarray) -> None:
    affine[2, 3] += 1.5


def stretched(affine: np.ndarray) -> None:
    """As readers do that spread slices evenly."""
    affine[:3, 2] *= 1.2


@pytest.mark.parametrize(
    ("kind", "wrongly", "found"),
    [
        ("gantry tilted", lambda v: regridded(v, straightened), "voxels off"),
        ("gantry tilted", lambda v: regridded(v, shifted), "voxels off"),
        ("step changes", lambda v: regridded(v, stretched), "voxels off"),
        ("step changes", lambda v: replace(v, array=np.roll(v.array, 1, axis=0)), "holds other values"),
        ("step changes", lambda v: replace(v, array=v.array + np.int16(2)), "holds other values"),
        ("slice moved along", lambda v: replace(v, notes=("of something else",)), "voxels off"),
        ("inner slices missing", lambda v: replace(v, array=np.full_like(v.array, -1024)), "holds other values"),
        ("file cut off", lambda v: replace(v, notes=()), "left out"),
        ("other series uid", lambda v: replace(v, notes=v.notes[:1]), "left out"),
    ],
)
def test_what_is_wrong_in_a_volume_is_seen_though_it_was_warned_of(kind, wrongly, found, tmp_path):
    """In one of the first seeds: in some the change is too small to count."""
    for seed in range(12):
        rng = np.random.default_rng([seed, sorted(MUTATIONS).index(kind)])
        series = phantom(rng)
        MUTATIONS[kind](series, rng)
        folder = tmp_path / str(seed)
        folder.mkdir()
        series.write(folder)
        try:
            volume = read_scan(folder, ReadOptions(accept_gaps=True))
        except InputError:
            continue
        if volume.notes:
            assert what_is_wrong(volume, series) == ""
            if found in what_is_wrong(wrongly(volume), series):
                return
    pytest.fail("it was seen in no volume")
