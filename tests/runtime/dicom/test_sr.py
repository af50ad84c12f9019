from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from highdicom.sr import srread
from pydicom.sr.codedict import codes

from runtime.dicom import codes as vc
from runtime.dicom.uids import CODING_SCHEME_UID
from runtime.dicom.writer import write_dicom
from tests.runtime.dicom.series import analysed


def is_of(name, code) -> bool:
    return (name.value, name.scheme_designator) == (code.value, code.scheme_designator)


def numbers(group) -> dict[tuple[str, str], float]:
    """Values by code, in their own unit."""
    return {(m.name.value, m.name.scheme_designator): float(m.value) for m in group.get_measurements()}


def said(group) -> dict[str, str]:
    return {e.name.value: e.value.value for e in group.get_qualitative_evaluations()}


@pytest.fixture
def report(tmp_path):
    """An analysis, and its segmentation and report as the library reads them."""
    analysis = analysed(tmp_path / "scan")
    write_dicom(analysis, tmp_path, ("seg", "sr"))
    return analysis, srread(tmp_path / "sr.dcm")


def groups_of(document, analysis, vertebra):
    """The volume's and the heights' group of one vertebra, by its tracking UID."""
    volumes = document.content.get_volumetric_roi_measurement_groups()
    others = document.content.get_image_measurement_groups()
    identifier = f"vertebra {vertebra.index}" + (f" ({vertebra.level})" if vertebra.level else "")
    (volume,) = [group for group in volumes if group.tracking_identifier == identifier]
    heights = [group for group in others if group.tracking_uid == volume.tracking_uid]
    return volume, heights


def test_every_number_of_the_findings_comes_back(report):
    analysis, document = report
    for vertebra in analysis.findings.vertebrae:
        volume, _ = groups_of(document, analysis, vertebra)
        got = numbers(volume)
        network, measured = vertebra.network, vertebra.measured
        expected = {
            codes.SCT.Volume: vertebra.volume_ml,
            codes.DCM.AttenuationCoefficient: vertebra.mean_hu,
            vc.TRABECULAR_HU: vertebra.trabecular_hu,
            vc.CONFIDENCE: vertebra.confidence,
            vc.LEVEL_CONFIDENCE: vertebra.level_confidence,
            vc.HEIGHT_LOSS[vc.REPORTED]: None if vertebra.height_loss is None else 100 * vertebra.height_loss,
            vc.HEIGHT_LOSS[vc.MEASURED]: None if measured is None else 100 * measured.height_loss,
            vc.HEIGHT_LOSS[vc.BY_NETWORK]: None if network is None else 100 * network.height_loss,
        }
        for source, given in ((vc.REPORTED, vertebra), (vc.BY_NETWORK, network)):
            probabilities = (None,) * 4 if given is None else given.grade_probabilities or (None,) * 4
            expected |= dict(zip(vc.GRADE_PROBABILITY[source], probabilities, strict=True))
        known = {(code.value, code.scheme_designator): v for code, v in expected.items() if v is not None}
        assert got == pytest.approx(known, abs=1e-12)


def test_grades_and_reasons_come_back_as_codes(report):
    analysis, document = report
    got = [said(groups_of(document, analysis, v)[0]) for v in analysis.findings.vertebrae]
    assert [one.get("GENANT") for one in got] == [None, "GENANT-2", "GENANT-0", "GENANT-2", "GENANT-3", None]
    assert [one.get("GENANT-MEAS") for one in got] == [None, "GENANT-2", "GENANT-2", None, "GENANT-2", None]
    assert [one.get("GENANT-NET") for one in got] == [None, *["GENANT-1"] * 4, None]
    assert [one.get("NO-GRADE") for one in got] == ["NO-GRADE-CERV", *[None] * 4, "NO-GRADE-CUT"]
    assert [one.get("SHAPE") for one in got] == [None, "SHAPE-CRUSH", None, "SHAPE-WEDGE", "SHAPE-BICONC", None]
    yes, no = codes.SCT.Yes.value, codes.SCT.No.value
    assert [one.get("GRADES-DIFFER") for one in got] == [None, yes, no, no, no, None]
    assert [one["COMPLETE"] for one in got] == [*[yes] * 5, no]
    assert [one.get("GRADE-BASIS") for one in got] == [None, *["BASIS-BOTH"] * 2, "BASIS-NET", "BASIS-BOTH", None]


def test_heights_have_codes_of_their_own_and_end_points_in_the_patient(report):
    analysis, document = report
    for vertebra in analysis.findings.vertebrae:
        _, groups = groups_of(document, analysis, vertebra)
        if vertebra.heights_mm is None:
            assert groups == []
            continue
        (group,) = groups
        known = {
            vc.REPORTED: vertebra.heights_mm,
            vc.MEASURED: vertebra.measured and vertebra.measured.heights_mm,
            vc.BY_NETWORK: vertebra.network.heights_mm,
            vc.EXPECTED: vertebra.expected_heights_mm,
        }
        expected = {
            (vc.HEIGHT[place, source].value, vc.SCHEME): getattr(heights, place)
            for source, heights in known.items()
            if heights is not None
            for place in vc.HEIGHTS
        }
        assert numbers(group) == pytest.approx(expected)
        ends = analysis.height_ends[vertebra.index - 1]
        lines = [m for m in group.get_measurements() if m.referenced_coordinates]
        assert len(lines) == (0 if ends is None else 3)
        for line, place in zip(lines, vc.HEIGHTS, strict=ends is not None):
            assert is_of(line.name, vc.HEIGHT[place, vc.MEASURED])
            (points,) = line.referenced_coordinates
            assert points.frame_of_reference_uid == analysis.volume.source.frame_of_reference_uid
            np.testing.assert_allclose(points.value * [-1, -1, 1], np.array(getattr(ends, place)), atol=1e-4)
            assert np.linalg.norm(np.diff(points.value, axis=0)) == pytest.approx(line.value, abs=1e-4)


def test_the_segment_and_its_series_are_referred_to(report, tmp_path):
    import pydicom

    analysis, document = report
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    tracking = {segment.SegmentNumber: segment.TrackingUID for segment in seg.SegmentSequence}
    for vertebra in analysis.findings.vertebrae:
        volume, _ = groups_of(document, analysis, vertebra)
        reference = volume.referenced_segment
        item = reference[0].ReferencedSOPSequence[0]
        assert item.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        assert item.ReferencedSegmentNumber == vertebra.mask_label
        assert volume.tracking_uid == tracking[vertebra.mask_label]
        assert is_of(volume.finding_sites[0].value, vc.level_code(vertebra.level))
    evidence = {
        instance.ReferencedSOPInstanceUID
        for study in document.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert evidence == {seg.SOPInstanceUID, *analysis.volume.source.sop_instance_uids}


def test_without_a_segmentation_nothing_refers_to_one(tmp_path):
    analysis = analysed(tmp_path / "scan")
    write_dicom(analysis, tmp_path, ("sr",))
    document = srread(tmp_path / "sr.dcm")
    assert document.content.get_volumetric_roi_measurement_groups() == []
    groups = document.content.get_image_measurement_groups()
    assert len(groups) == 6 + 4
    assert "1.2.840.10008.5.1.4.1.1.66" not in str(document)
    volumes = [numbers(group).get((codes.SCT.Volume.value, "SCT")) for group in groups]
    assert [v for v in volumes if v is not None] == [v.volume_ml for v in analysis.findings.vertebrae]


def test_notice_warnings_and_the_private_scheme_are_in_it(report):
    analysis, document = report
    (scheme,) = document.CodingSchemeIdentificationSequence
    assert (scheme.CodingSchemeDesignator, scheme.CodingSchemeVersion) == (vc.SCHEME, vc.SCHEME_VERSION)
    remarks = document.ContentSequence[-1]
    assert remarks.ConceptNameCodeSequence[0].CodeValue == "C0034375"
    assert remarks.ContentSequence[0].ConceptCodeSequence[0].CodeValue == vc.NOT_CLINICAL.value
    texts = [item.TextValue for item in remarks.ContentSequence if item.ValueType == "TEXT"]
    assert texts == [w.replace("öß", "??") for w in analysis.findings.warnings]


def test_private_codes_are_few_enough_characters_and_all_different():
    values = [code.value for code in vc.PRIVATE_CODES]
    assert len(set(values)) == len(values)
    assert len({code.meaning for code in vc.PRIVATE_CODES}) == len(values)
    assert max(map(len, values)) <= 16
    assert max(len(code.meaning) for code in vc.PRIVATE_CODES) <= 64
    assert {code.scheme_designator for code in vc.PRIVATE_CODES} == {vc.SCHEME}


def test_the_conformance_statement_lists_the_private_scheme():
    text = (Path(__file__).resolve().parents[3] / "docs" / "dicom-conformance.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([A-Z0-9-]+)` \| (.+) \|$", text, re.MULTILINE)
    assert listed == [(code.value, code.meaning) for code in vc.PRIVATE_CODES]
    assert f"`{CODING_SCHEME_UID}`" in text
