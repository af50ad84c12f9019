from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from runtime.bundle import FracSegNetSpec, IntensityWindow
from runtime.engines.base import EngineInfo
from runtime.errors import EngineError
from runtime.looks import looks_together, second_look
from runtime.paste import paste_masks
from runtime.segment import segment, touches_edge
from runtime.volume import Grid, Volume

SPEC = FracSegNetSpec(
    file="fracsegnet.onnx",
    spacing_mm=1.0,
    crop_zyx=(32, 32, 32),
    intensity=IntensityWindow(0.0, 1000.0),
    mask_channels=("vertebra", "body"),
    mask_threshold=0.5,
    grade_names=("0", "1", "2", "3"),
    has_heights=True,
)
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Voted:
    centre_ras_mm: tuple[float, float, float]
    confidence: float = 0.9


class FakeSession:
    """Vertebra: above 500 HU; body: above 750 HU; grade 2; records the batch sizes."""

    info = EngineInfo("fake", "1", "fp32", "CPU", "test")

    def __init__(self, spec=SPEC, *, spoil=lambda outputs: outputs):
        self.spec, self.spoil, self.batches = spec, spoil, []
        self.output_names = ("mask", "grade", "heights") if spec.has_heights else ("mask", "grade")

    def __call__(self, image):
        assert image.dtype == np.float32
        assert image.flags.c_contiguous
        assert image.shape[1:] == (1, *self.spec.crop_zyx)
        n = len(image)
        self.batches.append(n)
        channels = [(image > 0.5), (image > 0.75)][: len(self.spec.mask_channels)]
        mask = np.concatenate(channels, axis=1).astype(np.float32)
        grade = np.tile(np.float32([0.1, 0.2, 0.6, 0.1]), (n, 1))
        heights = np.tile(np.float32([20, 15, 22, 0.1, 0.3, -0.05]), (n, 1))
        return self.spoil((mask, grade, heights)[: len(self.output_names)])

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def scan_with(*blocks, shape=(80, 60, 60)):
    """A scan of 1 mm voxels at the RAS origin: blocks of ((z0, z1), (y0, y1), (x0, x1), HU)."""
    array = np.zeros(shape, np.int16)
    for (z0, z1), (y0, y1), (x0, x1), hu in blocks:
        array[z0:z1, y0:y1, x0:x1] = hu
    return Volume(array, Grid(shape, AFFINE))


BODY = ((30, 40), (32, 44), (24, 36), 900)
ARCH = ((32, 38), (22, 32), (26, 34), 600)


def test_the_body_mask_moves_the_centre_onto_the_body():
    (found,) = segment(scan_with(BODY, ARCH), [Voted((27.0, 34.0, 37.0))], SPEC, FakeSession())
    assert found.centre_ras_mm == pytest.approx((29.5, 37.5, 34.5), abs=0.25)
    assert found.grade_probabilities == pytest.approx((0.1, 0.2, 0.6, 0.1))
    assert found.heights_mm == pytest.approx((20, 15, 22))
    assert found.height_loss == pytest.approx(0.3)
    assert found.complete
    assert found.body_complete


def test_a_body_far_from_the_votes_is_not_believed():
    voted = Voted((29.0, 23.0, 34.0))
    (found,) = segment(scan_with(BODY), [voted], SPEC, FakeSession())
    assert found.centre_ras_mm == voted.centre_ras_mm


def test_a_neighbours_body_in_the_crop_does_not_pull_the_centre():
    neighbour = ((47, 60), (30, 46), (22, 38), 900)
    (found,) = segment(scan_with(BODY, neighbour), [Voted((29.0, 37.0, 35.0))], SPEC, FakeSession())
    assert found.centre_ras_mm == pytest.approx((29.5, 37.5, 34.5), abs=0.05)


def test_a_collapsed_body_is_not_taken_for_its_larger_neighbour():
    collapsed = ((34, 38), (30, 46), (22, 38), 900)
    neighbour = ((41, 54), (30, 46), (22, 38), 900)
    (found,) = segment(scan_with(collapsed, neighbour), [Voted((29.5, 37.5, 35.5))], SPEC, FakeSession())
    assert found.centre_ras_mm == pytest.approx((29.5, 37.5, 35.5), abs=0.05)
    assert found.body is not None
    assert (found.body > 0.5).sum() == 4 * 16 * 16


def test_without_a_body_channel_the_vote_stays():
    spec = replace(SPEC, mask_channels=("vertebra",), has_heights=False)
    voted = Voted((28.0, 36.0, 35.0))
    (found,) = segment(scan_with(BODY), [voted], spec, FakeSession(spec))
    assert found.centre_ras_mm == voted.centre_ras_mm
    assert found.body is found.heights_mm is found.height_loss is None


def test_stray_islands_are_dropped():
    stray = ((24, 26), (24, 26), (24, 26), 900)
    (with_stray,) = segment(scan_with(BODY, ARCH, stray), [Voted((29.0, 37.0, 34.0))], SPEC, FakeSession())
    (without,) = segment(scan_with(BODY, ARCH), [Voted((29.0, 37.0, 34.0))], SPEC, FakeSession())
    assert (with_stray.mask > 0.5).sum() == (without.mask > 0.5).sum()


def test_trimming_keeps_every_voxel_where_it_was():
    volume = scan_with(BODY)
    (found,) = segment(volume, [Voted((29.5, 37.5, 34.5))], SPEC, FakeSession())
    points = found.grid.to_ras_mm(np.argwhere(found.mask > 0.5))
    assert np.array_equal(points.min(axis=0), [24, 32, 30])
    assert np.array_equal(points.max(axis=0), [35, 43, 39])
    assert found.mask.shape == found.grid.shape_zyx == (12, 14, 14)


def test_crops_are_batched_and_counted():
    session, seen = FakeSession(), []
    blocks = [((z, z + 8), (26, 38), (24, 36), 900) for z in (4, 24, 44, 64)]
    voted = [Voted((29.5, 31.5, z + 3.5)) for z in (64, 44, 24, 4)]
    found = segment(
        scan_with(*blocks), voted, SPEC, session, batch=3, progress=lambda done, total: seen.append((done, total))
    )
    assert session.batches == [3, 1]
    assert seen == [(3, 4), (4, 4)]
    assert [v.centre_ras_mm[2] for v in found] == pytest.approx([67.5, 47.5, 27.5, 7.5])


def test_both_looks_at_a_vertebra_go_through_the_network_in_batches_of_the_size_asked_for():
    blocks = [((z, z + 8), (26, 38), (24, 36), 900) for z in (4, 24, 44, 64)]
    voted = [Voted((29.5, 31.5, z + 3.5)) for z in (64, 44, 24, 4)]
    for batch, expected in ((1, [1] * 8), (3, [3, 3, 2]), (4, [4, 4])):
        session = FakeSession()
        found = segment(scan_with(*blocks), voted, replace(SPEC, mirrored=True), session, batch=batch)
        assert session.batches == expected
        assert [v.centre_ras_mm[2] for v in found] == pytest.approx([67.5, 47.5, 27.5, 7.5])


def test_of_two_in_one_place_the_one_that_is_outlined_is_kept():
    def blind_at_first(outputs):
        mask, *others = outputs
        mask[0] = 0.0
        return mask, *others

    voted = [Voted((29.5, 37.5, 36.5), 0.9), Voted((29.5, 37.5, 34.5), 0.5)]
    (found,) = segment(scan_with(BODY), voted, SPEC, FakeSession(spoil=blind_at_first))
    assert found.source == 1
    assert (found.body > 0.5).any()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_size_changes_nothing(batch):
    blocks = [((z, z + 8), (26, 38), (24, 36), 900) for z in (4, 24, 44)]
    voted = [Voted((29.5, 31.5, z + 3.5)) for z in (44, 24, 4)]
    found = segment(scan_with(*blocks), voted, SPEC, FakeSession(), batch=batch)
    single = [segment(scan_with(*blocks), [one], SPEC, FakeSession())[0] for one in voted]
    assert [v.centre_ras_mm for v in found] == [v.centre_ras_mm for v in single]
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(found, single, strict=True))


def test_two_votes_for_one_vertebra_keep_the_more_confident():
    voted = [Voted((28.0, 37.0, 38.0), 0.6), Voted((30.0, 38.0, 33.0), 0.95)]
    (found,) = segment(scan_with(BODY), voted, SPEC, FakeSession())
    assert found.confidence == 0.95


def test_votes_apart_whose_masks_are_the_same_are_one_vertebra():
    tall = ((24, 48), (32, 44), (24, 36), 900)
    voted = [Voted((29.5, 37.5, 41.0), 0.9), Voted((29.5, 37.5, 31.0), 0.8)]
    spec = replace(SPEC, mask_channels=("vertebra",))
    (found,) = segment(scan_with(tall), voted, spec, FakeSession(spec))
    assert found.confidence == 0.9


def test_the_order_is_that_of_the_final_centres():
    blocks = [((z, z + 8), (26, 38), (24, 36), 900) for z in (24, 44)]
    voted = [Voted((29.5, 31.5, z + 3.5)) for z in (24, 44)]
    found = segment(scan_with(*blocks), voted, SPEC, FakeSession())
    assert [v.centre_ras_mm[2] for v in found] == pytest.approx([47.5, 27.5])


def test_neighbours_that_touch_stay_two():
    blocks = [((20, 35), (26, 44), (24, 42), 900), ((36, 51), (26, 44), (24, 42), 900)]
    voted = [Voted((32.5, 34.5, 43.0)), Voted((32.5, 34.5, 27.0))]
    assert len(segment(scan_with(*blocks), voted, SPEC, FakeSession())) == 2


@pytest.mark.parametrize(
    ("blocks", "complete", "body_complete"),
    [
        ([((0, 10), (32, 44), (24, 36), 900)], False, False),
        ([((30, 40), (8, 20), (24, 36), 900), ((32, 38), (0, 8), (26, 34), 600)], False, True),
        ([((30, 40), (8, 20), (24, 36), 900), ((32, 38), (4, 8), (26, 34), 600)], True, True),
    ],
)
def test_the_edge_of_the_scan_is_noticed(blocks, complete, body_complete):
    (z0, z1), (y0, y1), (x0, x1), _ = blocks[0]
    voted = Voted(((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2))
    (found,) = segment(scan_with(*blocks), [voted], SPEC, FakeSession())
    assert (found.complete, found.body_complete) == (complete, body_complete)


def test_edges_are_those_of_the_scan_in_any_orientation():
    crop = Grid((10, 10, 10), AFFINE)
    mask = np.zeros((10, 10, 10), bool)
    mask[4:6, 4:6, 4:6] = True
    flipped = np.diag([-1.0, -1.0, 1.0, 1.0])
    flipped[:3, 3] = [20, 20, -20]
    assert not touches_edge(mask, crop, Grid((60, 40, 40), flipped), step_mm=1.0)
    flipped[:3, 3] = [5, 20, -20]
    assert touches_edge(mask, crop, Grid((60, 40, 40), flipped), step_mm=1.0)
    assert not touches_edge(np.zeros_like(mask), crop, Grid((60, 40, 40), flipped), step_mm=1.0)


# Crops that lie off the vertebra's centre.

SHIFTED = replace(SPEC, crop_shift_mm=(0.0, -4.0, -3.0))


def test_a_shifted_crop_is_cut_where_it_is_said_to_lie():
    seen = []

    class Watching(FakeSession):
        def __call__(self, image):
            seen.append(image[0, 0].copy())
            return super().__call__(image)

    volume = scan_with(BODY, ARCH)
    for spec in (SPEC, SHIFTED):
        segment(volume, [Voted((29.5, 37.5, 34.5))], spec, Watching())
    # 4 voxels further back and 3 further down: of both crops what they share is the same.
    np.testing.assert_array_equal(seen[1][3:, 4:], seen[0][:-3, :-4])
    assert seen[0].max() > 0.75


@pytest.mark.parametrize("voted", [(29.5, 36.5, 34.5), (27.0, 35.0, 36.0), (31.3, 37.2, 33.1)])
def test_mask_and_centre_are_at_the_right_place_whatever_the_shift(voted):
    volume = scan_with(BODY, ARCH)
    found = [segment(volume, [Voted(voted)], spec, FakeSession())[0] for spec in (SPEC, SHIFTED)]
    for one in found:
        assert one.centre_ras_mm == pytest.approx((29.5, 37.5, 34.5), abs=0.5)
        points = one.grid.to_ras_mm(np.argwhere(one.mask > 0.5))
        assert points.min(axis=0) == pytest.approx([24, 22, 30], abs=1.0)
        assert points.max(axis=0) == pytest.approx([35, 43, 39], abs=1.0)
    assert found[1].centre_ras_mm == pytest.approx(found[0].centre_ras_mm, abs=1e-6)


def test_the_body_is_the_one_at_the_voted_centre_not_at_the_crops_middle():
    """In the shifted crop a neighbour's body, and a larger one, is nearer to the middle than the vertebra's own."""
    neighbour = ((8, 23), (22, 40), (20, 40), 900)
    spec = replace(SPEC, crop_shift_mm=(0.0, -3.0, -8.0))
    (found,) = segment(scan_with(BODY, neighbour), [Voted((29.0, 37.0, 35.0))], spec, FakeSession())
    assert found.centre_ras_mm == pytest.approx((29.5, 37.5, 34.5), abs=0.05)
    body = found.grid.to_ras_mm(np.argwhere(found.body > 0.5))
    assert 29.5 <= body[:, 2].min() <= 30.5


def test_no_centres_give_no_vertebrae_and_no_run():
    session = FakeSession()
    assert segment(scan_with(BODY), [], SPEC, session) == ()
    assert session.batches == []


def test_outputs_that_are_not_finite_or_not_as_promised_are_refused():
    def with_nan(outputs):
        outputs[0][0, 0, 0, 0, 0] = np.nan
        return outputs

    voted = [Voted((29.0, 37.0, 34.0))]
    with pytest.raises(EngineError, match="not finite"):
        segment(scan_with(BODY), voted, SPEC, FakeSession(spoil=with_nan))
    with pytest.raises(EngineError, match="promises"):
        segment(scan_with(BODY), voted, SPEC, FakeSession(spoil=lambda o: (o[0][:, :1], *o[1:])))


def test_a_body_that_ends_just_before_the_scans_cranial_or_caudal_end_counts_as_reaching_it():
    """Whichever index runs along the spine; at the other edges one voxel of the mask is what counts."""
    for axis in range(3):
        spine = 2 - axis  # its index (x, y, z)
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[[*(k for k in range(3) if k != spine), spine]]
        scan = Grid((40, 40, 40), affine)
        for edge in range(3):
            mask = np.zeros((40, 40, 40), bool)
            block = [slice(10, 30)] * 3
            block[edge] = slice(2, 20)  # index 0 and 1 are free: two voxels from the edge
            mask[tuple(block)] = True
            assert touches_edge(mask, scan, scan, step_mm=1.0, steps_along_spine=2) == (edge == axis)
            assert not touches_edge(mask, scan, scan, step_mm=1.0)


def test_what_a_network_says_of_one_side_only_is_halved_by_the_look_in_the_mirror():
    def with_a_right_side_only(outputs):
        mask, grade, heights = outputs
        mask = mask.copy()
        mask[..., :16] *= 0.9  # the crop's left half: patients' right is where x grows
        grade = grade + np.float32([0.1, 0, 0, -0.1]) * (mask[:, 0, 15, 15, 20, None] > 0)
        return mask, grade, heights

    volume, voted = scan_with(((30, 40), (32, 44), (24, 36), 900)), [Voted((29.5, 37.5, 34.5))]
    session = FakeSession(spoil=with_a_right_side_only)
    (found,) = segment(volume, voted, replace(SPEC, mirrored=True), session)
    assert session.batches == [2]
    inside = found.mask[found.mask > 0.5]
    np.testing.assert_allclose(inside, 0.95, atol=1e-6)
    (plain,) = segment(volume, voted, replace(SPEC, mirrored=False), FakeSession())
    assert (found.mask > 0.5).sum() == (plain.mask > 0.5).sum()
    assert found.centre_ras_mm == pytest.approx(plain.centre_ras_mm)
    assert found.heights_mm == plain.heights_mm


def test_without_sides_the_mirror_changes_nothing():
    blocks, voted = [BODY, ARCH], [Voted((27.0, 34.0, 37.0))]
    (looked_twice,) = segment(scan_with(*blocks), voted, replace(SPEC, mirrored=True), FakeSession())
    (once,) = segment(scan_with(*blocks), voted, SPEC, FakeSession())
    assert looked_twice.centre_ras_mm == pytest.approx(once.centre_ras_mm)
    np.testing.assert_allclose(looked_twice.mask, once.mask, atol=1e-6)
    assert looked_twice.grade_probabilities == pytest.approx(once.grade_probabilities)


def _ball(middle_xyz, radius, *, hu=900, shape=(90, 90, 90)):
    """A scan of 1 mm voxels with a ball in it whose surface lies where the HU pass half of what is inside."""
    z, y, x = np.indices(shape, dtype=np.float64)
    distance = np.sqrt((x - middle_xyz[0]) ** 2 + (y - middle_xyz[1]) ** 2 + (z - middle_xyz[2]) ** 2)
    array = np.clip(hu * (radius + 0.5 - distance), 0, hu).astype(np.int16)
    return Volume(array, Grid(shape, AFFINE)), distance <= radius


COARSE = replace(SPEC, spacing_mm=3.0, crop_zyx=(16, 16, 16), mirrored=True, has_heights=False)


def test_a_second_look_between_the_voxels_of_the_first_draws_borders_better():
    rng = np.random.default_rng(3)
    wrong = {False: 0, True: 0}
    for _ in range(6):
        middle = rng.uniform(40, 50, 3)
        volume, true = _ball(middle, rng.uniform(9, 14))
        voted = [Voted(tuple(middle + rng.uniform(-2, 2, 3)))]
        for interleaved in wrong:
            spec = replace(COARSE, interleaved=interleaved)
            (found,) = segment(volume, voted, spec, FakeSession(spec))
            wrong[interleaved] += (
                true ^ (paste_masks([(found.grid, found.mask)], volume.grid, threshold=0.5) > 0)
            ).sum()
    assert wrong[True] < 0.85 * wrong[False]


@pytest.mark.parametrize("interleaved", [False, True])
def test_what_two_looks_draw_lies_where_it_is(interleaved):
    rng = np.random.default_rng(5)
    for _ in range(8):
        middle = rng.uniform(40, 50, 3)
        volume, true = _ball(middle, rng.uniform(9, 14))
        spec = replace(COARSE, interleaved=interleaved)
        (found,) = segment(volume, [Voted(tuple(middle + rng.uniform(-2, 2, 3)))], spec, FakeSession(spec))
        assert np.linalg.norm(np.subtract(found.centre_ras_mm, middle)) < 0.5
        drawn = paste_masks([(found.grid, found.mask)], volume.grid, threshold=0.5) > 0
        places = np.argwhere(drawn).mean(axis=0) - np.argwhere(true).mean(axis=0)
        np.testing.assert_allclose(places, 0.0, atol=0.5)


def test_a_plane_seen_by_two_interleaved_looks_is_that_plane():
    """Trilinear interpolation reproduces what is linear, so both looks must agree on it between their voxels."""
    spec = replace(COARSE, interleaved=True)
    grid = spec.grid_around((1.0, 2.0, 3.0))

    def plane(at):
        points = at.to_ras_mm(np.argwhere(np.ones(at.shape_zyx, bool)))
        return np.float32(0.5 + points @ [0.004, -0.003, 0.005]).reshape(1, *at.shape_zyx)

    masks, finer = looks_together(plane(grid), plane(second_look(grid, spec)), grid, spec)
    assert finer.spacing_xyz_mm == pytest.approx((1.5, 1.5, 1.5))
    inside = (slice(None), *(slice(1, n - 1) for n in finer.shape_zyx))
    np.testing.assert_allclose(masks[inside], plane(finer)[inside], atol=1e-6)
