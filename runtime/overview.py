"""The picture of a scan's findings: curved sagittal and coronal views with every vertebra outlined and graded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from runtime.findings import Findings, Vertebra
from runtime.kernels.threads import each_in_threads
from runtime.report import UNSURE_BELOW, shown_level
from runtime.views import View, curved_views
from runtime.volume import Volume

LOW_HU, HIGH_HU = -200.0, 600.0
VIEW_HEIGHT, VIEWS_WIDTH = 1100, 1250
COLUMN_WIDTH, MARGIN, HEADER_HEIGHT, FOOTER_HEIGHT = 250, 16, 96, 84
LEAST_WIDTH, LEAST_ROWS, LINE = 900, 120, 20
"""LINE: height of a vertebra's label; where there are more labels than a view has room for, the picture is taller."""
LEADER_END, LABEL_INDENT = 12, 18
"""Where the column between the views has leader lines, and where its labels begin and end, from its edges."""
TITLE_SIZE, LABEL_SIZE, DETAIL_SIZE, LEAST_SIZE = 16, 17, 14, 10
"""Of the fonts; text that is too wide for its place is smaller, down to the least, and only then shortened."""
FILL = 13
"""Opacity of a mask's inside, of 255: enough to see what belongs together, too little to hide the bone."""
SOFTENED = 8
"""Pixels around a mask within which its softened outline ends."""

RGB = tuple[int, int, int]
BACKGROUND: RGB = (16, 16, 18)
TEXT: RGB = (235, 235, 235)
FAINT: RGB = (150, 150, 155)
RED: RGB = (255, 80, 70)
UNGRADED: RGB = (225, 225, 225)
GRADE_COLOURS: tuple[RGB, ...] = ((86, 180, 233), (240, 228, 66), (245, 140, 0), (235, 60, 150))
"""For grades 0..3: blue, yellow, orange, pink; apart in hue and lightness for the usual colour-blindnesses."""
LEGEND = (
    f"L3?: a level of less than {UNSURE_BELOW:g} probability;  p: of the grade;  "
    "mm: anterior/middle/posterior height;  %: greatest height loss, with its shape"
)
GRADE_WORDS = ("none", "mild", "moderate", "severe")


def draw_overview(
    volume: Volume, labels: npt.NDArray[np.uint8], findings: Findings, *, notice: str = ""
) -> Image.Image:
    """The overview as an RGB image, square pixels, the same scale in both views.

    Args:
        volume: the scan.
        labels: (z, y, x) uint8 on its grid; the values are the vertebrae's ``mask_label``.
        findings: of the scan.
        notice: red line at the bottom, ``""`` for none.
    """
    vertebrae = findings.vertebrae
    centres = [v.centre_ras_mm for v in vertebrae]
    sagittal, coronal = curved_views(
        volume,
        labels,
        centres,
        label_count=max((v.mask_label for v in vertebrae), default=0),
        max_height=VIEW_HEIGHT,
        max_width=VIEWS_WIDTH,
    )
    column = COLUMN_WIDTH if vertebrae else MARGIN
    rows = max(sagittal.hu.shape[0], LINE * len(vertebrae) + 20, LEAST_ROWS)
    width = max(LEAST_WIDTH, 2 * MARGIN + sagittal.hu.shape[1] + column + coronal.hu.shape[1])
    left = (width - sagittal.hu.shape[1] - column - coronal.hu.shape[1]) // 2
    image = Image.new("RGB", (width, HEADER_HEIGHT + rows + FOOTER_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    column_left = left + sagittal.hu.shape[1]
    coronal_left = column_left + column
    pictures = each_in_threads(lambda view: _picture(view, vertebrae), (sagittal, coronal))
    for picture, beginning in zip(pictures, (left, coronal_left), strict=True):
        image.paste(picture, (beginning, HEADER_HEIGHT))
    curved = ", curved along the spine" if len(vertebrae) > 1 else "" if vertebrae else ", middle of the scan"
    _title(draw, "Sagittal", curved, left, coronal_left - MARGIN)
    _title(draw, "Coronal", curved, coronal_left, width - MARGIN)
    _frame(draw, sagittal, left, "AP")
    _frame(draw, coronal, coronal_left, "RL")
    _label_column(draw, sagittal, coronal, vertebrae, rows, left, column_left, coronal_left)
    _scale_bar(draw, sagittal, left)
    _header(draw, findings, width)
    _footer(draw, vertebrae, notice, image.size)
    return image


def _picture(view: View, vertebrae: Sequence[Vertebra]) -> Image.Image:
    """The grey values with every vertebra outlined."""
    grey = np.clip((view.hu - LOW_HU) / (HIGH_HU - LOW_HU), 0.0, 1.0)
    picture = Image.fromarray((grey * 255.0).astype(np.uint8)).convert("RGB")
    for vertebra in vertebrae:
        mask = view.masks.get(vertebra.mask_label)
        if mask is not None:
            _outline(picture, mask, _colour(vertebra))
    return picture


def _outline(picture: Image.Image, mask: npt.NDArray[np.bool_], colour: RGB) -> None:
    """Tint a mask's inside and draw its edge; only the part of the picture around the mask is touched."""
    left, top, right, bottom = Image.fromarray(mask.view(np.uint8)).getbbox() or (0, 0, 0, 0)
    box = (max(0, left - SOFTENED), max(0, top - SOFTENED), right + SOFTENED, bottom + SOFTENED)
    part = mask[box[1] : box[3], box[0] : box[2]]
    picture.paste(colour, box[:2], Image.fromarray(part.astype(np.uint8) * np.uint8(FILL)))
    ring = Image.fromarray(_ring(part).astype(np.uint8) * np.uint8(255)).filter(ImageFilter.GaussianBlur(0.6))
    picture.paste(colour, box[:2], ring)


def _ring(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask's outer two pixels."""
    inner = mask
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _colour(vertebra: Vertebra) -> RGB:
    return UNGRADED if vertebra.grade is None else GRADE_COLOURS[vertebra.grade]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """Text with only what the built-in font has."""
    return text.encode("ascii", "replace").decode("ascii")


def _name(vertebra: Vertebra) -> str:
    return shown_level(vertebra) or str(vertebra.index)


def _title(draw: ImageDraw.ImageDraw, plane: str, more: str, left: int, right: int) -> None:
    """A view's title above it, from ``left`` to ``right`` at most; of a narrow view perhaps its plane alone."""
    has_room = _font(LEAST_SIZE).getlength(plane + more) <= right - left
    text, font = _fitted(plane + more if has_room else plane, TITLE_SIZE, right - left)
    draw.text((left, HEADER_HEIGHT - 8), text, TEXT, font, anchor="ls")


def _frame(draw: ImageDraw.ImageDraw, view: View, left: int, sides: str) -> None:
    """A view's edge, and orientation letters inside it: ``sides`` names its left and right."""
    rows, columns = view.hu.shape
    top = HEADER_HEIGHT
    draw.rectangle((left - 1, top - 1, left + columns, top + rows), outline=(70, 70, 74))
    high_enough = rows >= LEAST_ROWS
    for letter, place, anchor in (
        (sides[0], (left + 6, top + rows // 2), "lm"),
        (sides[1], (left + columns - 6, top + rows // 2), "rm"),
        ("S" if high_enough else "", (left + columns * 9 // 10, top + 5), "mt"),
        ("I" if high_enough else "", (left + columns * 9 // 10, top + rows - 6), "mb"),
    ):
        draw.text(place, letter, TEXT, _font(18), anchor=anchor, stroke_width=2, stroke_fill=BACKGROUND)


def _label_column(
    draw: ImageDraw.ImageDraw,
    sagittal: View,
    coronal: View,
    vertebrae: Sequence[Vertebra],
    rows: int,
    sagittal_left: int,
    column_left: int,
    coronal_left: int,
) -> None:
    """Number, grade and height loss of each vertebra between the views, with lines to both; numbers in the views."""
    if not vertebrae:
        return
    wanted = [HEADER_HEIGHT + sagittal.row_of(v.centre_ras_mm[2]) for v in vertebrae]
    size = 17 if sagittal.pixels_per_mm > 2.0 else 14
    gap = min(36.0, (rows - 20) / len(vertebrae))
    placed = spread(wanted, gap=gap, low=HEADER_HEIGHT + 10, high=HEADER_HEIGHT + rows - 10)
    for vertebra, row, line in zip(vertebrae, wanted, placed, strict=True):
        x, y, _ = vertebra.centre_ras_mm
        ends = (
            (sagittal_left + _right_end(sagittal, vertebra, sagittal.column_of(y)), row),
            (coronal_left + _left_end(coronal, vertebra, coronal.column_of(x)), row),
        )
        dim = tuple(part * 6 // 10 for part in _colour(vertebra))
        draw.line([ends[0], (column_left - 1, row), (column_left + LEADER_END, line)], fill=dim, width=1)
        draw.line([(column_left + COLUMN_WIDTH - LEADER_END, line), (coronal_left, row), ends[1]], fill=dim, width=1)
        for view, left, column in (
            (sagittal, sagittal_left, sagittal.column_of(y)),
            (coronal, coronal_left, coronal.column_of(x)),
        ):
            if 0 <= column < view.hu.shape[1]:
                place = (left + column, row)
                draw.text(place, _name(vertebra), TEXT, _font(size), anchor="mm", stroke_width=2, stroke_fill=(0, 0, 0))
        _label(draw, vertebra, column_left + LABEL_INDENT, line, two_lines=gap >= 34)


def _right_end(view: View, vertebra: Vertebra, fallback: float) -> float:
    columns = _columns_at(view, vertebra)
    return float(columns[-1]) if len(columns) else float(np.clip(fallback, 0, view.hu.shape[1]))


def _left_end(view: View, vertebra: Vertebra, fallback: float) -> float:
    columns = _columns_at(view, vertebra)
    return float(columns[0]) if len(columns) else float(np.clip(fallback, 0, view.hu.shape[1]))


def _columns_at(view: View, vertebra: Vertebra) -> npt.NDArray[np.intp]:
    """Columns of a vertebra's mask at the height of its centre."""
    mask = view.masks.get(vertebra.mask_label)
    if mask is None:
        return np.empty(0, np.intp)
    row = int(np.clip(view.row_of(vertebra.centre_ras_mm[2]), 0, len(mask) - 1))
    return np.flatnonzero(mask[row])


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions in the same order, near the wanted ones, at least ``gap`` apart and within ``low`` to ``high``.

    Where there is not room for all, they keep their distance and run over ``high``.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    limit = low
    for i in order:
        placed[i] = max(wanted[i], limit)
        limit = placed[i] + gap
    limit = max(high, low + gap * (len(wanted) - 1))
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def _label(draw: ImageDraw.ImageDraw, vertebra: Vertebra, left: float, row: float, *, two_lines: bool) -> None:
    """What is to know of a vertebra; where there is room for one line only, the first of it and that it is cut."""
    room = COLUMN_WIDTH - 2 * LABEL_INDENT
    headline = f"{_name(vertebra)}   grade {'-' if vertebra.grade is None else vertebra.grade}"
    if vertebra.height_loss is not None:
        headline += f"   {vertebra.shape or 'loss'} {100 * vertebra.height_loss:.0f} %"
    details = [] if vertebra.complete else ["cut"]
    if not two_lines:
        text, font = _fitted("   ".join([headline, *details]), LABEL_SIZE, room)
        draw.text((left, row), text, _colour(vertebra), font, anchor="lm")
        return
    if vertebra.grade is not None and vertebra.grade_probabilities is not None:
        details.append(f"p {vertebra.grade_probabilities[vertebra.grade]:.2f}")
    if vertebra.grades_differ and vertebra.network is not None and vertebra.measured is not None:
        details.append(f"network {vertebra.network.grade}, mask {vertebra.measured.grade}")
    elif vertebra.heights_mm is not None:
        h = vertebra.heights_mm
        details.append(f"{h.anterior:.0f}/{h.middle:.0f}/{h.posterior:.0f} mm")
    text, font = _fitted(headline, LABEL_SIZE, room)
    if not details:
        draw.text((left, row), text, _colour(vertebra), font, anchor="lm")
        return
    draw.text((left, row - 1), text, _colour(vertebra), font, anchor="ls")
    text, font = _fitted("   ".join(details), DETAIL_SIZE, room)
    draw.text((left, row + 3), text, FAINT, font, anchor="lt")


def _scale_bar(draw: ImageDraw.ImageDraw, view: View, left: int) -> None:
    """A bar of 50 mm, or less where the view is small, at the lower left of a view."""
    rows, columns = view.hu.shape
    length_mm = next((mm for mm in (50, 20, 10, 5) if mm * view.pixels_per_mm < 0.4 * columns), 1)
    length = length_mm * view.pixels_per_mm
    x, y = left + 14, HEADER_HEIGHT + max(rows, LEAST_ROWS) - 16
    draw.rectangle((x - 2, y - 2, x + length + 2, y + 4), fill=BACKGROUND)
    draw.rectangle((x, y, x + length, y + 2), fill=TEXT)
    draw.text((x, y - 5), f"{length_mm} mm", TEXT, _font(15), anchor="ls", stroke_width=2, stroke_fill=BACKGROUND)


def _header(draw: ImageDraw.ImageDraw, findings: Findings, width: int) -> None:
    count = len(findings.vertebrae)
    found = "No vertebra was found" if not count else "1 vertebra" if count == 1 else f"{count} vertebrae"
    draw.text(
        (MARGIN, 34), _fit(f"{findings.scan.name}:  {found}", 24, width - 2 * MARGIN), TEXT, _font(24), anchor="ls"
    )
    said = (
        f"bundle {findings.bundle.name} {findings.bundle.version}, {findings.engine.name} {findings.engine.precision},"
        f" window {LOW_HU:.0f} to {HIGH_HU:.0f} HU"
    )
    draw.text((MARGIN, 58), _fit(said, 15, width - 2 * MARGIN), FAINT, _font(15), anchor="ls")


def _fitted(text: str, size: int, room: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """Text, and the largest font up to ``size`` in which ``room`` holds it; in the least font it is shortened."""
    text = _plain(text)
    while size > LEAST_SIZE and _font(size).getlength(text) > room:
        size -= 1
    return _fit(text, size, room), _font(size)


def _fit(text: str, size: int, room: int) -> str:
    """Text shortened to so many pixels."""
    text = _plain(text)
    font = _font(size)
    while len(text) > 4 and font.getlength(text) > room:
        text = text[:-4] + "..."
    return text


def _footer(draw: ImageDraw.ImageDraw, vertebrae: Sequence[Vertebra], notice: str, size: tuple[int, int]) -> None:
    """What the colours mean, and in red what must be said of the bundle."""
    top = size[1] - FOOTER_HEIGHT
    left = float(MARGIN)
    if vertebrae:
        keys = [*(f"grade {g} ({word})" for g, word in enumerate(GRADE_WORDS)), "no grade"]
        for text, colour in zip(keys, (*GRADE_COLOURS, UNGRADED), strict=True):
            draw.rectangle((left, top + 16, left + 14, top + 30), outline=colour, width=3)
            draw.text((left + 20, top + 23), text, TEXT, _font(15), anchor="lm")
            left += 20 + _font(15).getlength(text) + 24
        if not all(v.complete for v in vertebrae):
            draw.text((left, top + 23), "cut: by the scan's edge", FAINT, _font(15), anchor="lm")
        draw.text((MARGIN, top + 42), _fit(LEGEND, 13, size[0] - 2 * MARGIN), FAINT, _font(13), anchor="lm")
    if notice:
        draw.text((size[0] / 2, size[1] - 24), _fit(notice, 22, size[0] - 2 * MARGIN), RED, _font(22), anchor="mm")
