"""Mutated DICOM series through the reader: what comes of each, checked against the truth.

``python -m tests.runtime.dicom_fuzz --count 500`` prints the table that docs/dicom-reading.md shows.
"""

from __future__ import annotations

import argparse
import re
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
from tests.runtime.dicom_mutations import MUTATIONS, Series, Truth, phantom

OUTCOMES = ("read", "warned", "refused")
FAULTS = ("silent", "wrong", "crash", "hang")
"""``silent``: read without a warning, and wrong; ``wrong``: warned of, and wrong in what the warning does not say."""
_TIME_LIMIT_S = 30
_VOXEL_TOLERANCE = 0.5
_SAME_PLANE = 1e-6
_ROUNDING_HU = 1.0
_WIDEST_MM = 10.0
"""Of gaps across which is interpolated: see docs/dicom-reading.md."""
AIR_HU = -1024


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
    said = " | ".join(volume.notes)
    if wrong := what_is_wrong(volume, series):
        return Trial(kind, seed, "wrong" if said else "silent", f"{wrong} | {said}")
    return Trial(kind, seed, "warned" if said else "read", said)


def what_is_wrong(volume: Volume, series: Series) -> str:
    """How a volume differs from the truth beyond what its notes say; ``""`` where it does not.

    Every slice is in it, or among as many as the notes say were not read or left out. Every slice lies where it really
    is, or, where the notes say that steps are uneven, where its header says; its values are its own. Planes between
    slices are interpolated between these two, or air in gaps too wide for that.
    """
    assert volume.source is not None
    names = [path.name for path in volume.source.files]
    if volume.source.is_multiframe:
        names = [f"{name}#{number}" for name, number in zip(names, volume.source.frame_numbers, strict=True)]
    missing = sorted(set(series.truth) - set(names))
    if len(missing) > _left_out(volume.notes):
        return f"{missing} left out"
    if len(set(names)) != len(names):
        return "a file came twice"
    truths = [series.truth[name] for name in names]
    believed = any(text in note for note in volume.notes for text in _OF_STEPS)
    for name, truth, plane in zip(names, truths, volume.source.planes, strict=True):
        off = min(_off(volume, truth, plane, as_claimed=claimed) for claimed in {False, believed})
        if off > _VOXEL_TOLERANCE:
            return f"{name} is {off:.2f} voxels off"
    return _wrong_values(volume, truths)


_OF_STEPS = ("first at odds between", "Slices are missing in")
"""Notes after which slices may lie where their headers say, and not on even planes."""
_COUNTS = (r"Not read: .*?\((\d+) (?:slices|files?)\b", r"^(\d+) (?:files|slices) .*left out")


def _left_out(notes: tuple[str, ...]) -> int:
    """How many slices the notes say are not in the volume."""
    return sum(int(found[1]) for note in notes for count in _COUNTS if (found := re.search(count, note)))


def _off(volume: Volume, truth: Truth, plane: float, *, as_claimed: bool) -> float:
    """How far the corners of a plane lie from those of a slice, in voxels."""
    rows, columns = truth.hu.shape
    corners = [(y, x) for y in (0, rows - 1) for x in (0, columns - 1)]
    points = volume.grid.to_ras_mm([(plane, y, x) for y, x in corners]) @ LPS_FROM_RAS[:3, :3]
    voxels = np.array([truth.index_of(point, as_claimed=as_claimed) for point in points])
    return float(np.abs(voxels - [(0, y, x) for y, x in corners]).max())


def _wrong_values(volume: Volume, truths: list[Truth]) -> str:
    """Which plane holds other values than its slice, or than lie between its two slices."""
    assert volume.source is not None
    planes = volume.source.planes
    for number, values in enumerate(volume.array):
        after = int(np.searchsorted(planes, number - _SAME_PLANE))
        if after == len(planes):
            return f"plane {number} lies behind the last slice"
        on_slice = abs(planes[after] - number) <= _SAME_PLANE
        around = [after] if on_slice else [after - 1, after]
        if any(truths[i].mutated for i in around):
            continue
        weights = [1.0] if on_slice else np.array([planes[after] - number, number - planes[after - 1]])
        expected = np.average([truths[i].hu for i in around], axis=0, weights=weights)
        is_air = (
            not on_slice
            and _gap_mm(volume, planes[after] - planes[after - 1]) > _WIDEST_MM
            and np.all(values == AIR_HU)
        )
        if not is_air and np.abs(values - expected).max() > (0 if on_slice else _ROUNDING_HU):
            return f"plane {number} holds other values"
    return ""


def _gap_mm(volume: Volume, planes: float) -> float:
    """How far apart planes are, along the grid's third axis."""
    return float(planes * volume.grid.spacing_xyz_mm[2])


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
