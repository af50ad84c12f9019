"""VerSe's layout: file names, centroids in their own orientation, grades."""

import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from runtime.errors import InputError
from runtime.volume import Grid
from train.label_maps import read_labels, sample_nearest
from train.real_scans import RealSource, body_centres
from train.verse import (
    LABELS,
    LEVELS,
    find_cases,
    find_grades,
    held_out_subjects,
    read_centroids,
    read_grades,
    read_heights,
    splits_of_subjects,
)


def test_labels_are_verses() -> None:
    assert [LEVELS[n] for n in (1, 7, 8, 19, 20, 25, 28)] == ["C1", "C7", "T1", "T12", "L1", "L6", "T13"]
    assert 26 not in LEVELS
    assert 27 not in LEVELS
    assert LABELS["T13"] == 28


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_real_file_names_are_found(tmp_path: Path) -> None:
    make(
        tmp_path,
        "dataset-01training/rawdata/sub-verse004/sub-verse004_ct.nii.gz",
        "dataset-01training/derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz",
        "dataset-01training/derivatives/sub-verse004/sub-verse004_seg-subreg_ctd.json",
        "dataset-01training/rawdata/sub-verse401/sub-verse401_split-verse253_ct.nii.gz",
        "dataset-01training/derivatives/sub-verse401/sub-verse401_split-verse253_seg-vert_msk.nii.gz",
        "dataset-01training/rawdata/sub-gl003/sub-gl003_dir-ax_ct.nii.gz",
        "dataset-01training/derivatives/sub-gl003/sub-gl003_dir-ax_seg-vb_ctd.json",
    )
    cases = {case.name: case for case in find_cases(tmp_path)}
    assert sorted(cases) == ["sub-gl003_dir-ax", "sub-verse004", "sub-verse401_split-verse253"]
    assert cases["sub-verse004"].mask is not None
    assert cases["sub-verse004"].centroids is not None
    assert cases["sub-verse401_split-verse253"].centroids is None
    assert cases["sub-gl003_dir-ax"].centroids is not None


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rawdata"):
        find_cases(tmp_path)


def test_folders_named_for_splits_are_the_splits(tmp_path: Path) -> None:
    make(
        tmp_path,
        "dataset-verse19training/rawdata/sub-verse004/sub-verse004_ct.nii.gz",
        "dataset-verse19training/rawdata/sub-verse005/sub-verse005_ct.nii.gz",
        "dataset-02validation/rawdata/sub-verse006/sub-verse006_ct.nii.gz",
        "test/rawdata/sub-verse007/sub-verse007_ct.nii.gz",
        "latest/rawdata/sub-verse008/sub-verse008_ct.nii.gz",
    )
    names = {split: [c.subject[-3:] for c in find_cases(tmp_path, split=split)]
             for split in ("training", "validation", "test")}  # fmt: skip
    assert names == {"training": ["004", "005", "008"], "validation": ["006"], "test": ["007"]}
    assert len(find_cases(tmp_path)) == 5
    alone = tmp_path / "test"
    assert [c.split for c in find_cases(alone)] == ["test"], "named by itself it is for test all the same"
    with pytest.raises(InputError, match=r"0 for training, 0 for validation, 1 for test\. Name the folder above"):
        find_cases(alone, split="training")
    assert [c.split for c in find_cases(tmp_path / "dataset-02validation")] == ["validation"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_folder_of_one_split_named_by_itself_is_not_trained_on(
    tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / f"dataset-verse19{split}"
    make(root, *(f"rawdata/sub-{n}/sub-{n}_ct.nii.gz" for n in range(12)))
    monkeypatch.chdir(root)
    for named in (root, Path()):
        with pytest.raises(InputError, match=f"12 scans are 0 for training.*{'12 for ' + split}.*folder above"):
            RealSource(named, grades=None, cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["spine-test", "test"])
def test_a_folder_that_is_only_named_like_a_split_is_to_be_renamed(tmp_path: Path, name: str) -> None:
    """To name the folder above does not help there: the name counts below it, too."""
    make(tmp_path, *(f"{name}/rawdata/sub-{n}/sub-{n}_ct.nii.gz" for n in range(12)))
    for root in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match="or rename the folder"):
            find_cases(root, split="training")
    (tmp_path / name).rename(tmp_path / "spines")
    assert find_cases(tmp_path / "spines", split="training")


def test_without_a_validation_folder_every_tenth_subject_is_held_out(tmp_path: Path) -> None:
    subjects = [f"sub-{n:03d}" for n in range(300)]
    for subject in subjects:
        make(tmp_path, f"rawdata/{subject}/{subject}_a_ct.nii.gz", f"rawdata/{subject}/{subject}_b_ct.nii.gz")
    training, validation = ({c.subject for c in find_cases(tmp_path, split=s)} for s in ("training", "validation"))
    assert not training & validation, "both scans of a subject are on one side"
    assert training | validation == set(subjects)
    assert 15 <= len(validation) <= 45
    assert validation == held_out_subjects(reversed(subjects)), "whatever their order"
    fewer = held_out_subjects(subjects[:150])
    assert fewer == validation & set(subjects[:150]), "more subjects don't move one to the other side"


def test_a_patient_who_is_in_two_releases_is_in_one_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(
        tmp_path,
        "dataset-verse19training/rawdata/sub-verse004/sub-verse004_ct.nii.gz",
        "dataset-verse19training/rawdata/sub-verse005/sub-verse005_ct.nii.gz",
        "dataset-verse19training/rawdata/sub-verse006/sub-verse006_split-verse007_ct.nii.gz",
        "dataset-verse20validation/rawdata/sub-verse005/sub-verse005_ct.nii.gz",
        "dataset-verse20test/rawdata/sub-verse006/sub-verse006_split-verse008_ct.nii.gz",
    )
    names = {split: [c.name for c in find_cases(tmp_path, split=split)] for split in ("training", "validation", "test")}
    assert names == {
        "training": ["sub-verse004"],
        "validation": ["sub-verse005"],
        "test": ["sub-verse006_split-verse007", "sub-verse006_split-verse008"],
    }
    assert "1 scans are there more than once" in caplog.text


def test_what_one_folder_holds_out_another_does_not_train_on(tmp_path: Path) -> None:
    """VerSe 2019 and 2020 as two folders: patients of one's training are in the other's validation or test."""
    scans = {
        "verse19": {"training": "abcd", "validation": "ef", "test": "gh"},
        "verse20": {"training": "aegx", "validation": "bhy", "test": "cz"},
    }
    for release, splits in scans.items():
        for split, subjects in splits.items():
            make(tmp_path, *(f"{release}/{split}/rawdata/sub-{s}/sub-{s}_ct.nii.gz" for s in subjects))
    roots = [tmp_path / release for release in scans]
    together = splits_of_subjects(roots)
    met = {
        split: {c.subject[-1] for r in roots for c in find_cases(r, splits_elsewhere=together) if c.split == split}
        for split in ("training", "validation", "test")
    }
    assert met == {"training": set("adx"), "validation": set("befy"), "test": set("cghz")}
    assert {c.subject[-1] for c in find_cases(roots[0], split="training")} == set("abcd"), "alone it is as it was"


@pytest.mark.parametrize("count", range(1, 30))
def test_small_data_sets_are_split_too(count: int) -> None:
    held_out = held_out_subjects(f"sub-{n}" for n in range(count))
    assert (1 if count > 1 else 0) <= len(held_out) < count


CODES = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]


@pytest.mark.parametrize("code", CODES)
def test_centroids_of_every_direction_are_the_same_points(tmp_path: Path, code: str) -> None:
    affine = np.array([[0.9, 0, 0, -40], [0, -1.1, 0, 30], [0, 0, 2.0, 5], [0, 0, 0, 1]])  # R, P, S
    image = nibabel.Nifti1Image(np.zeros((10, 12, 14), np.uint8), affine)
    grid = Grid((14, 12, 10), affine)
    point = nibabel.affines.apply_affine(affine, [2.5, 7, 11])
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(code))
        )
    )
    x, y, z = nibabel.affines.apply_affine(np.linalg.inv(turned.affine), point)
    path = tmp_path / "ctd.json"
    path.write_text(
        json.dumps(
            [{"direction": list(code)}, {"label": 20, "X": x, "Y": y, "Z": z}, {"label": 26, "X": 0, "Y": 0, "Z": 0}]
        )
    )
    centres = read_centroids(path, grid)
    assert list(centres) == [20]
    np.testing.assert_allclose(centres[20], point, atol=1e-9)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '[{"direction": ["P", "I", "I"]}, {"label": 1, "X": 0, "Y": 0, "Z": 0}]', '[{"label": 1}]']
)
def test_other_centroid_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ctd.json"
    path.write_text(text)
    with pytest.raises(InputError, match="direction"):
        read_centroids(path, Grid((2, 2, 2), np.eye(4)))


def test_the_real_centroids_lie_in_the_real_mask(shared_data: Path) -> None:
    labels, grid = read_labels(shared_data / "verse004" / "sub-verse004_seg-vert_msk.nii.gz")
    centres = read_centroids(shared_data / "verse004" / "sub-verse004_seg-subreg_ctd.json", grid)
    assert sorted(centres) == list(range(16, 25))
    for label, centre in centres.items():
        index = tuple(np.round(grid.to_index_zyx(centre)).astype(int))
        assert labels[index] == label


def test_body_centres_from_masks_of_whole_vertebrae() -> None:
    """A block with a long thin process behind it, on an oblique grid with thick slices."""
    labels = np.zeros((30, 80, 60), np.uint8)
    labels[6:16, 45:70, 15:45] = 20
    labels[9:11, 5:45, 28:32] = 20
    labels[20:23, 3:6, 3:6] = 26
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 1.0, 2.5])
    grid = Grid((30, 80, 60), affine)
    met = body_centres(labels, grid)
    assert list(met) == [20], "the sacrum is no vertebra"
    assert np.linalg.norm(met[20] - grid.to_ras_mm([10.5, 57, 29.5])) < 1
    mass = grid.to_ras_mm(np.argwhere(labels == 20).mean(axis=0))
    assert np.linalg.norm(mass - grid.to_ras_mm([10.5, 57, 29.5])) > 1


def test_body_centres_of_a_real_mask_are_the_annotated_ones(shared_data: Path) -> None:
    labels, grid = read_labels(shared_data / "verse004" / "sub-verse004_seg-vert_msk.nii.gz")
    annotated = read_centroids(shared_data / "verse004" / "sub-verse004_seg-subreg_ctd.json", grid)
    met = body_centres(labels, grid)
    errors = [float(np.linalg.norm(met[label] - centre)) for label, centre in annotated.items()]
    assert np.mean(errors) < 2.5
    assert max(errors) < 5


def test_the_real_grades(shared_data: Path) -> None:
    grades = read_grades(shared_data / "verse19-genant-grades.json")
    of_004 = {LEVELS[label]: grade for label, grade in grades["sub-verse004"].items()}
    assert of_004["T9"] == 2
    assert of_004["L1"] == 3
    assert of_004["L2"] == 0
    assert sum(len(g) for g in grades.values()) == 1460


def test_grades_from_csv(tmp_path: Path) -> None:
    long = tmp_path / "long.csv"
    long.write_text("subject,label,grade\nsub-verse004,16,2\nverse005,L1,3\n012,20,0\n")
    assert read_grades(long) == {"sub-verse004": {16: 2}, "sub-verse005": {20: 3}, "sub-verse012": {20: 0}}
    wide = tmp_path / "wide.csv"
    wide.write_text("verse_ID,T12_fx-g,L1_fx-g,age\n4,0,2.0,70\n5,,1,60\n")
    assert read_grades(wide) == {"sub-verse004": {19: 0, 20: 2}, "sub-verse005": {20: 1}}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("g.csv", "label,grade\n16,2\n", "subject"),
        ("g.csv", "subject,label,grade\nsub-a,16,7\n", "Genant grades are 0, 1, 2 or 3"),
        ("g.csv", "subject,label,grade\nsub-a,Q9,1\n", "no number or level"),
        ("g.json", "[1, 2]", "json file of grades"),
    ],
)
def test_bad_grade_files_are_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_grades(path)


def test_grades_beside_the_data_are_found(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "genant.json").write_text('{"training": {"sub-a_20": 1}}')
    assert find_grades(tmp_path, None) == {"sub-a": {20: 1}}
    assert find_grades(tmp_path / "training", None) == {"sub-a": {20: 1}}, "right above a split's folder"
    (tmp_path / "training" / "genant-19.json").write_text('{"sub-b_20": 2}')
    (tmp_path / "training" / "genant-20.json").write_text('{"sub-c_20": 3}')
    assert find_grades(tmp_path / "training", None) == {"sub-b": {20: 2}, "sub-c": {20: 3}}
    assert find_grades(tmp_path, tmp_path / "training" / "genant-20.json") == {"sub-c": {20: 3}}
    assert find_grades(tmp_path / "elsewhere" / "far", None) == {}


@pytest.mark.parametrize("text", ["{", '[{"label": 20}]', '[{"label": 20, "heights_mm": [1, 2], "height_loss": 0}]'])
def test_other_height_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "heights.json"
    path.write_text(text)
    with pytest.raises(InputError, match="heights_mm"):
        read_heights(path)


def test_nearest_sampling_follows_the_affines() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (6, 7, 8)).astype(np.uint8)
    source = Grid((6, 7, 8), np.diag([1.0, 1.0, 2.0, 1.0]))
    flipped = Grid((6, 7, 8), np.array([[-1.0, 0, 0, 7], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]))
    np.testing.assert_array_equal(sample_nearest(labels, source, flipped), labels[:, :, ::-1])
    shifted = Grid((6, 7, 8), np.array([[1.0, 0, 0, 1.2], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]))
    met = sample_nearest(labels, source, shifted)
    np.testing.assert_array_equal(met[:, :, :7], labels[:, :, 1:])
    assert not met[:, :, 7].any()
