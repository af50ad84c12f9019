"""The figures as Markdown, the thesis's beside ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from train.evaluation import thesis
from train.evaluation.grades import Fracture, GradeSummary
from train.evaluation.localisation import LevelFigures, LocalisationSummary, RegionFigures
from train.evaluation.measures import CalibrationSummary, HeightSummary, MaskSummary
from train.evaluation.strata import Stratum
from train.evaluation.summary import Provenance, Summary

REGIONS = ("cervical", "thoracic", "lumbar", "overall")
PHANTOMS = (
    "These scans are phantoms. The thesis's figures beside ours are of VerSe 2019's test set, other scans altogether: "
    "they give the scale and no ranking."
)


def as_markdown(summary: Summary, *, pictures: Sequence[str] = ()) -> str:
    """All figures; ``pictures`` are file names beside the report."""
    parts = [f"# Evaluation of {summary.scans} scans of {summary.patients} patients"]
    if summary.provenance is not None and summary.provenance.data == "phantoms":
        parts.append(PHANTOMS)
    parts += [f"Note: {note}" for note in summary.notes]
    parts += [
        "## Localisation",
        _localisation(summary.localisation),
        *_variants(summary),
        "## Levels",
        _levels(summary.levels.all_scans, summary.levels.junction_scans),
        *_graded("whole pipeline", summary.grades, summary.masks, summary.heights, summary.calibration),
        "## What each witness says alone",
        _witnesses(summary),
        "## By the scans' voxels",
        _strata(summary.by_voxel),
    ]
    if summary.alone is not None:
        alone = summary.alone
        title = "second network alone, on true centres"
        parts += _graded(title, alone.grades, alone.masks, alone.heights, alone.calibration)
    parts.append(f"Median time of the pipeline: {_n(summary.median_seconds_per_scan, 1)} s per scan.")
    parts += [f"![{name.rsplit('.', 1)[0]}]({name})" for name in pictures]
    if summary.provenance is not None:
        parts += ["## How these figures were made", _provenance(summary.provenance)]
    return "\n\n".join(parts) + "\n"


def _localisation(figures: LocalisationSummary) -> str:
    rows = []
    for region in REGIONS:
        f: RegionFigures = getattr(figures, region)
        error = _pm(f.error_mm_mean, f.error_mm_sd)
        rows.append(
            [region, f.vertebrae, _n(f.recall_10mm), error, _n(f.detection_rate), _n(f.identification_rate)]
        )  # fmt: skip
    header = ["region", "vertebrae", "recall (10 mm)", "error, mm", "VerSe detection", "VerSe identification"]
    return (
        f"{_table(header, rows)}\n\n{_n(figures.false_positives_per_scan, 2)} false centres per scan. Beside them, "
        f"{_n(figures.cut_per_scan, 2)} per scan lie in vertebrae that the edge of the scan cuts so that their centre "
        "is not in it; these are counted neither as found nor as false."
    )


def _variants(summary: Summary) -> list[str]:
    """Errors of the thesis's kind: the thesis's networks, and ours."""
    columns = [("this pipeline", summary.localisation)]
    if summary.locnet_f is not None and summary.locnet_h is not None:
        columns += [("LocNet-F here", summary.locnet_f), ("LocNet-H here", summary.locnet_h)]
    header = ["region", *(name for name, _ in columns), "thesis LocNet-F", "thesis LocNet-H"]
    rows = []
    for region in REGIONS:
        ours = [getattr(figures, region) for _, figures in columns]
        theirs = [getattr(errors, region) for errors in (thesis.LOCNET_F, thesis.LOCNET_H)]
        rows.append(
            [region, *(_pm(f.nearest_mm_mean, f.nearest_mm_sd) for f in ours)]
            + [_pm(f.mean_mm, f.sd_mm) for f in theirs]
        )
    dash = ["", ""]
    rows.append(["recall (10 mm)", *(_n(f.overall.recall_10mm) for _, f in columns), *dash])
    rows.append(["false per scan", *(_n(f.false_positives_per_scan, 2) for _, f in columns), *dash])
    return [
        "Error of every predicted centre to the nearest true one, mm, as the thesis measures it (there: one crop of "
        "128 mm of each VerSe 2019 test image; here: whole scans). Misses are not counted in it.",
        _table(header, rows),
    ]


def _levels(every: LevelFigures, junction: LevelFigures) -> str:
    header = ["levels of found vertebrae", "vertebrae", "right", "wrong", "none given", "share right", "where given"]
    rows = [
        [name, f.vertebrae, f.right, f.wrong, f.null, _n(f.share_right), _n(f.share_right_where_given)]
        for name, f in (("all scans", every), ("scans that show a junction", junction))
    ]
    return _table(header, rows)


def _graded(
    title: str, grades: GradeSummary, masks: MaskSummary, heights: HeightSummary, calibration: CalibrationSummary
) -> list[str]:
    return [
        f"## Grades, {title}",
        _grades(grades),
        _confusion(grades),
        _fractures(grades),
        f"## Masks, {title}",
        _masks(masks),
        f"## Heights, {title}",
        _heights(heights),
        f"## Calibration, {title}",
        _calibration(calibration),
    ]


def _grades(figures: GradeSummary) -> str:
    header = ["grade", "support", "called", "precision", "recall", "F1", "thesis F1", "found and graded"]
    header += ["located (10 mm)", "F1 with missed"]
    rows = [
        [f.grade, f.support, f.called, _n(f.precision), _n(f.recall), _n(f.f1), _n(theirs, 2), _n(f.found_share),
         _n(f.recall_10mm), _n(f.f1_with_missed)]
        for f, theirs in zip(figures.by_grade, thesis.GRADE_F1, strict=True)
    ]  # fmt: skip
    said = (
        "Precision, recall and F1 are of the vertebrae that were found and graded; F1 with missed counts each one that "
        f"was not found as a false negative of its grade. Macro F1 {_n(figures.macro_f1)}, "
        f"quadratic kappa {_n(figures.quadratic_kappa)}; {figures.graded} graded, "
        f"{figures.ungraded} found without a grade, {figures.missed} missed (thoracic and lumbar)."
    )
    return f"{_table(header, rows)}\n\n{said}"


def _witnesses(summary: Summary) -> str:
    """The reported grades and heights beside those of the network alone and of the measurement alone."""
    rows: list[list[object]] = []
    for name, witness in (("reported", summary), ("network", summary.network_alone), ("mask", summary.measured_alone)):
        grades, heights = witness.grades, witness.heights
        f1 = [_n(f.f1) for f in grades.by_grade]
        area = grades.fracture_per_vertebra[0]
        detection = [_n(area.sensitivity), _n(area.precision), _n(area.auroc)]
        rows.append([name, grades.graded, *f1, _n(grades.macro_f1), *detection, _n(heights.mean_absolute_error_mm, 2)])
    header = ["", "graded", "F1: 0", "1", "2", "3", "macro", "grade >= 2: recall", "precision", "AUROC", "heights, mm"]
    return (
        f"{_table(header, rows)}\n\nNetwork: its likeliest grade and its own estimate of the heights. Mask: measured "
        "on the network's masks, graded by Genant's limits. F1: of those found and graded. Heights: mean "
        "absolute error."
    )


def _strata(strata: Sequence[Stratum]) -> str:
    header = ["largest voxel edge, mm", "scans", "vertebrae", "recall (10 mm)", "false per scan", "Dice"]
    header += ["F1: 0", "1", "2", "3", "graded of 0 to 3", "heights, mm"]
    rows: list[list[object]] = [
        [
            f"above {s.above_mm:g}" + ("" if s.up_to_mm is None else f", up to {s.up_to_mm:g}"),
            s.scans,
            s.vertebrae,
            _n(s.recall_10mm),
            _n(s.false_positives_per_scan, 2),
            _n(s.dice),
            *(_n(f1) for f1 in s.f1),
            ", ".join(map(str, s.support)),
            _n(s.heights_mm, 2),
        ]
        for s in strata
    ]
    return _table(header, rows)


def _confusion(figures: GradeSummary) -> str:
    header = ["true \\ called", "0", "1", "2", "3", "support"]
    rows = [[grade, *row, sum(row)] for grade, row in enumerate(figures.confusion_rows_true)]
    return _table(header, rows)


def _fractures(figures: GradeSummary) -> str:
    header = ["fracture", "count", "fractured", "sensitivity", "specificity", "precision", "F1", "AUROC (95 %)"]

    def row(unit: str, f: Fracture) -> list[object]:
        area = f"{_n(f.auroc)} ({_n(f.auroc_low)} to {_n(f.auroc_high)})"
        rates = [_n(f.sensitivity), _n(f.specificity), _n(f.precision), _n(f.f1)]
        return [f"grade {f.at_least} or more, per {unit}", f.count, f.fractured, *rates, area]

    rows = [row("vertebra", f) for f in figures.fracture_per_vertebra]
    return _table(header, rows + [row("patient", f) for f in figures.fracture_per_patient])


def _masks(figures: MaskSummary) -> str:
    header = ["grade", "vertebrae", "accuracy", "precision", "recall", "Dice", "thesis Dice", "average Hausdorff, mm"]
    named = [(str(g), f, _n(thesis.MASK_DICE[g], 2)) for g, f in enumerate(figures.by_grade)]
    rows = [
        [name, f.vertebrae, _n(f.accuracy, 4), _n(f.precision), _n(f.recall), _pm(f.dice, f.dice_sd, 3), theirs,
         _n(f.hausdorff_mm, 2)]
        for name, f, theirs in [*named, ("all", figures.overall, "")]
    ]  # fmt: skip
    return f"{_table(header, rows)}\n\nDice with missed vertebrae as 0: {_n(figures.dice_misses_as_zero)}."


def _heights(figures: HeightSummary) -> str:
    positions = (("anterior", figures.anterior), ("middle", figures.middle), ("posterior", figures.posterior))
    rows: list[list[object]] = [
        [name, _n(f.mean_absolute_error_mm, 2), _n(f.bias_mm, 2)] for name, f in positions
    ]  # fmt: skip
    rows.append(["all", _n(figures.mean_absolute_error_mm, 2), ""])
    said = f"{figures.vertebrae} vertebrae; height loss is off by {_n(figures.loss_mean_absolute_error)} on average."
    return f"{_table(['height', 'mean absolute error, mm', 'bias, mm'], rows)}\n\n{said}"


def _calibration(figures: CalibrationSummary) -> str:
    rows = [
        [name, c.count, _n(c.expected_calibration_error)]
        for name, c in (
            ("called grade's probability", figures.grade),
            ("probability of a fracture (grade 2 or more)", figures.fracture),
            ("confidence that a centre is a vertebra", figures.confidence),
        )
    ]
    return _table(["probability", "count", "expected calibration error"], rows)


def _provenance(p: Provenance) -> str:
    rows: list[list[object]] = [
        ["command", f"`{p.command}`"],
        ["date", p.date],
        ["software", ", ".join(p.code_versions)],
        ["bundle", f"{p.bundle}, sha256 {p.bundle_sha256[:16]}"],
        ["engine", p.engine],
        ["data", p.data if p.first_seed is None else f"{p.data}, seeds from {p.first_seed}"],
    ]
    if p.splits:
        rows.append(["scans by split", ", ".join(f"{count} {split}" for split, count in p.splits.items())])
    return _table(["", ""], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _n(value: float, decimals: int = 3) -> str:
    """A figure, or "-" where it is undefined."""
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def _pm(mean: float, sd: float, decimals: int = 2) -> str:
    return "-" if math.isnan(mean) else f"{mean:.{decimals}f} ± {sd:.{decimals}f}"
