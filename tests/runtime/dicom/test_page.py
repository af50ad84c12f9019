from __future__ import annotations

import re
import zlib
from dataclasses import replace

import pytest
from PIL import Image

from runtime.dicom.page import IN_HEADER, LEAST_HEIGHT, draw_page
from runtime.dicom.writer import _context
from tests.runtime.dicom.series import analysed, vertebrae

PICTURE = Image.new("RGB", (1500, 1100), (40, 40, 60))


@pytest.fixture
def context(tmp_path):
    return _context(analysed(tmp_path / "scan"))


def _unpacked(stream: bytes) -> bytes:
    return zlib.decompress(stream.rstrip(b"\r\n")) if stream[:1] == b"x" else b""


def text_of(pdf: bytes) -> str:
    """What is drawn as text, one piece per line."""
    drawn = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        if b"BT" not in (content := _unpacked(stream)):
            continue  # a picture or a font
        drawn += re.findall(rb"\((.*?)(?<!\\)\) Tj", content)
    unescaped = [re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), piece) for piece in drawn]
    return "\n".join(re.sub(rb"\\(.)", rb"\1", piece).decode("cp1252") for piece in unescaped)


def height_of(pdf: bytes) -> float:
    (box,) = re.findall(rb"/MediaBox \[ 0 0 [\d.]+ ([\d.]+) \]", pdf)  # exactly one: one page
    return float(box)


def test_the_page_says_whose_it_is_what_was_found_and_what_not_to_trust(context):
    pdf = draw_page(context, PICTURE)
    text = text_of(pdf)
    for part in (
        *("Vertebrae on CT: 6 vertebrae", "TRAINED ON SYNTHETIC DATA. NOT FOR CLINICAL USE."),
        *("Müller, Grete Ida", "ID: P-17", "1950-02-03", "2026-04-01", "What not to trust", "bundle balls 0.0.1"),
        *("cut by the edge of the scan", "T13 (0.88)", "2 (0.60)", "1/2 *", "18.1/19.0/23.4", "27 % crush"),
    ):
        assert part in text, part
    assert "Mueller^Grete" not in text  # what the folder was called
    assert height_of(pdf) == pytest.approx(LEAST_HEIGHT, abs=0.01)


def test_an_unsure_level_shows_and_the_columns_are_explained(context):
    unsure = replace(context.findings.vertebrae[1], level_confidence=0.55)
    text = text_of(draw_page(replace(context, findings=replace(context.findings, vertebrae=(unsure,))), PICTURE))
    assert "T12? (0.55)" in text
    assert "? below 0.8" in text.replace("\n", " ")


def test_of_many_series_that_were_not_read_the_page_tells_the_first_and_how_many_more_there_are(context):
    reasons = tuple(f"Not read: series {number}: too thick." for number in range(1, 13))
    text = text_of(draw_page(replace(context, findings=replace(context.findings, warnings=reasons)), PICTURE))
    assert [number for number in range(1, 13) if f"Not read: series {number}:" in text] == list(range(1, 9))
    assert "- 4 more series were not read" in text


def test_the_same_findings_give_the_same_page(context):
    assert draw_page(context, PICTURE) == draw_page(context, PICTURE)


def test_a_clinical_bundle_s_page_has_no_notice(context):
    assert "CLINICAL" not in text_of(draw_page(replace(context, notice=""), PICTURE))


def test_what_does_not_fit_makes_the_page_higher_and_nothing_is_left_out(context):
    many = tuple(replace(vertebrae()[1], index=n, level=None, level_confidence=None) for n in range(1, 61))
    warnings = tuple(f"Warning number {n}." for n in range(40))
    pdf = draw_page(replace(context, findings=replace(context.findings, vertebrae=many, warnings=warnings)), PICTURE)
    text = text_of(pdf)
    assert height_of(pdf) > LEAST_HEIGHT
    assert "\n60\n" in text
    assert all(warning in text for warning in warnings)


@pytest.mark.parametrize(("name", "shown"), [("Doe^John", "Doe, John"), ("", "-"), ("王^小东", IN_HEADER)])
def test_a_name_is_shown_whole_or_not_at_all(context, name, shown):
    context.images.first.PatientName = name
    assert f"Patient: {shown} " in text_of(draw_page(context, PICTURE))
