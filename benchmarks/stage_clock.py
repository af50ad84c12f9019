"""The seconds of a run by stage, the networks' apart: seen from outside, through the sessions and the progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.timed_writing import timed_writing
from export.parity_on_scans import Networks
from export.timed_session import TimedSession
from runtime.bundle import Bundle
from runtime.device.session import offers_device_tensors
from runtime.engines.base import Session
from runtime.findings import Findings
from runtime.pipeline import Pipeline

NETWORK_STAGES = ("windows: network", "levels: network", "crops: network")
STAGES = (
    "read", "resample", "windows: network", "windows: cut, blend, vote", "peaks", "levels: network",
    "levels: rest", "crops: network", "crops: rest", "heights", "paste", "overview", "write", "rest",
)  # fmt: skip
"""In the order of a run; votes are cast as windows complete. ``rest`` is what lies between the stages."""


class Marks:
    """Progress that keeps when each stage began and when the last of its windows or crops was through."""

    def __init__(self) -> None:
        self.began_s: list[tuple[str, float]] = []
        self.stepped_s: dict[str, float] = {}

    def stage(self, name: str) -> None:
        """See ``runtime.progress.Progress``."""
        self.began_s.append((name, time.perf_counter()))

    def step(self, done: int, total: int) -> None:
        """See ``runtime.progress.Progress``."""
        self.stepped_s[self.began_s[-1][0]] = time.perf_counter()

    def finish(self) -> None:
        """Nothing."""

    def after_steps_s(self, name: str) -> float:
        """From a stage's last step to the beginning of the next stage; 0 for a stage without steps."""
        names = [stage for stage, _ in self.began_s]
        if name not in self.stepped_s or name not in names[:-1]:
            return 0.0
        return self.began_s[names.index(name) + 1][1] - self.stepped_s[name]


@dataclass(frozen=True)
class StagedRun:
    """One run.

    Args:
        seconds: of each of ``STAGES`` that can be told; without the networks' parts where the tensors stay on a GPU.
        inputs: how many windows or crops each network was run on, by ``NETWORK_STAGES``; empty likewise.
        findings: what came out.
        labels: (z, y, x) uint8, the vertebrae on the scan's grid.
    """

    seconds: dict[str, float]
    inputs: Mapping[str, int]
    findings: Findings
    labels: np.ndarray

    @property
    def total_s(self) -> float:
        """All stages together."""
        return sum(self.seconds.values())

    @property
    def centres_ras_mm(self) -> np.ndarray:
        """(n, 3) of the vertebrae, RAS+ mm."""
        return np.array([v.centre_ras_mm for v in self.findings.vertebrae]).reshape(-1, 3)

    @property
    def grades(self) -> np.ndarray:
        """(n,) the network's likeliest, -1 where it is not asked."""
        networks = (v.network for v in self.findings.vertebrae)
        return np.array([-1 if one is None else one.grade for one in networks], np.intp)


def staged_run(bundle: Bundle, networks: Networks, scan: Path, folder: Path, *, exhaustive: bool) -> StagedRun:
    """Run the pipeline from a file to the result folder, as the command line does."""
    on_gpu = offers_device_tensors(networks.locnet)
    loc, frac = networks.locnet, networks.fracsegnet
    level = networks.levelnet
    timed = [TimedSession(session) for session in (loc, frac, *([] if level is None else [level]))]
    used: list[Session] = [loc, frac, *([] if level is None else [level])] if on_gpu else [*timed]
    marks = Marks()
    third = used[2] if len(used) > 2 else None
    with Pipeline(bundle, used[0], used[1], third, ExitStack(), exhaustive=exhaustive) as pipeline:
        analysis = pipeline.analyse(scan, progress=marks)
        findings, times = timed_writing(analysis, folder, progress=marks)
    if on_gpu:
        return StagedRun(_with_rest(times), {}, findings, analysis.labels)
    by_stage = dict(zip(NETWORK_STAGES, (timed[0], timed[2] if level is not None else None, timed[1]), strict=True))
    network_s = {stage: 0.0 if one is None else one.seconds for stage, one in by_stage.items()}
    inputs = {stage: one.windows for stage, one in by_stage.items() if one is not None}
    return StagedRun(_split(times, network_s, marks), inputs, findings, analysis.labels)


def _split(times: dict[str, float], network_s: dict[str, float], marks: Marks) -> dict[str, float]:
    peaks_s = marks.after_steps_s("locate")
    windows_s, levels_s, crops_s = (network_s[name] for name in NETWORK_STAGES)
    seconds = {
        "read": times.pop("read", 0.0),
        "resample": times.pop("resample", 0.0),
        "windows: network": windows_s,
        "windows: cut, blend, vote": max(0.0, times.pop("locate", 0.0) - windows_s - peaks_s),
        "peaks": peaks_s,
        "levels: network": levels_s,
        "levels: rest": max(0.0, times.pop("label", 0.0) - levels_s),
        "crops: network": crops_s,
        "crops: rest": max(0.0, times.pop("segment", 0.0) - crops_s),
        "heights": times.pop("measure", 0.0),
    }
    return {**seconds, **_with_rest({**times, "total": times["total"] - sum(seconds.values())})}


def _with_rest(times: dict[str, float]) -> dict[str, float]:
    """The stages, and what the total holds beyond them as ``"rest"``."""
    total_s = times.pop("total")
    return {**times, "rest": max(0.0, total_s - sum(times.values()))}
