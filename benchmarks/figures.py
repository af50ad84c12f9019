"""What is measured: figures with their samples, and how work is timed so that its figures can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """One thing that was measured, some times over.

    Args:
        group: what was done, such as ``"read"``; figures of one group can be put beside each other.
        name: who did it, such as ``"ours"``.
        unit: ``"s"``, ``"MiB"``, ``"mm"``, ``"x"`` for a ratio.
        samples: one value for each run, in the order of the runs.
        exact: whether the same input always gives the same value, so that every change is one.
        more_is_better: as for rates.
    """

    group: str
    name: str
    unit: str
    samples: tuple[float, ...]
    exact: bool = False
    more_is_better: bool = False

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError(f"{self.key} was never measured.")

    @property
    def key(self) -> str:
        """What the figure is called in a document."""
        return f"{self.group}/{self.name}"

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)

    def percentile(self, percent: float) -> float:
        """Of the samples, interpolated linearly."""
        return float(np.percentile(self.samples, percent))

    @property
    def noise(self) -> float:
        """From the 10th to the 90th percentile of the samples; 0 for a figure that was taken once."""
        return self.percentile(90) - self.percentile(10)

    def as_json(self) -> dict[str, Any]:
        """Plain values, to six digits."""
        return {
            "unit": self.unit,
            "median": _six_digits(self.median),
            "p90": _six_digits(self.percentile(90)),
            "p99": _six_digits(self.percentile(99)),
            "least": _six_digits(min(self.samples)),
            "greatest": _six_digits(max(self.samples)),
            "noise": _six_digits(self.noise),
            "runs": len(self.samples),
            "exact": self.exact,
            "more_is_better": self.more_is_better,
        }


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def ratio(group: str, name: str, over: Figure, under: Figure) -> Figure:
    """How many times ``over`` is as large as ``under``, run by run: both were measured in turns."""
    if len(over.samples) == len(under.samples):
        samples = tuple(a / b for a, b in zip(over.samples, under.samples, strict=True) if b > 0)
    else:
        samples = (over.median / under.median,) if under.median > 0 else ()
    return Figure(group, name, "x", samples or (float("inf"),), more_is_better=True)


def ratio_of_medians(group: str, name: str, over: Figure, under: Figure) -> Figure:
    """How many times ``over`` is as large as ``under``, of works that were not measured in turns."""
    samples = (over.median / under.median if under.median > 0 else float("inf"),)
    return Figure(group, name, "x", samples, more_is_better=True)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def repeated(work: Callable[[], object], repeats: int, *, warmups: int = 1) -> tuple[float, ...]:
    """Wall times, s, after the warm-ups."""
    for _ in range(warmups):
        work()
    return tuple(seconds_of(work) for _ in range(repeats))


def in_turns(
    group: str, works: Mapping[str, Callable[[], object]], repeats: int, *, warmups: int = 1, settling: int = 0
) -> tuple[Figure, ...]:
    """Wall times of several works, s, each called once in every round: what else the machine does hits all alike.

    Args:
        group: of the figures.
        works: by their names.
        repeats: rounds.
        warmups: calls of each before the first round.
        settling: calls right before each measured one. Works of milliseconds need it, since the one before leaves its
            threads waiting on the processor and its data in the caches.
    """
    for work in works.values():
        for _ in range(warmups):
            work()
    samples: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            for _ in range(settling):
                work()
            samples[name].append(seconds_of(work))
    return tuple(Figure(group, name, "s", tuple(values)) for name, values in samples.items())


def ratios_to(base: str, figures: Sequence[Figure]) -> tuple[Figure, ...]:
    """For each group that has a figure named ``base``: how many times as long the others of its unit take."""
    bases = {(figure.group, figure.unit): figure for figure in figures if figure.name == base}
    return tuple(
        ratio(figure.group, f"{figure.name} / {base}", figure, bases[figure.group, figure.unit])
        for figure in figures
        if figure.name != base and (figure.group, figure.unit) in bases
    )
