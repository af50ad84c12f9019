from __future__ import annotations

import json
from dataclasses import fields, replace

import jsonschema
import pytest

from runtime.engines.base import EngineInfo
from runtime.errors import InputError
from runtime.findings import (
    COMBINED,
    BundleInfo,
    Findings,
    Heights,
    Measured,
    NetworkOpinion,
    ScanInfo,
    Settings,
    Vertebra,
    from_json,
    schema,
    to_json,
)

FULL = Vertebra(
    index=1,
    level="T12",
    level_confidence=0.87,
    centre_ras_mm=(1.5, -20.0, 300.25),
    confidence=0.93,
    complete=True,
    grade=2,
    grade_probabilities=(0.1, 0.2, 0.6, 0.1),
    grade_from=COMBINED,
    grades_differ=False,
    no_grade_reason=None,
    shape="biconcave",
    heights_mm=Heights(18.0, 15.5, 21.0),
    expected_heights_mm=Heights(20.0, 21.0, 22.0),
    height_loss=0.3,
    network=NetworkOpinion(1, (0.1, 0.5, 0.3, 0.1), Heights(18.5, 16.0, 20.0), 0.24),
    measured=Measured(2, 0.33, Heights(17.5, 15.0, 22.0)),
    volume_ml=31.5,
    mean_hu=142.0,
    trabecular_hu=110.0,
    mask_label=1,
)
BARE = replace(
    FULL,
    index=2,
    level=None,
    level_confidence=None,
    complete=False,
    grade=None,
    grade_probabilities=None,
    grade_from=None,
    no_grade_reason="the edge of the scan cuts the body",
    shape=None,
    heights_mm=None,
    expected_heights_mm=None,
    height_loss=None,
    network=None,
    measured=None,
    volume_ml=0.0,
    mean_hu=None,
    trabecular_hu=None,
    mask_label=2,
)
FINDINGS = Findings(
    scan=ScanInfo("Łódź scan", "ab" * 32, (10, 20, 30), (0.7, 0.7, 1.25), "LPS"),
    bundle=BundleInfo("default", "1.0", "0" * 64),
    engine=EngineInfo("openvino", "2026.4", "fp32", "CPU", "fastest of those there are"),
    timings_s={"read": 0.5, "total": 2.0},
    peak_memory_mb=321.5,
    warnings=("No vertebra was found.",),
    vertebrae=(FULL, BARE),
    settings=Settings(exhaustive=True),
)


def changed(path, value):
    """The findings as JSON with the value at ``path`` replaced; with ``...`` removed."""
    content = json.loads(to_json(FINDINGS))
    *outer, last = path
    target = content
    for key in outer:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return json.dumps(content)


def is_valid(text):
    return jsonschema.Draft202012Validator(schema()).is_valid(json.loads(text))


@pytest.mark.parametrize("indent", [None, 2])
def test_findings_survive_the_way_through_json(indent):
    text = to_json(FINDINGS, indent=indent)
    assert from_json(text) == FINDINGS
    assert is_valid(text)
    assert text.isascii()
    assert ("\n" in text) == (indent is not None)


def test_the_schema_is_sound_and_names_every_field():
    jsonschema.Draft202012Validator.check_schema(schema())
    assert set(schema()["properties"]) == {f.name for f in fields(Findings)}
    for name, kind in (("vertebra", Vertebra), ("network", NetworkOpinion), ("measured", Measured)):
        assert set(schema()["$defs"][name]["required"]) == {f.name for f in fields(kind)}


def test_a_number_that_json_does_not_know_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        to_json(replace(FINDINGS, peak_memory_mb=float("nan")))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema_version"], 1),
        (["schema_version"], ...),
        (["scan"], ...),
        (["scan", "name"], 7),
        (["scan", "name"], None),
        (["scan", "shape_zyx"], [1, 2]),
        (["scan", "shape_zyx"], [1, 2, 3.5]),
        (["extra"], 1),
        (["scan", "extra"], 1),
        (["timings_s"], {"read": 1.0}),
        (["timings_s", "read"], "1"),
        (["warnings"], "none"),
        (["vertebrae", 0, "index"], True),
        (["vertebrae", 0, "grade"], 4),
        (["vertebrae", 0, "grade"], 1.5),
        (["vertebrae", 0, "confidence"], 1.5),
        (["vertebrae", 0, "height_loss"], -0.1),
        (["vertebrae", 0, "level_confidence"], 1.5),
        (["vertebrae", 0, "level_confidence"], ...),
        (["vertebrae", 0, "level_confidence"], "sure"),
        (["vertebrae", 0, "grade_probabilities"], [0.5, 0.5]),
        (["vertebrae", 0, "complete"], 1),
        (["vertebrae", 0, "heights_mm", "middle"], ...),
        (["vertebrae", 0, "volume_ml"], None),
        (["engine", "reason"], None),
        (["vertebrae", 0, "no_grade_reason"], "none"),
        (["vertebrae", 1, "no_grade_reason"], None),
        (["vertebrae", 0, "grade_from"], "a coin"),
        (["vertebrae", 0, "grades_differ"], None),
        (["vertebrae", 0, "shape"], "square"),
        (["vertebrae", 0, "expected_heights_mm", "middle"], ...),
        (["vertebrae", 0, "network", "grade"], None),
        (["vertebrae", 0, "network", "grade"], 4),
        (["vertebrae", 0, "network", "grade_probabilities"], [1.0]),
        (["vertebrae", 0, "network", "height_loss"], 1.2),
        (["vertebrae", 0, "measured", "grade"], -1),
        (["vertebrae", 0, "measured", "height_loss"], -0.2),
        (["vertebrae", 0, "measured", "heights_mm"], None),
        (["vertebrae", 0, "trabecular_hu"], "soft"),
        (["settings"], True),
        (["settings"], {}),
        (["settings", "exhaustive"], None),
        (["settings", "extra"], 1),
    ],
)
def test_reader_and_schema_refuse_the_same(path, value):
    text = changed(path, value)
    with pytest.raises(InputError):
        from_json(text)
    assert not is_valid(text)


@pytest.mark.parametrize("value", [None, ...])
def test_findings_from_before_settings_were_recorded_are_read(value):
    text = changed(["settings"], value)
    assert from_json(text) == replace(FINDINGS, settings=None)
    assert is_valid(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema_version": 2}'])
def test_what_are_no_findings_is_refused(text):
    with pytest.raises(InputError):
        from_json(text)


def test_vertebrae_are_numbered_from_one():
    with pytest.raises(InputError, match="index should be 1"):
        from_json(changed(["vertebrae", 0, "index"], 3))


@pytest.mark.parametrize(("name", "value"), [("level", None), ("level_confidence", None)])
def test_a_level_and_its_confidence_come_together(name, value):
    with pytest.raises(InputError, match="both level and level_confidence"):
        from_json(changed(["vertebrae", 0, name], value))
