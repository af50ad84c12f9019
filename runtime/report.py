"""The table that the command line prints: plain ASCII, at most 120 columns."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.findings import Findings, Vertebra
from runtime.remarks import on_a_page

COLUMNS = (
    ("#", 3),
    ("level", 10),
    ("centre RAS, mm", 22),
    ("grade", 8),
    ("net/mask", 8),
    ("ant/mid/post mm", 16),
    ("loss", 10),
    ("ml", 6),
    ("HU", 5),
    ("conf", 5),
    ("scan", 5),
)
"""Titles and widths of the table's columns."""

UNSURE_BELOW = 0.8
"""Levels of a lower probability are shown with a question mark."""
LEGEND = (
    f"level: with its probability, ? below {UNSURE_BELOW:g}; grade: Genant's 0 to 3, with its probability;",
    "net/mask: that of the network and the measured one, * more than one apart; ant/mid/post mm: heights of the body;",
    "loss: greatest height loss, and shape; ml, HU: volume and mean of the vertebra; conf: of being one;",
    "scan: whole, or cut by its edge; -: none",
)
"""What the columns mean, in lines of at most 120 characters."""
_SHAPES = {"wedge": "wedge", "biconcave": "bicon", "crush": "crush", None: ""}


def table(findings: Findings, *, notice: str = "") -> str:
    """The findings as text for a terminal, without a newline at the end.

    Args:
        findings: what to show.
        notice: what must be said of the bundle, ``""`` for one that is fit for clinical use.
    """
    lines = [*_header(findings), ""]
    if findings.vertebrae:
        lines += [_row([title for title, _ in COLUMNS]), "-" * len(_row(["-"] * len(COLUMNS)))]
        lines += [_row(cells(vertebra)) for vertebra in findings.vertebrae]
        lines += ["", *LEGEND]
    else:
        lines.append("No vertebra was found.")
    said_above = {notice, "No vertebra was found."}
    remarks = [text for text in on_a_page(findings.warnings) if text not in said_above]
    if remarks:
        lines += ["", *(f"! {text}" for text in remarks)]
    if notice:
        lines += ["", notice.upper()]
    return _ascii("\n".join(lines))


def _header(findings: Findings) -> list[str]:
    scan, engine = findings.scan, findings.engine
    z, y, x = scan.shape_zyx
    spacing = " x ".join(f"{s:.2f}" for s in scan.spacing_mm)
    count = len(findings.vertebrae)
    return [
        f"{scan.name}: {count} {'vertebra' if count == 1 else 'vertebrae'}"
        f"   ({x} x {y} x {z} voxels of {spacing} mm, {scan.orientation})",
        f"bundle {findings.bundle.name} {findings.bundle.version}; {engine.name} {engine.version}, "
        f"{engine.precision} on {engine.device}; {findings.timings_s['total']:.1f} s, "
        f"{findings.peak_memory_mb:.0f} MiB",
    ]


def _row(cells: Sequence[str]) -> str:
    return "  ".join(cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True)).rstrip()


def cells(vertebra: Vertebra) -> list[str]:
    """What each of ``COLUMNS`` says of a vertebra."""
    grade = "-"
    if vertebra.grade is not None:
        grade = str(vertebra.grade)
        if vertebra.grade_probabilities is not None:
            grade += f" ({vertebra.grade_probabilities[vertebra.grade]:.2f})"
    heights = vertebra.heights_mm
    return [
        str(vertebra.index),
        _level(vertebra),
        " ".join(f"{mm:6.1f}" for mm in vertebra.centre_ras_mm),
        grade,
        _witnesses(vertebra),
        "-" if heights is None else f"{heights.anterior:.1f}/{heights.middle:.1f}/{heights.posterior:.1f}",
        _loss(vertebra),
        f"{vertebra.volume_ml:.1f}",
        "-" if vertebra.mean_hu is None else f"{vertebra.mean_hu:.0f}",
        f"{vertebra.confidence:.2f}",
        "whole" if vertebra.complete else "cut",
    ]


def _witnesses(vertebra: Vertebra) -> str:
    """The network's grade and the measured one, marked where they are more than one apart."""
    grades = [None if one is None else one.grade for one in (vertebra.network, vertebra.measured)]
    if vertebra.grade is None or grades[0] is None:
        return "-"
    return "/".join("-" if grade is None else str(grade) for grade in grades) + (" *" if vertebra.grades_differ else "")


def _loss(vertebra: Vertebra) -> str:
    if vertebra.height_loss is None:
        return "-"
    return f"{100 * vertebra.height_loss:.0f} % {_SHAPES[vertebra.shape]}".rstrip()


def shown_level(vertebra: Vertebra) -> str | None:
    """The level, with a question mark where it is improbable: ``"L3"``, ``"L3?"``; None where there is none."""
    unsure = vertebra.level_confidence is not None and vertebra.level_confidence < UNSURE_BELOW
    return f"{vertebra.level}?" if vertebra.level and unsure else vertebra.level


def _level(vertebra: Vertebra) -> str:
    level = shown_level(vertebra)
    if level is None:
        return "-"
    return level if vertebra.level_confidence is None else f"{level} ({vertebra.level_confidence:.2f})"


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")
