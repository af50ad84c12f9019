"""Peers do the same work: what they find is what the runtime finds, else their times would mean nothing."""

import importlib.util

import numpy as np
import pytest
import torch

from benchmarks import peer_steps, peers
from benchmarks.contenders import torch_contender
from benchmarks.figures import Figure
from benchmarks.installed import closure, installed_mib
from benchmarks.kernels import ours_votes_and_peaks, peer_votes_and_peaks
from benchmarks.peer_pipeline import peer_run
from benchmarks.scans import enlarged_scan, phantom_scan, save
from benchmarks.stage_clock import staged_run
from benchmarks.stages import agreement
from benchmarks.synthetic import NoNetwork, spine_maps, vertebra_masks
from runtime.bundle import open_bundle
from runtime.paste import paste_masks
from runtime.readers import read_scan
from runtime.resample import resample
from runtime.volume import Grid, Volume
from runtime.voting import vote_map
from runtime.windows import plan_windows, sliding_windows

TURNED = np.array([[0, 0, 2.0, 5], [1.5, 0, 0, -7], [0, -3.0, 0, 11], [0, 0, 0, 1]])
"""An affine with permuted and flipped axes."""


@pytest.mark.parametrize("peaks", [peer_steps.peaks_with_skimage, peer_steps.peaks_with_scipy])
def test_votes_and_peaks(peaks) -> None:
    maps, spec = spine_maps((150, 40, 44)), open_bundle(None).spec.locnet
    ours = ours_votes_and_peaks(maps.heatmap, maps.offsets, spec)
    np.testing.assert_array_equal(ours, peer_votes_and_peaks(maps.heatmap, maps.offsets, spec, peaks))
    assert len(ours) == len(maps.centres_zyx) == 12
    assert np.abs(ours - maps.centres_zyx).max() <= 1.5


def test_vote_maps_are_the_same_to_the_bit() -> None:
    rng = np.random.default_rng(3)
    heatmap, offsets = rng.random((9, 8, 7), dtype=np.float32), rng.normal(0, 3, (3, 9, 8, 7)).astype(np.float32)
    ours = vote_map(heatmap, offsets, threshold=0.4).dense()
    np.testing.assert_array_equal(ours, peer_steps.votes_with_numpy(heatmap, offsets, threshold=0.4))
    assert ours.max() > 0


def test_reading(tmp_path) -> None:
    rng = np.random.default_rng(0)
    scan = Volume(rng.integers(-1000, 1000, (7, 6, 5)).astype(np.int16), Grid((7, 6, 5), TURNED))
    path = save(scan, tmp_path / "scan.nii.gz")
    ours = read_scan(path)
    theirs, grid = peer_steps.read_with_nibabel(path)
    np.testing.assert_array_equal(ours.array, theirs)
    assert grid.same_as(ours.grid)
    np.testing.assert_array_equal(ours.array, peer_steps.read_integers_with_nibabel(path))
    np.testing.assert_array_equal(ours.array, peer_steps.read_with_simpleitk(path))


def test_resampling_without_reduction_is_the_same() -> None:
    rng = np.random.default_rng(1)
    scan = Volume(rng.integers(-1000, 1000, (7, 6, 5)).astype(np.int16), Grid((7, 6, 5), TURNED))
    middle = scan.grid.to_ras_mm([3, 2.5, 2])
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = middle - 1.5
    target = Grid((4, 4, 4), affine)
    ours = resample(scan, target)
    by_itk = peer_steps.resample_with_simpleitk(peer_steps.itk_image(scan.array, scan.grid), target)
    np.testing.assert_allclose(by_itk, ours, atol=1e-2)
    np.testing.assert_allclose(peer_steps.resample_with_scipy(scan.array, scan.grid, target), ours, atol=1e-2)


class Echo(NoNetwork):
    """Says its window, so that any blending gives the image back."""

    def __call__(self, image):
        return image.copy(), np.repeat(image, 3, axis=1)


def test_blending_gives_back_what_all_windows_agree_on() -> None:
    window = (8, 8, 8)
    plan = plan_windows((17, 12, 8), window, 0.5)
    image, echo = np.random.default_rng(2).random((17, 12, 8), dtype=np.float32), Echo(window)
    calls = []

    def predict(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(part.shape)
        return tuple(torch.from_numpy(output) for output in echo(part.numpy()))

    heatmap, offsets = sliding_windows(image, plan, echo)
    theirs = peer_steps.monai_windows(image, predict, window_zyx=window, overlap=0.5)
    for found in (heatmap, *offsets, theirs[0][0], *theirs[1]):
        np.testing.assert_allclose(found, image, atol=1e-5)
    assert calls == [(1, 1, *window)] * len(plan.starts_zyx), "as many windows as ours"


def test_a_whole_scan_holds_the_same_vertebrae_for_peers(tmp_path) -> None:
    """With the default bundle, whose networks find something; other resamplers and blending move masks a little."""
    bundle = open_bundle(None)
    scan = save(phantom_scan((75, 60, 60), spacing_mm=2.0), tmp_path / "scan.nii.gz")
    with torch_contender(bundle, torch.device("cpu"), half=False).opened() as networks:
        ours = staged_run(bundle, networks, scan, tmp_path / "ours", exhaustive=True)
        theirs = peer_run(bundle, networks, scan, tmp_path)
    assert len(ours.findings.vertebrae) >= 4
    assert theirs.inputs == ours.inputs, "as many windows and crops for each network"
    vertebrae = ours.findings.vertebrae
    assert len(vertebrae) == len(theirs.grades)
    assert agreement(ours, theirs, within_mm=5.0)["centres_as_ours"] == len(vertebrae)
    agreed = agreement(ours, theirs, within_mm=1.0)
    assert agreed["centres_as_ours"] > len(vertebrae) / 2
    assert agreed["dice"] > 0.9


@pytest.mark.parametrize("onto", [peer_steps.simpleitk_onto, peer_steps.resample_with_scipy])
def test_pasting(onto) -> None:
    grid = enlarged_scan((60, 40, 40), spacing_mm=2.0).grid
    masks = vertebra_masks(grid, shape_zyx=(24, 24, 24), spacing_mm=2.0)
    ours = paste_masks(masks, grid, threshold=0.5)
    theirs = peer_steps.paste(masks, grid, onto, threshold=0.5)
    assert set(np.unique(ours)) == set(range(len(masks) + 1))
    assert (ours != theirs).mean() < 2e-3, "ties and edges alone"


def test_what_is_not_installed_is_told_with_the_command_that_helps(monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "monai" else found(name))
    (missing,) = peers.absent("monai", "scipy")
    assert missing.name == "monai"
    assert 'pip install "vertscan[bench]"' in missing.text()


def test_sizes_of_what_is_installed() -> None:
    found = closure(["scikit-image"])
    assert {"scikit-image", "numpy", "scipy"} <= set(found), "with what it needs"
    assert "matplotlib" not in found, "without what its extras need"
    assert installed_mib(found["numpy"]) > 5
    assert closure(["no-such-distribution"]) == {}
    assert Figure("installed", "x", "MiB", (1.0,), exact=True).noise == 0
