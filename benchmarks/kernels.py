"""The kernels command: what comes before and after the networks, beside the libraries one would otherwise use."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import peer_steps
from benchmarks.figures import Figure, in_turns, ratio, ratios_to
from benchmarks.peers import absent
from benchmarks.report import Report, timing_table
from benchmarks.scans import enlarged_scan, save
from benchmarks.synthetic import NoNetwork, spine_maps, vertebra_masks
from runtime.bundle import Bundle, LocNetSpec
from runtime.kernels.threads import run_slabs
from runtime.paste import paste_masks
from runtime.readers import read_scan
from runtime.resample import resample, working_grid
from runtime.volume import Volume
from runtime.voting import density_peaks, vote_map
from runtime.windows import plan_windows, sliding_windows
from runtime.writers import write_label_volume

Works = dict[str, Callable[[], object]]
DEFAULT_ZYX = (400, 256, 256)
OURS, ONE_PASS = "ours", "one pass: heatmap.max()"
ONE_PASS_THREADED = "one pass: max on all threads"


def kernels(
    bundle: Bundle, scan: Volume | None, shape_zyx: tuple[int, int, int], repeats: int, *, only: Sequence[str] = ()
) -> Report:
    """Time every step in turns with its peers.

    Args:
        bundle: whose thresholds, windows and crops are used.
        scan: to read, resample and paste onto; None for an enlarged phantom of ``shape_zyx`` voxels.
        shape_zyx: of the heatmap that is voted on.
        repeats: measured rounds.
        only: names of ``GROUPS``; none for all.
    """
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        volume = scan or enlarged_scan(shape_zyx, spacing_mm=1.0)
        for name, works_of in GROUPS.items():
            if not only or name in only:
                works = works_of(bundle, volume, shape_zyx, Path(folder))
                figures += in_turns(name, works, repeats)
    ratios = list(ratios_to(OURS, figures))
    known = {figure.key: figure for figure in figures}
    for one_pass in (ONE_PASS, ONE_PASS_THREADED):
        if (figure := known.get(f"votes and peaks/{one_pass}")) is not None:
            ours = known[f"votes and peaks/{OURS}"]
            ratios.append(ratio("votes and peaks", f"{OURS} / {one_pass}", ours, figure))
    return Report(
        figures=tuple(figures),
        tables=(timing_table("kernels", figures, base=OURS),),
        settings={"shape_zyx": list(shape_zyx), "scan": volume.name, "scan_zyx": list(volume.array.shape)},
        ratios=tuple(ratios),
        missing=absent("monai", "scikit-image", "scipy"),
        notes=("scipy and scikit-image use one thread; all others as many as were asked for.",),
    )


def _have(name: str) -> bool:
    return not absent(name)


def _votes(bundle: Bundle, scan: Volume, shape_zyx: tuple[int, int, int], folder: Path) -> Works:
    maps, spec = spine_maps(shape_zyx), bundle.spec.locnet
    heatmap, offsets = maps.heatmap, maps.offsets

    def threaded_max() -> float:
        highest: list[float] = []
        run_slabs(lambda first, last: highest.append(float(heatmap[first:last].max())), shape_zyx[0])
        return max(highest)

    works: Works = {
        ONE_PASS: heatmap.max,
        ONE_PASS_THREADED: threaded_max,
        OURS: lambda: ours_votes_and_peaks(heatmap, offsets, spec),
    }
    if _have("scikit-image"):
        works["NumPy votes, skimage peak_local_max"] = lambda: peer_votes_and_peaks(
            heatmap, offsets, spec, peer_steps.peaks_with_skimage
        )
    if _have("scipy"):
        works["NumPy votes, scipy maximum_filter"] = lambda: peer_votes_and_peaks(
            heatmap, offsets, spec, peer_steps.peaks_with_scipy
        )
    return works


def ours_votes_and_peaks(heatmap: np.ndarray, offsets: np.ndarray, spec: LocNetSpec) -> np.ndarray:
    """(n, 3) peaks, z, y, x, by the runtime."""
    votes = vote_map(heatmap, offsets, threshold=spec.heatmap_threshold)
    return density_peaks(votes, threshold=spec.peak_threshold, separation_voxels=spec.peak_separation_voxels)


def peer_votes_and_peaks(
    heatmap: np.ndarray, offsets: np.ndarray, spec: LocNetSpec, peaks: Callable[..., np.ndarray]
) -> np.ndarray:
    """(n, 3) peaks, z, y, x, by NumPy and one of the libraries."""
    votes = peer_steps.votes_with_numpy(heatmap, offsets, threshold=spec.heatmap_threshold)
    return peaks(votes, threshold=spec.peak_threshold, separation_voxels=spec.peak_separation_voxels)


def _resampling(bundle: Bundle, scan: Volume, shape_zyx: tuple[int, int, int], folder: Path) -> Works:
    target = working_grid(scan.grid, bundle.spec.locnet.spacing_mm)
    image = peer_steps.itk_image(scan.array, scan.grid)
    works: Works = {
        OURS: lambda: resample(scan, target),
        "SimpleITK linear, aliased": lambda: peer_steps.resample_with_simpleitk(image, target),
        "SimpleITK Gaussian and linear": lambda: peer_steps.resample_with_simpleitk(image, target, smooth=True),
    }
    if _have("scipy"):
        works["scipy affine_transform, aliased"] = lambda: peer_steps.resample_with_scipy(scan.array, scan.grid, target)
    return works


def _reading(bundle: Bundle, scan: Volume, shape_zyx: tuple[int, int, int], folder: Path) -> Works:
    path = save(scan, folder / "scan.nii.gz")
    return {
        OURS: lambda: read_scan(path),
        "nibabel float32": lambda: peer_steps.read_with_nibabel(path),
        "nibabel as stored": lambda: peer_steps.read_integers_with_nibabel(path),
        "SimpleITK as stored": lambda: peer_steps.read_with_simpleitk(path),
    }


def _blending(bundle: Bundle, scan: Volume, shape_zyx: tuple[int, int, int], folder: Path) -> Works:
    """On the working grid of a scan of 1 mm and that shape."""
    spec = bundle.spec.locnet
    z, y, x = (max(1, round(n / spec.spacing_mm)) for n in shape_zyx)
    plan = plan_windows((z, y, x), spec.window_zyx, spec.overlap)
    image = np.random.default_rng(1).random(plan.shape_zyx, dtype=np.float32)
    session = NoNetwork(spec.window_zyx)

    def predict(window: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Fresh tensors, as a network's are: MONAI multiplies them in place."""
        return tuple(torch.from_numpy(output) for output in session(window.numpy()))

    works: Works = {OURS: lambda: sliding_windows(image, plan, session)}
    if _have("monai"):
        works["MONAI SlidingWindowInferer"] = lambda: peer_steps.monai_windows(
            image, predict, window_zyx=spec.window_zyx, overlap=spec.overlap
        )
    return works


def _pasting(bundle: Bundle, scan: Volume, shape_zyx: tuple[int, int, int], folder: Path) -> Works:
    spec = bundle.spec.fracsegnet
    masks = vertebra_masks(scan.grid, shape_zyx=spec.crop_zyx, spacing_mm=spec.spacing_mm)
    level = spec.mask_threshold
    works: Works = {
        OURS: lambda: paste_masks(masks, scan.grid, threshold=level),
        "SimpleITK": lambda: peer_steps.paste(masks, scan.grid, peer_steps.simpleitk_onto, threshold=level),
    }
    if _have("scipy"):
        works["scipy affine_transform"] = lambda: peer_steps.paste(
            masks, scan.grid, peer_steps.resample_with_scipy, threshold=level
        )
    return works


def _writing(bundle: Bundle, scan: Volume, shape_zyx: tuple[int, int, int], folder: Path) -> Works:
    spec = bundle.spec.fracsegnet
    masks = vertebra_masks(scan.grid, shape_zyx=spec.crop_zyx, spacing_mm=spec.spacing_mm)
    labels = paste_masks(masks, scan.grid, threshold=spec.mask_threshold)
    return {
        OURS: lambda: write_label_volume(folder / "ours.nii.gz", labels, scan.grid),
        "nibabel": lambda: peer_steps.write_with_nibabel(folder / "peer.nii.gz", labels, scan.grid),
    }


GROUPS: Mapping[str, Callable[[Bundle, Volume, tuple[int, int, int], Path], Works]] = {
    "votes and peaks": _votes,
    "read": _reading,
    "resample": _resampling,
    "blend windows": _blending,
    "paste": _pasting,
    "write": _writing,
}
"""What can be measured."""
