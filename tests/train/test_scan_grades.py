"""Whose grades are whose, with the names that VerSe's scans and lists of grades have."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from train.scan_grades import match_grades
from train.verse import Case, find_cases, read_grades

FIRST, SECOND = "sub-verse401_split-verse201", "sub-verse401_split-verse253"
"""The two scans of one patient of VerSe 2019, by their real names."""
ROUND_THE_NECK = {8: 0, 9: 1}
BELOW = {10: 0, 11: 2, 12: 3}


def lay_out(root: Path, scans: dict[str, Iterable[int]], *, masks: bool = False) -> tuple[Case, ...]:
    """A data set of empty scans with those labels annotated."""
    for name, labels in scans.items():
        subject = name.split("_")[0]
        raw, derived = root / "rawdata" / subject, root / "derivatives" / subject
        raw.mkdir(parents=True, exist_ok=True)
        derived.mkdir(parents=True, exist_ok=True)
        (raw / f"{name}_ct.nii.gz").touch()
        if masks:
            array = np.tile(np.array([0, *labels], np.uint8)[:, None, None], (1, 2, 2))
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), derived / f"{name}_seg-vert_msk.nii.gz")
        else:
            points = [{"label": label, "X": 0, "Y": 0, "Z": 0} for label in labels]
            (derived / f"{name}_seg-subreg_ctd.json").write_text(json.dumps([{"direction": ["P", "I", "R"]}, *points]))
    return find_cases(root)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("neck_first", [True, False])
def test_numbered_series_go_to_the_scans_that_show_their_vertebrae(
    tmp_path: Path, neck_first: bool, masks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    neck, body = (FIRST, SECOND) if neck_first else (SECOND, FIRST)
    cases = lay_out(tmp_path, {neck: range(1, 10), body: range(8, 25)}, masks=masks)
    listed = {"sub-verse401_series0": ROUND_THE_NECK, "sub-verse401_series1": BELOW}
    assert match_grades(cases, listed) == {neck: ROUND_THE_NECK, body: BELOW}
    assert not caplog.records


def test_the_order_of_names_decides_only_where_labels_allow_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = {"sub-verse401_series0": {20: 0}, "sub-verse401_series1": {20: 1}}
    alike = lay_out(tmp_path / "alike", {FIRST: [20, 21], SECOND: [20, 21]})
    assert match_grades(alike, listed) == {FIRST: {20: 0}, SECOND: {20: 1}}
    third = "sub-verse401_split-verse300"
    three = lay_out(tmp_path / "three", {FIRST: [20], SECOND: [20], third: [20]})
    assert match_grades(three, listed) == {}, "two series of three scans: which of them?"
    assert "2 of 2 grades" in caplog.text
    assert "3 of 3 scans" in caplog.text
    longer = {**listed, "sub-verse401_series2": {19: 2}}
    against = lay_out(tmp_path / "against", {FIRST: [19, 20], SECOND: [20], third: [20]})
    assert match_grades(against, longer) == {FIRST: {19: 2}}, "what the labels settle contradicts the order"
    numbered_from_1 = {"sub-verse401_series1": {20: 0}, "sub-verse401_series2": {20: 1}}
    assert match_grades(alike, numbered_from_1) == {}


def test_series_that_only_one_scan_could_have_are_nobodys(tmp_path: Path) -> None:
    cases = lay_out(tmp_path, {SECOND: range(8, 25)})
    assert match_grades(cases, {"sub-verse401_series0": ROUND_THE_NECK, "sub-verse401_series1": BELOW}) == {}


def test_no_scan_has_another_patients_grades(tmp_path: Path) -> None:
    """sub-verse252 is a patient of VerSe 2019, whatever a scan of another one is called."""
    scan = "sub-verse401_split-verse252"
    numbered = {"sub-verse252": {20: 1}, "sub-verse401_series0": {20: 2}}
    assert match_grades(lay_out(tmp_path / "a", {scan: [20]}), numbered) == {scan: {20: 2}}
    assert match_grades(lay_out(tmp_path / "a", {scan: [20]}), {**numbered, "sub-verse401_series0": {9: 2}}) == {}
    both = lay_out(tmp_path / "b", {scan: [20], "sub-verse252": [20]})
    assert match_grades(both, {"sub-verse252": {20: 1}}) == {"sub-verse252": {20: 1}}
    assert match_grades(lay_out(tmp_path / "c", {scan: [20]}), {"sub-verse252": {20: 1, 21: 0}}) == {}
    assert match_grades(lay_out(tmp_path / "c", {scan: [20]}), {"sub-verse252": {20: 1}, "sub-verse401": {20: 2}}) == {}


def test_own_names_and_those_of_the_original_layout(tmp_path: Path) -> None:
    cases = lay_out(tmp_path, {FIRST: range(1, 10), SECOND: range(8, 25)})
    original = {"sub-verse201": ROUND_THE_NECK, "sub-verse253": BELOW}
    assert match_grades(cases, original) == {FIRST: ROUND_THE_NECK, SECOND: BELOW}
    assert match_grades(cases, {**original, SECOND: {20: 3}}) == {FIRST: ROUND_THE_NECK, SECOND: {20: 3}}


def test_what_matches_nothing_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = lay_out(tmp_path, {"sub-a": [20], "sub-b": [20]})
    assert match_grades(cases, {"sub-a": {20: 0}, "sub-x": {20: 0, 21: 1}, "sub-y": {20: 2}}) == {"sub-a": {20: 0}}
    assert "3 of 4 grades belong to no scan here (those of sub-x, sub-y)" in caplog.text
    assert "1 of 2 scans have no grades (sub-b)" in caplog.text
    caplog.clear()
    assert match_grades(cases, {}) == {}
    assert not caplog.records, "nobody said that there are grades"


def test_every_real_grade_reaches_one_scan(tmp_path: Path, shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Scans named as in VerSe 2019, the splits of a patient in an order of their own, each with a vertebra more."""
    grades = read_grades(shared_data / "verse19-genant-grades.json")
    scans, expected = {}, {}
    for entry, known in grades.items():
        name = entry
        if (series := re.fullmatch(r"(sub-verse\d+)_series(\d)", entry)) is not None:
            name = f"{series[1]}_split-verse{300 - 10 * int(series[2])}"
        scans[name], expected[name] = {*known, min(known) - 1}, known
    scans[FIRST], scans[SECOND] = (scans.pop(f"sub-verse401_split-verse{n}") for n in (300, 290))
    expected[FIRST], expected[SECOND] = (expected.pop(f"sub-verse401_split-verse{n}") for n in (300, 290))
    met = match_grades(lay_out(tmp_path, scans), grades)
    assert met == expected
    assert sum(map(len, met.values())) == 1460
    assert sum(grade == 3 for known in met.values() for grade in known.values()) == 51
    assert not caplog.records
