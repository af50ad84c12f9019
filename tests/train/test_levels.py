"""LevelNet's crops, task and network."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from runtime.anatomy import LEVEL_NAMES
from train.config import LevelNetRun
from train.level_crops import AIR_HU, NONE, level_crops, open_ends, place_without_vertebra
from train.level_task import LevelNetTask
from train.networks import LevelNet, LevelNetConfig, LevelNetOutputs
from train.real_scans import RealSource
from train.sources import PhantomSource

SMALL = LevelNetRun(
    network=LevelNetConfig(4, (4, 4), 4, 8, crop_zyx=(16, 8, 8)), centre_jitter_mm=0.0, crops_per_scan=40
)


def test_names_are_none_and_then_cranial_to_caudal() -> None:
    assert LEVEL_NAMES[0] == "none"
    assert LEVEL_NAMES[1:] == tuple(
        f"{region}{i}" for region, count in (("C", 7), ("T", 13), ("L", 6)) for i in range(1, count + 1)
    )


def test_a_crop_is_centred_on_the_vertebra_it_names() -> None:
    hu = np.full((30, 20, 20), -50.0, np.float32)
    centres = {20: np.array([12.0, 9.0, 9.0]), 21: np.array([4.0, 9.0, 9.0])}
    for label, centre in centres.items():
        hu[tuple(centre.astype(int))] = 1000.0 + label
    run = LevelNetRun(network=SMALL.network, centre_jitter_mm=0.0, crops_per_scan=40, negative_fraction=0.0)
    seen = set()
    for sample in level_crops(hu, None, centres, np.random.default_rng(0), run):
        assert sample.hu.shape == (16, 8, 8)
        bright = {tuple(place) for place in np.argwhere(sample.hu > 900) if abs(place[0] - 8) <= 1}
        assert len(bright) == 1
        (place,) = bright
        assert np.abs(np.array(place) - [8, 4, 4]).max() <= 1, "the middle"
        assert sample.hu[place] - 1000 == {"L1": 20, "L2": 21}[LEVEL_NAMES[sample.level]]
        seen.add(sample.level)
    assert len(seen) == 2


def test_places_without_vertebra_are_bright_far_and_outside_the_mask() -> None:
    rng = np.random.default_rng(1)
    hu = rng.uniform(-100, 400, (40, 30, 30)).astype(np.float32)
    mask = np.zeros(hu.shape, np.uint8)
    mask[:, :15] = 7
    points = np.array([[20.0, 20.0, 20.0]])
    places = [place_without_vertebra(hu, mask, points, rng, SMALL) for _ in range(100)]
    for place in places:
        assert place is not None
        index = tuple(place.astype(int))
        assert hu[index] > 150
        assert mask[index] == 0
        assert np.linalg.norm(place - points[0]) * SMALL.spacing_mm >= SMALL.negative_distance_mm
    assert np.mean([place[0] < 20 for place in places if place is not None]) > 0.55, "below the spine more often"


def place_as_in_phantoms(hu, mask, points_zyx, rng, run):
    """What phantoms' places are drawn by, which a recorded run is to see again: without ends."""
    part = hu
    if rng.random() < 0.5 and len(points_zyx):
        part = hu[: max(int(points_zyx[:, 0].min()), 1)]
    bone = np.flatnonzero(part > 150)
    for _ in range(20):
        if not len(bone):
            return None
        place = np.array(np.unravel_index(bone[rng.integers(len(bone))], part.shape))
        far = np.linalg.norm(points_zyx - place, axis=1) * run.spacing_mm >= run.negative_distance_mm
        if far.all() and (mask is None or not mask[tuple(place)]):
            return place.astype(float)
    return None


def test_places_of_phantoms_are_those_they_were() -> None:
    hu = np.random.default_rng(1).uniform(-100, 400, (40, 30, 30)).astype(np.float32)
    points = np.array([[12.0, 20.0, 20.0], [20.0, 20.0, 20.0]])
    ours, theirs = np.random.default_rng(2), np.random.default_rng(2)
    for _ in range(100):
        met = place_without_vertebra(hu, None, points, ours, SMALL)
        np.testing.assert_array_equal(met, place_as_in_phantoms(hu, None, points, theirs, SMALL))
    phantoms = [level_crops(hu, None, {19: points[1], 20: points[0]}, np.random.default_rng(3), SMALL, **extra)
                for extra in ({}, {"cut_ones_annotated": True})]  # fmt: skip
    assert all((a.hu == b.hu).all() and a.level == b.level for a, b in zip(*phantoms, strict=True))


@pytest.mark.parametrize("lowest", [20, 24, 25])
@pytest.mark.parametrize("highest", [1, 8])
@pytest.mark.parametrize("lean", [0.0, 0.6])
def test_no_place_is_where_a_cut_vertebra_may_be(lowest: int, highest: int, lean: float) -> None:
    """Along the spine, 40 mm beyond its ends; beyond C1 and below L5 there is none to be cut."""
    hu = np.full((80, 40, 60), 300.0, np.float32)
    way = np.array([1.0, 0.0, lean]) / np.hypot(1.0, lean)
    low, high = np.array([30.0, 20.0, 25.0]), np.array([30.0, 20.0, 25.0]) + 12 * way
    ends = open_ends({lowest: low, highest: high})
    assert len(ends) == (lowest == 20) + (highest == 8)
    rng, places = np.random.default_rng(0), []
    for _ in range(150):
        place = place_without_vertebra(hu, None, np.array([low, high]), rng, SMALL, ends)
        places += [] if place is None else [place]
    below_mm = np.array([(low - place) @ way * SMALL.spacing_mm for place in places])
    above_mm = np.array([(place - high) @ way * SMALL.spacing_mm for place in places])
    for along_mm, is_open in ((below_mm, lowest == 20), (above_mm, highest == 8)):
        assert ((along_mm > 1e-6) & (along_mm < 40 - 1e-6)).any() == (not is_open)
        assert (along_mm > 40).any()
    assert len(open_ends({20: low})) == 2
    assert open_ends({}) == ()


def test_real_scans_have_no_negatives_beside_their_last_centres(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that is bright everywhere and says in HU how high each voxel is."""
    monkeypatch.setattr("train.real_scans.vary_intensity", lambda hu, rng: hu)
    raw, derived = tmp_path / "rawdata" / "sub-a", tmp_path / "derivatives" / "sub-a"
    raw.mkdir(parents=True)
    derived.mkdir(parents=True)
    hu = np.broadcast_to(200 + 4 * np.arange(70, dtype=np.int16), (16, 16, 70))
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(hu), np.diag([4.0, 4.0, 4.0, 1.0])), raw / "sub-a_ct.nii")
    points = [{"label": label, "X": 8, "Y": 8, "Z": z} for label, z in ((19, 37), (20, 30))]
    (derived / "sub-a_seg-subreg_ctd.json").write_text(json.dumps([{"direction": ["R", "A", "S"]}, *points]))
    source, rng = RealSource(tmp_path, grades=None, cache=tmp_path / "cache"), np.random.default_rng(0)
    run = replace(SMALL, negative_fraction=0.5)
    samples = [sample for _ in range(10) for sample in source.levels(rng, run)]
    z = np.array([(s.hu[7:9].max(axis=(1, 2)).mean() - 200) / 4 for s in samples if s.level == NONE])
    assert len(z) > 100
    assert not ((z > 20.6) & (z < 29.4)).any(), "below the lowest"
    assert not ((z > 37.6) & (z < 46.4)).any(), "above the highest"
    assert (z < 20).any()
    assert (z > 47).any()


def test_a_scan_of_air_gives_crops_of_nothing() -> None:
    air = np.full((20, 20, 20), AIR_HU, np.float32)
    samples = level_crops(air, None, {}, np.random.default_rng(0), SMALL)
    assert [s.level for s in samples] == [NONE] * SMALL.crops_per_scan


def test_phantom_batches_are_a_function_of_the_seed() -> None:
    task = LevelNetTask(LevelNetRun(network=SMALL.network, crops_per_scan=3))
    a, b, c = (task.batch(PhantomSource(), (seed,), 4) for seed in (3, 3, 4))
    assert a["image"].shape == (4, 1, 16, 8, 8)
    assert (a["image"] == b["image"]).all()
    assert (a["level"] == b["level"]).all()
    assert (a["image"] != c["image"]).any()


class Says(nn.Module):
    """A network that answers with given classes."""

    def __init__(self, classes: list[int]) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(torch.tensor(self.classes), len(LEVEL_NAMES)).float()


def test_metrics_count_right_near_lost_and_seen_through() -> None:
    batch = {"image": torch.zeros(6, 1, 16, 8, 8), "level": torch.tensor([5, 5, 5, 5, NONE, NONE])}
    metrics = LevelNetTask(SMALL).metrics(Says([5, 6, 9, NONE, NONE, 7]), [batch])
    assert metrics == {"score": 2 / 6, "level": 0.25, "within_one": 0.5, "lost": 0.25, "seen_through": 0.5}


def test_where_something_lies_reaches_the_output() -> None:
    torch.manual_seed(0)
    network = LevelNetOutputs(LevelNet(SMALL.network).eval())
    image = torch.zeros(2, 1, 16, 8, 8)
    image[0, 0, 4, 2:6, 2:6] = 1
    image[1, 0, 12, 2:6, 2:6] = 1
    (level,) = network(image)
    assert level.shape == (2, len(LEVEL_NAMES))
    torch.testing.assert_close(level.sum(dim=1), torch.ones(2))
    assert (level[0] - level[1]).abs().max() > 1e-3


def test_sizes_that_do_not_halve_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        LevelNetConfig(crop_zyx=(64, 40, 48))
