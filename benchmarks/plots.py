"""Pictures of documents; drawn from the JSON alone, so that old ones can be drawn as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers import INSTALL
from runtime.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Document = Mapping[str, Any]
_PER_ROW_INCH = 0.28


def check_plot(path: Path) -> None:
    """Raise InputError when matplotlib is not installed or writes no file of that ending."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"Plots need matplotlib; install it with: {INSTALL}.") from error
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        raise InputError(f"A plot can't be written to {path.name}; let its name end with one of {', '.join(known)}.")


def draw(document: Document, path: Path) -> None:
    """Draw a document into a file.

    Raises:
        InputError: the file can't be written.
    """
    from matplotlib.figure import Figure

    drawn_by = {"latency": _latency, "stages": _stages, "scaling": _scaling}.get(document["command"], _bars)
    rows = len(document["figures"]) if drawn_by is _bars else 12
    figure = Figure(figsize=(11, min(24.0, 2 + _PER_ROW_INCH * max(rows, 12))), layout="constrained")
    drawn_by(document, figure)
    machine = document["machine"]
    figure.suptitle(f"{document['command']}: {machine['processor']}, {document['threads']} threads", fontsize=10)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise InputError(f"The plot {path} can't be written ({error.strerror or error}).") from error


def _bars(document: Document, figure: Any) -> None:
    """A bar for every time, on a logarithmic axis, with the 10th to 90th percentile's width as its error."""
    kept = {k: f for k, f in document["figures"].items() if f["unit"] == "s" and f["median"] > 0}
    kept = kept or {k: f for k, f in document["figures"].items() if f["median"] > 0}
    axes: Axes = figure.subplots()
    names = list(reversed(kept))
    axes.barh(names, [kept[k]["median"] for k in names], xerr=[kept[k]["noise"] / 2 for k in names], height=0.7)
    axes.set_xscale("log")
    axes.set_xlabel(next(iter({f["unit"] for f in kept.values()}), ""))
    axes.tick_params(labelsize=8)


def _latency(document: Document, figure: Any) -> None:
    """Time of a window against accuracy: how far centres move, and how far masks disagree."""
    left, right = figure.subplots(1, 2)
    group = "one window, batch 1"
    for name, details in document["details"]["contenders"].items():
        time = document["figures"].get(f"{group}/{name}")
        parity = details["parity"]
        if time is None or parity is None:
            continue
        for axes, value in ((left, parity["centre_shift_mm"]), (right, 1 - parity["dice"])):
            axes.plot([1000 * time["median"]], [value], "o", label=name)
    for axes, label in ((left, "largest centre shift, mm"), (right, "1 - Dice of the masks")):
        axes.set_xlabel(f"{group}, ms")
        axes.set_ylabel(f"{label}, against torch FP32")
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1e-4)
        axes.set_ylim(bottom=-1e-5)
    left.legend(fontsize=7)


def _stages(document: Document, figure: Any) -> None:
    """A stacked bar for each way through each scan."""
    from benchmarks.stage_clock import STAGES

    axes: Axes = figure.subplots()
    groups = list(dict.fromkeys(key.rsplit("/", 1)[0] for key in document["figures"] if key.endswith("/total")))
    begins = [0.0] * len(groups)
    colours = [f"C{i % 10}" for i in range(len(STAGES))]
    for number, (stage, colour) in enumerate(zip(STAGES, colours, strict=True)):
        widths = [document["figures"].get(f"{group}/{stage}", {"median": 0.0})["median"] for group in groups]
        axes.barh(groups, widths, left=begins, label=stage, color=colour, hatch="//" if number >= 10 else None)
        begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("s")
    axes.legend(fontsize=7, ncols=2)


def _scaling(document: Document, figure: Any) -> None:
    """Windows over the spine's length, and windows, seconds and memory over the scan's volume, of the ten sizes."""
    sizes = document["details"]["sizes"]

    def windows(key: str) -> Callable[[Mapping[str, Any]], float]:
        return lambda size: float(size[key]["run"] + size[key]["scouted"])

    def value(key: str) -> Callable[[Mapping[str, Any]], float]:
        return lambda size: float(size[key])

    shown = (
        ("spine_mm", "spine in view, mm", "windows", windows("windows"), windows("exhaustive_windows")),
        ("litres", "scan, litres", "windows", windows("windows"), windows("exhaustive_windows")),
        ("litres", "scan, litres", "s, second scan of a process", value("seconds"), value("exhaustive_seconds")),
        ("litres", "scan, litres", "peak MiB", value("peak_memory_mib"), None),
    )
    for axes, (over, x_label, y_label, along, exhaustive) in zip(figure.subplots(2, 2).flat, shown, strict=True):
        for colour, series in enumerate(dict.fromkeys(size["series"] for size in sizes)):
            rows = [size for size in sizes if size["series"] == series]
            places = [row[over] for row in rows]
            axes.plot(places, [along(row) for row in rows], f"C{colour}o-", label=series)
            if exhaustive is not None:
                axes.plot(places, [exhaustive(row) for row in rows], f"C{colour}x--", label=f"{series}, exhaustive")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
