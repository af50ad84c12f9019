"""The latency case: one window, one crop and one whole scan, by torch and by every engine, in one run."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contenders import TORCH_AMP, Contender, TorchVariant, contenders
from export.parity_on_scans import Networks
from export.verify import FIRST_SEED, reference_networks
from runtime.bundle import Bundle, open_bundle
from runtime.device.session import offers_device_tensors
from runtime.engines.base import Session
from runtime.engines.parity import LIMITS, Parity, compare_networks, faults, joined, probe_images
from runtime.errors import EngineError
from runtime.pipeline import Pipeline
from runtime.volume import Volume

SCAN_ZYX, SCAN_SPACING_MM = (150, 145, 170), 2.0
"""A phantom of 300 x 290 x 340 mm (z, y, x)."""
BATCHES = (1, 4)
_MIB = 2**20


def latency(
    shape: tuple[int, ...] | None, repeats: int, bundle: Path | None, *, engines: Sequence[str] = (),
    device: int = 0, threads: int | None = None, compiled: bool = True, with_scan: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Time, memory and parity of every contender, and its speed over a peer: torch AMP on a GPU, else torch eager.

    Args:
        shape: of the phantom scan, voxels of ``SCAN_SPACING_MM``; None for ``SCAN_ZYX``.
        repeats: measured runs, after a warm-up.
        bundle: None for the one that ships.
        engines: names of the engine table; none for all that can run here.
        device: GPU number.
        threads: on the processor; None for all.
        compiled: whether torch.compile takes part.
        with_scan: whether whole scans are run.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    spec = open_bundle(bundle)
    there, missing = contenders(spec, engines=engines, device=device, threads=threads, compiled=compiled)
    scan = phantom_scan(shape or SCAN_ZYX) if with_scan else None
    rows = [measured(one, spec, scan, repeats, device) for one in there]
    peer = next((row for row in rows if row["name"] == TORCH_AMP), rows[0])
    for row in rows:
        row["window_speed_over_peer"] = _over(peer, row, "window_ms_batch_1")
        row["scan_speed_over_peer"] = _over(peer, row, "scan_s")
    return {
        "gflop_per_window": round(gflop(spec), 4),
        "window_zyx": list(spec.spec.locnet.window_zyx),
        "scan_shape_zyx": None if scan is None else list(scan.array.shape),
        "scan_spacing_mm": SCAN_SPACING_MM,
        "torch": torch.__version__,
        "threads": threads or torch.get_num_threads(),
        "peer": peer["name"],
        "contenders": rows,
        "not_here": [{"name": name, "why": why} for name, why in missing],
    }


def _over(peer: dict[str, Any], row: dict[str, Any], figure: str) -> float | None:
    if not peer.get(figure) or not row.get(figure):
        return None
    return round(peer[figure] / row[figure], 3)


def measured(one: Contender, bundle: Bundle, scan: Volume | None, repeats: int, device: int) -> dict[str, Any]:
    """One contender's figures; where it fails, why. Units are in the names; times include the copies to and fro."""
    row: dict[str, Any] = {"name": one.name, "precision": one.precision}
    with PeakGpuMemory(device) as memory, ExitStack() as stack:
        try:
            start = time.perf_counter()
            networks = stack.enter_context(one.opened())
            row["open_s"] = round(time.perf_counter() - start, 2)
            row["device"] = networks.locnet.info.device
            row |= _windows(networks, bundle, repeats)
            row |= _parity(networks, bundle, one.precision)
            if scan is not None:
                row |= _whole_scan(networks, bundle, scan, repeats)
        except (EngineError, RuntimeError) as error:
            row["failed"] = str(error).splitlines()[0]
    row["gpu_memory_mb"] = memory.rise_mb
    return row


def _windows(networks: Networks, bundle: Bundle, repeats: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    window, crop = (probe_images(spec)[0] for spec in (bundle.spec.locnet, bundle.spec.fracsegnet))
    for count in BATCHES:
        batch = np.repeat(window, count, axis=0)
        times = milliseconds(lambda batch=batch: networks.locnet(batch), repeats)  # type: ignore[misc]
        figures[f"window_ms_batch_{count}"] = round(statistics.median(times) / count, 3)
        figures[f"window_spread_ms_batch_{count}"] = [round(t / count, 3) for t in (min(times), max(times))]
        on_device = milliseconds_on_device(networks.locnet, batch, repeats)
        if on_device is not None:
            figures[f"window_on_device_ms_batch_{count}"] = round(statistics.median(on_device) / count, 3)
    figures["crop_ms_batch_1"] = round(statistics.median(milliseconds(lambda: networks.fracsegnet(crop), repeats)), 3)
    return figures


def _parity(networks: Networks, bundle: Bundle, precision: str) -> dict[str, Any]:
    right = reference_networks(bundle)
    pairs: list[tuple[Session, Session, Any]] = [
        (right.locnet, networks.locnet, bundle.spec.locnet),
        (right.fracsegnet, networks.fracsegnet, bundle.spec.fracsegnet),
    ]
    if right.levelnet is not None and networks.levelnet is not None:
        pairs.append((right.levelnet, networks.levelnet, bundle.spec.levelnet))
    found: Parity = joined([compare_networks(a, b, spec, probe_images(spec)[:1]) for a, b, spec in pairs])
    return {"parity": {**asdict(found), "dice": found.dice}, "parity_faults": list(faults(found, LIMITS[precision]))}


def _whole_scan(networks: Networks, bundle: Bundle, scan: Volume, repeats: int) -> dict[str, Any]:
    """The pipeline on a volume in memory: reading is left out. The first run is told apart: it compiles and tunes."""
    with Pipeline(bundle, networks.locnet, networks.fracsegnet, networks.levelnet, ExitStack()) as pipeline:
        first, *rest = (pipeline.run(scan) for _ in range(repeats + 1))
    totals = sorted(findings.timings_s["total"] for findings in rest)
    return {
        "scan_first_s": first.timings_s["total"],
        "scan_s": statistics.median(totals),
        "scan_spread_s": [totals[0], totals[-1]],
        "scan_stages_s": dict(rest[-1].timings_s),
        "scan_vertebrae": len(first.vertebrae),
    }


def milliseconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Wall times of ``work``, after two warm-ups: the second is when CUDA graphs are captured."""
    work()
    work()
    return [_timed(work) for _ in range(repeats)]


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def milliseconds_on_device(session: Session, batch: np.ndarray, repeats: int) -> list[float] | None:
    """The network alone, its tensors on the GPU; None for who doesn't offer that."""
    if isinstance(session, TorchVariant):
        image = session.on_device(batch)
        if image.device.type != "cuda":
            return None

        def run() -> None:
            session.run_on_device(image)
            torch.cuda.synchronize(image.device)

        return milliseconds(run, repeats)
    if not offers_device_tensors(session):
        return None
    from runtime.device.stream import Stream

    with Stream(session.device) as stream, stream.active():
        stream.copy_in(session.device_input(len(batch)), batch)

        def enqueue() -> None:
            session.enqueue(len(batch), stream)
            stream.synchronise()

        return milliseconds(enqueue, repeats)


class PeakGpuMemory:
    """By how much the GPU's used memory rose at most meanwhile, whoever used it, MiB; None without a GPU in torch."""

    def __init__(self, device: int, *, every_s: float = 0.005) -> None:
        self.rise_mb: float | None = None
        self._device, self._every_s = device, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakGpuMemory:
        if torch.cuda.is_available():
            self._before = self._used()
            self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self.rise_mb = max(self.rise_mb or 0.0, round((self._used() - self._before) / _MIB, 1))

    def _used(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free)


def gflop(bundle: Bundle) -> float:
    """Floating-point operations of the first network on one window, in milliards: what no engine can save."""
    from torch.utils.flop_counter import FlopCounterMode

    network = getattr(reference_networks(bundle).locnet, "network")  # noqa: B009  of a TorchSession
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, *bundle.spec.locnet.window_zyx))
    return float(counter.get_total_flops()) / 1e9


def phantom_scan(shape_zyx: tuple[int, ...]) -> Volume:
    """A phantom of a seed that neither training nor evaluation draws, around the middle of its spine."""
    from runtime.crops import crop_grid
    from train.phantom import render, sample_anatomy, sample_appearance

    rng = np.random.default_rng(FIRST_SEED)
    anatomy = sample_anatomy(FIRST_SEED)
    middle = anatomy.centre_ras_mm(anatomy.vertebrae[len(anatomy.vertebrae) // 2])
    z, y, x = shape_zyx
    grid = crop_grid(middle, spacing_mm=SCAN_SPACING_MM, shape_zyx=(z, y, x))
    return render(anatomy, grid, sample_appearance(rng), rng).volume


def latency_table(figures: dict[str, Any]) -> str:
    """The figures as lines that a person can read."""
    lines = [f"{'':34} {'prec.':5} {'window ms':>10} {'x peer':>7} {'crop ms':>9} {'scan s':>8} {'x peer':>7} "
             f"{'GPU MiB':>8}  parity"]  # fmt: skip
    for row in figures["contenders"]:
        said = row.get("failed") or "; ".join(row.get("parity_faults", ())) or "within the limits"
        cells = [row.get(name) for name in ("window_ms_batch_1", "window_speed_over_peer", "crop_ms_batch_1", "scan_s",
                                            "scan_speed_over_peer", "gpu_memory_mb")]  # fmt: skip
        texts = ["-" if cell is None else f"{cell:.2f}" for cell in cells]
        padded = (text.rjust(width) for text, width in zip(texts, (10, 7, 9, 8, 7, 8), strict=True))
        lines.append(f"{row['name']:34} {row['precision']:5} {' '.join(padded)}  {said}")
    lines += [f"{one['name']:34} not here: {one['why']}" for one in figures["not_here"]]
    return "\n".join([*lines, f"peer: {figures['peer']}; {figures['gflop_per_window']} GFLOP per window"])
