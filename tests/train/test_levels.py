"""LevelNet's crops, task and network."""

import numpy as np
import pytest
import torch
from torch import nn

from runtime.anatomy import LEVEL_NAMES
from train.config import LevelNetRun
from train.level_crops import AIR_HU, NONE, level_crops, place_without_vertebra
from train.level_task import LevelNetTask
from train.networks import LevelNet, LevelNetConfig, LevelNetOutputs
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
