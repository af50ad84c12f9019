"""The stages command: where the time of a whole case goes, from the file to the results, beside a pipeline of peers."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.ceiling import Ceiling, Cost, network_costs, share_of_ceiling
from benchmarks.contenders import HALF, Contender, our_contenders, torch_contender, torch_device, why_no_half
from benchmarks.figures import Figure, ratio
from benchmarks.peer_pipeline import PeerRun, peer_run
from benchmarks.peers import Missing, absent
from benchmarks.report import Report, Table, number
from benchmarks.stage_clock import NETWORK_STAGES, STAGES, StagedRun, staged_run
from export.parity_on_scans import Networks
from runtime.bundle import Bundle
from runtime.memory import keep_freed_memory
from runtime.readers import read_scan
from runtime.resample import working_grid
from runtime.volume import Grid
from runtime.windows import plan_windows

NO_PEER_FOR = ("heights", "overview", "rest")
EXHAUSTIVE_MM = 1.0
HALF_A_VOXEL = 0.5
INPUTS = {
    "windows: network": ("one window", "locnet"),
    "levels: network": ("one level's crop", "levelnet"),
    "crops: network": ("one crop", "fracsegnet"),
}
"""What each network is run on, and its name among the costs."""
NO_LABELS = np.zeros((0, 0, 0), np.uint8)
"""Takes the place of those of all runs but the last, which alone is compared: each that is kept would make the next
run take fresh memory from the system, as no user's second scan does."""
TOTAL, NETWORKS, ALL_BUT = "total", "networks", "all but the networks"


@dataclass(frozen=True)
class Runner:
    """One way through a scan: its networks, open; the bundle that they are of and what they cost; whether a peer's."""

    contender: Contender
    networks: Networks
    bundle: Bundle
    costs: Mapping[str, Cost]
    is_peer: bool


def stages(
    bundle: Bundle, scans: Sequence[Path], repeats: int, *, engines: Sequence[str], device: int, threads: int,
    peers_bundle: Bundle | None, ceiling: Ceiling | None, costs: Mapping[str, Cost],
) -> Report:  # fmt: skip
    """Run every scan through every pipeline in turns.

    Args:
        bundle: whose networks are run.
        scans: NIfTI files.
        repeats: measured rounds, after one warm-up.
        engines: names of the engine table; none for the one that ``auto`` takes, in each of its precisions.
        device: GPU number.
        threads: on the processor.
        peers_bundle: whose networks the peers' pipeline runs in torch, in FP32 and in half precision: the same, or such
            as those that ours were distilled from; None for no peers.
        ceiling: of this machine, or None.
        costs: of the bundle's networks.
    """
    keep_freed_memory()  # as the command does for several scans; for all that are compared
    needed = absent("monai", "scikit-image") if peers_bundle else ()
    others = peers_bundle if peers_bundle and peers_bundle.sha256 != bundle.sha256 else None
    figures: list[Figure] = []
    tables: list[Table] = []
    ratios: list[Figure] = []
    details: dict[str, Any] = {}
    with ExitStack() as stack:
        runners, missing = _runners(
            bundle, None if needed else peers_bundle, stack, engines=engines, device=device,
            threads=threads, costs=costs,
        )  # fmt: skip
        torch_fp32 = stack.enter_context(torch_contender(bundle, torch_device(device), half=False).opened())
        for scan in scans:
            runs = _run_in_turns(runners, scan, repeats)
            found = _figures(scan, runners, runs, ceiling)
            figures += found
            tables.append(_table(scan, runs))
            ratios += _ratios(scan, runners, runs)
            details[scan.name] = _details(bundle, scan, runners, runs, torch_fp32)
    notes = _about_peers(bundle, others) if peers_bundle else []
    return Report(
        figures=tuple(figures),
        tables=tuple(tables),
        settings={
            "scans": [scan.name for scan in scans],
            "shapes_zyx": [list(read_scan(scan).grid.shape_zyx) for scan in scans],
            "overlap": bundle.spec.locnet.overlap,
            "exhaustive": any(runner.is_peer for runner in runners),
            "peers": [runner.contender.title for runner in runners if runner.is_peer],
            **({} if others is None else {"peers_bundle": others.sha256}),
        },
        ratios=tuple(ratios),
        details=details,
        missing=(*needed, *missing),
        notes=(*notes, *(_said(name, one) for name, one in details.items())),
    )


def _runners(
    bundle: Bundle, peers_bundle: Bundle | None, stack: ExitStack, *, engines: Sequence[str], device: int, threads: int,
    costs: Mapping[str, Cost],
) -> tuple[list[Runner], list[Missing]]:  # fmt: skip
    ours, missing = our_contenders(bundle, engines=engines, device=device, threads=threads)
    runners = [Runner(one, stack.enter_context(one.opened()), bundle, costs, is_peer=False) for one in ours]
    if peers_bundle is None:
        return runners, missing
    where = torch_device(device)
    why_no_half_precision = why_no_half(where)
    if why_no_half_precision:
        missing.append(Missing(HALF[where.type].name, why_no_half_precision))
    if costs and peers_bundle.sha256 != bundle.sha256:
        costs = network_costs(peers_bundle)
    for half in (False,) if why_no_half_precision else (False, True):
        one = torch_contender(peers_bundle, where, half=half)
        networks = stack.enter_context(one.opened())
        runners.append(Runner(replace(one, name=f"MONAI, {one.name}"), networks, peers_bundle, costs, is_peer=True))
    return runners, missing


Runs = dict[str, list[StagedRun | PeerRun]]


def _about_peers(bundle: Bundle, others: Bundle | None) -> list[str]:
    notes = [f"peers skip {', '.join(NO_PEER_FOR)}; ratios leave these out on our side as well."]
    if others is not None:
        theirs, ours = (f"{one.spec.name} {one.spec.version}" for one in (others, bundle))
        notes.append(f"peers run the networks of {theirs}, ours those of {ours}.")
    return notes


def _run_in_turns(runners: Sequence[Runner], scan: Path, repeats: int) -> Runs:
    exhaustive = any(runner.is_peer for runner in runners)  # all windows for all
    runs: Runs = {runner.contender.title: [] for runner in runners}
    for turn in range(repeats + 1):
        for runner in runners:
            with _scratch() as folder:
                run = peer_run if runner.is_peer else partial(staged_run, exhaustive=exhaustive)
                made = run(runner.bundle, runner.networks, scan, folder)
            if turn:
                done = runs[runner.contender.title]
                done[:] = [*(replace(run, labels=NO_LABELS) for run in done), made]
    return runs


def _figures(scan: Path, runners: Sequence[Runner], runs: Runs, ceiling: Ceiling | None) -> list[Figure]:
    figures = []
    for runner in runners:
        title, of_one = runner.contender.title, runs[runner.contender.title]
        group = f"{scan.name}: {title}"
        for stage in _stages_of(of_one):
            figures.append(Figure(group, stage, "s", tuple(run.seconds.get(stage, 0.0) for run in of_one)))
        figures.append(Figure(group, TOTAL, "s", tuple(run.total_s for run in of_one)))
        network = tuple(_network_s(run) for run in of_one)
        if all(network):
            figures.append(Figure(group, NETWORKS, "s", network))
            shares = tuple(1 - s / run.total_s for s, run in zip(network, of_one, strict=True))
            figures.append(Figure(group, "share of all but the networks", "share", shares))
        figures += _per_input(group, of_one, runner.contender.precision, ceiling, runner.costs)
    return figures


def _per_input(
    group: str, runs: Sequence[StagedRun | PeerRun], precision: str, ceiling: Ceiling | None, costs: Mapping[str, Cost]
) -> list[Figure]:
    """Seconds of one window or crop of each network, and its rate as a share of the ceiling."""
    figures = []
    for stage, (name, network) in INPUTS.items():
        if not all(run.inputs.get(stage) for run in runs):
            continue
        seconds = Figure(group, name, "s", tuple(run.seconds[stage] / run.inputs[stage] for run in runs))
        figures.append(seconds)
        if ceiling is not None and network in costs:
            share = share_of_ceiling(f"{group}, {name}", seconds, costs[network], ceiling, precision)
            figures += [] if share is None else [share]
    return figures


def _stages_of(runs: Sequence[StagedRun | PeerRun]) -> list[str]:
    """The stages that any of the runs has, in order; those of a GPU's coarser split last."""
    met = {stage for run in runs for stage in run.seconds}
    return [stage for stage in STAGES if stage in met] + sorted(met - set(STAGES))


def _windows(run: StagedRun | PeerRun) -> int:
    return run.inputs.get("windows: network", 0)


def _network_s(run: StagedRun | PeerRun) -> float:
    return sum(run.seconds.get(stage, 0.0) for stage in NETWORK_STAGES)


def _shared_s(run: StagedRun | PeerRun) -> float:
    """What both sides do."""
    return sum(seconds for stage, seconds in run.seconds.items() if stage not in NO_PEER_FOR)


def _ratios(scan: Path, runners: Sequence[Runner], runs: Runs) -> list[Figure]:
    """How many times as long the peers take: whole, and where our networks can be told apart these and the rest."""
    found = []
    for peer in (runner.contender.title for runner in runners if runner.is_peer):
        for ours in (runner.contender.title for runner in runners if not runner.is_peer):
            parts: dict[str, Callable[[StagedRun | PeerRun], float]] = {"whole": _shared_s}
            if all(_network_s(run) for run in runs[ours]):
                parts |= {NETWORKS: _network_s, ALL_BUT: lambda run: _shared_s(run) - _network_s(run)}
            for name, part in parts.items():
                over, under = (Figure(name, t, "s", tuple(part(run) for run in runs[t])) for t in (peer, ours))
                found.append(ratio(f"{scan.name}: {name}", f"{peer} / {ours}", over, under))
    return found


def _table(scan: Path, runs: Runs) -> Table:
    stages_met = _stages_of([run for of_one in runs.values() for run in of_one])
    rows = []
    for stage in (*stages_met, TOTAL, ALL_BUT):
        cells = []
        for of_one in runs.values():
            totals = statistics.median(run.total_s for run in of_one)
            if stage == TOTAL:
                seconds: float | None = totals
            elif stage == ALL_BUT:
                seconds = statistics.median(run.total_s - _network_s(run) for run in of_one)
            else:
                met = [run.seconds[stage] for run in of_one if stage in run.seconds]
                seconds = statistics.median(met) if met else None
            cells += [number(seconds), "-" if seconds is None else f"{100 * seconds / totals:.1f} %"]
        rows.append((stage, *cells))
    columns = tuple(cell for title in runs for cell in (f"{title} s", "share"))
    return Table(f"{scan.name}, median seconds", ("", *columns), tuple(rows))


def _details(bundle: Bundle, scan: Path, runners: Sequence[Runner], runs: Runs, torch_fp32: Networks) -> dict[str, Any]:
    """Windows of each, whether peers find what we find, and what an exhaustive pass at 1 mm would take torch."""
    first = next(runs[runner.contender.title][-1] for runner in runners if not runner.is_peer)
    assert isinstance(first, StagedRun)
    details: dict[str, Any] = {
        "vertebrae": len(first.findings.vertebrae),
        "inputs": {title: {INPUTS[stage][1]: n for stage, n in of[-1].inputs.items()} for title, of in runs.items()},
    }
    own = read_scan(scan).grid
    half_a_voxel_mm = HALF_A_VOXEL * min(own.spacing_xyz_mm)
    with _scratch() as folder:
        reference = staged_run(bundle, torch_fp32, scan, folder, exhaustive=True)
    details["beside_torch"] = _beside_torch(reference, runners, runs, within_mm=half_a_voxel_mm)
    for runner in runners:
        title, of_one = runner.contender.title, runs[runner.contender.title]
        last = of_one[-1]
        if isinstance(last, PeerRun):
            at_1_mm = _windows_at_1_mm(own, runner.bundle)
            details["windows_at_1_mm"] = at_1_mm
            per_window = statistics.median(r.seconds["windows: network"] / max(1, _windows(r)) for r in of_one)
            rest = statistics.median(r.total_s - r.seconds["windows: network"] for r in of_one)
            total_s = statistics.median(run.total_s for run in runs[next(iter(runs))])
            details[title] = {
                "centres": len(last.centres_ras_mm),
                **agreement(first, last, within_mm=half_a_voxel_mm),
                "exhaustive_1_mm_s_calculated": round(per_window * at_1_mm + rest, 1),
                "exhaustive_1_mm_over_ours_calculated": round((per_window * at_1_mm + rest) / total_s, 2),
            }
    return details


def _windows_at_1_mm(grid: Grid, bundle: Bundle) -> int:
    """How many windows all of a scan would take on a grid of 1 mm."""
    shape, spec = working_grid(grid, EXHAUSTIVE_MM).shape_zyx, bundle.spec.locnet
    return len(plan_windows(shape, spec.window_zyx, spec.overlap).starts_zyx)


class Found(Protocol):
    """What a run found: (n, 3) centres, RAS+ mm; (n,) grades, -1 for none; (z, y, x) labels, 0 where no vertebra is."""

    @property
    def centres_ras_mm(self) -> np.ndarray: ...  # noqa: D102
    @property
    def grades(self) -> np.ndarray: ...  # noqa: D102
    @property
    def labels(self) -> np.ndarray: ...  # noqa: D102


def agreement(ours: Found, other: Found, *, within_mm: float) -> dict[str, float]:
    """How many of our vertebrae another run has at the same place, with the same network's grade, and Dice of all."""
    apart_mm = np.linalg.norm(ours.centres_ras_mm[:, None] - other.centres_ras_mm[None], axis=-1)
    same = [(n, int(row.argmin())) for n, row in enumerate(apart_mm) if (row <= within_mm).any()]
    graded = [(ours.grades[n], other.grades[k]) for n, k in same if ours.grades[n] >= 0]
    shared = int(np.count_nonzero((ours.labels > 0) & (other.labels > 0)))
    both = int(np.count_nonzero(ours.labels) + np.count_nonzero(other.labels))
    return {
        "centres_as_ours": len(same),
        "graded": len(graded),
        "grades_as_ours": sum(bool(a == b) for a, b in graded),
        "dice": round(2 * shared / both, 5) if both else 1.0,
    }


def _beside_torch(
    reference: StagedRun, runners: Sequence[Runner], runs: Runs, *, within_mm: float
) -> dict[str, dict[str, float]]:
    """Whether each of ours finds what the same pipeline found with torch's networks in FP32, run on every window.

    Ours ran as they were measured: without peers, along the spine alone.
    """
    said = {}
    for title in (runner.contender.title for runner in runners if not runner.is_peer):
        ours = runs[title][-1]
        same = agreement(ours, reference, within_mm=within_mm)
        said[title] = {"vertebrae": len(ours.centres_ras_mm), "of_torch": len(reference.centres_ras_mm), **same}
    return said


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _said(name: str, details: Mapping[str, Any]) -> str:
    lines = [f"{name}: {details['vertebrae']} vertebrae; inputs of each network:"]
    for title, counts in details["inputs"].items():
        if counts:
            lines.append(f"  {title}: {', '.join(f'{network} {count}' for network, count in counts.items())}")
    for title, one in details["beside_torch"].items():
        lines.append(
            f"  {title} beside the same pipeline with torch in FP32 on all windows: {one['centres_as_ours']} of "
            f"{one['vertebrae']} centres within half a voxel of its {one['of_torch']}, {one['grades_as_ours']} of "
            f"{one['graded']} network grades the same, Dice {one['dice']}"
        )
    for title, one in details.items():
        if isinstance(one, dict) and "centres" in one:
            lines.append(
                f"  {title}: {one['centres']} centres, {one['centres_as_ours']} of ours within half a voxel, "
                f"{one['grades_as_ours']} of {one['graded']} network grades the same, Dice {one['dice']}; all windows "
                f"at 1 mm ({details['windows_at_1_mm']}) would take {one['exhaustive_1_mm_s_calculated']} s "
                f"(calculated), {one['exhaustive_1_mm_over_ours_calculated']} times ours"
            )
    return "\n".join(lines)
