from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bundle import IntensityWindow, LocNetSpec, ScoutSpec
from runtime.engines.base import EngineInfo
from runtime.localise import locate
from runtime.scout import WindowCount
from runtime.trail import Trail
from runtime.volume import Grid
from runtime.windows import WindowRunner, plan_windows, windows_reaching

SCOUT = ScoutSpec(spacing_mm=4.0, overlap=0.125, threshold=0.2, margin_mm=4.0, follow_threshold=0.3, share=0.03)
SPEC = LocNetSpec(
    file="locnet.onnx",
    variant="F",
    spacing_mm=2.0,
    window_zyx=(16, 16, 16),
    overlap=0.5,
    intensity=IntensityWindow(-1000, 1000),
    heatmap_threshold=0.6,
    peak_threshold=0.5,
    peak_separation_voxels=3.0,
    refine_radius_voxels=1.5,
    min_confidence=0.6,
    skip_below_hu=-900.0,
    scout=SCOUT,
)
EVERYWHERE = replace(SPEC, skip_below_hu=-2000.0)


class Bright:
    """A local network: heat is how bright a voxel is, and each votes for itself. It is blind near a window's border."""

    info = EngineInfo("fake", "1", "fp32", "CPU", "test")
    output_names = ("heatmap", "offsets")

    def __init__(self, blind=0, blind_to_coarse=False):
        self.blind, self.blind_to_coarse, self.calls = blind, blind_to_coarse, 0

    def __call__(self, image):
        self.calls += len(image)
        heat = np.zeros_like(image)
        seen = (..., *(slice(self.blind, n - self.blind) for n in image.shape[2:]))
        heat[seen] = image[seen]
        if self.blind_to_coarse:
            # Averaging dims the peaks of small blobs: only full resolution is as bright as 1.
            heat[image.max(axis=(2, 3, 4)) < 0.75] = 0
        return heat, np.zeros((len(image), 3, *image.shape[2:]), np.float32)

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def grid_of(shape):
    return Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]))


def scan_of(shape, places, width=2.0):
    voxels = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))
    heat = np.zeros(shape, np.float32)
    for place in places:
        away = ((voxels - np.array(place)[:, None, None, None]) ** 2).sum(0)
        heat = np.maximum(heat, np.exp(-away / (2 * width**2)).astype(np.float32))
    return 2000 * heat - 1000


def found(hu, spec, session, **options):
    located = locate(hu, grid_of(hu.shape), spec, session, **options)
    return np.array([c.centre_ras_mm for c in located.centres]).reshape(-1, 3), located.windows


def column(shape, step=8, start=4):
    return [(z, shape[1] / 2, shape[2] / 2) for z in range(start, shape[0] - 3, step)]


@st.composite
def spines(draw):
    """A volume and a chain of blobs through it, each within 9 voxels of the one before, away from the very border."""
    shape = (draw(st.integers(20, 70)), draw(st.integers(17, 60)), draw(st.integers(17, 60)))
    place = [draw(st.floats(4, 10)), *(draw(st.floats(4, n - 5)) for n in shape[1:])]
    places = []
    while place[0] < shape[0] - 4 and len(places) < draw(st.integers(3, 9)):
        places.append(tuple(place))
        place[0] += draw(st.floats(7, 8))
        for axis in (1, 2):
            place[axis] = float(np.clip(place[axis] + draw(st.floats(-3, 3)), 4, shape[axis] - 5))
    return shape, places


@settings(max_examples=60, deadline=None)
@given(spine=spines(), blind=st.sampled_from([0, 1]), coarse_blind=st.booleans(), batch=st.sampled_from([1, 3]))
def test_along_the_spine_is_found_what_is_found_everywhere(spine, blind, coarse_blind, batch):
    shape, places = spine
    hu = scan_of(shape, places)
    every, all_of_them = found(hu, EVERYWHERE, Bright(blind), exhaustive=True)
    session = Bright(blind, coarse_blind)
    some, count = found(hu, EVERYWHERE, session, batch=batch)
    assert len(every) == len(places) or blind
    assert some.shape == every.shape
    assert np.linalg.norm(some - every, axis=1).max(initial=0) < 0.5 * SPEC.spacing_mm
    assert all_of_them == WindowCount(all_of_them.planned, all_of_them.planned, 0)
    assert session.calls == count.run + count.scouted


def test_only_windows_along_the_spine_are_run_and_none_is_run_twice():
    shape = (100, 90, 90)
    hu = scan_of(shape, column(shape))
    network, session = Bright(), Bright()
    centres, count = found(hu, EVERYWHERE, session)
    assert len(centres) == len(column(shape))
    assert count.run + count.scouted == session.calls
    heights = len({start[0] for start in plan_windows(shape, SPEC.window_zyx, SPEC.overlap).starts_zyx})
    assert heights < count.run <= 9 * heights < count.planned / 5
    every, _ = found(hu, EVERYWHERE, network, exhaustive=True)
    assert network.calls == count.planned
    np.testing.assert_allclose(centres, every, atol=0.05)


def test_with_no_share_left_out_the_centres_are_those_of_the_exhaustive_pass_to_the_bit():
    shape = (70, 80, 80)
    hu = scan_of(shape, column(shape))
    spec = replace(EVERYWHERE, scout=replace(SCOUT, share=0.0))
    some, count = found(hu, spec, Bright(blind=1))
    every, _ = found(hu, spec, Bright(blind=1), exhaustive=True)
    assert count.run < count.planned
    assert len(every) >= 5
    np.testing.assert_array_equal(some, every)


def test_where_the_first_look_sees_nothing_all_windows_are_run():
    shape = (60, 60, 60)
    hu = scan_of(shape, column(shape), width=1.2)
    session = Bright(blind_to_coarse=True)
    centres, count = found(hu, EVERYWHERE, session)
    assert count.scouted > 0
    assert count.run == count.planned
    assert len(centres) == len(column(shape))


def test_next_to_nothing_is_only_said_after_the_exhaustive_pass():
    """The first look and full resolution see one large blob; a vertebra too small for the first look lies elsewhere."""
    shape = (60, 80, 80)
    hu = np.maximum(scan_of(shape, [(30, 20, 20)], width=4), scan_of(shape, [(30, 60, 60)], width=1.0))
    session = Bright()
    centres, count = found(hu, EVERYWHERE, session)
    assert count.scouted > 0
    assert count.run == count.planned, "windows along the spine that was none are not run again"
    assert session.calls == count.run + count.scouted
    np.testing.assert_array_equal(centres, found(hu, EVERYWHERE, Bright(), exhaustive=True)[0])
    assert len(centres) == 2
    nothing, count = found(np.full(shape, -200, np.float32), EVERYWHERE, Bright())
    assert count.run == count.planned
    assert len(nothing) == 0


def test_the_spine_is_followed_where_the_first_look_is_blind():
    """Only the lowest vertebrae are seen at low resolution; the others lead away from them, window by window."""
    shape = (120, 60, 100)
    places = [(float(z), 30.0, 20.0 + 0.5 * z) for z in range(4, 117, 8)]
    hu = np.maximum(scan_of(shape, places[:3], width=3), scan_of(shape, places[3:], width=1.2))
    centres, count = found(hu, EVERYWHERE, Bright(blind_to_coarse=True))
    assert len(centres) == len(places)
    assert count.run < count.planned / 2


def test_the_spine_is_followed_over_a_gap_to_the_ends_of_the_scan():
    """Heights to which nothing led are looked at where the spine was last; the first look is blind to what is there."""
    shape = (150, 90, 90)
    below, above = ([p for p in column(shape) if low < p[0] < high] for low, high in ((0, 40), (100, 150)))
    hu = np.maximum(scan_of(shape, below, width=3), scan_of(shape, above, width=1.2))
    centres, count = found(hu, EVERYWHERE, Bright(blind_to_coarse=True))
    assert len(centres) == len(below + above)
    assert count.run < count.planned / 3


def test_small_scans_have_no_first_look():
    shape = (60, 20, 20)
    centres, count = found(scan_of(shape, column(shape)), EVERYWHERE, Bright())
    assert count == WindowCount(count.planned, count.planned, 0)
    assert len(centres) == len(column(shape))


def test_windows_without_bone_are_not_run_even_along_the_spine():
    shape = (100, 90, 90)
    hu = scan_of(shape, [p for p in column(shape) if p[0] < 50])
    session = Bright()
    _, count = found(hu, SPEC, session)
    bone = windows_reaching(hu, plan_windows(shape, SPEC.window_zyx, SPEC.overlap), SPEC.skip_below_hu).sum()
    assert count.run <= bone < count.planned
    session = Bright()
    found(hu, SPEC, session, exhaustive=True)
    assert session.calls == bone


def test_the_cost_grows_with_the_spine_and_not_with_the_field_of_view():
    def counted(shape):
        centres, count = found(scan_of(shape, column(shape)), EVERYWHERE, Bright())
        assert len(centres) == len(column(shape))
        return count

    wide = [counted((60, width, width)) for width in (49, 65, 81, 97, 113)]
    assert max(count.run for count in wide) <= 1.3 * min(count.run for count in wide)
    assert wide[-1].planned > 5 * wide[0].planned
    assert wide[-1].scouted <= wide[-1].planned / 15, "the first look is what grows with the volume"
    long = [counted((length, 65, 65)) for length in (40, 80, 120, 160)]
    per_height = [count.run / (count.planned / wide[1].planned) for count in long]
    assert max(per_height) <= 1.3 * min(per_height)


@pytest.mark.parametrize("batch", [1, 4])
def test_progress_ends_with_every_window_done(batch):
    shape = (100, 90, 90)
    steps, session = [], Bright()
    _, count = found(
        scan_of(shape, column(shape)), EVERYWHERE, session, batch=batch, progress=lambda *step: steps.append(step)
    )
    done = [step[0] for step in steps]
    assert done == sorted(done)
    assert len(set(done)) >= len(done) - 1, "the end of the blending is told as well"
    assert all(one <= all_of_them for one, all_of_them in steps)
    assert steps[-1] == (session.calls, session.calls) == (count.run + count.scouted,) * 2


def test_outputs_that_do_not_fit_in_memory_are_made_again():
    shape = (40, 20, 20)
    plan = plan_windows(shape, SPEC.window_zyx, SPEC.overlap)
    hu, count, one = scan_of(shape, column(shape)), len(plan.starts_zyx), 4 * 4 * 16**3
    heats = []
    for most_bytes, again in ((0, count), (3 * one + 1, count - 3), (count * one, 0)):
        session = Bright()
        runner = WindowRunner(hu, plan, session, intensity=SPEC.intensity, most_bytes=most_bytes)
        for _ in runner.run(plan.starts_zyx, remember=True):
            pass
        heats.append(np.concatenate([slab.heatmap.copy() for slab in runner.slabs(np.ones(count, bool))]))
        assert session.calls == runner.run_count == count + again
    np.testing.assert_array_equal(heats[1], heats[0])
    np.testing.assert_array_equal(heats[2], heats[0])


def test_a_window_counts_where_it_has_a_share_of_the_blend():
    plan = plan_windows((16, 16, 48), (16, 16, 16), 0.5)
    keep = np.ones(len(plan.starts_zyx), bool)
    every = Trail(plan, keep, share=0.0)
    for x in range(48):
        point = np.array([[8, 8, x]])
        assert every.windows_at(point).tolist() == [0 <= x - start[2] < 16 for start in plan.starts_zyx]
    some = Trail(plan, keep, share=0.03)
    assert some.windows_at(np.array([[8, 8, 16]])).sum() == 1, "the middle of the second window"
    assert some.windows_at(np.array([[8, 8, 12]])).sum() == 2, "between two"
    keep[0] = False
    assert not Trail(plan, keep, share=0.0).windows_at(np.array([[8, 8, 2]])).any()


def test_heat_is_hot_where_the_blend_of_the_windows_is():
    plan = plan_windows((16, 16, 24), (16, 16, 16), 0.5)
    trail = Trail(plan, np.ones(2, bool), share=0.03)
    says = np.zeros((16, 16, 16), np.float32)
    says[5, 6, 13] = 0.8  # at the edge of the first window, in the middle of the second
    trail.add(plan.starts_zyx[0], says)
    np.testing.assert_array_equal(trail.hot(0.3), [[6, 6, 14]])
    trail.add(plan.starts_zyx[1], np.zeros_like(says))
    assert len(trail.hot(0.3)) == 0, "the second window outvotes it"
