import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from runtime import mask_measurement
from runtime.heights import measure_body
from runtime.label_map import TOTALSEGMENTATOR_LEVELS, VERSE_LEVELS, read_labels
from runtime.mask_measurement import measure_label_map
from runtime.measure import main
from runtime.morphometry import CERVICAL, CUT, measure_vertebrae
from runtime.vertebral_body import BodyMask, find_body, spine_tangents
from runtime.volume import Grid, Volume
from runtime.writers import write_label_volume
from tests.runtime.bodies import CENTRE_RAS_MM, Solid, grid_of, local_mm
from train.phantom import make_scan

STEP_MM = 34.0
HEIGHTS = {"T12": 24.0, "L1": 26.0, "L2": 27.0}
GENANT_VERSE004 = {16: 2, 17: 2, 18: 0, 19: 0, 20: 3, 21: 0, 22: 0}


def centre_of(n):
    """Where the nth body of the column lies."""
    return CENTRE_RAS_MM + np.array([0.0, 8.0, (1 - n) * STEP_MM])


def column(*, broken=True, spacing_xyz_mm=(1.5, 1.5, 1.5)):
    """Label map and body map of T12, L1 (wedged) and L2, and their grid, with VerSe's labels."""
    grid = grid_of(spacing_xyz_mm, size_mm=140.0)
    labels, bodies = np.zeros(grid.shape_zyx, np.uint8), np.zeros(grid.shape_zyx, np.uint8)
    for n, (level, height) in enumerate(HEIGHTS.items()):
        front = 0.5 * height if broken and level == "L1" else 0.97 * height
        solid = Solid(anterior=front, posterior=height)
        local = local_mm(grid, centre_ras_mm=centre_of(n))
        labels[solid.whole(local)] = 19 + n
        bodies[solid.body(local)] = 1
    return labels, bodies, grid


def save(path, array, grid):
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), np.array(grid.affine_ras)), path)
    return path


def edited(path, field, value):
    """The uncompressed NIfTI-1 file with another value in its header, unchecked."""
    data = path.read_bytes()
    header = nib.Nifti1Header(data[:348], check=False)
    header[field] = value
    path.write_bytes(header.binaryblock + data[348:])
    return path


def entries(capsys, *arguments):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_one_entry_per_label_cranial_to_caudal(tmp_path, capsys):
    labels, _, grid = column()
    found = entries(capsys, save(tmp_path / "mask.nii.gz", labels, grid))
    assert [(v["label"], v["level"]) for v in found] == [(19, "T12"), (20, "L1"), (21, "L2")]
    t12, l1, l2 = found
    assert (t12["grade"], t12["shape"]) == (l2["grade"], l2["shape"]) == (0, None)
    assert l1["grade"] == 3
    assert l1["shape"] == "wedge"
    assert l1["height_loss"] == pytest.approx(0.45, abs=0.06)
    assert l1["heights_mm"]["posterior"] == pytest.approx(25, abs=1.5)
    assert l1["volume_ml"] == pytest.approx((labels == 20).sum() * grid.voxel_volume_mm3 / 1000, abs=1e-3)
    assert all(v["complete"] and v["reason"] == "" and v["mean_hu"] is None for v in found)


def test_numbers_in_any_scheme_and_turned_arrays_say_the_same(tmp_path, capsys):
    labels, _, grid = column()
    verse = entries(capsys, save(tmp_path / "a.nii.gz", labels, grid))
    other = np.zeros_like(labels)
    for verse_label, their_label in ((19, 32), (20, 31), (21, 30)):
        other[labels == verse_label] = their_label
    flipped = grid.affine_ras.copy()
    flipped[:3, 3] += flipped[:3, 0] * (grid.shape_zyx[2] - 1)
    flipped[:3, 0] *= -1
    theirs = entries(
        capsys, save(tmp_path / "b.nii.gz", np.ascontiguousarray(other[:, :, ::-1]), Grid(grid.shape_zyx, flipped))
    )
    assert [v["level"] for v in theirs] == ["T12", "L1", "L2"]
    for a, b in zip(verse, theirs, strict=True):
        assert a["grade"] == b["grade"]
        assert a["heights_mm"]["anterior"] == pytest.approx(b["heights_mm"]["anterior"], abs=0.4)


@pytest.mark.parametrize(
    ("labels_down", "levels", "guess"),
    [
        ((28, 27, 25), ["L4", "L5"], "TotalSegmentator's, since"),
        ((28, 27, 26), ["L4", "L5"], "TotalSegmentator's, since"),
        ((27, 26, 25), ["L5"], "TotalSegmentator's, since"),
        ((27, 25), ["L5"], "TotalSegmentator's, since"),
        ((28, 27), ["L4", "L5"], "TotalSegmentator's, since"),
        ((28, 25), ["L4"], "TotalSegmentator's, since"),
        ((25, 26, 27), ["L6"], "taken for VerSe's"),
        ((25, 26), ["L6"], "taken for VerSe's"),
        ((28,), ["T13"], "taken for VerSe's"),
        ((24, 25, 26), ["L5", "L6"], None),
        ((19, 28, 20), ["T12", "T13", "L1"], None),
        ((30, 29, 28), ["L2", "L3", "L4"], None),
    ],
)
def test_labels_of_both_schemes_are_told_apart_by_their_order(labels_down, levels, guess):
    """Labels 25 to 28 are sacrum to L4 from below in one scheme, L6, sacrum, coccyx and T13 in the other."""
    column_labels, _, grid = column(broken=False)
    labels = np.zeros_like(column_labels)
    for ours, label in zip((19, 20, 21), labels_down, strict=False):
        labels[column_labels == ours] = label
    report = measure_label_map((labels, grid))
    assert [v.level for v in report.vertebrae] == levels
    notes = [note for note in report.notes if "were taken for" in note]
    assert [guess in note and "--labels" in note for note in notes] == ([] if guess is None else [True])


def test_a_scheme_that_is_named_is_not_guessed():
    labels, _, grid = column(broken=False)
    labels = np.array([0, 28, 27, 25], np.uint8)[np.where(labels > 0, labels - 18, 0)]
    report = measure_label_map((labels, grid), scheme="verse")
    assert [v.level for v in report.vertebrae] == ["T13", "L6"]
    assert not any("taken for" in note for note in report.notes)


def test_labels_that_only_count_are_not_taken_for_the_neck(tmp_path, capsys):
    labels, _, grid = column()
    path = save(tmp_path / "n.nii.gz", np.where(labels > 0, labels - 18, 0).astype(np.uint8), grid)
    for arguments in ([path], [path, "--labels", "none"]):
        counted = entries(capsys, *arguments)
        assert [v["level"] for v in counted] == [None] * 3
        assert [v["grade"] >= 2 for v in counted] == [False, True, False]
    neck = entries(capsys, path, "--labels", "verse")
    assert [v["level"] for v in neck] == ["C1", "C2", "C3"]
    assert {v["grade"] for v in neck} == {None}
    assert neck[2]["heights_mm"] is not None
    assert neck[2]["reason"] == CERVICAL


def test_body_labels_of_another_map_or_of_the_map_itself(tmp_path, capsys):
    labels, bodies, grid = column()
    mask, parts = save(tmp_path / "m.nii.gz", labels, grid), save(tmp_path / "s.nii.gz", 49 * bodies, grid)
    alone = entries(capsys, mask)
    helped = entries(capsys, mask, "--subregions", parts, "--body-labels", 49)
    only = entries(capsys, parts, "--body-labels", 49, 50)
    assert [v["label"] for v in only] == [1, 2, 3]
    assert {v["level"] for v in only} == {None}
    for a, b, c in zip(alone, helped, only, strict=True):
        for place in ("anterior", "middle", "posterior"):
            assert a["heights_mm"][place] == pytest.approx(b["heights_mm"][place], abs=0.8)
            assert c["heights_mm"][place] == pytest.approx(b["heights_mm"][place], abs=0.8)


def test_the_density_is_of_the_spongy_bone_on_any_grid(tmp_path, capsys):
    labels, bodies, grid = column(broken=False)
    hu = np.where(labels > 0, 900, -50).astype(np.int16)
    for n, level in enumerate(HEIGHTS):
        local = local_mm(grid, centre_ras_mm=centre_of(n))
        core = Solid(anterior=HEIGHTS[level] - 5, posterior=HEIGHTS[level] - 5, half_width=18.5, half_depth=12.5)
        hu[core.body(local)] = 100 + 20 * n
    mask, scan = save(tmp_path / "m.nii.gz", labels, grid), save(tmp_path / "ct.nii.gz", hu, grid)
    assert [v["mean_hu"] for v in entries(capsys, mask, "--scan", scan)] == pytest.approx([100, 120, 140], abs=3)
    assert bodies.any()


def test_a_cut_body_has_no_heights_and_its_neighbours_keep_theirs(tmp_path, capsys):
    labels, _, grid = column()
    top = int(grid.to_index_zyx(centre_of(0))[0])
    cut = labels[:top]
    found = entries(capsys, save(tmp_path / "cut.nii.gz", cut, Grid(cut.shape, grid.affine_ras)))
    assert (found[0]["complete"], found[0]["heights_mm"], found[0]["grade"]) == (False, None, None)
    assert found[0]["reason"] == CUT
    assert found[1]["grade"] == 3


def test_the_table_can_be_read(tmp_path, capsys):
    labels, _, grid = column()
    assert main([str(save(tmp_path / "m.nii.gz", labels, grid))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "3 wedge" in lines[2]
    assert lines[2].split()[:2] == ["20", "L1"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, a, g: p / "missing.nii.gz", "no file"),
        (lambda p, a, g: save(p / "e.nii.gz", np.zeros_like(a), g), "empty"),
        (lambda p, a, g: save(p / "c.nii.gz", a.astype(np.int16) - 1000, g), "Give the segmentation"),
        (lambda p, a, g: save(p / "f.nii.gz", a.astype(np.float32) * 0.5, g), "whole numbers"),
        (lambda p, a, g: save(p / "n.nii.gz", np.where(a, np.nan, 1.0).astype(np.float32), g), "nan"),
        (lambda p, a, g: edited(save(p / "t.nii", a, g), "datatype", 7777), "can't be read"),
        (lambda p, a, g: edited(save(p / "d.nii", a, g), "dim", [3, -5, 9, 9, 1, 1, 1, 1]), "its size is -5"),
        (lambda p, a, g: edited(save(p / "h.nii", a, g), "dim", [3, 30000, 30000, 30000, 1, 1, 1, 1]), "mm long"),
        (lambda p, a, g: edited(save(p / "o.nii", a, g), "vox_offset", np.nan), "can't be read"),
        (lambda p, a, g: save(p / "s.nii.gz", 26 * (a > 0).astype(np.uint8), g), "no vertebra"),
    ],
)
def test_bad_masks_are_refused_with_status_2(tmp_path, capsys, make, message):
    labels, _, grid = column()
    assert main([str(make(tmp_path, labels, grid))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_damaged_files_and_wrong_companions_are_refused(tmp_path, capsys):
    labels, bodies, grid = column()
    mask = save(tmp_path / "m.nii.gz", labels, grid)
    damaged = tmp_path / "d.nii.gz"
    damaged.write_bytes(mask.read_bytes()[:400])
    away = Grid((20, 20, 20), np.diag([2.0, 2, 2, 1]) + np.array([[0, 0, 0, 9000.0]] * 3 + [[0, 0, 0, 0]]))
    ct = save(tmp_path / "ct.nii.gz", np.arange(-1000, 7000, dtype=np.int16).reshape(20, 20, 20), away)
    small = save(tmp_path / "s.nii.gz", bodies[1:], Grid(bodies[1:].shape, grid.affine_ras))
    other = save(tmp_path / "o.nii.gz", bodies, grid)
    for arguments, message in (
        ([damaged], "can't be read"),
        ([mask, "--scan", ct], "do not overlap"),
        ([mask, "--subregions", small, "--body-labels", 1], "one grid"),
        ([mask, "--subregions", other, "--body-labels", 49], "do not occur"),
    ):
        assert main([*map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([str(mask), "--subregions", str(other)])
    assert stop.value.code == 2


def test_the_schemes_name_every_level_once():
    assert len(set(VERSE_LEVELS.values())) == len(VERSE_LEVELS) == 26
    assert len(set(TOTALSEGMENTATOR_LEVELS.values())) == 24
    assert (VERSE_LEVELS[8], VERSE_LEVELS[19], VERSE_LEVELS[20], VERSE_LEVELS[28]) == ("T1", "T12", "L1", "T13")
    pairs = {26 + n: level for n, level in enumerate(("L5", "L4", "L3", "L2", "L1", "T12"), start=1)}
    assert {n: TOTALSEGMENTATOR_LEVELS[n] for n in pairs} == pairs
    assert (TOTALSEGMENTATOR_LEVELS[43], TOTALSEGMENTATOR_LEVELS[44], TOTALSEGMENTATOR_LEVELS[50]) == ("T1", "C7", "C1")


def test_probability_crops_are_measured_as_the_pipeline_has_them():
    crops = []
    for n, (level, height) in enumerate(HEIGHTS.items()):
        centre = centre_of(n)
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = centre - 47
        grid = Grid((48, 48, 48), affine)
        local = local_mm(grid, centre_ras_mm=centre)
        solid = Solid(anterior=0.6 * height if level == "L1" else 0.97 * height, posterior=height)
        whole, body = (m.astype(np.float16) * 0.9 for m in (solid.whole(local), solid.body(local)))
        crops.append(BodyMask(grid, whole, body, complete=level != "T12", level=level))
    scan = Volume(
        np.full((60, 70, 80), 150, np.int16), grid_of((2, 2, 2), size_mm=160).sub_grid((0, 0, 0), (60, 70, 80))
    )
    t12, l1, l2 = measure_vertebrae(crops, scan=scan)
    assert (t12.heights, t12.fracture, t12.reason) == (None, None, CUT)
    assert l1.fracture.grade >= 2
    assert l2.fracture.grade == 0
    assert l2.mean_hu == pytest.approx(150)
    assert measure_vertebrae([]) == ()


@pytest.mark.slow
def test_heights_of_phantoms_from_their_true_masks(capsys):
    errors = {"whole": [], "body": []}
    for seed in (2**31 + 5000, 2**31 + 5002):
        scan = make_scan(seed, spacing_mm=1.5)
        grid, last = scan.volume.grid, np.array(scan.mask.shape) - 1
        tangents = spine_tangents([v.centre_ras_mm for v in scan.vertebrae])
        for v, tangent in zip(scan.vertebrae, tangents, strict=True):
            whole, body = scan.mask == v.label, scan.body_mask == v.label
            voxels = np.argwhere(body)
            if v.level.startswith("C") or not len(voxels) or (voxels == 0).any() or (voxels == last).any():
                continue
            low = np.maximum(np.argwhere(whole).min(axis=0) - 1, 0)
            high = np.argwhere(whole).max(axis=0) + 2
            block = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            crop = grid.sub_grid(low, whole[block].shape)
            for kind, mask in (("whole", None), ("body", body[block])):
                size = measure_body(find_body(BodyMask(crop, whole[block], mask), superior_ras=tangent))
                errors[kind].append(np.abs(size.heights.as_array() - v.heights_mm))
    for kind, found in errors.items():
        mean = np.mean(found)
        with capsys.disabled():
            print(f"\nheights from {kind} masks: {mean:.2f} mm mean absolute error over {len(found)} vertebrae")
        assert len(found) > 15
        assert mean < 0.8


def test_the_radiologists_grades_of_verse004(shared_data, capsys):
    found = entries(capsys, shared_data / "verse004" / "sub-verse004_seg-vert_msk.nii.gz")
    grades = {v["label"]: v["grade"] for v in found}
    assert [v["label"] for v in found] == list(range(16, 25))
    for label, grade in GENANT_VERSE004.items():
        assert (grades[label] >= 2) == (grade >= 2), (label, grades[label])
        assert abs(grades[label] - grade) <= 1


def test_the_reduced_l2_of_malekosh_is_flagged(shared_data, capsys):
    folder = shared_data / "malekosh-sample001"
    mask, parts = folder / "sub-sample001_seg-vert_msk.nii.gz", folder / "sub-sample001_seg-subreg_msk.nii.gz"
    for extra in ((), ("--subregions", parts, "--body-labels", 49, 50)):
        found = {v["level"]: v for v in entries(capsys, mask, *extra)}
        assert found["L2"]["height_loss"] >= 0.2
        assert found["L2"]["grade"] >= 1
        assert max(found[level]["height_loss"] for level in ("T8", "T9", "T10", "T11", "L3", "L4", "L5")) < 0.2


def test_heights_of_a_real_patient_agree_with_hand_and_with_the_body_mask(shared_data, capsys):
    folder = shared_data / "totalsegmentator-example"
    alone = entries(capsys, folder / "vertebrae.nii.gz", "--scan", folder / "ct.nii.gz")
    helped = entries(
        capsys, folder / "vertebrae.nii.gz", "--subregions", folder / "vertebral-bodies.nii.gz", "--body-labels", 1
    )
    assert [v["level"] for v in alone] == ["T11", "T12", "L1", "L2", "L3", "L4", "L5"]
    for a, b in zip(alone[2:], helped[2:], strict=True):
        assert a["grade"] == b["grade"] == 0
        assert 60 < a["mean_hu"] < 200
        for place in ("anterior", "middle", "posterior"):
            assert a["heights_mm"][place] == pytest.approx(b["heights_mm"][place], abs=3.0)


def test_every_real_mask_is_read_and_measured(shared_data, capsys):
    lumbar = entries(capsys, shared_data / "tptbox-lumbar" / "vertebrae.nii.gz")
    assert [v["heights_mm"] is not None for v in lumbar] == [False, True, False]
    collapsed = {v["level"]: v for v in entries(capsys, shared_data / "healthivert-0007" / "0007_msk.nii.gz")}
    assert collapsed["T9"]["heights_mm"] is None
    assert min(collapsed[level]["grade"] for level in ("L1", "L2", "L4")) >= 2
    one = entries(capsys, shared_data / "spinefe-verse004-v21" / "subregions.nii.gz", "--body-labels", 1, 2)
    assert len(one) == 1
    assert one[0]["grade"] == 0
    whole = entries(capsys, shared_data / "verse004" / "sub-verse004_seg-vert_msk.nii.gz")
    l2 = next(v for v in whole if v["level"] == "L2")
    for place in ("anterior", "middle", "posterior"):
        assert one[0]["heights_mm"][place] == pytest.approx(l2["heights_mm"][place], abs=1.5)


def test_labels_of_every_stored_type_are_read(tmp_path):
    labels, _, grid = column()
    for dtype in (np.uint8, np.int16, np.float64):
        read, back = read_labels(save(tmp_path / f"{np.dtype(dtype).name}.nii.gz", labels.astype(dtype), grid))
        assert read.dtype == np.uint8
        assert np.array_equal(read, labels)
        assert back.same_as(grid)


def test_the_softwares_own_masks_are_running_numbers_without_levels(tmp_path, capsys):
    labels, _, grid = column()
    numbered = np.zeros_like(labels)
    for number, label in enumerate(np.unique(labels[labels > 0]), start=1):
        numbered[labels == label] = number
    write_label_volume(tmp_path / "own.nii.gz", numbered, grid)
    found = entries(capsys, tmp_path / "own.nii.gz")
    assert [v["label"] for v in found] == [1, 2, 3]
    assert [v["level"] for v in found] == [None] * 3
    assert all(v["grade"] is not None for v in found)
    assert main([str(tmp_path / "own.nii.gz")]) == 0
    assert "its labels are running numbers" in capsys.readouterr().err
    insisted = entries(capsys, tmp_path / "own.nii.gz", "--labels", "verse")
    assert [v["level"] for v in insisted] == ["C1", "C2", "C3"]


def test_an_interrupt_and_memory_that_runs_out_end_in_one_line(tmp_path, capsys, monkeypatch):
    labels, _, grid = column()
    mask = save(tmp_path / "m.nii.gz", labels, grid)
    for error, status, told in ((KeyboardInterrupt, 130, "interrupted"), (MemoryError, 4, "out of memory")):

        def stop(*_, error=error, **__):
            raise error

        monkeypatch.setattr(mask_measurement, "measure_label_map", stop)
        assert main([str(mask)]) == status
        assert told in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_stdout_is_one_line(tmp_path):
    labels, _, grid = column()
    mask = save(tmp_path / "m.nii.gz", labels, grid)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "runtime.measure", str(mask)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: stdout can't be written (No space left")
    assert "Traceback" not in done.stderr
