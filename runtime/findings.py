"""What is reported about a scan. Field names, units and nullability are a contract: see ``findings.schema.json``."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from importlib import resources
from typing import Any, get_args, get_origin, get_type_hints

from runtime.engines.base import EngineInfo
from runtime.errors import InputError

SCHEMA_VERSION = 2
GRADES = 4
SHAPES = ("wedge", "biconcave", "crush")
COMBINED, NETWORK = "network and measurement", "network"
"""What a grade rests on."""


@dataclass(frozen=True)
class Heights:
    """Heights of a vertebral body, mm."""

    anterior: float
    middle: float
    posterior: float


@dataclass(frozen=True)
class NetworkOpinion:
    """What the network alone says of one vertebra.

    Args:
        grade: Genant 0..3, its likeliest.
        grade_probabilities: of grades 0..3.
        heights_mm: its estimate, or None where the bundle has none.
        height_loss: its estimate of the greatest relative loss, 0..1, or None.
    """

    grade: int
    grade_probabilities: tuple[float, ...]
    heights_mm: Heights | None
    height_loss: float | None


@dataclass(frozen=True)
class Measured:
    """What is measured on the mask of one vertebra alone.

    Args:
        grade: Genant 0..3 by Genant's limits of the height loss; None where that does not apply (in the neck).
        height_loss: greatest relative loss of the three heights, 0..1; None with the grade.
        heights_mm: of the body.
    """

    grade: int | None
    height_loss: float | None
    heights_mm: Heights


@dataclass(frozen=True)
class Vertebra:
    """One vertebra that was found.

    Args:
        index: 1..n, cranial to caudal.
        level: ``"C1"``..``"L6"``, or None where it isn't known.
        level_confidence: probability of that level, 0..1, or None with the level.
        centre_ras_mm: centre of the vertebral body, RAS+ mm (x, y, z).
        confidence: 0..1, of being a vertebra.
        complete: False when the scan's edge cuts it.
        grade: Genant 0..3, or None where no grade can be given.
        grade_probabilities: of grades 0..3, or None with the grade.
        grade_from: ``"network and measurement"`` or ``"network"``: what the grade rests on; None with the grade.
        grades_differ: True when the network's and the measured grade are more than one apart: look at it.
        no_grade_reason: why there is no grade; None where there is one.
        shape: ``"wedge"``, ``"biconcave"`` or ``"crush"`` for grades from 1 on; None for grade 0, without a grade, and
            where ``height_loss`` is None or below 0.12: then no height is reduced enough to tell.
        heights_mm: or None.
        expected_heights_mm: what these would be without a fracture, or None.
        height_loss: greatest relative loss of ``heights_mm`` against the expected ones, 0..1, or None.
        network: what the network alone says, None where no grade can be given.
        measured: what is measured on the mask alone, None where it can't be.
        volume_ml: of the mask.
        mean_hu: mean inside the mask; of the vertebral body where the bundle separates it, or None for an empty mask.
        trabecular_hu: mean of the body's inside, 4 mm from its surface; None where too little is left, it is cut, or
            cement, metal or sclerosis lies in it, as a warning then says.
        mask_label: its value in ``vertebrae.nii.gz``.
    """

    index: int
    level: str | None
    level_confidence: float | None
    centre_ras_mm: tuple[float, float, float]
    confidence: float
    complete: bool
    grade: int | None
    grade_probabilities: tuple[float, ...] | None
    grade_from: str | None
    grades_differ: bool
    no_grade_reason: str | None
    shape: str | None
    heights_mm: Heights | None
    expected_heights_mm: Heights | None
    height_loss: float | None
    network: NetworkOpinion | None
    measured: Measured | None
    volume_ml: float
    mean_hu: float | None
    trabecular_hu: float | None
    mask_label: int


@dataclass(frozen=True)
class ScanInfo:
    """The scan: ``shape_zyx`` voxels, ``spacing_mm`` along x, y and z, orientation like ``"RAS"``."""

    name: str
    sha256: str
    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str


@dataclass(frozen=True)
class BundleInfo:
    """The bundle that made the findings; ``sha256`` is that of its ``bundle.json``."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Settings:
    """What was asked of the run besides engine and precision.

    Args:
        exhaustive: whether the first network was run everywhere, not only along the spine.
    """

    exhaustive: bool


@dataclass(frozen=True)
class Findings:
    """Everything reported about one scan; ``timings_s`` holds seconds per stage and ``"total"``.

    ``settings`` is None, or absent from the JSON, where it was written before there were any.
    """

    scan: ScanInfo
    bundle: BundleInfo
    engine: EngineInfo
    timings_s: Mapping[str, float]
    peak_memory_mb: float
    warnings: tuple[str, ...]
    vertebrae: tuple[Vertebra, ...]
    settings: Settings | None = None
    schema_version: int = SCHEMA_VERSION


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``findings.json``, as shipped with this package."""
    text = resources.files("runtime").joinpath("findings.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def to_json(findings: Findings, *, indent: int | None = 2) -> str:
    """The findings as JSON text; ``indent=None`` writes them on one line.

    Plain ASCII, so no terminal, pipe or code page can spoil it. Raises ValueError for a NaN or infinity.
    """
    content = asdict(findings)
    ordered = {"schema_version": content.pop("schema_version"), **content}
    return json.dumps(ordered, indent=indent, allow_nan=False)


def from_json(text: str) -> Findings:
    """Read what ``to_json`` wrote.

    Raises:
        InputError: it is not JSON, has another schema version, lacks a field, has one too many, or a value of a wrong
            type or range; the message names the field.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"The findings are not JSON: {error}.") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"The findings have schema version {version}; this software reads version {SCHEMA_VERSION}.")
    findings: Findings = _read(Findings, content, "findings")
    _check(findings)
    return findings


def _read(kind: Any, value: Any, where: str) -> Any:
    """``value`` from JSON as an instance of the annotation ``kind``, refusing what doesn't fit."""
    if is_dataclass(kind):
        return _read_object(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _read(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(arguments) == len(value):
            return tuple(
                _read(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(arguments, value, strict=True))
            )
    if origin is Mapping and isinstance(value, dict):
        return {str(key): _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise InputError(f"{where} should be {getattr(kind, '__name__', kind)}; met {value!r}.")


def _read_object(kind: Any, value: Any, where: str) -> Any:
    """The same for a dataclass; fields that have a default may be missing."""
    names = [f.name for f in fields(kind)]
    needed = {f.name for f in fields(kind) if f.default is MISSING}
    if not isinstance(value, dict):
        raise InputError(f"{where} should be an object; met {value!r}.")
    if missing := sorted(needed - set(value)):
        raise InputError(f"{where} lacks {', '.join(missing)}.")
    if unknown := sorted(set(value) - set(names)):
        raise InputError(f"{where} has the unknown field {', '.join(unknown)}.")
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in names if name in value})


def _check(findings: Findings) -> None:
    """Raise InputError for values that have the right type and no meaning."""
    if "total" not in findings.timings_s:
        raise InputError("findings.timings_s lacks total.")
    for number, vertebra in enumerate(findings.vertebrae, start=1):
        where = f"findings.vertebrae[{number - 1}]"
        if vertebra.index != number:
            raise InputError(f"{where}.index should be {number}; met {vertebra.index}.")
        if (vertebra.level is None) != (vertebra.level_confidence is None):
            raise InputError(f"{where} should have both level and level_confidence, or neither.")
        _check_grades(vertebra, where)
        _check_fractions(vertebra, where)


def _check_grades(vertebra: Vertebra, where: str) -> None:
    grades = [vertebra.grade, *(one.grade for one in (vertebra.network, vertebra.measured) if one is not None)]
    for grade in grades:
        if grade is not None and grade not in range(GRADES):
            raise InputError(f"{where}.grade should be 0 to 3 or null; met {grade}.")
    for probabilities in _probabilities(vertebra):
        if len(probabilities) != GRADES:
            raise InputError(f"{where}.grade_probabilities should have 4 entries; met {probabilities}.")
    if (vertebra.grade is None) == (vertebra.no_grade_reason is None):
        raise InputError(f"{where} should have either a grade or a no_grade_reason.")
    if vertebra.grade_from not in (None, COMBINED, NETWORK):
        raise InputError(f"{where}.grade_from should be {COMBINED!r}, {NETWORK!r} or null; met {vertebra.grade_from}.")
    if vertebra.shape not in (None, *SHAPES):
        raise InputError(f"{where}.shape should be one of {', '.join(SHAPES)}, or null; met {vertebra.shape}.")


def _probabilities(vertebra: Vertebra) -> list[tuple[float, ...]]:
    known = [vertebra.grade_probabilities, vertebra.network.grade_probabilities if vertebra.network else None]
    return [probabilities for probabilities in known if probabilities is not None]


def _check_fractions(vertebra: Vertebra, where: str) -> None:
    losses = [one.height_loss for one in (vertebra, vertebra.network, vertebra.measured) if one is not None]
    fractions = [
        vertebra.confidence,
        vertebra.level_confidence or 0.0,
        *(loss or 0.0 for loss in losses),
        *(p for probabilities in _probabilities(vertebra) for p in probabilities),
    ]
    if not all(0.0 <= fraction <= 1.0 for fraction in fractions):
        raise InputError(f"{where} has a fraction outside 0 to 1; met {fractions}.")
