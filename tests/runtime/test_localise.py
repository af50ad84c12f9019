from dataclasses import replace

import numpy as np
import pytest

from runtime import localise
from runtime.bundle import IntensityWindow, LocNetSpec
from runtime.engines.base import EngineInfo
from runtime.errors import EngineError
from runtime.volume import Grid

SPEC = LocNetSpec(
    file="locnet.onnx",
    variant="F",
    spacing_mm=2.0,
    window_zyx=(32, 24, 24),
    overlap=0.5,
    intensity=IntensityWindow(-1000, 1000),
    heatmap_threshold=0.7,
    peak_threshold=0.1,
    peak_separation_voxels=5.0,
    refine_radius_voxels=3.0,
    min_confidence=0.0,
    skip_below_hu=100.0,
)
SHAPE = (90, 40, 36)
GRID = Grid(SHAPE, np.array([[2, 0, 0, -30], [0, 2, 0, 15], [0, 0, 2, -700], [0, 0, 0, 1.0]]))
CENTRES = np.array([[10.0, 20, 18], [25.25, 21, 17.5], [41.0, 22.5, 18], [60, 20, 16.25], [79.5, 19, 18]])
"""Places of the vertebrae, voxels in z, y, x order."""


class Oracle:
    """A network that knows the vertebrae: each is one voxel whose HU tells which; it answers for its window alone."""

    info = EngineInfo("fake", "1", "fp32", "CPU", "test")

    def __init__(self, names=("heatmap", "offsets"), strength=1.0):
        self.output_names, self.strength, self.calls = names, strength, 0

    def __call__(self, image):
        self.calls += image.shape[0]
        outputs = [self._answer(one[0]) for one in image]
        heatmap, offsets = (np.stack(parts).astype(np.float32) for parts in zip(*outputs, strict=True))
        return (heatmap[:, None], offsets)[: len(self.output_names)]

    def _answer(self, window):
        voxels = np.stack(np.meshgrid(*[np.arange(n) for n in window.shape], indexing="ij"))
        heatmap, offsets = np.zeros(window.shape), np.zeros((3, *window.shape))
        for marked in np.argwhere(window > 0.575):
            number = round(float(window[tuple(marked)]) * 20) - 12
            centre = marked + CENTRES[number] - np.floor(CENTRES[number])
            towards = centre[:, None, None, None] - voxels
            blob = self.strength * np.exp(-(towards**2).sum(0) / 18)
            offsets = np.where(blob > heatmap, towards, offsets)
            heatmap = np.maximum(heatmap, blob)
        return heatmap, offsets

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def scan():
    hu = np.full(SHAPE, -1000, np.float32)
    for number, centre in enumerate(CENTRES):
        hu[tuple(np.floor(centre).astype(int))] = 200 + 100 * number
    return hu


def places(centres):
    return np.array([centre.centre_ras_mm for centre in centres])


def locate(*given, **options):
    return localise.locate(*given, **options).centres


EXPECTED = GRID.to_ras_mm(CENTRES[::-1])


def test_centres_come_cranial_to_caudal_in_millimetres_of_the_patient():
    centres = locate(scan(), GRID, SPEC, Oracle())
    found = places(centres)
    assert found.shape == (5, 3)
    assert (np.diff(found[:, 2]) < 0).all()
    # Votes fall on voxels, so half a voxel along each axis is the most that an exact network leaves.
    assert np.abs(found - EXPECTED).max() <= 1.0 + 1e-6
    for centre in centres:
        assert 0.85 < centre.confidence <= 1
        assert 30 < centre.votes < 90


def test_the_heatmap_variant_finds_the_same_vertebrae_to_half_a_voxel():
    spec = replace(SPEC, variant="H", peak_threshold=0.7)
    found = places(locate(scan(), GRID, spec, Oracle(names=("heatmap",))))
    np.testing.assert_allclose(found, EXPECTED, atol=1.0)


@pytest.mark.parametrize("batch", [2, 5, 100])
def test_batches_change_nothing(batch):
    assert locate(scan(), GRID, SPEC, Oracle(), batch=batch) == locate(scan(), GRID, SPEC, Oracle())


def test_skipping_air_runs_fewer_windows_and_changes_no_centre():
    hu = scan()
    hu[30:70] = -1000
    skipping, all_run = Oracle(), Oracle()
    some = locate(hu, GRID, SPEC, skipping)
    every = locate(hu, GRID, replace(SPEC, skip_below_hu=-2000.0), all_run)
    assert 0 < skipping.calls < all_run.calls
    assert len(some) == 3
    np.testing.assert_allclose(places(some), places(every), atol=1e-9)


def test_air_alone_has_no_vertebrae_and_needs_no_network():
    session = Oracle()
    assert locate(np.full(SHAPE, -1000, np.float32), GRID, SPEC, session) == ()
    assert session.calls == 0


def test_no_foreground_is_no_error():
    assert locate(scan(), GRID, SPEC, Oracle(strength=0.5)) == ()


def test_peaks_of_low_confidence_are_dropped():
    assert len(locate(scan(), GRID, replace(SPEC, min_confidence=0.7), Oracle(strength=0.85))) == 5
    assert locate(scan(), GRID, replace(SPEC, min_confidence=0.9), Oracle(strength=0.85)) == ()


def test_progress_counts_the_windows():
    steps = []
    session = Oracle()
    locate(scan(), GRID, SPEC, session, batch=4, progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (session.calls, session.calls)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})


def test_a_scan_smaller_than_the_window_is_located():
    hu = np.full((12, 12, 12), -1000, np.float32)
    hu[6, 6, 6] = 200
    (centre,) = locate(hu, Grid((12, 12, 12), GRID.affine_ras), SPEC, Oracle())
    np.testing.assert_allclose(centre.centre_ras_mm, GRID.to_ras_mm([6, 6, 6]), atol=1e-6)


def test_a_network_without_offsets_cannot_be_of_variant_f():
    with pytest.raises(EngineError, match="three offsets"):
        locate(scan(), GRID, SPEC, Oracle(names=("heatmap",)))


def test_outputs_that_are_not_finite_are_an_engine_error():
    with pytest.raises(EngineError, match="NaN"):
        locate(scan(), GRID, SPEC, Oracle(strength=np.nan))
