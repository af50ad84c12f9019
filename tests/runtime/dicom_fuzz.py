"""Mutated DICOM series through the reader: what comes of each, checked against the truth.

``python -m tests.runtime.dicom_fuzz --count 500`` prints the table that docs/dicom-reading.md shows.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import InputError
from runtime.readers import read_scan
from runtime.readers.options import ReadOptions
from runtime.volume import LPS_FROM_RAS, Volume
from tests.runtime.dicom_mutations import MUTATIONS, Series, phantom

OUTCOMES = ("read", "warned", "refused")
FAULTS = ("silent", "crash", "hang")
_TIME_LIMIT_S = 30
_VOXEL_TOLERANCE = 0.5


@dataclass(frozen=True)
class Trial:
    """One mutated series: what was done, what came of it (one of ``OUTCOMES`` or ``FAULTS``), and what was said."""

    kind: str
    seed: int
    outcome: str
    said: str


def trial(kind: str, seed: int, folder: Path, options: ReadOptions | None = None) -> Trial:
    """Mutates the phantom's series and reads it."""
    rng = np.random.default_rng([seed, sorted(MUTATIONS).index(kind)])
    series = phantom(rng)
    MUTATIONS[kind](series, rng)
    series.write(folder)
    try:
        with _time_limit():
            volume = read_scan(folder, options)
    except InputError as error:
        return Trial(kind, seed, "refused", str(error))
    except TimeoutError:
        return Trial(kind, seed, "hang", f"more than {_TIME_LIMIT_S} s")
    except Exception as error:  # noqa: BLE001  that is what is looked for
        return Trial(kind, seed, "crash", f"{type(error).__name__}: {error}")
    if volume.notes:
        return Trial(kind, seed, "warned", " | ".join(volume.notes))
    wrong = what_is_wrong(volume, series)
    return Trial(kind, seed, "silent" if wrong else "read", wrong)


def what_is_wrong(volume: Volume, series: Series) -> str:
    """How a volume that was read without a warning differs from the truth; ``""`` where it does not."""
    assert volume.source is not None
    names = [path.name for path in volume.source.files]
    if volume.source.is_multiframe:
        names = [f"{name}#{number}" for name, number in zip(names, volume.source.frame_numbers, strict=True)]
    if missing := sorted(set(series.truth) - set(names)):
        return f"{missing} left out"
    if len(set(names)) != len(names):
        return "a file came twice"
    for plane, name in zip(volume.source.planes, names, strict=True):
        truth = series.truth[name]
        rows, columns = truth.hu.shape
        corners = [(y, x) for y in (0, rows - 1) for x in (0, columns - 1)]
        points = volume.grid.to_ras_mm([(plane, y, x) for y, x in corners]) @ LPS_FROM_RAS[:3, :3]
        voxels = np.array([truth.index_of(point) for point in points])
        off = np.abs(voxels - [(0, y, x) for y, x in corners]).max()
        if off > _VOXEL_TOLERANCE:
            return f"{name} is {off:.2f} voxels off"
        if not truth.mutated and not np.array_equal(volume.array[round(plane)], truth.hu):
            return f"{name} holds other values"
    return ""


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(count: int, seed: int = 0, options: ReadOptions | None = None) -> list[Trial]:
    """``count`` trials, the kinds of mutation in turn."""
    kinds = sorted(MUTATIONS)
    trials = []
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            trials.append(trial(kinds[number % len(kinds)], seed + number // len(kinds), Path(folder), options))
    return trials


def table(trials: list[Trial]) -> str:
    """Outcomes per kind of mutation, as Markdown."""
    columns = (*OUTCOMES, *FAULTS)
    counts = Counter((one.kind, one.outcome) for one in trials)
    lines = [f"| mutation | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for kind in [*sorted(MUTATIONS), "all"]:
        cells = [sum(n for (k, o), n in counts.items() if o == column and kind in (k, "all")) for column in columns]
        lines.append(f"| {kind} | {' | '.join(str(n or '') for n in cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; 1 where a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--say", action="store_true", help="print every trial with what was said")
    parser.add_argument("--accept-gaps", action="store_true", help="read as with this option")
    arguments = parser.parse_args()
    trials = run(arguments.count, arguments.seed, ReadOptions(accept_gaps=arguments.accept_gaps))
    for one in trials:
        if arguments.say or one.outcome in FAULTS:
            print(f"{one.outcome:<8} {one.kind} {one.seed}: {one.said}")
    print(table(trials))
    return int(any(one.outcome in FAULTS for one in trials))


if __name__ == "__main__":
    sys.exit(main())
