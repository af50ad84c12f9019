"""Coded concepts: SNOMED CT and DICOM where they have one, the private scheme ``99VERTSCAN`` where they don't.

The private codes are documented in ``docs/dicom-conformance.md``; a code never changes its meaning.
"""

from __future__ import annotations

from functools import cache

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from runtime.dicom.uids import CODING_SCHEME_UID
from runtime.findings import COMBINED, NETWORK
from runtime.morphometry import CERVICAL, CUT, MAYBE_CERVICAL, NO_BODY

SCHEME, SCHEME_VERSION = "99VERTSCAN", "1"
SCHEME_NAME, SCHEME_OWNER = "vertscan private codes", "vertscan"

HEIGHTS = ("anterior", "middle", "posterior")


def _private(value: str, meaning: str) -> Code:
    return Code(value, SCHEME, meaning)


VARIANT_LEVELS = {"T13": _private("T13", "T13 vertebra"), "L6": _private("L6", "L6 vertebra")}
"""Levels that SNOMED CT has no code for."""

REPORTED, MEASURED, BY_NETWORK, EXPECTED = (
    "",
    "measured on the mask",
    "estimated by the network",
    "expected unfractured",
)
_HEIGHT_SUFFIX = {REPORTED: "", MEASURED: "-MEAS", BY_NETWORK: "-NET", EXPECTED: "-EXP"}


def _height(place: str, source: str) -> Code:
    meaning = f"{place.capitalize()} height of vertebral body"
    return _private(f"HEIGHT-{place[:3].upper()}{_HEIGHT_SUFFIX[source]}", meaning + (f", {source}" if source else ""))


HEIGHT = {(place, source): _height(place, source) for source in _HEIGHT_SUFFIX for place in HEIGHTS}
"""By place (of ``HEIGHTS``) and by what says it."""

HEIGHT_LOSS = {
    REPORTED: _private("LOSS", "Greatest relative height loss"),
    MEASURED: _private("LOSS-MEAS", f"Greatest relative height loss, {MEASURED}"),
    BY_NETWORK: _private("LOSS-NET", f"Greatest relative height loss, {BY_NETWORK}"),
}
GRADE = {
    REPORTED: _private("GENANT", "Genant grade of vertebral fracture"),
    MEASURED: _private("GENANT-MEAS", f"Genant grade of vertebral fracture, {MEASURED}"),
    BY_NETWORK: _private("GENANT-NET", f"Genant grade of vertebral fracture, {BY_NETWORK}"),
}
GRADE_VALUES = tuple(
    _private(f"GENANT-{grade}", f"Genant grade {grade} ({word})")
    for grade, word in enumerate(("no fracture", "mild", "moderate", "severe"))
)
GRADE_PROBABILITY = {
    source: tuple(
        _private(
            f"P-GENANT-{grade}{suffix}", f"Probability of Genant grade {grade}" + (f", {source}" if source else "")
        )
        for grade in range(4)
    )
    for source, suffix in ((REPORTED, ""), (BY_NETWORK, "-NET"))
}
NO_GRADE = _private("NO-GRADE", "Reason why no Genant grade is given")
NO_GRADE_VALUES = {
    CUT: _private("NO-GRADE-CUT", "The edge of the scan cuts the vertebral body"),
    CERVICAL: _private("NO-GRADE-CERV", "Cervical vertebrae are not graded"),
    MAYBE_CERVICAL: _private("NO-GRADE-MAYBE-C", "Probably cervical; cervical vertebrae are not graded"),
    NO_BODY: _private("NO-GRADE-BODY", "No vertebral body can be told in the mask"),
}
GRADE_BASIS = _private("GRADE-BASIS", "What the Genant grade rests on")
GRADE_BASIS_VALUES = {
    COMBINED: _private("BASIS-BOTH", "Network and measurement"),
    NETWORK: _private("BASIS-NET", "Network alone"),
}
GRADES_DIFFER = _private("GRADES-DIFFER", "Network's and measured grade more than one apart")
SHAPE = _private("SHAPE", "Shape of vertebral fracture")
SHAPE_VALUES = {
    "wedge": _private("SHAPE-WEDGE", "Wedge"),
    "biconcave": _private("SHAPE-BICONC", "Biconcave"),
    "crush": _private("SHAPE-CRUSH", "Crush"),
}
COMPLETE = _private("COMPLETE", "Vertebra lies completely inside the scan")
CONFIDENCE = _private("P-VERTEBRA", "Confidence of being a vertebra")
LEVEL_CONFIDENCE = _private("P-LEVEL", "Probability of the vertebral level")
TRABECULAR_HU = _private("HU-TRABECULAR", "Mean attenuation of trabecular bone of vertebral body")
WARNING = _private("WARNING", "Warning")
INTENDED_USE = _private("USE", "Intended use")
NOT_CLINICAL = _private("USE-RESEARCH", "Not for clinical use")
NONE_FOUND = _private("NONE-FOUND", "No vertebra was found")
FINDING = _private("FINDING", "Finding in the scan")

PRIVATE_CODES: tuple[Code, ...] = (
    *VARIANT_LEVELS.values(),
    *HEIGHT.values(),
    *HEIGHT_LOSS.values(),
    *GRADE.values(),
    *GRADE_VALUES,
    *(code for group in GRADE_PROBABILITY.values() for code in group),
    *(NO_GRADE, *NO_GRADE_VALUES.values()),
    *(GRADE_BASIS, *GRADE_BASIS_VALUES.values()),
    GRADES_DIFFER,
    *(SHAPE, *SHAPE_VALUES.values()),
    *(COMPLETE, CONFIDENCE, LEVEL_CONFIDENCE, TRABECULAR_HU),
    *(WARNING, INTENDED_USE, NOT_CLINICAL, FINDING, NONE_FOUND),
)
"""All of the scheme."""

VERTEBRA = codes.SCT.Vertebra
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
MILLILITRE = codes.UCUM.CubicCentimeter
PROBABILITY_UNIT = codes.UCUM.NoUnits


def concept(code: Code) -> CodedConcept:
    """A code as objects hold it; always the same item, which takes less time to make and to write. Never change it."""
    return _concept(code.value, code.scheme_designator, code.meaning, code.scheme_version)


@cache
def _concept(value: str, scheme_designator: str, meaning: str, scheme_version: str | None) -> CodedConcept:
    return CodedConcept(value, scheme_designator, meaning, scheme_version)


def level_code(level: str | None) -> Code:
    """The code of a vertebra: of its level, or, where that is None, "vertebra"."""
    if level is None:
        return VERTEBRA
    return VARIANT_LEVELS[level] if level in VARIANT_LEVELS else getattr(codes.SCT, f"{level}Vertebra")


def yes_or_no(value: bool) -> Code:
    """SNOMED CT's yes or no."""
    return codes.SCT.Yes if value else codes.SCT.No


def declare_private_codes(result: Dataset) -> None:
    """Say in a result what its private coding scheme is."""
    item = CodingSchemeIdentificationItem(
        designator=SCHEME, name=SCHEME_NAME, version=SCHEME_VERSION, responsible_organization=SCHEME_OWNER
    )
    item.CodingSchemeUID = CODING_SCHEME_UID
    result.CodingSchemeIdentificationSequence = [item]
