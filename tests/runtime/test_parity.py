"""The figures tell what was changed, and the gate bites: each corruption of a network's outputs is past a limit."""

from dataclasses import fields, replace

import numpy as np
import pytest

from runtime.bundle import open_bundle
from runtime.engines import open_session, select_engine
from runtime.engines.base import EngineInfo
from runtime.engines.parity import (
    LIMITS,
    Parity,
    compare_batches,
    compare_crops,
    compare_maps,
    faults,
    joined,
    network_spec,
    probe_images,
    processor_session,
    short_gate,
)
from runtime.errors import EngineError
from runtime.localise import centres_of
from runtime.volume import Grid

PRECISIONS = tuple(LIMITS)


class Changed:
    """A session whose outputs are changed on their way out."""

    def __init__(self, session, change):
        self.session, self.change = session, change
        self.info, self.output_names = session.info, session.output_names
        self.calls = 0

    def __call__(self, image):
        self.calls += 1
        named = dict(zip(self.output_names, self.session(image), strict=True))
        self.change(named, self.calls)
        return tuple(named.values())


@pytest.fixture(scope="module")
def networks(level_bundle):
    return [level_bundle / file for file in ("locnet.onnx", "fracsegnet.onnx", "levelnet.onnx")]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_cpu_engine_passes_its_gate(networks, which):
    for name in ("openvino", "onnxruntime"):
        with open_session(select_engine(name), networks[which], threads=1) as session:
            found = short_gate(networks[which], session, precision="fp32")
        assert faults(found, LIMITS["fp32"]) == ()
        assert (found.centres, found.masks, found.levels)[which] > 0, "something was there to compare"


def shifted(named, call):
    named["heatmap"] = np.roll(named["heatmap"], 1, axis=-1)


def black(named, call):
    named["heatmap"] = 0 * named["heatmap"]


def one_nan(named, call):
    next(iter(named.values()))[0, 0, ..., 0] = np.nan


def eroded(named, call):
    named["mask"] = named["mask"] * (np.random.default_rng(0).uniform(size=named["mask"].shape) > 0.05)


def regraded(named, call):
    named["grade"] = np.roll(named["grade"], 1, axis=1)


def relevelled(named, call):
    named["level"] = np.roll(named["level"], 1, axis=1)


def forgetful(named, call):
    first = next(iter(named))
    named[first] = named[first] + np.float32(0.1 * call)


def only_the_first_of_a_batch(named, call):
    first = next(iter(named))
    named[first][1:] = 0


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("which", "change", "said"),
    [
        (0, shifted, "centre shift"),
        (0, black, "found by one and not by the other"),
        (0, one_nan, "NaN"),
        (1, one_nan, "NaN"),
        (1, eroded, "Dice"),
        (1, regraded, "grades changed"),
        (2, relevelled, "levels changed"),
        (1, forgetful, "repetition"),
        (0, only_the_first_of_a_batch, "within a batch"),
    ],
)
def test_the_gate_bites(networks, which, change, said, precision):
    with processor_session(networks[which]) as session, pytest.raises(EngineError, match=said) as refused:
        short_gate(networks[which], Changed(session, change), precision=precision)
    assert f"in {precision} on onnxruntime" in str(refused.value)


def test_a_network_outside_a_bundle_is_refused(networks, tmp_path):
    for file in ("bundle.json", "locnet.onnx"):
        (tmp_path / file).write_bytes((networks[0].parent / file).read_bytes())
    (tmp_path / "locnet.onnx").rename(tmp_path / "other.onnx")
    with pytest.raises(EngineError, match="none of the networks of the bundle"):
        network_spec(tmp_path / "other.onnx")


def test_a_given_reference_is_used(networks):
    with processor_session(networks[1]) as session:
        wrong = Changed(session, regraded)
        assert short_gate(networks[1], wrong, precision="fp32", reference=wrong).grades_changed == 0


def test_drawn_windows_fit_the_network_and_show_vertebrae():
    """The default networks find vertebrae in what is drawn: the gate compares something."""
    bundle = open_bundle(None)
    spec = bundle.spec.locnet
    images = probe_images(spec)
    assert all(image.shape == (1, 1, *spec.window_zyx) for image in images)
    assert all(image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1 for image in images)
    with open_session(select_engine("openvino"), bundle.path_of(spec.file)) as session:
        named = dict(zip(session.output_names, session(images[0]), strict=True))
    grid = Grid(spec.window_zyx, np.diag([*[spec.spacing_mm] * 3, 1.0]))
    assert len(centres_of(named["heatmap"][0, 0], named["offsets"][0], grid, spec)) >= 3


def test_in_drawn_crops_the_vertebra_lies_where_the_bundles_crops_have_it():
    spec = open_bundle().spec.fracsegnet
    plain, moved = (replace(spec, crop_shift_mm=shift) for shift in ((0.0, 0.0, 0.0), (0.0, -18.0, -4.0)))
    steps = round(-18.0 / spec.spacing_mm), round(-4.0 / spec.spacing_mm)
    for one, other in zip(probe_images(plain)[::2], probe_images(moved)[::2], strict=True):
        # What lies at a place of the patient lies so many voxels further forward and up in the shifted crop.
        along = one[0, 0, : steps[1], : steps[0]], other[0, 0, -steps[1] :, -steps[0] :]
        np.testing.assert_allclose(*along, atol=1e-6)
    assert not np.array_equal(probe_images(plain)[0], probe_images(moved)[0])


def test_maps_are_compared_in_millimetres(level_bundle):
    spec = open_bundle(level_bundle).spec.locnet
    heat = np.zeros((32, 32, 32), np.float32)
    heat[14:19, 14:19, 14:19] = 0.9
    heat[16, 16, 16] = 1.0
    none = np.zeros((0, *heat.shape), np.float32)
    grid = Grid(heat.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    met = compare_maps((heat, none), (np.roll(heat, 2, axis=0), none), grid, spec)
    assert met.centres == 1
    assert met.centre_shift_mm == pytest.approx(4.0)
    lost = compare_maps((heat, none), (np.roll(heat, 8, axis=0), none), grid, spec)
    assert (lost.centres_lost, lost.centre_shift_mm) == (2, 0.0)


def test_dice_is_that_of_all_voxels_and_of_the_worst_mask():
    reference = np.zeros((2, 1, 10, 10, 10), np.float32)
    reference[0, 0, :5], reference[1, 0, :1] = 1, 1
    met = reference.copy()
    met[1, 0, 0, :5] = 0
    found = compare_crops({"mask": reference}, {"mask": met}, threshold=0.5)
    assert found.masks == 2
    assert found.dice == pytest.approx(2 * 550 / (600 + 550))
    assert found.smallest_dice == pytest.approx(2 * 50 / 150)
    assert compare_crops({"mask": 0 * met}, {"mask": 0 * met}, threshold=0.5).dice == 1.0


def test_joining_adds_counts_and_keeps_the_worst():
    one = Parity(heatmap=0.1, centres=3, smallest_dice=0.9, voxels_shared=5, voxels_of_both=10)
    other = Parity(heatmap=0.2, centres=4, smallest_dice=0.95, voxels_shared=1, voxels_of_both=10, failed="why")
    both = joined([one, other])
    assert both == Parity(heatmap=0.2, centres=7, smallest_dice=0.9, voxels_shared=6, voxels_of_both=20, failed="why")
    assert both == joined([other, one])
    assert joined([]) == Parity()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_no_number_or_failed_is_a_fault(precision):
    limits = LIMITS[precision]
    assert faults(Parity(), limits) == ()
    assert faults(Parity(failed="it broke"), limits) == ("it broke",)
    for name in ("centre_shift_mm", "grade", "level", "batch", "repeat"):
        assert faults(replace(Parity(), **{name: float("nan")}), limits), name


def test_every_figure_is_explained():
    said = Parity.__doc__ or ""
    assert [f.name for f in fields(Parity) if f"{f.name}:" not in said] == []


def test_a_session_is_compared_with_itself(networks):
    with processor_session(networks[2]) as session:
        found = compare_batches(session, probe_images(network_spec(networks[2]))[0])
    assert found.repeat == 0.0
    assert found.batch < 1e-6
    assert isinstance(session.info, EngineInfo)
