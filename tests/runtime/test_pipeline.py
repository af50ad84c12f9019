from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial

import jsonschema
import numpy as np
import pytest

import runtime
from runtime import engines, scan_access
from runtime import pipeline as pipeline_module
from runtime.bundle import open_bundle, write_bundle
from runtime.describe import warnings
from runtime.engines import engine_module, openvino_cpu
from runtime.errors import BundleError, EngineError, InputError, OutOfMemoryError
from runtime.findings import schema, to_json
from runtime.grading import GradingSpec, grade_probabilities
from runtime.localise import Located
from runtime.pipeline import MOST_VERTEBRAE, Pipeline
from runtime.precision_plan import PrecisionPlan
from runtime.resample import working_grid
from runtime.scout import WindowCount
from runtime.volume import Grid, Volume


@pytest.fixture(scope="module")
def pipeline(ball_bundle):
    with Pipeline.open(ball_bundle, precision="fp32") as opened:
        yield opened


@pytest.fixture(scope="module")
def naming(level_bundle):
    with Pipeline.open(level_bundle, precision="fp32") as opened:
        yield opened


def dice(a, b):
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("balls", [1, 2, 5])
def test_every_vertebra_is_found_once_from_cranial_to_caudal(pipeline, ball_scan, balls):
    scan = ball_scan(balls)
    findings = pipeline.run(scan.volume)
    found = np.array([v.centre_ras_mm for v in findings.vertebrae])
    assert len(found) == balls
    assert np.abs(found - scan.centres_ras_mm).max() < 0.75
    assert (
        [v.index for v in findings.vertebrae] == [v.mask_label for v in findings.vertebrae] == list(range(1, balls + 1))
    )


@pytest.mark.parametrize(
    ("orientation", "spacing_mm"),
    [("RAS", (1.5, 1.5, 2.0)), ("LPS", (1.0, 1.0, 1.0)), ("PIR", (1.2, 1.2, 1.7)), ("SAL", (2.0, 1.5, 1.5))],
)
def test_masks_lie_on_the_balls_on_the_scans_own_grid(pipeline, ball_scan, orientation, spacing_mm):
    scan = ball_scan(3, orientation=orientation, spacing_mm=spacing_mm)
    assert scan.volume.grid.orientation == orientation
    analysis = pipeline.analyse(scan.volume)
    assert analysis.labels.shape == scan.volume.grid.shape_zyx
    assert analysis.labels.dtype == np.uint8
    for number in (1, 2, 3):
        assert dice(analysis.labels == number, scan.labels == number) > 0.93


def test_an_oblique_scan_gives_the_same_places(pipeline, ball_scan):
    straight = ball_scan(3)
    angle = np.deg2rad(12.0)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = Volume(straight.volume.array, Grid(straight.volume.grid.shape_zyx, turn @ straight.volume.grid.affine_ras))
    found = np.array([v.centre_ras_mm for v in pipeline.run(volume).vertebrae])
    expected = straight.centres_ras_mm @ turn[:3, :3].T
    assert np.abs(found - expected).max() < 0.75


def test_measures_are_those_of_the_scans_own_voxels(pipeline, ball_scan):
    scan = ball_scan(2)
    analysis = pipeline.analyse(scan.volume)
    for vertebra in analysis.findings.vertebrae:
        mask = analysis.labels == vertebra.mask_label
        expected_ml = mask.sum() * scan.volume.grid.voxel_volume_mm3 / 1000
        assert vertebra.volume_ml == pytest.approx(expected_ml, abs=1e-3)
        assert vertebra.volume_ml == pytest.approx(4.19, rel=0.08)
        assert vertebra.mean_hu == pytest.approx(scan.volume.array[mask].mean(), abs=0.1)
        assert vertebra.grade == 1
        assert vertebra.grade_probabilities == pytest.approx((0.1, 0.7, 0.15, 0.05), abs=1e-3)
        assert (vertebra.heights_mm.anterior, vertebra.heights_mm.middle, vertebra.heights_mm.posterior) == (20, 15, 21)
        assert 0.2 < vertebra.height_loss < 0.3, "15 mm against neighbours of 20 and 21"
        assert vertebra.shape == "biconcave"
        assert vertebra.network.heights_mm == vertebra.heights_mm
        assert vertebra.network.height_loss == pytest.approx(0.25)
        assert vertebra.no_grade_reason is None
        assert vertebra.grade_from == "network"
        assert 16.0 < vertebra.measured.heights_mm.middle < 20.5, "a ball of 20 mm, not the network's fixed 15"
        assert vertebra.trabecular_hu == pytest.approx(400.0, abs=1.0)
        assert vertebra.complete
        assert vertebra.level is vertebra.level_confidence is None


def test_a_cemented_vertebra_has_no_trabecular_hu_and_a_remark_says_why(pipeline, ball_scan):
    scan = ball_scan(2)
    hu = scan.volume.array.copy()
    middle = np.argwhere(scan.labels == 1).mean(axis=0).astype(int)
    hu[tuple(slice(n - 2, n + 3) for n in middle)] = 1500
    findings = pipeline.run(replace(scan.volume, array=hu))
    cemented, other = findings.vertebrae
    assert cemented.trabecular_hu is None
    assert other.trabecular_hu == pytest.approx(400.0, abs=1.0)
    said = "Vertebra 1: no HU of trabecular bone, because cement, metal or sclerosis lies in the body."
    assert said in findings.warnings


@pytest.mark.parametrize(("hu_of_it", "half_mm", "said"), [(2000, 5, True), (2000, 2, False), (1200, 5, False)])
def test_metal_in_a_vertebra_is_said_though_little_of_it_or_dense_bone_is_not(
    pipeline, ball_scan, hu_of_it, half_mm, said
):
    scan = ball_scan(2)
    hu = scan.volume.array.copy()
    middle = np.argwhere(scan.labels == 1).mean(axis=0)
    reach = half_mm / np.array(scan.volume.grid.spacing_xyz_mm[::-1])
    low, high = np.rint(middle - reach).astype(int), np.rint(middle + reach).astype(int)
    hu[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = hu_of_it
    findings = pipeline.run(replace(scan.volume, array=hu))
    assert len(findings.vertebrae) == 2
    assert any(text.startswith("Vertebra 1: metal or cement") for text in findings.warnings) == said


def test_a_vertebra_that_the_edge_cuts_has_no_grade_and_says_so(pipeline, ball_scan):
    findings = pipeline.run(ball_scan(3, top_cut_mm=18.0).volume)
    top, *others = findings.vertebrae
    assert not top.complete
    assert top.grade is top.grade_probabilities is top.heights_mm is top.height_loss is None
    assert top.no_grade_reason == "the edge of the scan cuts the body"
    assert top.network is top.measured is top.trabecular_hu is top.shape is None
    assert len(others) == 2
    assert all(v.complete and v.grade == 1 for v in others)
    assert "Vertebra 1: cut by the edge of the scan." in findings.warnings


def changed(monkeypatch, number, change):
    """Has the second network say of one vertebra, counted from 0 and the top, what ``change`` makes of it."""
    segmented = pipeline_module.segment

    def one_changed(*args, **options):
        found = list(segmented(*args, **options))
        found[number] = change(found[number])
        return tuple(found)

    monkeypatch.setattr(pipeline_module, "segment", one_changed)


@pytest.mark.parametrize("voxels", [0, 300])
def test_a_vertebra_without_a_body_has_no_grade_and_no_part_in_its_neighbours(pipeline, ball_scan, monkeypatch, voxels):
    scan = ball_scan(3).volume
    findings = []
    for mm in (5.0, 40.0):
        with monkeypatch.context() as patch:
            speck = partial(with_speck_for_body, heights_mm=(mm, mm, mm), voxels=voxels)
            changed(patch, 1, speck)
            findings.append(pipeline.run(scan))
    low, high = findings
    assert low.vertebrae == high.vertebrae, "what the network says of its heights is not listened to"
    top, middle, bottom = low.vertebrae
    assert middle.grade is middle.grade_probabilities is middle.shape is middle.network is middle.measured is None
    assert middle.heights_mm is middle.expected_heights_mm is middle.height_loss is middle.trabecular_hu is None
    assert middle.no_grade_reason == "no vertebral body can be told in the mask"
    assert middle.volume_ml > 3.0
    assert top.grade == bottom.grade == 1
    said = "Vertebra 2: without grade and heights, because no vertebral body can be told in the mask."
    assert said in low.warnings
    jsonschema.validate(json.loads(to_json(low)), schema())


def with_speck_for_body(vertebra, *, voxels, heights_mm):
    """With so few voxels of 1 mm for a body."""
    body = np.zeros_like(vertebra.body)
    middle = np.argwhere(vertebra.mask > 0.5)
    nearest = middle[np.argsort(np.linalg.norm(middle - middle.mean(axis=0), axis=1))[:voxels]]
    body[tuple(nearest.T)] = 1.0
    return replace(vertebra, body=body, heights_mm=heights_mm)


def test_what_is_not_outlined_at_all_is_no_vertebra_and_is_counted(naming, level_scan, monkeypatch):
    scan = level_scan(["L1", "L2", "L3"])
    changed(monkeypatch, 1, lambda v: replace(v, mask=0.0 * v.mask, body=0.0 * v.body))
    analysis = naming.analyse(scan.volume)
    first, second = analysis.findings.vertebrae
    assert [(v.index, v.mask_label) for v in (first, second)] == [(1, 1), (2, 2)]
    assert set(np.unique(analysis.labels)) == {0, 1, 2}
    assert dice(analysis.labels == 2, scan.labels == 3) > 0.93
    assert len(analysis.height_ends) == 2
    assert "1 candidate centre was rejected as not a vertebra." in analysis.findings.warnings


COMBINING = GradingSpec(
    network_weight=0.5, measured_weight=1.0, prior=(0.0, 0.0, 0.0, 0.0), loss_bias=0.0, loss_sd=0.03,
    loss_sd_per_mm=0.005, reach=0.9, height_shares=(1.0, 0.5, 0.0), height_offsets_mm=(0.0, 1.0, 0.0),
)  # fmt: skip


def test_a_bundle_that_says_how_combines_both_witnesses(ball_bundle, ball_scan, tmp_path):
    bundle = open_bundle(ball_bundle)
    files = {name: bundle.path_of(name) for name in bundle.spec.files}
    write_bundle(replace(bundle.spec, grading=COMBINING), files, tmp_path / "combining")
    with Pipeline.open(tmp_path / "combining", precision="fp32") as combining:
        findings = combining.run(ball_scan(3).volume)
    for v in findings.vertebrae:
        expected = grade_probabilities((0.1, 0.7, 0.15, 0.05), v.measured.height_loss, voxel_mm=2.0, spec=COMBINING)
        assert v.grade_probabilities == pytest.approx(expected, abs=1e-3)
        assert v.grade_from == "network and measurement"
        assert v.grades_differ == (abs(v.measured.grade - v.network.grade) > 1)
        mixed, own = v.heights_mm, v.measured.heights_mm
        assert (mixed.anterior, mixed.posterior) == (own.anterior, 21.0)
        assert mixed.middle == pytest.approx(0.5 * own.middle + 0.5 * 15.0 + 1.0, abs=0.02)
    assert any("differ by more than one" in text for text in findings.warnings) == any(
        v.grades_differ for v in findings.vertebrae
    )
    assert not any(text.startswith("Grades are the network's alone") for text in findings.warnings)
    jsonschema.validate(json.loads(to_json(findings)), schema())


def test_findings_fit_the_schema_and_tell_their_origin(pipeline, ball_scan):
    findings = pipeline.run(ball_scan(2).volume)
    jsonschema.validate(json.loads(to_json(findings)), schema())
    assert findings.bundle.name == "balls"
    assert findings.engine == pipeline.engine_info
    assert {"resample", "locate", "segment", "measure", "paste", "total"} <= set(findings.timings_s)
    assert findings.timings_s["total"] >= findings.timings_s["locate"]
    assert findings.peak_memory_mb > 10
    assert findings.warnings[0] == "Trained on synthetic data. Not for clinical use."
    assert any(text.startswith("Grades are the network's alone") for text in findings.warnings)


def test_levels_are_told_with_their_confidence(naming, level_scan):
    levels = ["T12", "L1", "L2", "L3"]
    findings = naming.run(level_scan(levels).volume)
    assert [v.level for v in findings.vertebrae] == levels
    assert all(0.9 < v.level_confidence <= 1.0 for v in findings.vertebrae)
    assert all(v.grade == 1 for v in findings.vertebrae)
    assert "label" in findings.timings_s
    assert not any("evel" in text or "rejected" in text for text in findings.warnings)
    jsonschema.validate(json.loads(to_json(findings)), schema())


def test_what_is_no_vertebra_is_rejected_before_the_second_network_and_counted(naming, level_scan):
    scan, recorder = level_scan(["L1", "L2", "none", "none"]), Recorder()
    analysis = naming.analyse(scan.volume, progress=recorder)
    found = np.array([v.centre_ras_mm for v in analysis.findings.vertebrae])
    assert np.abs(found - scan.centres_ras_mm[:2]).max() < 0.75
    assert [v.level for v in analysis.findings.vertebrae] == ["L1", "L2"]
    assert set(np.unique(analysis.labels)) == {0, 1, 2}
    assert "2 candidate centres were rejected as not a vertebra." in analysis.findings.warnings
    assert recorder.stages == ["resample", "locate", "label", "segment", "measure", "paste"]
    assert recorder.steps["label"] == [(done, 4) for done in range(1, 5)]
    assert recorder.steps["segment"] == [(1, 2), (2, 2)]


def test_a_scan_of_false_centres_holds_no_vertebra(naming, level_scan):
    findings = naming.run(level_scan(["none"]).volume)
    assert findings.vertebrae == ()
    assert "1 candidate centre was rejected as not a vertebra." in findings.warnings
    assert "No vertebra was found." in findings.warnings


def test_cervical_vertebrae_have_no_grade_and_that_is_said(naming, level_scan):
    findings = naming.run(level_scan(["C4"]).volume)
    (vertebra,) = findings.vertebrae
    assert vertebra.level == "C4"
    assert vertebra.grade is vertebra.grade_probabilities is vertebra.height_loss is vertebra.network is None
    assert vertebra.heights_mm is not None
    assert "cervical vertebrae are not graded" in vertebra.no_grade_reason
    assert vertebra.measured.heights_mm is not None
    assert vertebra.measured.grade is None
    assert vertebra.complete
    assert "Vertebra 1: no grade: cervical vertebrae are not graded." in findings.warnings
    assert not any("edge" in text for text in findings.warnings)
    jsonschema.validate(json.loads(to_json(findings)), schema())


def test_a_level_that_is_not_sure_is_null_and_that_is_said(naming, level_scan):
    between_t5_and_t6 = 300.0 + 20.0 * 12.5
    findings = naming.run(level_scan([between_t5_and_t6]).volume)
    (vertebra,) = findings.vertebrae
    assert vertebra.level is vertebra.level_confidence is None
    assert vertebra.grade == 1
    assert "Vertebra 1: without a level, because none is probable enough." in findings.warnings


def test_what_is_probably_cervical_has_no_grade_and_that_is_said(naming, level_scan):
    between_c5_and_c6 = 300.0 + 20.0 * 5.5
    findings = naming.run(level_scan([between_c5_and_c6]).volume)
    (vertebra,) = findings.vertebrae
    assert vertebra.level is vertebra.grade is vertebra.height_loss is vertebra.shape is vertebra.network is None
    assert vertebra.heights_mm is not None
    assert vertebra.measured.grade is None
    assert vertebra.no_grade_reason.startswith("probably cervical, though its level is not known")
    assert "Vertebra 1: no grade: probably cervical, though the level is not told." in findings.warnings
    jsonschema.validate(json.loads(to_json(findings)), schema())


def test_what_is_held_for_none_once_its_centre_has_moved_is_dropped_and_counted(naming, level_scan, monkeypatch):
    """Refined onto the place of its lower neighbour, a centre can't be another vertebra."""
    scan = level_scan(["T12", "L1", "L2", "L3"])

    def moved_down(vertebra):
        x, y, z = vertebra.centre_ras_mm
        return replace(vertebra, centre_ras_mm=(x, y, z - 26.0), confidence=0.1)

    changed(monkeypatch, 1, moved_down)
    analysis = naming.analyse(scan.volume)
    vertebrae = analysis.findings.vertebrae
    assert [v.level for v in vertebrae] == ["T12", "L2", "L3"]
    assert [(v.index, v.mask_label) for v in vertebrae] == [(1, 1), (2, 2), (3, 3)]
    assert set(np.unique(analysis.labels)) == {0, 1, 2, 3}
    for number, ball in ((1, 1), (2, 3), (3, 4)):
        assert dice(analysis.labels == number, scan.labels == ball) > 0.93
    assert len(analysis.height_ends) == 3
    assert "1 candidate centre was rejected as not a vertebra." in analysis.findings.warnings


def test_merged_duplicates_leave_no_gap_in_the_levels(naming, level_scan, monkeypatch):
    """Two centres 12 mm apart can both pass for vertebrae; once their masks have shown them to be one, it is one."""
    scan = level_scan(["L1", "L2", "L3"])
    located = scan_access.locate

    def twice(*args, **options):
        found = located(*args, **options)
        x, y, z = found.centres[1].centre_ras_mm
        again = replace(found.centres[1], centre_ras_mm=(x, y, z - 9.0), confidence=0.5)
        return replace(found, centres=(*found.centres, again))

    monkeypatch.setattr(scan_access, "locate", twice)
    assert [v.level for v in naming.run(scan.volume).vertebrae] == ["L1", "L2", "L3"]


def test_without_a_network_for_levels_that_is_said(pipeline, ball_scan):
    said = "Levels are not given: this bundle has no network that tells them."
    assert said in pipeline.run(ball_scan(1).volume).warnings
    assert "label" not in pipeline.run(ball_scan(1).volume).timings_s


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number_is_refused(pipeline, bad):
    array = np.full((30, 40, 40), -1000, np.float32)
    array[3, 4, 5] = bad
    volume = Volume(array, Grid((30, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0])))
    with pytest.raises(InputError, match="1 voxels that are NaN or infinite"):
        pipeline.run(volume)


def test_what_a_reader_has_looked_over_is_not_looked_over_again(pipeline, ball_scan, save, tmp_path, monkeypatch):
    scan = ball_scan(1).volume
    path = save(replace(scan, array=scan.array.astype(np.float32) + 0.5), tmp_path / "scan.nii")
    looked = []
    monkeypatch.setattr("runtime.pipeline._check_finite", looked.append)
    volume = pipeline.prepare(path).volume
    assert volume.array.dtype == np.float32
    assert looked == []
    pipeline.prepare(volume)
    assert looked == [volume]


def test_air_holds_no_vertebra_and_that_is_said(pipeline):
    volume = Volume(np.full((30, 40, 40), -1000, np.int16), Grid((30, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0])))
    analysis = pipeline.analyse(volume)
    assert analysis.findings.vertebrae == ()
    assert not analysis.labels.any()
    assert "No vertebra was found." in analysis.findings.warnings
    assert not any("too little" in text for text in analysis.findings.warnings)


@pytest.mark.parametrize("orientation", ["RAS", "SRA", "PIR"])
def test_that_a_few_slices_show_no_vertebra_says_nothing_and_that_is_said(pipeline, orientation):
    thin = {"RAS": (3, 40, 40), "SRA": (40, 40, 3), "PIR": (40, 3, 40)}[orientation]
    axes = {"R": [1, 0, 0], "A": [0, 1, 0], "P": [0, -1, 0], "S": [0, 0, 1], "I": [0, 0, -1]}
    affine = np.eye(4)
    affine[:3, :3] = np.array([axes[letter] for letter in orientation]).T * 2.0
    found = pipeline.run(Volume(np.full(thin, -1000, np.int16), Grid(thin, affine)))
    assert any("reaches over 6 mm" in text for text in found.warnings)


def test_thick_slices_and_what_a_reader_repaired_become_warnings(pipeline, ball_scan):
    scan = ball_scan(3, spacing_mm=(1.5, 1.5, 6.0)).volume
    findings = pipeline.run(replace(scan, notes=("Gantry tilt was undone.",)))
    assert "Gantry tilt was undone." in findings.warnings
    assert sum("6.0 mm apart: above 3 mm, heights" in text for text in findings.warnings) == 1


@pytest.mark.parametrize(
    ("spacing_mm", "said"), [(2.9, False), (3.0, False), (3.0001, False), (3.1, True), (4.0, True)]
)
def test_slices_count_as_thick_from_where_measured_heights_get_poor(pipeline, spacing_mm, said):
    grid = Grid((20, 20, 20), np.diag([1.0, 1.0, spacing_mm, 1.0]))
    findings = warnings(pipeline.spec, Volume(np.zeros((20, 20, 20), np.int16), grid), (), dropped=0, rejected=0)
    assert any("grades are unreliable" in text for text in findings) == said


def test_a_path_and_its_volume_give_the_same_findings(pipeline, ball_scan, save, tmp_path):
    scan = ball_scan(2).volume
    from_path = pipeline.run(save(scan, tmp_path / "some scan.nii.gz"))
    assert from_path.scan.name == "some scan"
    assert len(from_path.scan.sha256) == 64
    assert "read" in from_path.timings_s
    assert from_path.vertebrae == pipeline.run(scan).vertebrae


def test_after_a_rest_the_findings_are_the_same_and_the_networks_memory_was_given_back(
    ball_bundle, ball_scan, monkeypatch
):
    released = []
    original = openvino_cpu.OpenVinoSession.release_memory
    monkeypatch.setattr(
        openvino_cpu.OpenVinoSession, "release_memory", lambda self: (released.append(self._model), original(self))
    )
    scan = ball_scan(2).volume
    with Pipeline.open(ball_bundle, engine="openvino", precision="fp32") as pipeline:
        before = pipeline.run(scan).vertebrae
        pipeline.rest()
        assert len(released) == len(set(released)) == len(pipeline.spec.networks)
        assert pipeline.run(scan).vertebrae == before


def test_one_open_pipeline_serves_several_threads(pipeline, ball_scan):
    scans = [ball_scan(balls).volume for balls in (1, 2, 3, 2)]
    expected = [pipeline.run(scan).vertebrae for scan in scans]
    results: list[object] = [None] * len(scans)

    def work(i):
        results[i] = pipeline.run(scans[i]).vertebrae

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(scans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


class Recorder:
    """What a run tells of its progress."""

    def __init__(self):
        self.stages, self.steps = [], {}

    def stage(self, name):
        self.stages.append(name)

    def step(self, done, total):
        self.steps.setdefault(self.stages[-1], []).append((done, total))

    def finish(self):
        raise AssertionError("left to the caller")


def test_progress_names_the_stages_in_order_and_counts_to_the_end(pipeline, ball_scan):
    recorder = Recorder()
    pipeline.run(ball_scan(5).volume, progress=recorder)
    assert recorder.stages == ["resample", "locate", "segment", "measure", "paste"]
    assert recorder.steps["segment"] == [(done, 5) for done in range(1, 6)]
    assert recorder.steps["locate"][-1][0] == recorder.steps["locate"][-1][1]


def test_memory_that_runs_out_is_told_with_sizes(pipeline, ball_scan, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(scan_access, "resample", no_memory)
    with pytest.raises(OutOfMemoryError, match=r"balls \(40 x 40 x 35 voxels, .* MiB\) did not fit"):
        pipeline.run(ball_scan(2).volume)


def test_a_network_that_sees_vertebrae_everywhere_is_cut_short(pipeline, ball_scan, monkeypatch):
    scan = ball_scan(1)
    (centre,) = scan_access.locate(*_working(scan.volume), pipeline.spec.locnet, pipeline._locnet).centres
    x, y, z = centre.centre_ras_mm
    many = [replace(centre, centre_ras_mm=(x, y, z - 50.0 * i), confidence=1 - i / 100) for i in range(70)]

    monkeypatch.setattr(scan_access, "locate", lambda *_, **__: Located(tuple(many), WindowCount(1, 1, 0)))
    findings = pipeline.run(scan.volume)
    assert any("10 more vertebrae" in text for text in findings.warnings)
    assert len(findings.vertebrae) == 1  # the others lie beyond the scan, where nothing is to be outlined
    assert any(f"{MOST_VERTEBRAE - 1} candidate centres were rejected" in text for text in findings.warnings)
    jsonschema.validate(json.loads(to_json(findings)), schema())


def _working(volume):
    grid = working_grid(volume.grid, 2.0)
    return scan_access.resample(volume, grid), grid


def test_what_cannot_be_opened_is_refused(ball_bundle, tmp_path):
    with pytest.raises(BundleError):
        Pipeline.open(tmp_path / "none")
    with pytest.raises(EngineError):
        Pipeline.open(ball_bundle, engine="abacus")


def test_a_missing_scan_is_an_input_error(pipeline, tmp_path):
    with pytest.raises(InputError):
        pipeline.run(tmp_path / "none.nii.gz")


def test_the_package_offers_its_names_and_stays_light():
    assert runtime.Pipeline is Pipeline
    assert set(runtime.__all__) <= set(dir(runtime))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = runtime.nonsense
    code = "import runtime, sys; print([m for m in ('numpy', 'numba', 'SimpleITK', 'torch') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


# INT8.


def with_plans(ball_bundle, tmp_path, *plans):
    names = ("locnet.onnx", "fracsegnet.onnx")
    spec = replace(open_bundle(ball_bundle).spec, precision=dict(zip(names, plans, strict=True)))
    return write_bundle(spec, {name: ball_bundle / name for name in names}, tmp_path / "b").folder


CALIBRATED = PrecisionPlan(int8_ranges={"x": 1.0})


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (PrecisionPlan(), "fracsegnet.onnx: it was not calibrated for it"),
        (PrecisionPlan(gates={"int8": {"dice": 0.9}}), "fracsegnet.onnx: it did not pass its accuracy gate (dice 0.9)"),
    ],
)
def test_int8_is_refused_where_a_network_did_not_pass_its_gate(ball_bundle, tmp_path, plan, said):
    folder = with_plans(ball_bundle, tmp_path, CALIBRATED, plan)
    with pytest.raises(EngineError, match=re.escape(f"is not offered in int8 ({said}).")) as refused:
        Pipeline.open(folder, precision="int8")
    assert "locnet" not in str(refused.value)


def precisions_asked_for(monkeypatch, *, offered):
    """What sessions are opened in, in turn, by an OpenVINO that is taken to offer these; all are computed in FP32."""
    asked = []

    def open_session(choice, model, *, threads):
        asked.append(choice.precision)
        return engines.open_session(replace(choice, precision="fp32"), model, threads=threads)

    found = engine_module("openvino").preflight()
    monkeypatch.setattr(openvino_cpu, "preflight", lambda *, device=0: replace(found, precisions=offered))
    monkeypatch.setattr("runtime.pipeline.open_session", open_session)
    return asked


def test_int8_is_refused_by_engines_that_have_none_and_given_by_those_that_do(ball_bundle, tmp_path, monkeypatch):
    folder = with_plans(ball_bundle, tmp_path, CALIBRATED, CALIBRATED)
    monkeypatch.setattr(openvino_cpu, "has_integer_dot_products", lambda: False)
    with pytest.raises(EngineError, match=r"openvino on CPU computes in .*, not in int8\.$"):
        Pipeline.open(folder, engine="openvino", precision="int8")
    asked = precisions_asked_for(monkeypatch, offered=("fp32", "int8"))
    Pipeline.open(folder, engine="openvino", precision="int8").close()
    assert asked == ["int8", "int8"]


@pytest.mark.parametrize(("verified", "expected"), [({}, "fp32"), ({"bf16": {"openvino 1": {"scans": 54.0}}}, "bf16")])
def test_the_bundle_says_in_what_a_processor_that_has_bf16_computes(
    ball_bundle, tmp_path, monkeypatch, verified, expected
):
    spec = replace(open_bundle(ball_bundle).spec, verified=verified)
    folder = write_bundle(spec, {name: ball_bundle / name for name in spec.files}, tmp_path / "bundle").folder
    asked = precisions_asked_for(monkeypatch, offered=("fp32", "bf16"))
    Pipeline.open(folder, engine="openvino").close()
    assert asked == [expected] * 2
    Pipeline.open(folder, engine="openvino", precision="fp32").close()
    assert asked[2:] == ["fp32"] * 2


@pytest.mark.parametrize("value", [-32768, -3024])
def test_a_padded_scan_is_analysed_as_if_padded_with_air_from_a_file_and_from_memory(
    pipeline, ball_scan, save, tmp_path, value
):
    scan = ball_scan(2).volume
    filled = np.array(scan.array)
    filled[:, :, :3] = value
    air = replace(scan, array=np.maximum(filled, -1024))
    from_memory, expected = (pipeline.analyse(one) for one in (replace(scan, array=filled), air))
    assert filled[0, 0, 0] == value, "what was handed over is not changed"
    assert from_memory.findings.vertebrae == expected.findings.vertebrae
    prepared = pipeline.prepare(save(replace(scan, array=filled), tmp_path / "a.nii"))
    np.testing.assert_array_equal(prepared.volume.array, air.array)
