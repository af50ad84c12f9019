"""Samples: reproducible, on the grid that was asked for, with truths that belong to their voxels."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from runtime.crops import crop_grid
from runtime.errors import InputError
from runtime.volume import Grid, Volume
from train.config import FracSegNetRun, LocNetRun
from train.evaluation.truth import verse_items
from train.level_crops import block, crop_start
from train.phantom import Anatomy, PhantomConfig, PhantomScan, make_scan, sample_appearance
from train.phantom.tables import Tissue
from train.phantom.verse import write_verse
from train.real_scans import UNKNOWN_GRADE, UNKNOWN_SHARE, RealSource, check_grades, group_shares
from train.sources import (
    AIR_HU,
    MixedSource,
    PhantomSource,
    Source,
    cut_by_edges,
    dense_blood,
    find_vertebra,
    grade_shares,
    held_out,
    make_source,
    narrow_field,
    scan_beside_body,
    slice_weights,
    thick_slices,
)
from train.tasks import FracSegNetTask, LocNetTask

LOC, FRAC = LocNetRun(), FracSegNetRun()


def test_phantom_crops_are_a_function_of_the_seed() -> None:
    task = LocNetTask(LOC)
    a, b, c = (task.batch(PhantomSource(), (seed,), 1) for seed in (3, 3, 4))
    assert (a["image"] == b["image"]).all()
    assert a["image"].shape != c["image"].shape or (a["image"] != c["image"]).any()


def test_phantom_centres_lie_where_heat_and_offsets_say() -> None:
    batch = LocNetTask(LOC).batch(PhantomSource(), (3,), 2)
    assert batch["image"].abs().max() <= 1
    for i, centres in enumerate(batch["centres"]):
        for centre in centres.round().long():
            if all(0 <= c < n for c, n in zip(centre, batch["heatmap"].shape[2:], strict=True)):
                z, y, x = centre.tolist()
                assert batch["heatmap"][i, 0, z, y, x] > 0.8
                assert batch["offsets"][i, :, z, y, x].abs().max() <= 0.5001


def test_a_narrow_field_is_a_box_around_one_of_the_centres_and_air_beyond() -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(0, 10, (12, 64, 64)).astype(np.float32)
    points = np.array([[3.0, 30.0, 40.0], [9.0, 35.0, 20.0], [6.0, 5.0, 60.0]])
    lost = 0
    for _ in range(60):
        field, kept = narrow_field(hu, points, rng, spacing_mm=3.0, probability=1.0)
        inside = field != AIR_HU
        np.testing.assert_array_equal(field[inside], hu[inside])
        sizes = [len(np.unique(where)) for where in np.nonzero(inside)]
        assert inside.sum() == np.prod(sizes)
        assert sizes[0] == 12
        assert max(sizes[1:]) <= 61
        assert len(kept) >= 1
        lost += len(points) - len(kept)
        for point in points:
            is_kept = any((point == other).all() for other in kept)
            assert is_kept == inside[tuple(np.rint(point).astype(int))]
    assert lost > 0
    assert narrow_field(hu, points, rng, spacing_mm=3.0, probability=0.0)[0] is hu


def test_stored_in_slices_a_line_keeps_its_mean_and_a_ramp_its_slope() -> None:
    ramp = np.arange(48.0)
    for thickness in (1.0, 1.4, 2.0, 5 / 3):
        weights = slice_weights(48, thickness, 0.3)
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
        np.testing.assert_allclose((weights @ ramp)[4:-4], ramp[4:-4], atol=0.2)
        assert weights.min() >= 0
    np.testing.assert_allclose(slice_weights(48, 1.0, 0.0), np.eye(48), atol=1e-6)
    assert slice_weights(48, 2.0, 0.3).max(axis=1)[4:-4].max() < 0.7


def test_thick_slices_change_one_axis_alone() -> None:
    rng = np.random.default_rng(0)
    axes = Counter()
    for _ in range(40):
        z, y, x = (rng.normal(0, 100, n).astype(np.float32) for n in (20, 24, 28))
        hu = z[:, None, None] + y[None, :, None] + x[None, None, :]
        changed = thick_slices(hu, rng, spacing_mm=3.0, probability=1.0) - hu
        moving = [axis for axis in range(3) if changed.std(axis=axis).max() > 1e-3]
        assert len(moving) <= 1
        axes.update(moving)
    assert set(axes) == {0, 1, 2}
    assert axes[0] == max(axes.values())


def test_dense_blood_changes_the_veins_alone() -> None:
    rng = np.random.default_rng(0)
    appearance = sample_appearance(rng)
    changed = dense_blood(appearance, rng, probability=1.0)
    assert np.flatnonzero(changed.hu != appearance.hu).tolist() == [Tissue.VEIN]
    assert 300 <= changed.hu[Tissue.VEIN] <= 1800
    assert dense_blood(appearance, rng, probability=0.0) is appearance


def test_as_many_crops_as_asked_for_show_a_fractured_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not rendered: what each crop is laid around is all that is asked."""
    shown: list[bool] = []

    def without_voxels(anatomy: Anatomy, grid: Grid, *_: object) -> PhantomScan:
        centres = {v: grid.to_index_zyx(anatomy.centre_ras_mm(v)) for v in anatomy.vertebrae}
        inside = [v for v, at in centres.items() if (at > 0).all() and (at < np.array(grid.shape_zyx) - 1).all()]
        shown.append(any(v.grade >= 2 for v in inside))
        nothing = np.zeros(grid.shape_zyx, np.float32)
        none = nothing.astype(np.uint8)
        return PhantomScan(Volume(nothing, grid), none, none, (), anatomy.seed)

    monkeypatch.setattr("train.sources.render", without_voxels)
    rng = np.random.default_rng(0)
    share = {}
    for fraction in (0.0, 1.0):
        run = replace(LOC, negative_fraction=0.0, fractured_fraction=fraction)
        shown.clear()
        for _ in range(60):
            PhantomSource().localisation(rng, (32, 32, 32), run)
        share[fraction] = np.mean(shown)
    assert share[1.0] > 0.9
    assert share[0.0] < 0.7


def test_phantom_vertebrae_are_where_the_crop_has_them_and_of_all_grades() -> None:
    rng = np.random.default_rng(0)
    samples = [PhantomSource().vertebra(rng, FRAC) for _ in range(24)]
    assert len({s.grade for s in samples}) == 4
    for sample in samples:
        assert sample.masks.shape == (2, 48, 48, 48)
        assert not (sample.masks[1] & ~sample.masks[0]).any(), "the body is part of the vertebra"
        centre = np.argwhere(sample.masks[1]).mean(axis=0)
        from_middle_mm = (centre - 23.5) * FRAC.spacing_mm + np.array(FRAC.crop_shift_mm[::-1])
        assert np.abs(from_middle_mm).max() < 5 * FRAC.centre_jitter_mm
        loss = sample.heights[3:].max()
        assert (sample.grade > 0) == (loss >= 0.2)
        assert (sample.heights[:3] > 2).all()


def test_samplings_ask_for_grades_as_often_as_they_say() -> None:
    assert grade_shares(replace(FRAC, sampling="as_found")) is None
    for sampling, expected in (
        ("class_counts", [591 / 726, 63 / 726, 50 / 726, 22 / 726]),
        ("balanced", [1 / 2, 1 / 6, 1 / 6, 1 / 6]),
        ("equal", [1 / 4] * 4),
        ("severe", [0.45, 0.1, 0.15, 0.3]),
    ):
        assert grade_shares(replace(FRAC, sampling=sampling)) == pytest.approx(expected)


def test_vertebrae_are_looked_for_in_regions_and_among_seeds() -> None:
    rng = np.random.default_rng(0)
    for grade in (0, 1, 2, 3, None):
        anatomy, target = find_vertebra(grade, rng, PhantomConfig(), seeds=range(50, 90), regions="TL")
        assert 50 <= anatomy.seed < 90
        assert target.level[0] in "TL"
        assert grade is None or target.grade == grade


def test_edges_leave_air_and_drop_the_centres_in_it() -> None:
    rng = np.random.default_rng(1)
    hu = np.full((20, 20, 20), 50.0, np.float32)
    points = np.array([[z, 10.0, 10.0] for z in range(20)])
    for _ in range(50):
        cut, kept = cut_by_edges(hu, points, rng, probability=1.0)
        assert (cut == AIR_HU).any()
        assert (cut[8:12, 8:12, 8:12] == 50).all(), "the middle stays"
        for point in kept.astype(int):
            assert cut[tuple(point)] == 50
        gone = {int(p[0]) for p in points} - {int(p[0]) for p in kept}
        assert all(cut[z, 10, 10] == AIR_HU for z in gone)


def test_scans_end_beside_bodies_and_never_in_them() -> None:
    rng = np.random.default_rng(4)
    body = np.zeros((48, 48, 48), bool)
    body[20:29, 22:34, 18:30] = True
    around = np.zeros_like(body)
    around[19:30, 21:35, 17:31] = True
    scans = [scan_beside_body(body, rng, probability=1.0) for _ in range(400)]
    assert all(inside[around].all() for inside in scans)
    below = {int(np.count_nonzero(~inside[:20, 24, 24])) for inside in scans}
    assert below == set(range(20))  # from nothing to all but the voxel beside the body
    whole = sum(inside.all() for inside in (scan_beside_body(body, rng) for _ in range(1000)))
    assert 650 <= whole <= 750
    assert scan_beside_body(np.zeros_like(body), rng, probability=1.0).all()


def test_blocks_beyond_the_array_are_filled() -> None:
    array = np.arange(27).reshape(3, 3, 3)
    met = block(array, np.array([-1, 2, 0]), (3, 2, 3), fill=-9)
    assert (met[0] == -9).all()
    assert (met[:, 1] == -9).all()
    np.testing.assert_array_equal(met[1:, 0], array[:2, 2])
    assert (block(array, np.array([9, 9, 9]), (2, 2, 2), fill=-9) == -9).all()


@pytest.fixture
def verse_folder(tmp_path: Path) -> Path:
    """One real-looking case: a scan with two bright cubes at 1.5 mm, P I R axes, its mask, centroids and grades."""
    affine = np.array([[0, 0, -1.5, 60], [-1.5, 0, 0, 50], [0, -1.5, 0, 70], [0, 0, 0, 1]])
    hu, mask = np.full((50, 60, 40), -50, np.int16), np.zeros((50, 60, 40), np.uint8)
    centroids = [{"direction": ["P", "I", "R"]}]
    for label, y in ((20, 18), (21, 40)):
        box = (slice(20, 31), slice(y - 5, y + 6), slice(15, 26))
        hu[box], mask[box] = 300, label
        centroids.append({"label": label, "X": 25.0, "Y": float(y), "Z": 20.0})
    raw, derived = tmp_path / "rawdata" / "sub-a", tmp_path / "derivatives" / "sub-a"
    raw.mkdir(parents=True)
    derived.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(hu, affine), raw / "sub-a_ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, affine), derived / "sub-a_seg-vert_msk.nii.gz")
    (derived / "sub-a_seg-subreg_ctd.json").write_text(json.dumps(centroids))
    (tmp_path / "grades.json").write_text(json.dumps({"training": {"sub-a_20": 0, "sub-a_21": 3}}))
    return tmp_path


def test_real_scans_are_resampled_once_and_cropped(verse_folder: Path, tmp_path: Path) -> None:
    source = RealSource(verse_folder, grades=verse_folder / "grades.json", cache=tmp_path / "cache")
    rng = np.random.default_rng(0)
    grades = set()
    for _ in range(12):
        sample = source.vertebra(rng, FRAC)
        grades.add(sample.grade)
        assert sample.masks_known.tolist() == [True, False], "this data set has no body masks"
        assert sample.hu[sample.masks[0]].mean() > 150
        assert np.isnan(sample.heights).all()
        assert abs(sample.masks[0].sum() * 8 - (11 * 1.5) ** 3) < 0.25 * (11 * 1.5) ** 3
    assert grades == {0, 3}
    for _ in range(12):
        hu, points = source.localisation(rng, (32, 32, 32), LOC)
        assert hu.shape == (32, 32, 32)
        for point in np.round(points).astype(int):
            if (point > 0).all() and (point < 31).all():
                assert hu[tuple(point)] > 150
    prepared = sorted((tmp_path / "cache").glob("*/meta.json"))
    assert len(prepared) == 2, "one for each spacing"
    stamps = [p.stat().st_mtime_ns for p in prepared]
    RealSource(verse_folder, grades=None, cache=tmp_path / "cache").localisation(rng, (32, 32, 32), LOC)
    assert [p.stat().st_mtime_ns for p in prepared] == stamps


def test_sources_mix(verse_folder: Path, tmp_path: Path) -> None:
    real = RealSource(verse_folder, grades=verse_folder / "grades.json", cache=tmp_path / "cache")
    batch = FracSegNetTask(FRAC).batch(MixedSource([real, PhantomSource()]), (1,), 6)
    assert set(batch["mask_known"][:, 1].tolist()) == {True, False}


def test_validation_draws_from_other_subjects(verse_folder: Path, tmp_path: Path) -> None:
    for letter in "bc":
        for part in ("rawdata", "derivatives"):
            shutil.copytree(verse_folder / part / "sub-a", verse_folder / part / f"sub-{letter}")
            for path in (verse_folder / part / f"sub-{letter}").iterdir():
                path.rename(path.with_name(path.name.replace("sub-a", f"sub-{letter}")))
    source = make_source([str(verse_folder), "phantoms"], grades=None, cache=tmp_path / "cache")
    assert isinstance(source, MixedSource)
    training, validation = source.sources[0], held_out(source).sources[0]  # type: ignore[attr-defined]
    assert not {c.subject for c in training.cases} & {c.subject for c in validation.cases}
    assert len(training.cases) + len(validation.cases) == 3
    assert held_out(source.sources[1]) is source.sources[1], "phantoms never end"


def test_one_subject_is_not_enough_to_validate_on(verse_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more subjects"):
        held_out(RealSource(verse_folder, grades=verse_folder / "grades.json", cache=tmp_path / "cache"))


def test_scans_without_grades_are_said_and_teach_no_fracnet(
    verse_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("rawdata", "derivatives"):
        shutil.copytree(verse_folder / part / "sub-a", verse_folder / part / "sub-b")
        for path in (verse_folder / part / "sub-b").iterdir():
            path.rename(path.with_name(path.name.replace("sub-a", "sub-b")))
    network = replace(FRAC.network, mask_channels=(), grade_head="pooled")
    fracnet, cache = replace(FRAC, network=network), tmp_path / "cache"

    def source(*data: str, grades: str = "") -> Source:
        return make_source(data or (str(verse_folder),), grades=Path(grades) if grades else None, cache=cache)

    check_grades(FRAC, source())
    assert f"no grades for 1 scans in {verse_folder}; name them with --grades" in caplog.text
    with pytest.raises(InputError, match="no scan for training has any"):
        check_grades(fracnet, source())
    check_grades(fracnet, source(str(verse_folder), "phantoms"))
    graded = source().cases[0].name  # type: ignore[attr-defined]
    (tmp_path / "some.json").write_text(json.dumps({f"{graded}_20": 1}))
    with pytest.raises(InputError, match="no scan for validation has any"):
        check_grades(fracnet, source(grades=str(tmp_path / "some.json")))
    (tmp_path / "all.json").write_text(json.dumps({"sub-a_20": 1, "sub-b_20": 1}))
    caplog.clear()
    for run in (FRAC, fracnet):
        check_grades(run, source(grades=str(tmp_path / "all.json")))
    assert not caplog.records


def test_a_damaged_scan_is_named(verse_folder: Path, tmp_path: Path) -> None:
    for letter in "bc":
        for part in ("rawdata", "derivatives"):
            shutil.copytree(verse_folder / part / "sub-a", verse_folder / part / f"sub-{letter}")
            for path in (verse_folder / part / f"sub-{letter}").iterdir():
                path.rename(path.with_name(path.name.replace("sub-a", f"sub-{letter}")))
    for scan in verse_folder.glob("rawdata/*/*.nii.gz"):
        scan.write_bytes(b"no scan")
    source = RealSource(verse_folder, grades=None, cache=tmp_path / "cache")
    with pytest.raises(InputError, match=r"sub-._ct\.nii\.gz cannot be read as a scan"):
        source.vertebra(np.random.default_rng(0), FRAC)


def test_training_and_evaluation_have_the_grades_of_both_scans(tmp_path: Path) -> None:
    """A phantom laid out as VerSe's patient 401: one scan around the neck, one below it, graded as two series."""
    neck, below = "sub-verse401_split-verse201", "sub-verse401_split-verse253"
    scan = make_scan(5, spacing_mm=4.0)
    grades = {v.label: v.grade for v in scan.vertebrae if v.level[0] != "C"}
    cut = sorted(grades)[2]
    for name in (neck, below):
        write_verse(scan, tmp_path, name.removeprefix("sub-"))
        path = tmp_path / "derivatives" / name / f"{name}_seg-subreg_ctd.json"
        head, *points = json.loads(path.read_text())
        path.write_text(json.dumps([head, *(p for p in points if (p["label"] < cut) == (name == neck))]))
    listed = {f"sub-verse401_series{int(label >= cut)}_{label}": grade for label, grade in grades.items()}
    (tmp_path / "genant.json").write_text(json.dumps({"train": listed}))
    expected = {
        neck: {n: g for n, g in grades.items() if n < cut},
        below: {n: g for n, g in grades.items() if n >= cut},
    }
    assert all(expected.values())
    source = RealSource(tmp_path, grades=None, cache=tmp_path / "cache")
    assert source.grades == expected
    rng, run = np.random.default_rng(0), replace(FRAC, spacing_mm=6.0)
    assert {source.vertebra(rng, run).grade for _ in range(40)} - {-1} == set(grades.values())
    for item in verse_items(tmp_path, None):
        assert {v.label: v.grade for v in item.load().vertebrae if v.grade is not None} == expected[item.name]


@pytest.mark.parametrize("sampling", ["balanced", "equal", "severe"])
@pytest.mark.parametrize("grades", [(0, 1, 2, 3), (0, 3), (2,)])
@pytest.mark.parametrize("some_unknown", [True, False])
def test_real_grades_are_drawn_as_often_as_the_sampling_says(
    tmp_path: Path, sampling: str, grades: tuple[int, ...], some_unknown: bool
) -> None:
    """However often each occurs: a scan with 1, 2, 3... vertebrae of the grades, and the ungraded neck."""
    known = [grade for count, grade in enumerate(grades, start=1) for _ in range(count)]
    listed = {f"sub-a_{label}": grade for label, grade in enumerate(known, start=8)}
    unknown = range(1, 8) if some_unknown else range(0)
    folder = tmp_path / "derivatives" / "sub-a"
    (tmp_path / "rawdata" / "sub-a").mkdir(parents=True)
    folder.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "rawdata/sub-a/sub-a_ct.nii")
    labels = [*unknown, *range(8, 8 + len(known))]
    points = [{"label": label, "X": 1, "Y": 1, "Z": 1} for label in labels]
    (folder / "sub-a_seg-subreg_ctd.json").write_text(json.dumps([{"direction": ["R", "A", "S"]}, *points]))
    (tmp_path / "genant.json").write_text(json.dumps(listed))
    source = RealSource(tmp_path, grades=None, cache=tmp_path / "cache")
    run, rng, draws = replace(FRAC, sampling=sampling), np.random.default_rng(0), 4000
    met = Counter(source._choose(rng, run)[2] for _ in range(draws))
    shares = grade_shares(run)
    assert shares is not None
    assert set(met) == {*grades, *([-1] if some_unknown else [])}
    rest = 1 - UNKNOWN_SHARE if some_unknown else 1.0
    for grade in grades:
        expected = rest * shares[grade] / sum(shares[g] for g in grades)
        assert met[grade] / draws == pytest.approx(expected, abs=0.03)
    if some_unknown:
        assert met[-1] / draws == pytest.approx(UNKNOWN_SHARE, abs=0.03)


def test_two_sources_keep_apart_what_they_draw(verse_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for part in ("rawdata", "derivatives"):
        shutil.copytree(verse_folder / part, other / part)
    (other / "grades.json").write_text(json.dumps({"sub-a_20": 1, "sub-a_21": 1}))
    first, second = (RealSource(r, grades=r / "grades.json", cache=tmp_path / "cache") for r in (verse_folder, other))
    rng = np.random.default_rng(0)
    for _ in range(4):
        assert first._choose(rng, FRAC)[2] in (0, 3)
        assert second._choose(rng, FRAC)[2] == 1


def test_only_unknown_grades_are_drawn_too() -> None:
    assert group_shares({UNKNOWN_GRADE}, (0.25,) * 4) == {UNKNOWN_GRADE: 1.0}


def test_real_crops_lie_where_crop_grid_lays_them(verse_folder: Path, tmp_path: Path) -> None:
    """On average over the places within a voxel: a crop of real voxels can't lie between them."""
    source = RealSource(verse_folder, grades=verse_folder / "grades.json", cache=tmp_path / "cache")
    rng = np.random.default_rng(0)
    run = replace(FRAC, spacing_mm=2.0, centre_jitter_mm=3.0, crop_shift_mm=(0.0, 4.0, -6.0))
    run = replace(run, network=replace(run.network, crop=32))
    shape, centre = (32, 32, 32), np.array([7.0, -3.0, 5.0])
    grid = crop_grid(centre, spacing_mm=2.0, shape_zyx=shape, shift_ras_mm=run.crop_shift_mm)
    expected = grid.to_index_zyx(centre)
    met = [np.argwhere(source.vertebra(rng, run).masks[0]).mean(axis=0) for _ in range(300)]
    np.testing.assert_allclose(np.mean(met, axis=0), expected, atol=0.3)

    loc = replace(LOC, negative_fraction=0.0)
    points = [source.localisation(rng, (8, 8, 8), loc)[1] for _ in range(600)]
    middle = crop_grid(centre, spacing_mm=loc.spacing_mm, shape_zyx=(8, 8, 8)).to_index_zyx(centre)
    np.testing.assert_allclose(np.concatenate(points).mean(axis=0), middle, atol=0.3)


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 7, 5), (16, 9, 4)])
def test_a_crops_start_is_that_of_crop_grid_to_the_nearest_voxel(shape: tuple[int, int, int]) -> None:
    middles = np.linspace(20.0, 21.0, 1000, endpoint=False)[:, None] + np.array([0.0005, 3.0005, 7.0005])
    met = np.array([middle - crop_start(middle, shape) for middle in middles])
    grid = crop_grid((20.0, 20.0, 20.0), spacing_mm=1.0, shape_zyx=shape)
    expected = grid.to_index_zyx([20.0, 20.0, 20.0])
    assert np.abs(met - expected).max() <= 0.5 + 1e-9
    np.testing.assert_allclose(met.mean(axis=0), expected, atol=1e-3)


def test_patients_do_not_leak_between_two_folders(tmp_path: Path) -> None:
    """One folder of all patients, one in which some of them are for validation and test."""
    layout = {
        "old": {"rawdata": range(40)},
        "new": {"training/rawdata": range(10, 30), "validation/rawdata": range(5, 10), "test/rawdata": range(30, 40)},
    }
    for folder, parts in layout.items():
        for part, subjects in parts.items():
            for n in subjects:
                path = tmp_path / folder / part / f"sub-{n}" / f"sub-{n}_ct.nii.gz"
                path.parent.mkdir(parents=True)
                path.touch()
    source = make_source([str(tmp_path / name) for name in layout], grades=None, cache=tmp_path / "cache")
    assert isinstance(source, MixedSource)
    training = {c.subject for part in source.sources for c in part.cases}  # type: ignore[attr-defined]
    validation = {c.subject for part in source.validation().sources for c in part.cases}  # type: ignore[attr-defined]
    test = {f"sub-{n}" for n in range(30, 40)}
    assert {f"sub-{n}" for n in range(5, 10)} <= validation
    assert training
    assert not training & validation
    assert not test & (training | validation)
    assert len(training | validation | test) == 40
