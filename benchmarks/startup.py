"""The startup command: cold imports, cold start to the first window, the second scan, and the size on disk."""

from __future__ import annotations

import site
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, in_turns, ratio
from benchmarks.installed import closure, folder_mib, installed_mib
from benchmarks.memory import in_fresh_process
from benchmarks.peers import Missing, absent
from benchmarks.processes import run_program, run_python
from benchmarks.report import Report, Table, number, timing_table
from benchmarks.scans import Shape, enlarged_scan, save

SCAN_ZYX, SPACING_MM = (100, 96, 96), 3.0
IMPORTS = {
    "python alone": "pass",
    "import runtime": "import runtime",
    "all of the runtime's command": "import runtime.infer, runtime.pipeline, runtime.output",
    "import torch": "import torch",
    "import torch, monai.inferers, nibabel": "import torch, monai.inferers, nibabel",
}
PEER_DISTRIBUTIONS = ("torch", "monai", "nibabel", "simpleitk", "scikit-image")
_FIRST_WINDOW = """
import json, sys, time
engine, threads, start = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
import numpy as np
from runtime.pipeline import Pipeline
from runtime.progress import NoProgress
from runtime.volume import Grid, Volume

class FirstWindow(NoProgress):
    after_s = None
    def step(self, done, total):
        if done and self.after_s is None:
            self.after_s = time.perf_counter() - start

bundle = sys.argv[4] if len(sys.argv) > 4 else None
with Pipeline.open(bundle, engine=engine, threads=threads, exhaustive=True) as pipeline:
    opened_s = time.perf_counter() - start
    spec, first = pipeline.spec.locnet, FirstWindow()
    hu = np.full(spec.window_zyx, 200, np.int16)
    hu[:, ::2] += 20
    pipeline.analyse(Volume(hu, Grid(hu.shape, np.diag([spec.spacing_mm] * 3 + [1.0])), "bone"), progress=first)
print(json.dumps({"open": opened_s, "first window": first.after_s}))
"""
"""Told the engine, the threads, when it was started on the clock that all processes share, and the bundle, if any."""
FIRST_EVER, LATER = "nothing cached", "later processes"


def startup(repeats: int, *, bundle: Path | None, engine: str, threads: int, shape_zyx: Shape = SCAN_ZYX) -> Report:
    """Everything in fresh processes.

    Args:
        repeats: measured processes, in turns, after one that fills the file system's cache.
        bundle: None for the one that ships.
        engine: name of the engine table, or auto.
        threads: on the processor.
        shape_zyx: of the scan, voxels of ``SPACING_MM``.
    """
    have_monai = find_spec("monai") is not None
    imports = in_turns(
        "import",
        {
            name: (lambda code=code: run_python(["-c", code]))  # type: ignore[misc]
            for name, code in IMPORTS.items()
            if have_monai or "monai" not in code
        },
        repeats,
    )
    first = _first_windows(repeats, bundle=bundle, engine=engine, threads=threads)
    scans = _scans(repeats, bundle=bundle, engine=engine, threads=threads, shape_zyx=shape_zyx)
    sizes, size_details, missing = _sizes()
    known = {figure.key: figure for figure in (*imports, *scans, *sizes)}
    ratios = [ratio("import", "import torch / all of the runtime's command", known["import/import torch"],
                    known["import/all of the runtime's command"]),
              ratio("whole scan", "first / second of a process", known["whole scan/first of a process"],
                    known["whole scan/second of a process"])]  # fmt: skip
    if len(sizes) == 2:
        ratios.append(ratio("installed", "torch's / the runtime's", sizes[1], sizes[0]))
    return Report(
        figures=(*imports, *first, *scans, *sizes),
        tables=(timing_table("fresh processes", [*imports, *first, *scans]), _size_table(size_details)),
        settings={"engine": engine, "scan_zyx": list(shape_zyx), "counted_from": "the start of the process"},
        ratios=tuple(ratios),
        details={"installed_mib": size_details},
        missing=(*missing, *absent("monai")),
        notes=(f"{FIRST_EVER}: networks and kernels are compiled anew, into empty cache folders.",),
    )


def _first_windows(repeats: int, *, bundle: Path | None, engine: str, threads: int) -> list[Figure]:
    """From a process's start to all networks being open, and to the first window's result, as the command has it.

    With empty caches, where the engine is chosen by timing as well, and with those that are left.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**_empty_caches(Path(folder)), **_threads_of_kernels(threads)}
        environment["PYTHONUSERBASE"] = site.getuserbase()  # packages may lie in the home that it had

        def first_window() -> dict[str, float]:
            arguments = [engine, str(threads), repr(time.perf_counter()), *([] if bundle is None else [str(bundle)])]
            return run_program(_FIRST_WINDOW, arguments, environment=environment)

        cold = first_window()
        warm = [first_window() for _ in range(repeats)]
    figures = []
    for name in cold:
        figures.append(Figure(f"start to: {name}", FIRST_EVER, "s", (cold[name],)))
        figures.append(Figure(f"start to: {name}", LATER, "s", tuple(run[name] for run in warm)))
    return figures


def _empty_caches(folder: Path) -> dict[str, str]:
    """Environment by which the user's caches and Numba's lie in a folder of their own; on macOS they are at home."""
    return {name: str(folder / name) for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME", "NUMBA_CACHE_DIR")}


def _threads_of_kernels(count: int) -> dict[str, str]:
    """Environment that does what ``limit_threads`` does, without importing Numba before it is needed."""
    return dict.fromkeys(("NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), str(count))


def _scans(repeats: int, *, bundle: Path | None, engine: str, threads: int, shape_zyx: Shape) -> list[Figure]:
    """The first and the second scan of a process, from file to results."""
    with tempfile.TemporaryDirectory() as folder:
        path = save(enlarged_scan(shape_zyx, spacing_mm=SPACING_MM), Path(folder) / "scan.nii.gz")
        made = [in_fresh_process(path, bundle=bundle, engine=engine, threads=threads, runs=2) for _ in range(repeats)]
    names = ("first of a process", "second of a process")
    return [
        Figure("whole scan", name, "s", tuple(run["runs"][i]["stages_s"]["total"] for run in made))
        for i, name in enumerate(names)
    ]


def _sizes() -> tuple[list[Figure], dict[str, dict[str, float]], tuple[Missing, ...]]:
    """MiB of what the runtime needs, and of a torch installation that could do the same, by distribution."""
    import runtime

    try:
        metadata.distribution("vertscan")
    except metadata.PackageNotFoundError:
        return [], {}, (Missing("installed size", "vertscan itself is not installed", "pip install -e ."),)
    if missing := absent("packaging", "torch"):
        return [], {}, missing
    ours = {name: installed_mib(one) for name, one in closure(["vertscan"]).items() if name != "vertscan"}
    ours["vertscan's runtime package"] = folder_mib(Path(runtime.__file__).parent)
    theirs = {name: installed_mib(one) for name, one in closure(PEER_DISTRIBUTIONS).items()}
    figures = [
        Figure("installed", name, "MiB", (sum(sizes.values()),), exact=True)
        for name, sizes in (("the runtime and what it needs", ours), ("torch, MONAI and readers", theirs))
    ]
    alone = sum(installed_mib(one) for one in closure(["torch"]).values())
    return figures, {"runtime": ours, "torch, MONAI and readers": theirs, "torch alone": {"torch": alone}}, ()


def _size_table(details: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for title, sizes in details.items():
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
        rows.append((title, number(sum(sizes.values())), ", ".join(f"{name} {number(size)}" for name, size in largest)))
    return Table("installed, MiB", ("", "MiB", "largest"), tuple(rows))
