"""Resampling on the GPU is the processor's, bit for bit; see test_in_simulator.py."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import resample as host
from runtime.crops import crop_grid
from runtime.device import resample as device
from runtime.device.stream import Stream
from runtime.volume import Grid, Volume

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def scans(draw):
    """Small scans of either type: anisotropic, turned, sheared, flipped, with single slices."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    spacing_mm = np.array(draw(st.tuples(*[st.sampled_from([0.4, 0.7, 1.0, 2.5, 6.0])] * 3)))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if draw(st.booleans()) else np.eye(3)[rng.permutation(3)]
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing_mm * rng.choice([-1, 1], 3)
    affine[0, 1] += draw(st.sampled_from([0.0, 0.0, 0.05]))
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    values = rng.uniform(-1024, 3000, shape)
    array = np.round(values).astype(np.int16) if draw(st.booleans()) else values.astype(np.float32)
    return Volume(array, Grid(shape, affine))


def check(scan, target, fill_hu=-1024.0):
    with Stream() as on, on.active():
        there = on.upload(scan.array)
        found = on.download(device.resample(there, scan.grid, target, on, fill_hu=fill_hu))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, host.resample(scan, target, fill_hu=fill_hu))


@given(scans(), st.sampled_from([1.0, 1.6, 3.0, 7.0]))
@few
def test_the_working_grid(scan, spacing_mm):
    check(scan, host.working_grid(scan.grid, spacing_mm))


@given(scans(), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 99), st.sampled_from([-1024.0, 7.5]))
@few
def test_crops_that_leave_the_scan(scan, spacing_mm, seed, fill_hu):
    rng = np.random.default_rng(seed)
    corners = scan.grid.corners_ras_mm()
    centre = rng.uniform(corners.min(axis=0) - 2, corners.max(axis=0) + 2)
    check(scan, crop_grid(centre, spacing_mm=spacing_mm, shape_zyx=(4, 5, 3)), fill_hu)


def test_a_crop_far_away_is_empty():
    scan = Volume(np.zeros((3, 3, 3), np.int16), Grid((3, 3, 3), np.eye(4)))
    check(scan, crop_grid((500, 0, 0), spacing_mm=1.0, shape_zyx=(2, 2, 2)))


def test_arrays_of_any_layout_are_uploaded():
    array = np.asfortranarray(np.random.default_rng(0).uniform(0, 99, (3, 4, 10)).astype(np.float32))[:, :, ::2]
    check(Volume(array, Grid((3, 4, 5), np.diag([2.0, 1.0, 1.0, 1.0]))), Grid((3, 4, 9), np.eye(4)))
