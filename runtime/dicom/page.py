"""The report's one page: picture, table, warnings, and what not to trust."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from PIL import Image
from pydicom.dataset import Dataset
from reportlab import rl_config
from reportlab.lib.colors import Color, black, white
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader, simpleSplit
from reportlab.pdfgen.canvas import Canvas

from runtime.dicom.context import NOT_CLINICAL, ResultContext, plain
from runtime.dicom.headers import text_of
from runtime.remarks import on_a_page
from runtime.report import COLUMNS, LEGEND, cells

rl_config.useA85 = 0  # pictures as bytes: as text they take a quarter more, and half a second
WIDTH, LEAST_HEIGHT = A4
MARGIN = 34.0
_LEAST_PICTURE = 170.0
_SCALES = (1.0, 0.92, 0.84, 0.76, 0.68)
"""Sizes of the text that are tried until the page is high enough; then the page grows."""
_RED, _GREY, _STRIPE = Color(0.75, 0.05, 0.05), Color(0.35, 0.35, 0.35), Color(0.95, 0.95, 0.95)
_PLAIN, _BOLD = "Helvetica", "Helvetica-Bold"
_LEFT_OUT = "centre RAS, mm"
IN_HEADER = "(not in this page's alphabet; see the DICOM header)"

CAUTIONS = (
    "Made by software alone; nobody has reviewed it. Look at the images.",
    "Levels can be wrong by one, even with the sacrum in view: count them yourself. Dash: none is probable enough.",
    "Mild fractures are told least well. * marks vertebrae of which network and measurement differ by more than one "
    "grade; no grade does not mean no fracture.",
    "Centres outside the spine happen. Cervical vertebrae and those that the scan's edge cuts get no grade.",
    "HU change with tube voltage and contrast medium: they are no bone density.",
)


@dataclass(frozen=True)
class _Line:
    """A line of text: size in points, font, colour, and a gap above it in points."""

    text: str
    size: float
    font: str = _PLAIN
    colour: Color = black
    gap: float = 0.0

    @property
    def height(self) -> float:
        """Points, with what is left free above and below."""
        return self.gap + 1.28 * self.size


def draw_page(context: ResultContext, picture: Image.Image) -> bytes:
    """The page as a PDF, the same bytes for the same findings on the same day.

    A4, one page; where there is too much to say for A4 it is higher.

    Args:
        context: of the run.
        picture: the overview, RGB.
    """
    head = _head(context)
    above = sum(line.height for line in head)
    for scale in _SCALES:
        tail = _tail(context, scale)
        below = _table_height(context, scale) + sum(line.height for line in tail)
        room = LEAST_HEIGHT - 2 * MARGIN - above - below - 18
        if room >= _LEAST_PICTURE:
            break
    height = max(LEAST_HEIGHT, LEAST_HEIGHT - room + _LEAST_PICTURE)
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=(WIDTH, height), invariant=1, pageCompression=1)
    canvas.setTitle("Vertebrae on CT")
    canvas.setCreator("vertscan")
    y = _draw_lines(canvas, head, height - MARGIN)
    y = _draw_picture(canvas, picture, y - 4, max(room, _LEAST_PICTURE))
    y = _draw_table(canvas, context, y - 8, scale)
    _draw_lines(canvas, tail, y - 4)
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def _head(context: ResultContext) -> list[_Line]:
    """Title, what the bundle is not for, and whose images these are."""
    findings, header = context.findings, context.images.first
    count = len(findings.vertebrae)
    found = "no vertebra was found" if not count else "1 vertebra" if count == 1 else f"{count} vertebrae"
    lines = [_Line(f"Vertebrae on CT: {found}", 16, _BOLD)]
    if context.notice:
        lines.append(_Line(plain(context.notice).upper(), 12, _BOLD, _RED))
    z, y, x = findings.scan.shape_zyx
    spacing = " x ".join(f"{mm:.2f}" for mm in findings.scan.spacing_mm)
    lines += [
        _Line(f"Patient: {_patient_name(header)}     ID: {_field(header, 'PatientID')}", 9.5),
        _Line(
            f"Born: {_date(header, 'PatientBirthDate')}     Sex: {_field(header, 'PatientSex')}     "
            f"Study: {_date(header, 'StudyDate')}     Accession number: {_field(header, 'AccessionNumber')}",
            9.5,
        ),
        _Line(
            f"Series {_field(header, 'SeriesNumber')}: {x} x {y} x {z} voxels of {spacing} mm     "
            f"Report made {datetime.now():%Y-%m-%d}",
            9.5,
        ),
    ]
    return lines


def _tail(context: ResultContext, scale: float) -> list[_Line]:
    """Warnings, cautions and what made the report, below the table."""
    findings = context.findings
    size = 8.5 * scale
    lines: list[_Line] = []
    if findings.vertebrae:
        lines += [_Line(part, 0.85 * size, _PLAIN, _GREY) for part in _split(" ".join(LEGEND), 0.85 * size)]
    remarks = [text for text in on_a_page(findings.warnings) if text != context.notice]
    if remarks:
        lines.append(_Line("Warnings", size + 1, _BOLD, gap=0.6 * size))
        lines += [_Line(part, size) for text in remarks for part in _bulleted(text, size)]
    lines.append(_Line("What not to trust", size + 1, _BOLD, gap=0.6 * size))
    lines += [_Line(part, size) for text in CAUTIONS for part in _bulleted(text, size)]
    engine = findings.engine
    made = (
        f"vertscan, bundle {context.bundle_label} ({findings.bundle.sha256[:12]}), {engine.name} {engine.version} "
        f"{engine.precision}. {NOT_CLINICAL if context.notice else ''}"
    )
    small = 0.85 * size
    lines += [_Line(part, small, _PLAIN, _GREY, gap=0.5 * size) for part in _split(plain(made).rstrip(), small)]
    return lines


def _bulleted(text: str, size: float) -> list[str]:
    first, *rest = _split(plain(text), size, indent=8)
    return [f"- {first}", *(f"  {part}" for part in rest)]


def _split(text: str, size: float, *, indent: float = 0.0) -> list[str]:
    return list(simpleSplit(text, _PLAIN, size, WIDTH - 2 * MARGIN - indent)) or [""]


def _field(header: Dataset, keyword: str) -> str:
    return _shown(text_of(header, keyword))


def _date(header: Dataset, keyword: str) -> str:
    """A date as 2026-04-01, or as it is where it is none."""
    text = text_of(header, keyword)
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else _shown(text)


def _patient_name(header: Dataset) -> str:
    """Family name, given names; the representation in Latin letters where there are several."""
    family, *others = text_of(header, "PatientName").split("=")[0].split("^")
    return _shown(", ".join(part for part in (family.strip(), " ".join(filter(None, others[:2])).strip()) if part))


def _shown(text: str) -> str:
    """The text if the page's font has it all; a name with question marks in it would be another name."""
    try:
        text.encode("cp1252")
    except UnicodeEncodeError:
        return IN_HEADER
    return (text if text.isprintable() else IN_HEADER)[:90] or "-"


def _rows(context: ResultContext) -> list[list[str]]:
    keep = [i for i, (title, _) in enumerate(COLUMNS) if title != _LEFT_OUT]
    titles = [title for title, _ in COLUMNS]
    rows = [titles, *(cells(vertebra) for vertebra in context.findings.vertebrae)]
    return [[row[i] for i in keep] for row in rows]


def _table_height(context: ResultContext, scale: float) -> float:
    return 12.0 * scale * len(_rows(context)) if context.findings.vertebrae else 0.0


def _draw_lines(canvas: Canvas, lines: Sequence[_Line], y: float) -> float:
    """Draw lines from the height ``y`` downwards; returns where they end."""
    for line in lines:
        canvas.setFont(line.font, line.size)
        canvas.setFillColor(line.colour)
        canvas.drawString(MARGIN, y - line.gap - line.size, line.text)
        y -= line.height
    return y


def _draw_picture(canvas: Canvas, picture: Image.Image, y: float, room: float) -> float:
    """Draw the picture as large as there is room for, in the middle; returns where it ends."""
    packed = io.BytesIO()
    picture.convert("RGB").save(packed, "JPEG", quality=92, subsampling=0)
    packed.seek(0)
    scale = min((WIDTH - 2 * MARGIN) / picture.width, room / picture.height)
    width, height = scale * picture.width, scale * picture.height
    canvas.drawImage(ImageReader(packed), (WIDTH - width) / 2, y - height, width, height)
    return y - height


def _draw_table(canvas: Canvas, context: ResultContext, y: float, scale: float) -> float:
    """Draw a row per vertebra; returns where they end."""
    if not context.findings.vertebrae:
        return y
    rows = _rows(context)
    widths = [width for title, width in COLUMNS if title != _LEFT_OUT]
    unit = (WIDTH - 2 * MARGIN) / sum(widths)
    step, size = 12.0 * scale, 8.5 * scale
    for number, row in enumerate(rows):
        canvas.setFillColor(_STRIPE if number % 2 == 0 else white)
        canvas.rect(MARGIN, y - step, WIDTH - 2 * MARGIN, step, stroke=0, fill=1)
        canvas.setFillColor(black)
        canvas.setFont(_BOLD if number == 0 else _PLAIN, size)
        right = MARGIN
        for text, width in zip(row, widths, strict=True):
            right += width * unit
            canvas.drawRightString(right - 2, y - step + 0.28 * step, plain(text))
        y -= step
    return y
