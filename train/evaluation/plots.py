"""The figures as pictures: confusion, reliability, ROC curves, and errors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import InputError
from train.evaluation.grades import graded_vertebrae
from train.evaluation.measures import Calibration
from train.evaluation.records import Comparison, ScanRecord
from train.evaluation.summary import Summary
from train.metrics import roc_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGION_NAMES = (("C", "cervical"), ("T", "thoracic"), ("L", "lumbar"))


def check_available() -> None:
    """Raise InputError when matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InputError('Plots need matplotlib: pip install "vertscan[train]".') from error


def write_plots(folder: Path, summary: Summary, records: Sequence[ScanRecord]) -> list[str]:
    """Write ``confusion.png``, ``reliability.png``, ``roc.png`` and ``errors.png``; returns their names.

    The folder is made where it is missing. Raises InputError when it can't be.
    """
    whole = [record.whole for record in records]
    pictures = {
        "confusion.png": _confusion(summary),
        "reliability.png": _reliability(summary),
        "roc.png": _roc(records, whole),
        "errors.png": _errors(whole),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); name another place with --report.") from error
    for name, figure in pictures.items():
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        figure.savefig(temporary, format="png", dpi=110)
        temporary.replace(folder / name)
    return list(pictures)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * count, 4.2), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)
    return figure, list(axes[0])


def _confusion(summary: Summary) -> Figure:
    matrix = np.array(summary.grades.confusion_rows_true)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, (axes,) = _panels(1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        axes.text(column, row, str(count), ha="center", va="center", color="white" if share[row, column] > 0.6 else "k")
    axes.set(xticks=range(4), yticks=range(4), xlabel="called grade", ylabel="true grade", title="Genant grades")
    return figure


def _reliability(summary: Summary) -> Figure:
    figure, panels = _panels(3)
    kinds = (("called grade", summary.calibration.grade), ("fracture (grade 2, 3)", summary.calibration.fracture),
             ("centre is a vertebra", summary.calibration.confidence))  # fmt: skip
    for axes, (title, calibration) in zip(panels, kinds, strict=True):
        _reliability_panel(axes, calibration)
        axes.set_title(f"{title}: ECE {calibration.expected_calibration_error:.3f}")
    return figure


def _reliability_panel(axes: Axes, calibration: Calibration) -> None:
    filled = [b for b in calibration.bins if b.share_right is not None]
    largest = max((b.count for b in filled), default=1)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.bar([b.low for b in filled], [b.count / largest for b in filled], 0.1, align="edge", color="0.9")
    axes.plot([b.mean_probability for b in filled], [b.share_right for b in filled], "o-", markersize=4)  # type: ignore[arg-type]
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability", ylabel="share right (grey: how many)")


def _roc(records: Sequence[ScanRecord], whole: Sequence[Comparison]) -> Figure:
    graded = graded_vertebrae([r.patient for r in records], whole)
    figure, (axes,) = _panels(1)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for at_least in (1, 2):
        curve = roc_curve([v.true >= at_least for v in graded], [v.score(at_least) for v in graded])
        axes.plot(*curve, label=f"grade {at_least} or more")
    axes.set(
        xlabel="1 - specificity", ylabel="sensitivity", title="Fracture, per vertebra", xlim=(0, 1), ylim=(0, 1.02)
    )
    axes.legend(loc="lower right")
    return figure


def _errors(whole: Sequence[Comparison]) -> Figure:
    vertebrae = [v for c in whole for v in c.vertebrae]
    figure, (centres, heights) = _panels(2)
    errors = [[v.error_mm for v in vertebrae if v.region == letter and v.error_mm is not None]
              for letter, _ in REGION_NAMES]  # fmt: skip
    names = [name for _, name in REGION_NAMES]
    centres.hist(errors, bins=np.arange(0, 10.5, 0.5).tolist(), stacked=True, label=names)  # type: ignore[arg-type]
    centres.set(xlabel="centre error, mm", ylabel="vertebrae", title="Centres found within 10 mm")
    centres.legend()
    graded = [v for v in vertebrae if v.region != "C"]
    of_heights = np.array([v.height_errors_mm for v in graded if v.height_errors_mm is not None]).reshape(-1, 3)
    heights.hist(np.clip(of_heights, -8, 8), bins=np.arange(-8, 8.5, 0.5).tolist(), histtype="step",
                 label=["anterior", "middle", "posterior"])  # fmt: skip
    heights.set(xlabel="height error, mm (found minus true)", ylabel="vertebrae", title="Heights")
    heights.legend()
    return figure
