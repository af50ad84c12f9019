"""What programs that others wrote say of the results; each is skipped where the program is not installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest

from runtime.dicom import KINDS
from runtime.dicom import codes as vc
from runtime.dicom.writer import write_dicom
from runtime.infer import main
from runtime.readers import read_scan
from runtime.volume import LPS_FROM_RAS
from tests.runtime.dicom.series import GEOMETRIES, analysed, analysis_of, write_enhanced, write_series

ACCESSION = "Different information entities for attribute - Element=<AccessionNumber>"
"""dcentvfy says it of every report with this attribute, though it be empty, beside a CT image, whoever wrote it: its
tables count the attribute to the series in an image and to the study in a report."""


@cache
def tool(name: str, package: str) -> str:
    """The program's path, of this environment before the system's; skips the test where there is none."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed ({package})")
    return found


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False, timeout=120)
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == 0 or Path(command[0]).name in ("dciodvfy", "dcentvfy"), said
    return said


@pytest.fixture(scope="module", params=["axial", "sagittal", "all at once", "multiframe", "nothing found", "label map"])
def results(request, tmp_path_factory):
    """An analysis and the folder with its four objects, for each geometry and some other cases."""
    folder = tmp_path_factory.mktemp("results")
    if request.param == "multiframe":
        analysis = analysis_of(read_scan(write_enhanced(folder / "scan" / "enhanced.dcm")))
    elif request.param == "nothing found":
        analysis = analysed(folder / "scan", found=())
    else:
        analysis = analysed(folder / "scan", GEOMETRIES.get(request.param, GEOMETRIES["axial"]))
    write_dicom(analysis, folder, KINDS, seg_type="LABELMAP" if request.param == "label map" else "BINARY")
    return analysis, folder, request.param


def test_dciodvfy_finds_no_error(results):
    program = tool("dciodvfy", "Debian: dicom3tools")
    _, folder, kind = results
    for file in sorted(folder.glob("*.dcm")):
        said = run(program, file)
        if kind == "label map" and file.name == "seg.dcm" and "Label Map" not in said and "LabelMap" not in said:
            pytest.skip("this dciodvfy does not know label map segmentations")
        lines = [line for line in said.splitlines() if not _expected(line)]
        assert lines == [], file.name


def _expected(line: str) -> bool:
    """The name of the class, and the notices on what is private by intent."""
    private = "Unrecognized defined term <99VERTSCAN>" in line or "attribute <Coding Scheme UID>" in line
    return private or re.fullmatch(r"\w+", line.strip()) is not None


def test_dciodvfy_would_tell_of_an_error(tmp_path):
    program = tool("dciodvfy", "Debian: dicom3tools")
    write_dicom(analysed(tmp_path / "scan"), tmp_path, ("sc",))
    broken = pydicom.dcmread(tmp_path / "sc.dcm")
    del broken.ConversionType
    broken.save_as(tmp_path / "sc.dcm")
    assert "Error" in run(program, tmp_path / "sc.dcm")


def test_dcentvfy_finds_results_and_images_to_agree(results):
    program = tool("dcentvfy", "Debian: dicom3tools")
    _, folder, kind = results
    if kind == "label map":
        pytest.skip("dcentvfy does not know label map segmentations")
    said = run(program, *sorted(folder.rglob("*.dcm"))).splitlines()
    assert [line for line in said if line.strip() and ACCESSION not in line] == []


def test_dcentvfy_says_of_somebody_elses_report_what_it_says_of_ours(shared_data, tmp_path):
    """So the note on the accession number is about the program, not about our reports."""
    program = tool("dcentvfy", "Debian: dicom3tools")
    write_series(tmp_path / "scan", change=lambda image: setattr(image, "AccessionNumber", "A1"))
    image = pydicom.dcmread(tmp_path / "scan" / "000.dcm")
    report = pydicom.dcmread(shared_data / "dicom" / "transfer-syntaxes" / "no-pixel-data.dcm")
    kept = ("SOP", "Modality", "Content", "Series", "Value", "Concept", "Continuity", "Completion", "Verification")
    for element in list(report):
        if not element.keyword.startswith(kept):
            del report[element.tag]
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber"):
        setattr(report, keyword, image[keyword].value)
    report.SpecificCharacterSet = image.SpecificCharacterSet
    report.save_as(tmp_path / "report.dcm")
    said = run(program, tmp_path / "scan" / "000.dcm", tmp_path / "report.dcm")
    assert ACCESSION in said


def test_dsrdump_reads_the_report(results):
    program = tool("dsrdump", "Debian: dcmtk")
    analysis, folder, kind = results
    if kind == "label map":
        pytest.skip("DCMTK up to 3.6.7 refuses reports that refer to a label map segmentation")
    said = run(program, "+Pc", folder / "sr.dcm")
    assert "Comprehensive 3D SR Document" in said
    assert "(126000,DCM," in said
    for code in (vc.HEIGHT["anterior", vc.MEASURED], vc.GRADE_PROBABILITY[vc.REPORTED][3]):
        assert (f"({code.value},{vc.SCHEME}," in said) == bool(analysis.findings.vertebrae)
    assert said.count("SCOORD3D") == 3 * sum(ends is not None for ends in analysis.height_ends)


def test_dcmqi_reads_the_segmentation_back(results):
    program = tool("segimage2itkimage", "PyPI: dcmqi")
    analysis, folder, kind = results
    if kind in ("nothing found", "label map"):
        pytest.skip(f"{kind}: there is no binary segmentation")
    import SimpleITK as sitk  # noqa: N813  the name all of its users know

    out = folder / "dcmqi"
    out.mkdir(exist_ok=True)
    run(program, "--inputDICOM", folder / "seg.dcm", "--outputDirectory", out, "--prefix", "s", "--outputType", "nrrd")
    labels = np.zeros_like(analysis.labels)
    index = np.argwhere(np.ones(labels.shape, bool))
    points = analysis.volume.grid.to_ras_mm(index) @ LPS_FROM_RAS[:3, :3].T
    for file in sorted(out.glob("*.nrrd")):
        image = sitk.ReadImage(str(file))
        array = sitk.GetArrayFromImage(image)
        direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        at = np.rint((points - image.GetOrigin()) @ np.linalg.inv(direction).T).astype(int)[:, ::-1]
        inside = ((at >= 0) & (at < array.shape)).all(axis=1)
        found = np.zeros(len(at), np.uint8)
        found[inside] = array[tuple(at[inside].T)]
        labels.ravel()[found > 0] = found[found > 0]
    np.testing.assert_array_equal(labels, analysis.labels)
    meta = [
        segment for group in json.loads((out / "s-meta.json").read_text())["segmentAttributes"] for segment in group
    ]
    types = {one["labelID"]: one["SegmentedPropertyTypeCodeSequence"]["CodeValue"] for one in meta}
    assert types == {v.mask_label: vc.level_code(v.level).value for v in analysis.findings.vertebrae}


def test_dcmqi_reads_the_report_back(results):
    program = tool("tid1500reader", "PyPI: dcmqi")
    analysis, folder, kind = results
    if kind == "nothing found":
        pytest.skip("dcmqi reads no report without measurements")
    run(program, "--inputDICOM", folder / "sr.dcm", "--outputMetadata", folder / "sr.json")
    groups = json.loads((folder / "sr.json").read_text())["Measurements"]
    seg = pydicom.dcmread(folder / "seg.dcm")
    segments = {segment.get("SegmentNumber"): segment for segment in seg.SegmentSequence}
    for vertebra in analysis.findings.vertebrae:
        tracking = segments[vertebra.mask_label].TrackingUID
        mine = [group for group in groups if group["TrackingUniqueIdentifier"] == tracking]
        values = {
            item["quantity"]["CodeValue"]: float(item["value"]) for group in mine for item in group["measurementItems"]
        }
        assert values["118565006"] == vertebra.volume_ml
        assert mine[0]["FindingSite"]["CodeValue"] == vc.level_code(vertebra.level).value
        assert mine[0]["ReferencedSegment"] == vertebra.mask_label
        assert mine[0]["segmentationSOPInstanceUID"] == seg.SOPInstanceUID
        evaluations = {
            one["conceptCode"]["CodeValue"]: one["conceptValue"] for one in mine[0]["qualitativeEvaluations"]
        }
        if vertebra.grade is None:
            assert "GENANT" not in evaluations
            continue
        assert evaluations["GENANT"]["CodeValue"] == f"GENANT-{vertebra.grade}"
        for grade, probability in enumerate(vertebra.grade_probabilities):
            assert values[f"P-GENANT-{grade}"] == probability
        for place in vc.HEIGHTS:
            assert values[vc.HEIGHT[place, vc.REPORTED].value] == getattr(vertebra.heights_mm, place)
            if vertebra.measured is not None:
                assert values[vc.HEIGHT[place, vc.MEASURED].value] == getattr(vertebra.measured.heights_mm, place)


@pytest.mark.slow
def test_a_real_series_gives_valid_results(shared_data, tmp_path):
    """The Visible Human's pelvis through the default bundle, all outputs, under every program that is there."""
    source = shared_data / "dicom" / "visible-human-pelvis"
    assert main([str(source), "-o", str(tmp_path / "out"), "--output", "seg,sr,sc,pdf", "--quiet"]) == 0
    files = sorted((tmp_path / "out").glob("*.dcm"))
    assert [file.stem for file in files] == sorted(KINDS)
    for file in files:
        said = run(tool("dciodvfy", "Debian: dicom3tools"), file)
        lines = [line for line in said.splitlines() if not _expected(line) and "Retired Person Name" not in line]
        assert lines == [], file.name
    said = run(tool("dcentvfy", "Debian: dicom3tools"), *files, *sorted(source.iterdir())).splitlines()
    assert [line for line in said if line.strip() and ACCESSION not in line] == []


def test_the_helper_writes_valid_images(tmp_path):
    """Else the programs would judge the tests' images, not the results."""
    program = tool("dciodvfy", "Debian: dicom3tools")
    write_series(tmp_path / "scan")
    assert "Error" not in run(program, tmp_path / "scan" / "003.dcm")
