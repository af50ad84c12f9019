"""A whole scan as one would do it with torch and well-known libraries; no heights and no picture, which no peer has."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peer_steps
from benchmarks.contenders import TorchVariant
from benchmarks.stage_clock import NETWORK_STAGES
from export.parity_on_scans import Networks
from runtime.bundle import Bundle, FracSegNetSpec, LocNetSpec
from runtime.crops import crop_grid
from runtime.intensity import normalise
from runtime.levels import decode_levels
from runtime.looks import second_look, twice_as_fine
from runtime.resample import working_grid
from runtime.volume import Grid

MOST_CENTRES = 60
"""As the pipeline."""


@dataclass(frozen=True)
class PeerRun:
    """One run.

    Args:
        seconds: by stage, names as ``stage_clock.STAGES``.
        inputs: how many windows or crops each network was run on, by ``NETWORK_STAGES``.
        centres_ras_mm: (n, 3) of the vertebral bodies found, RAS+ mm.
        grades: (n,) the network's likeliest.
        labels: (z, y, x) uint8, 1..n on the scan's grid.
    """

    seconds: dict[str, float]
    inputs: Mapping[str, int]
    centres_ras_mm: np.ndarray
    grades: np.ndarray
    labels: np.ndarray

    @property
    def total_s(self) -> float:
        """All stages together."""
        return sum(self.seconds.values())


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start_s


def peer_run(bundle: Bundle, networks: Networks, scan: Path, folder: Path) -> PeerRun:
    """From a NIfTI file to a label volume in ``folder``.

    nibabel reads, SimpleITK smooths and resamples, MONAI's SlidingWindowInferer runs the windows of the bundle's size
    and overlap, NumPy votes, scikit-image finds the peaks, and every crop is resampled by SimpleITK: a second time,
    mirrored, where the bundle looks twice. Centres that the first network is not sure of, or that the third calls no
    vertebra, are left out as the runtime leaves them out, so that the networks have the same work.

    Args:
        bundle: sizes and thresholds.
        networks: ``TorchVariant`` sessions.
        scan: the file.
        folder: where the labels go.
    """
    clock = _Clock()
    with clock.stage("read"):
        array, grid = peer_steps.read_with_nibabel(scan)
        image = peer_steps.itk_image(array, grid)
    spec = bundle.spec.locnet
    with clock.stage("resample"):
        target = working_grid(grid, spec.spacing_mm)
        working = normalise(peer_steps.resample_with_simpleitk(image, target, smooth=True), spec.intensity)
    heatmap, offsets, windows = _windows(bundle, networks, working, clock)
    with clock.stage("windows: cut, blend, vote"):
        votes = peer_steps.votes_with_numpy(heatmap, offsets, threshold=spec.heatmap_threshold)
    with clock.stage("peaks"):
        peaks, heats = _confident_peaks(votes, heatmap, spec)
        candidates = target.to_ras_mm(peaks)
    centres = _vertebrae_among(candidates, heats, bundle, networks, image, clock)
    seen = [_seen(bundle.spec.fracsegnet, networks, image, centre, clock) for centre in centres]
    looks = 2 if bundle.spec.fracsegnet.mirrored else 1
    inputs = dict(zip(NETWORK_STAGES, (windows, len(candidates), looks * len(seen)), strict=True))
    with clock.stage("paste"):
        masks, level = [(one.grid, one.masks[0]) for one in seen], bundle.spec.fracsegnet.mask_threshold
        labels = peer_steps.paste(masks, grid, peer_steps.simpleitk_onto, threshold=level)
    with clock.stage("write"):
        peer_steps.write_with_nibabel(folder / "labels.nii.gz", labels, grid)
    refined = np.array([one.centre_ras_mm for one in seen]).reshape(-1, 3)
    return PeerRun(clock.seconds, inputs, refined, np.array([one.grade for one in seen], np.intp), labels)


def _variant(session: Any) -> TorchVariant:
    variant: TorchVariant = session
    return variant


def _windows(
    bundle: Bundle, networks: Networks, working: np.ndarray, clock: _Clock
) -> tuple[np.ndarray, np.ndarray, int]:
    spec, locnet = bundle.spec.locnet, _variant(networks.locnet)
    names = locnet.output_names
    count, network_s = 0, 0.0

    def predict(window: torch.Tensor) -> tuple[torch.Tensor, ...]:
        nonlocal count, network_s
        start_s = time.perf_counter()
        outputs = locnet.run_on_device(locnet.as_needed(window))
        outputs = tuple(output.float().cpu() for output in outputs)
        network_s += time.perf_counter() - start_s
        count += 1
        return outputs

    start_s = time.perf_counter()
    found = peer_steps.monai_windows(working, predict, window_zyx=spec.window_zyx, overlap=spec.overlap)
    total_s = time.perf_counter() - start_s
    clock.seconds |= {"windows: network": network_s, "windows: cut, blend, vote": total_s - network_s}
    named = dict(zip(names, found, strict=True))
    heatmap = np.ascontiguousarray(named["heatmap"][0])
    return heatmap, named.get("offsets", np.zeros((3, *heatmap.shape), np.float32)), count


def _confident_peaks(votes: np.ndarray, heatmap: np.ndarray, spec: LocNetSpec) -> tuple[np.ndarray, np.ndarray]:
    """Peaks (n, 3), z, y, x, at the middle of their votes, with the highest heat (n,) around, where that is enough."""
    reach = int(spec.peak_separation_voxels)
    peaks = peer_steps.peaks_with_skimage(votes, threshold=spec.peak_threshold, separation_voxels=reach)
    around = [tuple(slice(max(0, at - reach), at + reach + 1) for at in peak) for peak in peaks]
    heats = np.array([heatmap[place].max() for place in around])
    sure = np.flatnonzero(heats >= spec.min_confidence)[:MOST_CENTRES]
    middles = [_middle_of_votes(votes, peaks[n], spec.refine_radius_voxels) for n in sure]
    return np.array(middles).reshape(-1, 3), heats[sure]


def _middle_of_votes(votes: np.ndarray, peak: np.ndarray, radius: float) -> np.ndarray:
    reach = int(radius)
    first = np.maximum(peak - reach, 0)
    around = votes[tuple(slice(f, at + reach + 1) for f, at in zip(first, peak, strict=True))]
    index = np.indices(around.shape).reshape(3, -1).T
    weights = around.ravel() * (np.linalg.norm(first + index - peak, axis=1) <= radius)
    middle: np.ndarray = first + weights @ index / weights.sum()
    return middle


def _vertebrae_among(
    centres: np.ndarray, heats: np.ndarray, bundle: Bundle, networks: Networks, image: Any, clock: _Clock
) -> np.ndarray:
    """Those of the centres (n, 3), RAS+ mm, that the third network does not reject; all without such a network."""
    spec = bundle.spec.levelnet
    if spec is None or networks.levelnet is None or not len(centres):
        return centres
    said = []
    for centre in centres:
        with clock.stage("levels: rest"):
            grid = crop_grid(centre, spacing_mm=spec.spacing_mm, shape_zyx=spec.crop_zyx)
            crop = normalise(peer_steps.resample_with_simpleitk(image, grid), spec.intensity)
        with clock.stage("levels: network"):
            said.append(networks.levelnet(crop[None, None])[0][0])
    with clock.stage("levels: rest"):
        downwards = np.argsort(-centres[:, 2], kind="stable")
        calls = decode_levels(
            [(float(x), float(y), float(z)) for x, y, z in centres[downwards]],
            [float(heat) for heat in heats[downwards]],
            np.array(said)[downwards],
        )
        vertebrae: np.ndarray = centres[downwards][[call.is_vertebra for call in calls]]
    return vertebrae


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the second network says of one vertebra: (k, z, y, x) mask probabilities on a grid, grade and centre."""

    grid: Grid
    masks: np.ndarray
    grade: int
    centre_ras_mm: np.ndarray


def _seen(spec: FracSegNetSpec, networks: Networks, image: Any, centre: np.ndarray, clock: _Clock) -> _Seen:
    with clock.stage("crops: rest"):
        first = spec.grid_around((float(centre[0]), float(centre[1]), float(centre[2])))
        grids = [first, second_look(first, spec)] if spec.mirrored else [first]
        crops = [normalise(peer_steps.resample_with_simpleitk(image, grid), spec.intensity) for grid in grids]
    with clock.stage("crops: network"):
        names = networks.fracsegnet.output_names
        looks = [dict(zip(names, networks.fracsegnet(crop[None, None]), strict=True)) for crop in crops]
    with clock.stage("crops: rest"):
        grid = twice_as_fine(first) if spec.interleaved else first
        masks = np.mean(
            [
                [np.clip(peer_steps.simpleitk_onto(np.ascontiguousarray(m), at, grid), 0, 1) for m in look["mask"][0]]
                for look, at in zip(looks, grids, strict=True)
            ],
            axis=0,
        )
        grade = int(np.mean([look["grade"][0] for look in looks], axis=0).argmax())
        return _Seen(grid, masks, grade, _refined(masks[-1], grid, centre, threshold=spec.mask_threshold))


def _refined(body: np.ndarray, grid: Grid, voted_ras_mm: np.ndarray, *, threshold: float) -> np.ndarray:
    """The middle of the body's part that is nearest to the voted centre, RAS+ mm; that centre where there is none."""
    from scipy import ndimage

    parts, count = ndimage.label(body > threshold)
    if not count:
        return voted_ras_mm
    inside = np.argwhere(parts)
    nearest = inside[np.linalg.norm(grid.to_ras_mm(inside) - voted_ras_mm, axis=1).argmin()]
    centre: np.ndarray = grid.to_ras_mm(ndimage.center_of_mass(parts == parts[tuple(nearest)]))
    return centre
