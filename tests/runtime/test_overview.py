from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ImageDraw

from runtime.curve import spine_curve
from runtime.engines.base import EngineInfo
from runtime.findings import NETWORK, BundleInfo, Findings, Heights, Measured, NetworkOpinion, ScanInfo, Vertebra
from runtime.overview import (
    COLUMN_WIDTH,
    GRADE_COLOURS,
    LABEL_INDENT,
    LEADER_END,
    RED,
    _name,
    draw_overview,
    spread,
)
from runtime.views import curved_views
from runtime.volume import Grid, Volume

NOTICE = "Trained on synthetic data. Not for clinical use."


def findings_of(scan, grades=(0, 1, 2, 3, None)):
    grid = scan.volume.grid
    vertebrae = tuple(
        Vertebra(
            index=k,
            level=None,
            level_confidence=None,
            centre_ras_mm=tuple(map(float, centre)),
            confidence=0.9,
            complete=k > 1,
            grade=grades[(k - 1) % len(grades)],
            grade_probabilities=None if grades[(k - 1) % len(grades)] is None else (0.25,) * 4,
            grade_from=None if grades[(k - 1) % len(grades)] is None else NETWORK,
            grades_differ=False,
            no_grade_reason=None if grades[(k - 1) % len(grades)] is not None else "cut",
            shape=None,
            heights_mm=Heights(20, 15, 21),
            expected_heights_mm=None,
            height_loss=0.25,
            network=None,
            measured=None,
            volume_ml=4.2,
            mean_hu=400.0,
            trabecular_hu=None,
            mask_label=k,
        )
        for k, centre in enumerate(scan.centres_ras_mm, start=1)
    )
    return Findings(
        scan=ScanInfo(scan.volume.name, "", grid.shape_zyx, grid.spacing_xyz_mm, grid.orientation),
        bundle=BundleInfo("default", "1.0", "0" * 64),
        engine=EngineInfo("openvino", "2026.4", "fp32", "CPU", "fastest"),
        timings_s={"total": 1.0},
        peak_memory_mb=100.0,
        warnings=(),
        vertebrae=vertebrae,
    )


def pixels_of(image, colour):
    """How many pixels are about of a colour; outlines are smoothed, so few are exactly."""
    return int((np.abs(np.asarray(image, np.int16) - colour) < 45).all(axis=-1).sum())


def test_each_grade_is_outlined_in_its_colour(ball_scan):
    scan = ball_scan(5)
    image = draw_overview(scan.volume, scan.labels, findings_of(scan))
    legend = draw_overview(scan.volume, np.zeros_like(scan.labels), findings_of(scan))
    assert all(pixels_of(image, c) > pixels_of(legend, c) + 200 for c in GRADE_COLOURS)
    assert 900 <= image.height <= 1600
    assert image.width <= 1600


def test_the_notice_is_in_red_and_only_where_it_is_given(ball_scan):
    scan = ball_scan(2)
    with_notice = draw_overview(scan.volume, scan.labels, findings_of(scan), notice=NOTICE)
    without = draw_overview(scan.volume, scan.labels, findings_of(scan))
    assert pixels_of(with_notice, RED) > 300
    assert pixels_of(without, RED) == 0


@pytest.fixture
def texts(monkeypatch):
    """All that is written into pictures, with the box that it takes: left, top, right, bottom."""
    written, real = [], ImageDraw.ImageDraw.text

    def text(self, place, said, *colour, anchor="la", **options):
        written.append((said, self.textbbox(place, said, colour[1], anchor=anchor)))
        real(self, place, said, *colour, anchor=anchor, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


def longest_label(vertebra):
    """The vertebra with the longest label that there is: an unsure level, cut, of the longest shape and two grades."""
    opinions = {
        "network": NetworkOpinion(3, (0.02, 0.04, 0.06, 0.88), None, None),
        "measured": Measured(1, 0.45, Heights(20, 15, 21)),
    }
    label = {"level": "T12", "level_confidence": 0.5, "shape": "biconcave", "height_loss": 1.0, "complete": False}
    graded = {"grade": 3, "grade_probabilities": (0.02, 0.04, 0.06, 0.88), "grades_differ": True}
    return replace(vertebra, **label, **graded, **opinions)


@pytest.mark.parametrize("count", [1, 2, 60])
def test_labels_end_before_the_lines_to_the_coronal_view(ball_scan, texts, count):
    scan = ball_scan(2, spacing_mm=(3.0, 3.0, 3.0))
    plain = findings_of(scan)
    longest = longest_label(plain.vertebrae[0])
    vertebrae = tuple(replace(longest, index=i, mask_label=i) for i in range(1, count + 1))
    draw_overview(scan.volume, scan.labels, replace(plain, vertebrae=vertebrae))
    labels = [(said, box) for said, box in texts if "   " in said]
    assert sum("T12?   grade 3   biconcave 100 %" in said for said, _ in labels) == count
    assert sum("cut" in said for said, _ in labels) == count
    assert sum("network 3, mask 1" in said for said, _ in labels) == (count if count < 60 else 0)
    assert max(right - left for _, (left, _, right, _) in labels) < COLUMN_WIDTH - LABEL_INDENT - LEADER_END


@pytest.mark.parametrize("columns", [10, 30, 60, 120, 300])
@pytest.mark.parametrize("other", [10, 30, 300])
@pytest.mark.parametrize("balls", [0, 2])
def test_titles_of_narrow_views_do_not_meet_and_stay_in_the_picture(texts, columns, other, balls):
    grid = Grid((200, columns, other), np.eye(4))
    volume = Volume(np.zeros(grid.shape_zyx, np.int16), grid, "narrow")
    centres = [(other / 2, columns / 2, z) for z in (60.0, 140.0)[:balls]]
    findings = findings_of(SimpleNamespace(volume=volume, centres_ras_mm=centres))
    picture = draw_overview(volume, np.zeros(grid.shape_zyx, np.uint8), findings)
    (sagittal,), (coronal,) = (
        [box for said, box in texts if said[:3] == plane[:3]] for plane in ("Sagittal", "Coronal")
    )
    assert sagittal[2] < coronal[0]
    assert coronal[2] < picture.width


@pytest.mark.parametrize("balls", [0, 1, 24])
def test_any_number_of_vertebrae_gives_a_picture(ball_scan, balls):
    scan = ball_scan(balls, spacing_mm=(3.0, 3.0, 3.0), name="ein sehr langer Name " * 9 + "Łódź")
    image = draw_overview(scan.volume, scan.labels, findings_of(scan), notice=NOTICE)
    assert image.height >= 300


def test_a_vertebra_bears_its_level_and_its_number_where_none_is_known(ball_scan):
    scan = ball_scan(2, spacing_mm=(3.0, 3.0, 3.0))
    plain = findings_of(scan)
    known = replace(plain.vertebrae[0], level="T12", level_confidence=0.9)
    assert [_name(v) for v in (known, plain.vertebrae[1])] == ["T12", "2"]
    pictures = [draw_overview(scan.volume, scan.labels, replace(plain, vertebrae=(first, plain.vertebrae[1])))
                for first in (plain.vertebrae[0], known)]  # fmt: skip
    assert np.any(np.asarray(pictures[0]) != np.asarray(pictures[1]))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
def test_views_have_true_scale_and_the_usual_sides_in_any_orientation(ball_scan, orientation):
    scan = ball_scan(3, orientation=orientation, spacing_mm=(1.0, 1.0, 1.0))
    grid = scan.volume.grid
    marked = scan.volume.array.copy()
    x, y, _ = np.moveaxis(grid.to_ras_mm(np.indices(grid.shape_zyx).transpose(1, 2, 3, 0)), -1, 0)
    marked[(y > 70) & (np.abs(marked) < 4)] = 1000
    marked[(x > 20) & (np.abs(marked) < 4)] = 2000
    views = curved_views(
        replace(scan.volume, array=marked),
        scan.labels,
        [tuple(c) for c in scan.centres_ras_mm],
        label_count=3,
        max_height=600,
        max_width=800,
    )
    sagittal, coronal = views
    assert sagittal.pixels_per_mm == coronal.pixels_per_mm
    assert sagittal.hu[:, :20].mean() > 900 > 100 > sagittal.hu[:, -20:].mean()
    assert coronal.hu[:, :20].mean() > 1900 > 100 > coronal.hu[:, -20:].mean()
    scale = sagittal.pixels_per_mm
    for view in views:
        for label, centre in enumerate(scan.centres_ras_mm, start=1):
            rows, columns = np.nonzero(view.masks[label])
            position = centre[1] if view is sagittal else centre[0]
            assert np.mean(rows) + 0.5 == pytest.approx(view.row_of(centre[2]), abs=scale)
            assert np.mean(columns) + 0.5 == pytest.approx(view.column_of(position), abs=scale)
            assert np.ptp(rows) / scale == pytest.approx(20.0, abs=1.5)
            assert np.ptp(columns) / scale == pytest.approx(20.0, abs=1.5)


def test_the_curve_goes_through_the_centres_and_straight_beyond():
    grid = Grid((200, 50, 50), np.diag([2.0, 2.0, 2.0, 1.0]))
    centres = np.array([[40.0 + z / 10, 60.0 - z / 20, z] for z in (300.0, 250.0, 200.0, 150.0)])
    curve = spine_curve(centres, grid)
    assert curve.x_at(centres[:, 2]) == pytest.approx(centres[:, 0], abs=0.05)
    assert curve.y_at(centres[:, 2]) == pytest.approx(centres[:, 1], abs=0.05)
    assert curve.x_at(np.array([310.0])) == pytest.approx([71.0], abs=0.1)
    assert curve.x_at(np.array([390.0])) == pytest.approx([73.0], abs=0.1)
    assert curve.z_mm[0] < 0 < 398 < curve.z_mm[-1]


def test_a_false_centre_far_from_the_others_does_not_bend_the_curve():
    grid = Grid((200, 100, 100), np.diag([2.0, 2.0, 2.0, 1.0]))
    centres = np.array([[100.0, 100.0, z] for z in range(300, 50, -30)])
    false = np.array([[180.0, 100.0, 190.0]])
    curve = spine_curve(np.vstack([centres, false]), grid)
    assert np.abs(curve.x_mm - 100.0).max() < 1e-6


def test_many_vertebrae_in_a_low_scan_keep_their_labels_apart(ball_scan):
    scan = ball_scan(2, spacing_mm=(3.0, 3.0, 3.0))
    one = findings_of(scan)
    many = replace(one, vertebrae=tuple(replace(one.vertebrae[0], index=i, mask_label=i) for i in range(1, 71)))
    assert draw_overview(scan.volume, scan.labels, many).height >= 70 * 20


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_centres_give_a_straight_line(count):
    grid = Grid((20, 11, 11), np.eye(4))
    curve = spine_curve([(3.0, 4.0, 10.0)][:count], grid)
    expected = (3.0, 4.0) if count else (5.0, 5.0)
    assert np.unique(curve.x_mm) == pytest.approx(expected[0])
    assert np.unique(curve.y_mm) == pytest.approx(expected[1])


def test_grey_values_between_voxels_are_interpolated_in_three_directions():
    grid = Grid((12, 10, 9), np.diag([2.0, 2.0, 2.0, 1.0]))
    z, y, x = np.indices(grid.shape_zyx)
    volume = Volume((10.0 * z + 20.0 * y + 30.0 * x).astype(np.float32), grid)
    sagittal, coronal = curved_views(
        volume, np.zeros(grid.shape_zyx, np.uint8), [], label_count=0, max_height=300, max_width=500
    )
    rows, columns = np.indices(sagittal.hu.shape)
    z_mm = sagittal.top_mm - (rows + 0.5) / sagittal.pixels_per_mm
    y_mm = sagittal.left_mm - (columns + 0.5) / sagittal.pixels_per_mm
    inner = (z_mm > 0) & (z_mm < 22) & (y_mm > 0) & (y_mm < 18)
    assert inner.sum() > 1000
    expected = 10.0 * z_mm / 2 + 20.0 * y_mm / 2 + 30.0 * 8.0 / 2
    assert np.abs(sagittal.hu - expected)[inner].max() < 0.01
    assert sagittal.masks == coronal.masks == {}


def test_labels_are_spread_without_changing_their_order():
    assert spread([10.0, 50.0], gap=20, low=0, high=100) == [10.0, 50.0]
    placed = spread([30.0, 31.0, 29.0, 99.0], gap=20, low=0, high=100)
    order = np.argsort([30.0, 31.0, 29.0, 99.0])
    assert (np.diff(np.array(placed)[order]) >= 20).all()
    assert min(placed) >= 0
    assert max(placed) <= 100
    assert spread([], gap=20, low=0, high=100) == []
