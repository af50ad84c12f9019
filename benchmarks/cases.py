"""The cases: each measures in one run and returns its figures by name, units in the names."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Shape = tuple[int, ...] | None


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Median wall time of ``work`` in ms, after one warm-up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds), 3)


def sparse_heatmap(shape: tuple[int, ...], vertebrae: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A heatmap (z, y, x) and offsets (3, z, y, x) such as a network gives on a whole spine."""
    from train.targets import gaussian_heatmap, offset_map

    centres = [[(i + 0.5) * shape[0] / vertebrae, shape[1] / 2, shape[2] / 2] for i in range(vertebrae)]
    size = (shape[0], shape[1], shape[2])
    return gaussian_heatmap(centres, size, sigma_voxels=1.5), offset_map(centres, size)


def kernels(shape: Shape, repeats: int, bundle: Path | None) -> dict[str, Any]:
    """Votes and peaks beside one pass over the heatmap (``np.max``)."""
    from runtime.voting import density_peaks, vote_map

    heatmap, offsets = sparse_heatmap(shape or (333, 120, 120))
    votes = vote_map(heatmap, offsets, threshold=0.5)
    one_pass = median_ms(heatmap.max, repeats)
    voting = median_ms(lambda: vote_map(heatmap, offsets, threshold=0.5), repeats)
    peaks = median_ms(lambda: density_peaks(votes, threshold=1.0, separation_voxels=3.3), repeats)
    return {
        "shape_zyx": list(heatmap.shape),
        "one_pass_ms": one_pass,
        "vote_map_ms": voting,
        "density_peaks_ms": peaks,
        "votes_and_peaks_over_one_pass": round((voting + peaks) / one_pass, 2),
    }


def memory(shape: Shape, repeats: int, bundle: Path | None) -> dict[str, Any]:
    """The whole command on a scan of a given size: wall time and peak memory as the findings report them."""
    size = shape or (1000, 512, 512)
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "large.nii.gz"
        write_large_scan(scan, size)
        command = [
            sys.executable,
            "-m",
            "runtime.infer",
            str(scan),
            "-o",
            str(Path(folder) / "out"),
            "--json",
            "--quiet",
        ]
        done = subprocess.run([*command, *_bundle_option(bundle)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"runtime.infer ended with status {done.returncode}: {done.stderr.strip()}")
    findings = json.loads(done.stdout)
    return {
        "shape_zyx": list(size),
        "peak_memory_gib": round(findings["peak_memory_mb"] / 1024, 2),
        "vertebrae": len(findings["vertebrae"]),
        **{f"{stage}_s": seconds for stage, seconds in findings["timings_s"].items()},
    }


def startup(shape: Shape, repeats: int, bundle: Path | None) -> dict[str, Any]:
    """A fresh process, from nothing to the first window's result, with the caches of an earlier run."""
    program = (
        "import time; start = time.perf_counter(); import sys; import numpy as np\n"
        "from runtime.bundle import open_bundle; from runtime.engines import open_session, select_engine\n"
        "from runtime.volume import Grid; from runtime.localise import locate\n"
        "bundle = open_bundle(sys.argv[1] if len(sys.argv) > 1 else None); spec = bundle.spec.locnet\n"
        "session = open_session(select_engine(), bundle.path_of(spec.file))\n"
        "hu = np.full(spec.window_zyx, 200, np.float32)\n"
        "grid = Grid(hu.shape, np.diag([spec.spacing_mm] * 3 + [1.0]))\n"
        "locate(hu, grid, spec, session); print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", program, *([str(bundle)] if bundle else [])]
    seconds = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(repeats + 1)
    ]
    return {
        "first_run_s": round(seconds[0], 2),
        "median_s": round(statistics.median(seconds[1:]), 2),
        "worst_s": round(max(seconds[1:]), 2),
    }


def write_large_scan(path: Path, shape_zyx: tuple[int, ...]) -> None:
    """A phantom's whole spine, enlarged voxel by voxel to ``shape_zyx`` at about 0.8 mm, as int16 NIfTI."""
    import nibabel
    from nibabel.openers import Opener

    from runtime.crops import crop_grid
    from train.phantom import PhantomConfig, render, sample_anatomy, sample_appearance

    factor = 4
    small = tuple(max(n // factor, 1) for n in shape_zyx)
    config = PhantomConfig(wild_probability=0.0, tilt_probability=0.0)
    anatomy = sample_anatomy(11, config)
    middle = np.mean([anatomy.centre_ras_mm(v) for v in anatomy.vertebrae], axis=0)
    grid = crop_grid(middle, spacing_mm=3.2, shape_zyx=(small[0], small[1], small[2]))
    rng = np.random.default_rng(11)
    hu = render(anatomy, grid, sample_appearance(rng, config), rng).volume.array.astype(np.int16)
    large = np.zeros(shape_zyx, np.int16)
    for z in range(shape_zyx[0]):
        plane = np.repeat(np.repeat(hu[min(z // factor, small[0] - 1)], factor, axis=0), factor, axis=1)
        large[z, : plane.shape[0], : plane.shape[1]] = plane[: shape_zyx[1], : shape_zyx[2]]
    affine = grid.affine_ras.copy()
    affine[:3, :3] /= factor
    Opener.default_compresslevel = 1
    nibabel.save(nibabel.Nifti1Image(large.T, affine), path)


def _bundle_option(bundle: Path | None) -> list[str]:
    return ["--bundle", str(bundle)] if bundle else []
