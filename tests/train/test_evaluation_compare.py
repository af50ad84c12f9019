"""What counts as found, false, right and close, worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from runtime.volume import Grid, Volume
from train.evaluation.compare import Called, block_around, compare, compare_one_by_one, mask_agreement
from train.evaluation.grades import summarise_grades
from train.evaluation.localisation import summarise_levels, summarise_localisation
from train.evaluation.measures import summarise_calibration, summarise_heights, summarise_masks
from train.evaluation.plain import to_plain
from train.evaluation.records import Comparison, ScanRecord, VertebraRecord
from train.evaluation.report import as_markdown
from train.evaluation.strata import by_voxel
from train.evaluation.summary import summarise
from train.evaluation.truth import TrueScan, TrueVertebra, mm_below
from train.verse import LABELS

SHAPE = (200, 12, 12)
GRID = Grid(SHAPE, np.diag([1.0, 1.0, 1.0, 1.0]))
CERTAIN = {grade: tuple(float(grade == g) for g in range(4)) for grade in range(4)}


def scan(*vertebrae: tuple[str, float, int | None], grid: Grid = GRID) -> TrueScan:
    """Vertebrae (level, z in mm, grade), each a slab of five voxels around its centre."""
    mask = np.zeros(SHAPE, np.uint8)
    for level, z, _ in vertebrae:
        mask[int(z) - 2 : int(z) + 3] = LABELS[level]
    true = tuple(
        TrueVertebra(LABELS[level], np.array([5.0, 5.0, z]), grade, (20.0, 20.0, 20.0), 0.0)
        for level, z, grade in vertebrae
    )
    return TrueScan(Volume(np.zeros(SHAPE, np.int16), grid), true, mask)


def called(
    z: float, level: str | None = None, grade: int | None = 0, *, up: int = 0, confidence: float = 0.9
) -> Called:
    """A prediction at height z whose mask is the five slices around it, ``up`` slices higher."""

    def mask_in(block: tuple[slice, slice, slice], grid: Grid) -> np.ndarray:
        labels = np.zeros(SHAPE, bool)
        labels[int(z) - 2 + up : int(z) + 3 + up] = True
        assert labels[block].shape == grid.shape_zyx
        return labels[block]

    probabilities = None if grade is None else CERTAIN[grade]
    return Called((5.0, 5.0, z), confidence, level, grade, probabilities, (21.0, 19.0, 22.0), 0.1, mask_in)


def record(true: TrueScan, comparison: Comparison, patient: str = "one") -> ScanRecord:
    return ScanRecord("scan", patient, true.shows_junction, 1.0, "v", comparison, has_mask=true.mask is not None)


def records(true: TrueScan, found: Sequence[Called]) -> list[ScanRecord]:
    return [record(true, compare(true, found))]


def test_a_centre_in_a_vertebra_that_the_edge_cuts_is_neither_found_nor_false() -> None:
    true = scan(("L1", 110, 0), ("L2", 70, 0))
    mask = np.array(true.mask)
    mask[-4:] = 19  # T12, whose centre lies beyond the scan
    cut = replace(true, mask=mask)
    top = float(true.volume.grid.to_ras_mm([mask.shape[0] - 2, 5, 5])[2])
    met = compare(cut, [called(110), called(top), called(30)])
    assert [c.cut_level for c in met.centres] == [None, "T12", None]
    assert [c.is_false for c in met.centres] == [False, False, True]
    assert met.false_positives == 1
    assert compare(true, [called(110), called(top), called(30)]).false_positives == 2, "nothing is there"
    twice = compare(cut, [called(110), called(112)])
    assert twice.false_positives == 1, "a second centre of a whole vertebra"
    figures = summarise_localisation([met])
    assert (figures.false_positives_per_scan, figures.cut_per_scan) == (1, 1)


def test_found_missed_false_and_found_twice() -> None:
    true = scan(("T12", 150, 0), ("L1", 110, 2), ("L2", 70, None))
    met = compare(true, [called(149), called(147), called(121), called(30)])
    t12, l1, l2 = met.vertebrae
    assert (t12.found, t12.error_mm, l1.found, l2.found) == (True, 1.0, False, False)
    assert [c.matched for c in met.centres] == [True, False, False, False]
    assert met.false_positives == 3
    assert [c.nearest_mm for c in met.centres] == [1.0, 3.0, 11.0, 40.0]
    assert l1.detected, "VerSe allows 20 mm"
    assert not l2.detected
    figures = summarise_localisation([met])
    assert figures.overall.recall_10mm == pytest.approx(1 / 3)
    assert figures.thoracic.recall_10mm == 1
    assert figures.lumbar.detection_rate == 0.5
    assert figures.overall.nearest_mm_mean == pytest.approx((1 + 3 + 11 + 40) / 4)
    assert np.isnan(figures.cervical.recall_10mm)
    assert figures.false_positives_per_scan == 3


def test_identification_needs_the_right_level_on_the_nearest_vertebra() -> None:
    true = scan(("T12", 150, 0), ("L1", 125, 0), ("L2", 100, 0))
    met = compare(true, [called(150, "T12"), called(136, "L1"), called(100, "L3"), called(101, None)])
    # 136 is 11 mm from L1 and 14 mm from T12: L1 it is, though it isn't found within 10 mm.
    assert [v.identified for v in met.vertebrae] == [True, True, False]
    assert [v.detected for v in met.vertebrae] == [True, True, True]
    assert summarise_localisation([met]).overall.identification_rate == pytest.approx(2 / 3)
    levels = summarise_levels([record(true, met)]).all_scans
    assert (levels.vertebrae, levels.right, levels.wrong, levels.null) == (2, 1, 1, 0)
    nothing_given = summarise_levels(records(true, [called(150)])).all_scans
    assert (nothing_given.null, nothing_given.share_right) == (1, 0.0)
    assert np.isnan(nothing_given.share_right_where_given)


def test_junctions() -> None:
    assert scan(("C2", 150, None), ("C3", 130, None)).shows_junction
    assert scan(("T12", 150, 0), ("L1", 120, 0)).shows_junction
    assert scan(("T11", 150, 0), ("L1", 120, 0)).shows_junction, "a patient without T12"
    assert not scan(("T5", 150, 0), ("T6", 120, 0)).shows_junction
    assert scan(("L4", 80, 0), ("L5", 40, 0)).shows_junction
    assert not scan(("L4", 60, 0), ("L5", 20, 0)).shows_junction, "the sacrum is cut off"
    assert not scan(("L3", 80, 0), ("L4", 40, 0)).shows_junction
    true = scan(("L1", 120, 0))
    levels = summarise_levels([record(true, compare(true, [called(120, "L1")]))])
    assert (levels.all_scans.vertebrae, levels.junction_scans.vertebrae) == (1, 0)


def test_room_below_a_point_does_not_depend_on_how_the_scan_is_stored() -> None:
    assert mm_below(GRID, np.array([5.0, 5.0, 42.0])) == pytest.approx(42)
    upside_down = Grid(SHAPE, np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -2, 400], [0, 0, 0, 1]]))
    assert mm_below(upside_down, np.array([5.0, 5.0, 100.0])) == pytest.approx(100 - (400 - 2 * 199))
    sideways = Grid((12, 12, 200), np.array([[0, 0, 1.0, 0], [0, 1, 0, 0], [1, 0, 0, 7], [0, 0, 0, 1]]))
    assert mm_below(sideways, np.array([5.0, 5.0, 42.0])) == pytest.approx(35)


def test_grades_by_hand() -> None:
    true = scan(("C7", 190, 1), ("T1", 170, 0), ("T2", 140, 2), ("T3", 110, 3), ("T4", 80, 1), ("T5", 50, 0))
    found = [called(190, grade=3), called(170), called(140, grade=3), called(110, grade=3), called(80, grade=None)]
    figures = summarise_grades(records(true, found), [compare(true, found)])
    assert (figures.graded, figures.ungraded, figures.missed) == (3, 1, 1), "cervical ones have no grade"
    assert figures.confusion_rows_true == ((1, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 1))
    none, one, two, three = figures.by_grade
    assert (none.f1, three.f1) == (1.0, pytest.approx(2 / 3))
    assert np.isnan([one.precision, one.recall, one.f1]).all()
    assert (two.recall, two.f1) == (0, 0)
    assert np.isnan(two.precision)
    assert (none.found_share, one.found_share) == (0.5, 0.0)
    assert (none.recall_10mm, one.recall_10mm) == (0.5, 1.0), "one was found and not graded"
    assert none.f1_with_missed == pytest.approx(2 / 3), "one right, one missed"
    assert np.isnan(one.f1_with_missed)
    assert three.f1_with_missed == three.f1
    assert figures.macro_f1 == pytest.approx((1 + 0 + 2 / 3) / 3)
    moderate, any_grade = figures.fracture_per_vertebra
    assert (moderate.at_least, any_grade.at_least) == (2, 1)
    assert (moderate.sensitivity, moderate.specificity, moderate.auroc) == (1, 1, 1)


def test_a_missed_vertebra_is_a_fifth_class_to_scikit_learn() -> None:
    """That no true vertebra is of and that those not found are called."""
    rng = np.random.default_rng(0)
    met = Comparison(
        tuple(
            VertebraRecord(
                "L1", int(rng.choice(4, p=(0.5, 0.2, 0.15, 0.15))), error_mm=None if rng.random() < 0.2 else 1.0
            )
            for _ in range(300)
        ),
        (),
    )
    met = replace(met, vertebrae=tuple(with_a_call(v, rng) for v in met.vertebrae))
    figures = summarise_grades([ScanRecord("scan", "one", True, 1.0, "v", met)], [met])
    assert figures.missed > 40
    assert figures.ungraded > 10
    counted = [v for v in met.vertebrae if not v.found or v.found_grade is not None]
    oracle = f1_score(
        [v.grade for v in counted],
        [4 if v.found_grade is None else v.found_grade for v in counted],
        labels=range(4),
        average=None,
    )
    assert [f.f1_with_missed for f in figures.by_grade] == pytest.approx(list(oracle))
    found = [recall_score([1 for v in met.vertebrae if v.grade == grade],
                          [int(v.found) for v in met.vertebrae if v.grade == grade]) for grade in range(4)]  # fmt: skip
    assert [f.recall_10mm for f in figures.by_grade] == pytest.approx(found)
    assert all(f.f1_with_missed < f.f1 for f in figures.by_grade)
    text, plain = as_markdown(summarise([ScanRecord("scan", "one", True, 1.0, "v", met)])), to_plain(figures)
    for grade, f in enumerate(figures.by_grade):
        assert f"{f.recall_10mm:.3f} | {f.f1_with_missed:.3f} |" in text
        assert plain["by_grade"][grade]["f1_with_missed"] == pytest.approx(f.f1_with_missed, abs=1e-4)


def test_each_scan_is_in_the_stratum_of_its_voxels_and_judged_as_if_alone() -> None:
    rng = np.random.default_rng(0)
    sizes = [0.7, 1.5, 1.6, 3.0, 3.1, 5.0, 0.0]
    scans = []
    for voxel_mm in sizes:
        drawn = (
            VertebraRecord("L1", int(rng.integers(4)), error_mm=None if rng.random() < 0.3 else 1.0) for _ in range(40)
        )
        met = Comparison(tuple(with_a_call(v, rng) for v in drawn), ())
        scans.append(ScanRecord(f"scan of {voxel_mm}", "one", True, 1.0, "v", met, voxel_mm=voxel_mm))
    strata = by_voxel(scans)
    assert [(s.above_mm, s.up_to_mm, s.scans) for s in strata] == [(0.0, 1.5, 2), (1.5, 3.0, 2), (3.0, None, 2)]
    for stratum, members in zip(strata, (scans[0:2], scans[2:4], scans[4:6]), strict=True):
        alone = summarise(members)
        assert stratum.recall_10mm == alone.localisation.overall.recall_10mm
        assert stratum.f1 == tuple(f.f1 for f in alone.grades.by_grade)
        assert sum(stratum.support) == alone.grades.graded
    assert [s.scans for s in by_voxel(scans[5:])] == [1]
    assert "above 1.5, up to 3 | 2 | 80 |" in as_markdown(summarise(scans))


def with_a_call(vertebra: VertebraRecord, rng: np.random.Generator) -> VertebraRecord:
    """One that was found, called right more often than not, or not at all."""
    assert vertebra.grade is not None
    if not vertebra.found or rng.random() < 0.1:
        return vertebra
    grade = vertebra.grade if rng.random() < 0.6 else int(rng.integers(4))
    return replace(vertebra, found_grade=grade, probabilities=CERTAIN[grade])


def test_patients_are_judged_by_all_that_is_reported() -> None:
    healthy, broken, missed = scan(("L1", 100, 0)), scan(("L1", 100, 3), ("L2", 60, 0)), scan(("L1", 100, 2))
    comparisons = [
        compare(healthy, [called(100), called(20, grade=3)]),  # a false vertebra with a false fracture
        compare(broken, [called(100, grade=2), called(60)]),
        compare(missed, []),
    ]
    made = [record(s, c, str(i)) for i, (s, c) in enumerate(zip((healthy, broken, missed), comparisons, strict=True))]
    patients = summarise_grades(made, comparisons).fracture_per_patient[0]
    assert (patients.count, patients.fractured, patients.sensitivity, patients.specificity) == (3, 2, 0.5, 0.0)
    assert patients.auroc == pytest.approx(0.25), "one tie, one behind"
    together = [record(s, c) for s, c in zip((healthy, broken, missed), comparisons, strict=True)]
    assert summarise_grades(together, comparisons).fracture_per_patient[0].count == 1


def test_masks_by_hand_and_misses_count_as_zero() -> None:
    true = scan(("T12", 150, 1), ("L1", 110, 2), ("L2", 70, 2))
    met = compare(true, [called(150), called(110, up=1)])
    first, second, missed = (v.mask for v in met.vertebrae)
    assert first is not None
    assert second is not None
    assert missed is None
    assert (first.dice, first.hausdorff_mm, first.accuracy) == (1, 0, 1)
    assert (second.precision, second.recall, second.dice) == (0.8, 0.8, 0.8)
    assert second.accuracy == pytest.approx(1 - 2 * 144 / (129 * 144)), "in the block of 128 mm"
    figures = summarise_masks([record(true, met)], [met])
    assert [f.vertebrae for f in figures.by_grade] == [0, 1, 1, 0]
    assert figures.overall.dice == pytest.approx(0.9)
    assert figures.dice_misses_as_zero == pytest.approx(0.6)
    nothing = compare(true, [])
    of_both = summarise_masks([record(true, met), record(true, nothing)], [met, nothing])
    assert of_both.dice_misses_as_zero == pytest.approx(0.3), "a scan in which nothing was found is missed altogether"
    assert of_both.overall.dice == pytest.approx(0.9)
    unmasked = replace(true, mask=None)
    without = summarise_masks([record(true, met), record(unmasked, nothing)], [met, nothing])
    assert without.dice_misses_as_zero == pytest.approx(0.6), "whose mask nobody knows is no miss"
    assert np.isnan(figures.by_grade[3].dice)


def test_an_empty_mask_is_worth_nothing_and_breaks_nothing() -> None:
    real = np.zeros((4, 4, 4), bool)
    real[1:3] = True
    met = mask_agreement(np.zeros_like(real), real, Grid((4, 4, 4), np.eye(4)))
    assert (met.precision, met.recall, met.dice, met.hausdorff_mm, met.accuracy) == (None, 0, 0, None, 0.5)


def test_blocks_end_where_the_scan_ends() -> None:
    grid = Grid((100, 50, 50), np.diag([2.0, 1.0, 0.5, 1.0]))
    block = block_around(grid, np.array([10.0, 40.0, 25.0]), size_mm=20.0)
    assert block == (slice(30, 71), slice(30, 50), slice(0, 11))
    far = block_around(grid, np.array([1e4, 1e4, 1e4]), size_mm=20.0)
    assert all(s.stop > s.start for s in far)


def test_heights_and_their_bias() -> None:
    true = scan(("T12", 150, 1), ("C5", 190, 0))
    figures = summarise_heights([compare(true, [called(150), called(190)])])
    assert figures.vertebrae == 1, "not the cervical one"
    assert (figures.anterior.bias_mm, figures.middle.bias_mm, figures.posterior.bias_mm) == (1, -1, 2)
    assert figures.mean_absolute_error_mm == pytest.approx(4 / 3)
    assert figures.loss_mean_absolute_error == pytest.approx(0.1)


def test_confidence_is_held_against_being_a_vertebra() -> None:
    true = scan(("T12", 150, 1))
    found = [called(150, grade=1, confidence=0.8), called(20, confidence=0.8)]
    figures = summarise_calibration(records(true, found), [compare(true, found)])
    assert figures.confidence.count == 2
    assert figures.confidence.expected_calibration_error == pytest.approx(0.3)
    assert figures.grade.expected_calibration_error == 0


def test_one_by_one_takes_everything_as_found() -> None:
    true = scan(("T12", 150, 1), ("L1", 110, 2))
    met = compare_one_by_one(true, [called(135, grade=1), called(110, grade=None)])
    assert [v.error_mm for v in met.vertebrae] == [15, 0]
    assert met.centres == ()
    assert summarise_grades([record(true, met)], [met]).ungraded == 1


def test_a_scan_without_vertebrae_has_only_false_centres() -> None:
    met = compare(scan(), [called(50)])
    assert met.vertebrae == ()
    assert met.false_positives == 1
    assert met.centres[0].nearest_mm is None
    assert np.isnan(summarise_localisation([met]).overall.nearest_mm_mean)
