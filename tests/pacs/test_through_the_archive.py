"""Acceptance 11 to 14: from an archive through the node with the real pipeline, back into the archive.

One archive and one node see all studies of ``cases``; the tests look at what became of each.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from runtime.dicom.headers import tolerant_of_values
from runtime.pipeline import Pipeline
from runtime.readers import read_scan
from tests.pacs.batch import Outcome, run_cases
from tests.pacs.cases import GEOMETRY, HEADERS, SYNTAXES, real_cases
from tests.runtime.dicom.test_validators import ACCESSION, _expected, run, tool

pytestmark = pytest.mark.filterwarnings("ignore:Unknown encoding:UserWarning")  # one study has such a character set

DICOM = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom"
REAL = real_cases(DICOM) if DICOM.is_dir() else {}
CASES = {**GEOMETRY, **SYNTAXES, **HEADERS, **REAL}
PLAIN = "as it should be"
"""The study that others are compared with."""
SHAPES = [PLAIN, "tilted", "tilted, uneven", "oblong pixels", "one multiframe file", "no type-2 attributes"]
"""Those that the validators look at."""
LOSSY_HU = {"1.2.4.50": 70.0, "1.2.4.51": 40.0, "1.2.4.53": 40.0, "1.2.4.55": 40.0, "1.2.4.81": 1.0, "1.2.4.91": 6.0}
"""HU by which images of these transfer syntaxes may differ from the original: what their quality loses."""


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory, ball_bundle) -> dict[str, Outcome]:
    """Of the studies that the selected tests look at; only ``SHAPES`` get picture and document, which take longest."""
    items = [item for item in request.session.items if item.path == request.path]
    wanted = {PLAIN, *(item.callspec.params["name"] for item in items)}
    few = {name: case for name, case in CASES.items() if name in wanted and name not in SHAPES}
    full = {name: case for name, case in CASES.items() if name in wanted and name in SHAPES}
    found = run_cases(tmp_path_factory.mktemp("batch"), ball_bundle, few, ("seg", "sr")) if few else {}
    return found | run_cases(tmp_path_factory.mktemp("batch"), ball_bundle, full)


@pytest.mark.parametrize("name", CASES)
def test_12_every_study_comes_to_its_documented_end_and_nothing_is_silent(outcomes, name):
    outcome, case = outcomes[name], CASES[name]
    assert outcome.entry["state"] == case.state, outcome.entry["reason"]
    if case.state == "dead":
        assert outcome.results == {}
        assert all(text in outcome.entry["reason"] for text in case.said), outcome.entry["reason"]
        assert outcome.entry["reason"] in outcome.log
        return
    assert ({"sr", "sc", "pdf"} if name in SHAPES else {"sr"}) <= set(outcome.results)
    said = " ".join(outcome.warnings)
    assert all(text in said for text in case.said), said
    if not case.said and name not in REAL:
        assert outcome.warnings == outcomes[PLAIN].warnings
    for warning in outcome.warnings:
        assert _first_words(warning) in outcome.log


def _first_words(text: str) -> str:
    """The start of a warning, before any question mark that stands for a letter, or a value that is withheld."""
    return " ".join(text.split("?")[0].split()[:4])


@pytest.mark.parametrize("name", [name for name in (*GEOMETRY, *SYNTAXES, *HEADERS) if CASES[name].state != "dead"])
def test_11_masks_lie_on_the_source_images_within_a_voxel(outcomes, name):
    """Also of tilted and uneven series, oblong pixels, misleading numbers, multiframe files."""
    outcome = outcomes[name]
    assert [segment.SegmentNumber for segment in outcome.results["seg"].SegmentSequence] == [1, 2]
    found = outcome.labels()
    true_voxels = 0
    for uid, truth in outcome.truth.items():
        for mask, true in zip(_planes(found[uid]), _planes(truth), strict=True):
            for ball in (1, 2):
                assert not ((mask == ball) & ~_grown(true == ball)).any()
                assert not (~_grown(mask == ball) & _shrunk(true == ball)).any()
                true_voxels += int((true == ball).sum())
    assert true_voxels > 1000
    overlap = sum(int(((found[uid] == truth) & (truth > 0)).sum()) for uid, truth in outcome.truth.items())
    marked = sum(int((found[uid] > 0).sum()) for uid in outcome.truth)
    assert 2 * overlap / (marked + true_voxels) > 0.9


def _planes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, *array.shape[-2:])


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its neighbours in the plane, diagonal ones too."""
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    parts = [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    return np.logical_or.reduce(parts)


def _shrunk(mask: np.ndarray) -> np.ndarray:
    return ~_grown(~mask)


@pytest.mark.parametrize("name", [PLAIN, *SYNTAXES])
def test_13_lossless_syntaxes_give_the_same_hu_and_the_same_segmentation(outcomes, name):
    outcome, plain = outcomes[name], outcomes[PLAIN]
    sent = {str(dcmread(path).file_meta.TransferSyntaxUID) for path in outcome.sent.iterdir()}
    kept = {str(dcmread(path).file_meta.TransferSyntaxUID) for path in outcome.kept.rglob("*.dcm")}
    assert kept == sent
    np.testing.assert_array_equal(read_scan(outcome.kept).array, read_scan(plain.sent).array)
    np.testing.assert_array_equal(outcome.results["seg"].pixel_array, plain.results["seg"].pixel_array)


@pytest.mark.skipif(not REAL, reason=f"no real scans in {DICOM}")
@pytest.mark.parametrize("name", [name for name in REAL if name.startswith("syntax")])
def test_13_real_files_have_the_same_hu_after_the_archive(outcomes, name):
    original = dcmread(DICOM / "transfer-syntaxes" / "CTImage.dcm").pixel_array.astype(np.int32) - 1024
    differ = np.abs(read_scan(outcomes[name].kept).array - original)
    assert differ.max() <= LOSSY_HU.get(name.removeprefix("syntax "), 0.0)


@pytest.mark.parametrize("name", HEADERS)
def test_13_results_are_of_the_same_patient_whatever_the_header_is_like(outcomes, name):
    outcome = outcomes[name]
    source = dcmread(min(outcome.sent.iterdir()))
    with tolerant_of_values():
        for result in outcome.results.values():
            assert result.PatientID == source.PatientID
            for keyword in ("PatientName", "PatientSex", "AccessionNumber", "StudyID", "ReferringPhysicianName"):
                assert (result[keyword].value or "") == (source.get(keyword) or "")


def _left_empty(outcome):
    """Attributes that the source lacks, and that are there and empty in every result, as the standard asks."""
    heads = {path.name: dcmread(path, stop_before_pixels=True) for path in outcome.fetched.iterdir()}
    source = heads[min(name for name in heads if name.startswith("CT"))]
    results = [head for name, head in heads.items() if not name.startswith("CT")]
    words = {element.keyword for head in results for element in head if element.keyword and element.is_empty}
    return {word for word in words if word not in source and all(head.get(word) in ("", None) for head in results)}


def _said(lines, outcome):
    """What dcentvfy finds, but for those attributes."""
    empty = [f"Attribute present in one instance but not the other - Element=<{word}>" for word in _left_empty(outcome)]
    return [line for line in lines.splitlines() if line.strip() and not any(known in line for known in empty)]


@pytest.mark.parametrize("name", SHAPES)
def test_14_dciodvfy_and_dcentvfy_have_nothing_to_say(outcomes, name, tmp_path):
    outcome = outcomes[name]
    for path in sorted(outcome.fetched.iterdir()):
        if path.name.startswith("CT"):
            continue
        said = run(tool("dciodvfy", "Debian: dicom3tools"), path)
        lines = [line for line in said.splitlines() if not _expected(line)]
        if "no type-2" in name:  # what the source lacks stays empty
            lines = [line for line in lines if "would be needed to build DICOMDIR" not in line]
        assert lines == [], path.name
    dcentvfy = tool("dcentvfy", "Debian: dicom3tools")
    said = _said(run(dcentvfy, *sorted(outcome.fetched.iterdir())), outcome)
    assert [line for line in said if not (ACCESSION in line and "SR-" in line)] == []
    without = tmp_path / "without"
    without.mkdir()
    for path in sorted(outcome.fetched.iterdir()):
        one = dcmread(path)
        one.pop("AccessionNumber", None)
        one.save_as(without / path.name)
    assert _said(run(dcentvfy, *sorted(without.iterdir())), outcome) == []


@pytest.fixture(scope="module")
def analyses(outcomes, ball_bundle):
    """The same studies through the same pipeline in this process."""
    with Pipeline.open(ball_bundle, engine="openvino", precision="fp32") as pipeline:
        return {name: pipeline.analyse(outcomes[name].sent) for name in SHAPES if name in outcomes}


@pytest.mark.parametrize("name", SHAPES)
def test_14_dcmqi_reads_every_voxel_of_the_segmentation_back(outcomes, analyses, name, tmp_path):
    import SimpleITK as sitk  # noqa: N813  the name all of its users know

    program = tool("segimage2itkimage", "PyPI: dcmqi")
    outcome, analysis = outcomes[name], analyses[name]
    (seg,) = outcome.fetched.glob("SEG-*.dcm")
    run(program, "--inputDICOM", seg, "--outputDirectory", tmp_path, "--prefix", "s", "--outputType", "nrrd")
    counts = {}
    for path in sorted(tmp_path.glob("*.nrrd")):
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        counts |= {int(label): int((array == label).sum()) for label in np.unique(array) if label}
    from runtime.readers.dicom_source import labels_on_source

    expected = labels_on_source(analysis.labels, analysis.volume)
    assert counts == {label: int((expected == label).sum()) for label in (1, 2)}
    found, source = outcome.labels(), analysis.volume.source
    for k, uid in enumerate(source.sop_instance_uids):
        plane = found[uid][source.frame_numbers[k] - 1] if found[uid].ndim == 3 else found[uid]
        np.testing.assert_array_equal(plane, expected[k])


@pytest.mark.parametrize("name", SHAPES)
def test_14_dcmqi_reads_every_value_of_the_report_back(outcomes, analyses, name, tmp_path):
    program = tool("tid1500reader", "PyPI: dcmqi")
    outcome = outcomes[name]
    (report,) = outcome.fetched.glob("SR-*.dcm")
    run(program, "--inputDICOM", report, "--outputMetadata", tmp_path / "sr.json")
    groups = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    tracking = {s.SegmentNumber: s.TrackingUID for s in outcome.results["seg"].SegmentSequence}
    vertebrae = analyses[name].findings.vertebrae
    assert len(vertebrae) == 2
    for vertebra in vertebrae:
        mine = [group for group in groups if group["TrackingUniqueIdentifier"] == tracking[vertebra.mask_label]]
        values = {i["quantity"]["CodeValue"]: float(i["value"]) for group in mine for i in group["measurementItems"]}
        assert values["118565006"] == vertebra.volume_ml
        assert values["112031"] == vertebra.mean_hu
        assert values["P-VERTEBRA"] == vertebra.confidence
        assert vertebra.grade_probabilities is not None
        assert [values[f"P-GENANT-{grade}"] for grade in range(4)] == list(vertebra.grade_probabilities)
        heights = vertebra.heights_mm
        assert heights is not None
        said = [values[f"HEIGHT-{place}"] for place in ("ANT", "MID", "POS")]
        assert said == [heights.anterior, heights.middle, heights.posterior]
