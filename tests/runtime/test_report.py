from __future__ import annotations

import io
import os
import struct
import sys
from dataclasses import replace

import pytest

from runtime.engines.base import EngineInfo
from runtime.findings import COMBINED, BundleInfo, Findings, Heights, Measured, NetworkOpinion, ScanInfo, Vertebra
from runtime.progress import NoProgress, TerminalLine, TerminalProgress, format_duration
from runtime.remarks import on_a_page
from runtime.report import LEGEND, table

NOTICE = "Trained on synthetic data. Not for clinical use."
WHOLE = Vertebra(
    index=1,
    level="T10",
    level_confidence=0.97,
    centre_ras_mm=(-123.4, -210.0, -1045.5),
    confidence=1.0,
    complete=True,
    grade=3,
    grade_probabilities=(0.0, 0.0, 0.0, 1.0),
    grade_from=COMBINED,
    grades_differ=True,
    no_grade_reason=None,
    shape="biconcave",
    heights_mm=Heights(20, 15, 21.2),
    expected_heights_mm=Heights(25, 25, 25),
    height_loss=0.41,
    network=NetworkOpinion(3, (0.0, 0.0, 0.0, 1.0), Heights(20, 14, 21), 0.44),
    measured=Measured(0, 0.12, Heights(20, 16, 21)),
    volume_ml=123.4,
    mean_hu=-100.0,
    trabecular_hu=-120.0,
    mask_label=1,
)
CUT = replace(
    WHOLE,
    index=2,
    level=None,
    level_confidence=None,
    complete=False,
    grade=None,
    grade_probabilities=None,
    grade_from=None,
    grades_differ=False,
    no_grade_reason="the edge of the scan cuts the body",
    shape=None,
    heights_mm=None,
    expected_heights_mm=None,
    height_loss=None,
    network=None,
    measured=None,
    mean_hu=None,
    trabecular_hu=None,
    mask_label=2,
)
FINDINGS = Findings(
    scan=ScanInfo("patient Ł", "", (600, 512, 512), (0.7, 0.7, 1.25), "LPS"),
    bundle=BundleInfo("default", "1.0", "0" * 64),
    engine=EngineInfo("openvino", "2026.4", "fp32", "CPU", "fastest"),
    timings_s={"total": 12.34},
    peak_memory_mb=321.5,
    warnings=(NOTICE, "Slices are thick."),
    vertebrae=(WHOLE, CUT),
)


def test_of_many_series_that_were_not_read_the_table_tells_the_first_and_how_many_more_there_are():
    reasons = tuple(f"Not read: series {number}: too thick." for number in range(1, 13))
    text = table(replace(FINDINGS, warnings=("Of 13 CT series, series 20 was read.", *reasons, "Slices are thick.")))
    remarks = [line[2:] for line in text.splitlines() if line.startswith("! ")]
    assert (remarks[0], remarks[-1]) == ("Of 13 CT series, series 20 was read.", "Slices are thick.")
    assert remarks[1:9] == list(reasons[:8])
    (more,) = remarks[9:-1]
    assert more.startswith("4 more series were not read; findings.json")
    assert "python -m runtime.series PATH" in more
    few = (*reasons[:8], "Slices are thick.")
    assert on_a_page(few) == list(few)


def test_the_table_is_ascii_narrow_and_aligned():
    text = table(FINDINGS, notice=NOTICE)
    lines = text.splitlines()
    assert text.isascii()
    assert max(map(len, lines)) <= 120
    head = next(i for i, line in enumerate(lines) if "centre RAS" in line)
    assert len(lines[head]) == len(lines[head + 1]) == len(lines[head + 2]) == len(lines[head + 3])


def test_the_table_tells_each_vertebra():
    lines = table(FINDINGS, notice=NOTICE).splitlines()
    assert "2 vertebrae" in lines[0]
    row = next(line for line in lines if "T10" in line)
    for part in (
        "T10 (0.97)",
        "-1045.5",
        "3 (1.00)",
        "20.0/15.0/21.2",
        "41 % bicon",
        "3/0 *",
        "123.4",
        "-100",
        "1.00",
        "whole",
    ):
        assert part in row
    assert sum(line.rstrip().endswith("cut") for line in lines) == 1


def test_improbable_levels_have_a_question_mark_and_columns_a_legend():
    unsure = replace(WHOLE, level_confidence=0.62)
    text = table(replace(FINDINGS, vertebrae=(unsure, replace(WHOLE, index=2))))
    assert "T10? (0.62)" in text
    assert text.count("?") == 2 + text.count("? below")  # the name's letter that ASCII lacks
    for title in ("level", "grade", "net/mask", "ant/mid/post mm", "loss", "ml, HU", "conf", "scan"):
        assert f"{title}: " in " ".join(LEGEND)
    assert not any(line in table(replace(FINDINGS, vertebrae=())) for line in LEGEND)


def test_the_notice_is_last_and_warnings_are_told_once():
    text = table(FINDINGS, notice=NOTICE)
    assert text.splitlines()[-1] == NOTICE.upper()
    assert text.count("! ") == 1
    assert "CLINICAL" not in table(replace(FINDINGS, warnings=()), notice="")


def test_no_vertebra_is_said_once():
    text = table(replace(FINDINGS, vertebrae=(), warnings=("No vertebra was found.",)))
    assert text.count("No vertebra was found.") == 1


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s")])
def test_durations_are_said_as_people_say_them(seconds, text):
    assert format_duration(seconds) == text


def test_progress_rewrites_one_line_and_leaves_it_clean():
    stream = io.StringIO()
    progress = TerminalProgress(stream, "scan", interval_s=0.0)
    progress.stage("locate")
    progress.step(1, 4)
    progress.step(4, 4)
    progress.finish()
    text = stream.getvalue()
    assert "locate 1/4, " in text
    assert "left" in text
    assert "locate 4/4" in text
    assert "\n" not in text
    last_shown = text.rstrip("\r").split("\r")[-1]
    assert last_shown.strip() == ""
    assert len(last_shown) >= len("scan: locate 4/4")


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_progress_keeps_to_one_line_of_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    line = TerminalLine(stream)
    line.show("x" * 300)
    monkeypatch.setenv("COLUMNS", "30")  # the window is made smaller
    line.show("y" * 300)
    shown = stream.getvalue().split("\r")[1:]
    assert [len(text) for text in shown] == [columns - 1, 29]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a terminal")
def test_progress_takes_the_width_of_its_own_terminal_wherever_stdout_goes(monkeypatch):
    import fcntl
    import termios

    monkeypatch.setenv("COLUMNS", "200")
    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(terminal, "w") as stream:
        TerminalLine(stream).show("x" * 300)
        assert os.read(master, 1000) == b"\r" + b"x" * 39
    os.close(master)


def test_progress_is_not_slowed_down_by_many_steps():
    stream = io.StringIO()
    progress = TerminalProgress(stream, "scan", interval_s=60.0)
    progress.stage("locate")
    for done in range(1, 1000):
        progress.step(done, 1000)
    assert stream.getvalue().count("\r") == 1


def test_no_progress_says_nothing(capsys):
    progress = NoProgress()
    progress.stage("a")
    progress.step(1, 2)
    progress.finish()
    assert capsys.readouterr() == ("", "")
