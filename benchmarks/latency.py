"""The latency command: one window, one crop and one whole scan, by torch and by every engine, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.ceiling import Ceiling, Cost, share_of_ceiling
from benchmarks.contenders import TORCH_EAGER, Contender, TorchVariant, contenders, torch_contender, torch_device
from benchmarks.figures import Figure, in_turns, ratio, ratio_of_medians, repeated
from benchmarks.gpu_memory import PeakGpuMemory
from benchmarks.peers import Missing
from benchmarks.report import Report, Table, number
from export.parity_on_scans import Networks
from export.verify import reference_networks
from runtime.bundle import Bundle
from runtime.device.session import offers_device_tensors
from runtime.engines.base import Session
from runtime.engines.parity import LIMITS, Parity, compare_networks, faults, joined, probe_images
from runtime.errors import EngineError, OutOfMemoryError
from runtime.pipeline import Pipeline
from runtime.volume import Volume

SCAN_ZYX, SCAN_SPACING_MM = (150, 145, 170), 2.0
"""A phantom of 300 x 290 x 340 mm (z, y, x)."""
BATCHES = (1, 4)
WINDOW, CROP, SCAN = "one window", "one crop", "whole scan"
WARMUPS = 2
"""The second is when CUDA graphs are captured."""


@dataclass(frozen=True)
class Met:
    """What was found of one contender.

    Args:
        contender: who.
        figures: times, s, and the rise of the GPU's memory.
        beside: times of torch eager FP32, s, taken in turns with those of the same group.
        parity: of its networks with torch FP32 on drawn inputs; None where it failed before.
        details: what it said of itself.
        failed: why it could not be run, or ``""``.
    """

    contender: Contender
    figures: tuple[Figure, ...]
    beside: tuple[Figure, ...]
    parity: Parity | None
    details: Mapping[str, Any]
    failed: str = ""

    def seconds(self, group: str) -> Figure | None:
        """Its time for one of the groups."""
        return next((figure for figure in self.figures if figure.group == group), None)

    @property
    def faults(self) -> tuple[str, ...]:
        """What of its parity is past the limits of its precision."""
        return () if self.parity is None else faults(self.parity, LIMITS[self.contender.precision])


def latency(
    bundle: Bundle, scans: Sequence[Volume], repeats: int, *, engines: Sequence[str], device: int, threads: int,
    precisions: Sequence[str] = (), compiled: bool, ceiling: Ceiling | None, costs: Mapping[str, Cost],
    keep: Callable[[Report], None] = lambda report: None,
) -> Report:  # fmt: skip
    """Time, memory and parity of every contender, and how many times as fast as torch eager FP32 it is.

    Windows and crops run in turns with torch eager FP32. Whole scans, which take it long, run one contender after the
    other, each in the order of the list.

    Args:
        bundle: whose networks are run.
        scans: run whole, in memory; none leaves that out.
        repeats: measured runs, after the warm-ups.
        engines: names of the engine table; none for all that can run here.
        device: GPU number.
        threads: on the processor.
        precisions: of the engines, not of torch; none for all.
        compiled: whether torch.compile takes part.
        ceiling: of this machine, or None.
        costs: of the networks.
        keep: is given the report of those measured so far, after each of them.
    """
    there, missing = contenders(
        bundle, engines=engines, precisions=precisions, device=device, threads=threads, compiled=compiled
    )
    met: list[Met] = []
    with torch_contender(bundle, torch_device(device), half=False).opened() as peer:
        _run_all_shapes(peer, bundle)
        for one in there:
            met.append(measured(one, peer, bundle, scans, repeats, device))
            report = _report(met, missing, bundle, scans, ceiling, costs)
            keep(report)
    return report


def _report(
    met: Sequence[Met], missing: Sequence[Missing], bundle: Bundle, scans: Sequence[Volume],
    ceiling: Ceiling | None, costs: Mapping[str, Cost],
) -> Report:  # fmt: skip
    figures = [figure for one in met for figure in one.figures]
    if ceiling is not None and "locnet" in costs:
        shares = (
            share_of_ceiling(f"{one.contender.title}{what}", seconds, costs[network], ceiling, one.contender.precision)
            for one in met
            for network, group, what in (("locnet", f"{WINDOW}, batch 1", ""), ("fracsegnet", CROP, f", {CROP}"))
            if (seconds := one.seconds(group)) is not None
        )
        figures += [share for share in shares if share is not None]
    ratios = _ratios(met)
    return Report(
        figures=tuple(figures),
        tables=(_table(met, figures, ratios),),
        settings={
            "window_zyx": list(bundle.spec.locnet.window_zyx),
            "scans": [scan.name for scan in scans],
            "shapes_zyx": [list(scan.grid.shape_zyx) for scan in scans],
        },
        ratios=ratios,
        details={"contenders": {one.contender.title: _details(one) for one in met}},
        missing=tuple(missing),
        notes=("x: how many times as fast as torch eager FP32 in this run; parity against the same on drawn inputs.",),
    )


def _run_all_shapes(networks: Networks, bundle: Bundle) -> None:
    """Run each input once, so that what memory they need is taken."""
    for run in _inputs(networks, bundle).values():
        run()


def measured(one: Contender, peer: Networks, bundle: Bundle, scans: Sequence[Volume], repeats: int, device: int) -> Met:
    """One contender's figures beside torch eager FP32; where it fails, why. Times include the copies to and fro."""
    figures: list[Figure] = []
    beside: list[Figure] = []
    details: dict[str, Any] = {}
    parity, failed = None, ""
    with PeakGpuMemory(device) as memory, ExitStack() as stack:
        try:
            opened = repeated(lambda: details.update(networks=stack.enter_context(one.opened())), 1, warmups=0)
            networks: Networks = details.pop("networks")
            memory.watch()
            figures.append(Figure("open", one.title, "s", opened))
            details["device"] = networks.locnet.info.device
            for mine, theirs in _windows(one.title, networks, peer, bundle, repeats):
                figures.append(mine)
                beside.append(theirs)
            figures += _on_device(one.title, networks, bundle, repeats)
            parity = _parity(networks, bundle)
            for scan in scans:
                figures += _whole_scan(one.title, networks, bundle, scan, repeats, details)
        except (EngineError, OutOfMemoryError, RuntimeError) as error:
            failed = (str(error).splitlines() or [type(error).__name__])[0]
    if memory.rise_mb is not None:
        figures.append(Figure("GPU memory", one.title, "MiB", (memory.rise_mb,)))
    return Met(one, tuple(figures), tuple(beside), parity, details, failed)


def _batches(bundle: Bundle) -> dict[int, np.ndarray]:
    window = probe_images(bundle.spec.locnet)[0]
    return {count: np.repeat(window, count, axis=0) for count in BATCHES}


def _inputs(networks: Networks, bundle: Bundle) -> dict[str, Callable[[], object]]:
    """What is timed of networks, by group."""
    crop = probe_images(bundle.spec.fracsegnet)[0]
    windows = {_group(count): partial(networks.locnet, batch) for count, batch in _batches(bundle).items()}
    return {**windows, CROP: partial(networks.fracsegnet, crop)}


def _group(count: int) -> str:
    return f"{WINDOW}, batch {count}"


def _windows(
    title: str, networks: Networks, peer: Networks, bundle: Bundle, repeats: int
) -> Iterator[tuple[Figure, Figure]]:
    """Seconds of one window or crop: the contender's, and torch eager FP32's in turns with it."""
    counts = {_group(count): count for count in BATCHES}
    theirs = _inputs(peer, bundle)
    for group, run in _inputs(networks, bundle).items():
        works = {"mine": run, "theirs": theirs[group]}
        both = in_turns(group, works, repeats, warmups=WARMUPS, settling=1)
        seconds = [tuple(s / counts.get(group, 1) for s in figure.samples) for figure in both]
        yield Figure(group, title, "s", seconds[0]), Figure(group, TORCH_EAGER, "s", seconds[1])


def _on_device(title: str, networks: Networks, bundle: Bundle, repeats: int) -> list[Figure]:
    figures = []
    for count, batch in _batches(bundle).items():
        seconds = seconds_on_device(networks.locnet, batch, repeats)
        if seconds is not None:
            group = f"{_group(count)}, on the GPU alone"
            figures.append(Figure(group, title, "s", tuple(s / count for s in seconds)))
    return figures


def _parity(networks: Networks, bundle: Bundle) -> Parity:
    right = reference_networks(bundle)
    pairs: list[tuple[Session, Session, Any]] = [
        (right.locnet, networks.locnet, bundle.spec.locnet),
        (right.fracsegnet, networks.fracsegnet, bundle.spec.fracsegnet),
    ]
    if right.levelnet is not None and networks.levelnet is not None:
        pairs.append((right.levelnet, networks.levelnet, bundle.spec.levelnet))
    return joined([compare_networks(a, b, spec, probe_images(spec)[:1]) for a, b, spec in pairs])


def _whole_scan(
    title: str, networks: Networks, bundle: Bundle, scan: Volume, repeats: int, details: dict[str, Any]
) -> list[Figure]:
    """The pipeline on a volume in memory: reading is left out. The first run is told apart: it compiles and tunes."""
    with Pipeline(bundle, networks.locnet, networks.fracsegnet, networks.levelnet, ExitStack()) as pipeline:
        first, *rest = (pipeline.run(scan) for _ in range(repeats + 1))
    details[scan.name] = {"stages_s": dict(rest[-1].timings_s), "vertebrae": len(first.vertebrae)}
    return [
        Figure(f"{SCAN} {scan.name}, first run", title, "s", (first.timings_s["total"],)),
        Figure(f"{SCAN} {scan.name}", title, "s", tuple(findings.timings_s["total"] for findings in rest)),
    ]


def seconds_on_device(session: Session, batch: np.ndarray, repeats: int) -> tuple[float, ...] | None:
    """The network alone, its tensors on the GPU; None for who doesn't offer that."""
    if isinstance(session, TorchVariant):
        image = session.on_device(batch)
        if image.device.type != "cuda":
            return None

        def run() -> None:
            session.run_on_device(image)
            torch.cuda.synchronize(image.device)

        return repeated(run, repeats, warmups=WARMUPS)
    if not offers_device_tensors(session):
        return None
    from runtime.device.stream import Stream

    with Stream(session.device) as stream, stream.active():
        stream.copy_in(session.device_input(len(batch)), batch)

        def enqueue() -> None:
            session.enqueue(len(batch), stream)
            stream.synchronise()

        return repeated(enqueue, repeats, warmups=WARMUPS)


def _ratios(met: Sequence[Met]) -> tuple[Figure, ...]:
    """How many times as fast as torch eager FP32 each is, for each thing that both did."""
    peer = next((one for one in met if one.contender.name == TORCH_EAGER), None)
    found = []
    for one in met:
        if one is peer:
            continue
        name = f"{TORCH_EAGER} fp32 / {one.contender.title}"
        in_the_same_turns = {figure.group: figure for figure in one.beside}
        for figure in one.figures:
            apart = None if peer is None else peer.seconds(figure.group)
            if figure.group in in_the_same_turns:
                found.append(ratio(figure.group, name, in_the_same_turns[figure.group], figure))
            elif apart is not None and figure.unit == "s" and figure.group != "open":
                found.append(ratio_of_medians(figure.group, name, apart, figure))
    return tuple(found)


def _details(one: Met) -> dict[str, Any]:
    parity = None if one.parity is None else {**asdict(one.parity), "dice": one.parity.dice}
    beside_s = {figure.group: figure.median for figure in one.beside}
    found = {"parity": parity, "parity_faults": list(one.faults), "failed": one.failed}
    return {**one.details, "torch_eager_fp32_beside_s": beside_s, **found}


def _table(met: Sequence[Met], figures: Sequence[Figure], ratios: Sequence[Figure]) -> Table:
    times = {figure.key: figure for figure in figures}
    speed = {(figure.group, figure.name.rsplit(" / ", 1)[-1]): figure.median for figure in ratios}
    whole = next((f.group for f in figures if f.group.startswith(SCAN) and "first" not in f.group), "")
    groups = [*map(_group, BATCHES), CROP, *([whole] if whole else [])]
    rows = []
    for one in met:
        title = one.contender.title
        cells = []
        for group in groups:
            figure = times.get(f"{group}/{title}")
            scale = 1 if group == whole else 1000
            cells.append(number(None if figure is None else scale * figure.median))
            cells.append(number(speed.get((group, title))))
        share = times.get(f"share of the ceiling/{title}")
        cells.append("-" if share is None else f"{100 * share.median:.0f} %")
        memory = times.get(f"GPU memory/{title}")
        cells.append(number(None if memory is None else memory.median))
        cells += _parity_cells(one)
        rows.append((title, *cells))
    titles = [f"{group.removeprefix('one ')}{' s' if group == whole else ' ms'}" for group in groups]
    times_columns = [cell for title in titles for cell in (title.replace(whole, "scan") if whole else title, "x")]
    columns = ("median", *times_columns, "of ceiling", "GPU MiB", "shift mm", "Dice", "grades changed", "parity")
    return Table("networks alone and whole scans", columns, tuple(rows))


def _parity_cells(one: Met) -> list[str]:
    if one.failed or one.parity is None:
        return ["-", "-", "-", f"failed: {one.failed}"]
    found = one.parity
    agreed = f"{found.grades_changed}/{found.grades}"
    shift = number(found.centre_shift_mm if found.centres else None)
    return [shift, f"{found.dice:.5f}" if found.masks else "-", agreed, "; ".join(one.faults) or "within the limits"]
