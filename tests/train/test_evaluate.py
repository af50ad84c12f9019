"""Evaluation: what counts as found, false and right, worked out by hand on fake pipelines."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.findings import Heights
from runtime.volume import Grid, Volume
from train.evaluate import TrueScan, TrueVertebra, as_table, evaluate_scan, made_ahead, summarise

GRID = Grid((40, 10, 10), np.eye(4))


class Fake:
    """A pipeline that finds what it is told: (centre, grade), with one plane of mask each."""

    def __init__(self, *found: tuple[float, int]) -> None:
        self.found = found

    def analyse(self, volume: Volume) -> SimpleNamespace:
        labels = np.zeros(volume.array.shape, np.uint8)
        vertebrae = []
        for label, (z, grade) in enumerate(self.found, start=1):
            labels[int(z)] = label
            vertebrae.append(SimpleNamespace(centre_ras_mm=(5.0, 5.0, z), grade=grade, mask_label=label,
                                             heights_mm=Heights(20, 21, 22)))  # fmt: skip
        return SimpleNamespace(findings=SimpleNamespace(vertebrae=vertebrae), labels=labels)


def scan() -> TrueScan:
    mask = np.zeros((40, 10, 10), np.uint8)
    mask[5], mask[30:32] = 19, 20
    vertebrae = (
        TrueVertebra(19, np.array([5.0, 5.0, 5.0]), 0, (20.0, 20.0, 20.0)),
        TrueVertebra(20, np.array([5.0, 5.0, 30.0]), 2, None),
    )
    return TrueScan(Volume(np.zeros((40, 10, 10), np.int16), GRID), vertebrae, mask)


def test_everything_found() -> None:
    result = evaluate_scan(Fake((5.0, 0), (30.0, 3)), scan())  # type: ignore[arg-type]
    assert result.false_positives == 0
    assert [v.error_mm for v in result.vertebrae] == [0, 0]
    assert [v.dice for v in result.vertebrae] == pytest.approx([1, 2 / 3])
    assert result.vertebrae[0].height_error_mm == pytest.approx(1.0)
    summary = summarise([result])
    assert summary["localisation"]["overall"]["recall_10mm"] == 1
    assert summary["localisation"]["cervical"]["recall_10mm"] is None
    assert summary["grades"]["confusion_rows_true"] == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert summary["grades"]["f1"] == [1.0, None, 0.0, 0.0]
    assert summary["grades"]["fracture_f1"] == 1.0


def test_missed_twice_found_and_far_away() -> None:
    result = evaluate_scan(Fake((4.0, 0), (6.5, 1), (19.0, 0)), scan())  # type: ignore[arg-type]
    assert result.false_positives == 2
    assert result.vertebrae[0].error_mm == 1.0
    assert result.vertebrae[1].error_mm is None
    assert result.vertebrae[1].grade is None
    summary = summarise([result])
    assert summary["localisation"]["overall"] == {
        "vertebrae": 2,
        "recall_10mm": 0.5,
        "error_mm_mean": 1.0,
        "error_mm_sd": 0.0,
    }
    assert summary["false_positives_per_scan"] == 2
    assert "0.5" in as_table(summary)
    json.dumps(summary, allow_nan=False)


def test_nothing_found_is_a_result() -> None:
    summary = summarise([evaluate_scan(Fake(), scan())])  # type: ignore[arg-type]
    assert summary["localisation"]["overall"]["recall_10mm"] == 0
    assert summary["dice"]["overall"] is None
    json.dumps(summary, allow_nan=False)
    assert as_table(summary)


def test_made_ahead_keeps_order_and_passes_errors_on() -> None:
    assert list(made_ahead(lambda n: n * n, range(5))) == [0, 1, 4, 9, 16]
    assert list(made_ahead(lambda n: n, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(made_ahead(lambda n: 1 / n, [1, 0, 2]))
