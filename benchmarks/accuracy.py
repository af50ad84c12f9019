"""The accuracy command: what every engine and precision finds on phantoms and scans, against torch FP32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

from benchmarks.contenders import TORCH_EAGER, Contender, contenders
from benchmarks.figures import Figure, ratio
from benchmarks.report import Report, Table, number
from export.parity_on_scans import Networks, Prepared, compare_on_scan, prepare, warm_up
from export.verify import phantoms, reference_networks
from runtime.bundle import Bundle
from runtime.engines.parity import LIMITS, Parity, faults, joined
from runtime.errors import EngineError, OutOfMemoryError
from runtime.readers import read_scan
from runtime.volume import Volume


@dataclass
class Found:
    """One contender's parity and seconds, scan by scan; ``failed`` says why it could not be run at all."""

    contender: Contender
    parities: list[Parity] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failed: str = ""

    @property
    def whole(self) -> Parity:
        """Over all scans."""
        return joined([Parity(failed=self.failed), *self.parities])

    @property
    def faults(self) -> tuple[str, ...]:
        """What is past the limits of its precision."""
        return faults(self.whole, LIMITS[self.contender.precision])


def accuracy(
    bundle: Bundle, scans: Sequence[Path], phantom_count: int, *, engines: Sequence[str], device: int, threads: int
) -> Report:
    """Compare on every scan; the same windows and crops for all, as ``export.verify`` does.

    Seconds are those of the networks' calls, after one call of each.

    Args:
        bundle: whose networks are run.
        scans: files, besides the phantoms.
        phantom_count: pieces of spine of ``export.verify.phantoms``.
        engines: names of the engine table; none for all that can run here.
        device: GPU number.
        threads: on the processor.
    """
    there, missing = contenders(bundle, engines=engines, device=device, threads=threads, compiled=False)
    found = [Found(one) for one in there if one.name != TORCH_EAGER]
    reference_s: list[float] = []
    names: list[str] = []
    with ExitStack() as stack:
        opened = [_opened(one, bundle, stack) for one in found]
        for prepared in _prepared(bundle, chain(phantoms(phantom_count), (read_scan(path) for path in scans))):
            names.append(prepared.scan.name)
            reference_s.append(prepared.seconds)
            for one, networks in zip(found, opened, strict=True):
                if networks is not None:
                    parity, seconds = compare_on_scan(bundle.spec, prepared, networks)
                    one.parities.append(parity)
                    one.seconds.append(seconds)
    reference = Figure("networks per scan", f"{TORCH_EAGER} fp32", "s", tuple(reference_s))
    return Report(
        figures=(reference, *(figure for one in found for figure in figures_of(one))),
        tables=(_table(found, reference),),
        settings={"scans": names},
        ratios=tuple(
            ratio("networks per scan", f"{TORCH_EAGER} fp32 / {one.contender.title}", reference, _seconds(one))
            for one in found
            if one.seconds
        ),
        details={one.contender.title: {**asdict(one.whole), "faults": list(one.faults)} for one in found},
        missing=tuple(m for m in missing if "no-compile" not in m.why),
        notes=(f"against torch FP32 on the processor, {len(names)} scans.",),
    )


def _opened(one: Found, bundle: Bundle, stack: ExitStack) -> Networks | None:
    try:
        networks = stack.enter_context(one.contender.opened())
    except (EngineError, OutOfMemoryError) as error:
        one.failed = str(error).splitlines()[0]
        return None
    warm_up(bundle.spec, networks)
    return networks


def _prepared(bundle: Bundle, scans: Iterator[Volume]) -> Iterator[Prepared]:
    reference = reference_networks(bundle)
    warm_up(bundle.spec, reference)
    return (prepare(bundle.spec, scan, reference) for scan in scans)


def _seconds(one: Found) -> Figure:
    return Figure("networks per scan", one.contender.title, "s", tuple(one.seconds))


def figures_of(one: Found) -> list[Figure]:
    """What was compared of a contender. The same input gives the same figures; only seconds have noise, over scans."""
    if not one.parities:
        return []
    whole, title = one.whole, one.contender.title
    exact: list[tuple[str, str, bool, float]] = [("centres lost or added", "", False, float(whole.centres_lost))]
    if whole.centres:
        exact.append(("largest centre shift", "mm", False, whole.centre_shift_mm))
    if whole.masks:
        exact += [("mask Dice", "", True, whole.dice), ("smallest mask Dice", "", True, whole.smallest_dice)]
    if whole.grades:
        exact.append(("grade agreement", "share", True, 1 - whole.grades_changed / whole.grades))
        exact.append(("largest grade probability shift", "", False, whole.grade))
    if whole.levels:
        exact.append(("level agreement", "share", True, 1 - whole.levels_changed / whole.levels))
    figures = [
        Figure(name, title, unit, (value,), exact=True, more_is_better=more) for name, unit, more, value in exact
    ]
    return [*figures, _seconds(one)]


def _table(found: Sequence[Found], reference: Figure) -> Table:
    rows = []
    for one in found:
        whole = one.whole
        speed = ratio("", "", reference, _seconds(one)).median if one.seconds else None
        rows.append((
            one.contender.title,
            f"{whole.centres_lost}/{whole.centres}",
            number(whole.centre_shift_mm if whole.centres else None),
            f"{whole.dice:.5f}" if whole.masks else "-",
            f"{whole.smallest_dice:.4f}" if whole.masks else "-",
            f"{whole.grades_changed}/{whole.grades}",
            number(whole.grade if whole.grades else None),
            f"{whole.levels_changed}/{whole.levels}",
            number(speed),
            "; ".join(one.faults) or "within the limits",
        ))  # fmt: skip
    columns = ("", "centres lost", "shift mm", "Dice", "least Dice", "grades changed", "by at most", "levels changed",
               "x torch", "")  # fmt: skip
    return Table("agreement with torch FP32", columns, tuple(rows))
