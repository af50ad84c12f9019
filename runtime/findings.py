"""What is reported about a scan. Field names, units and nullability are a contract: see ``findings.schema.json``."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib import resources
from typing import Any, get_args, get_origin, get_type_hints

from runtime.engines.base import EngineInfo
from runtime.errors import InputError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Heights:
    """Heights of a vertebral body, mm."""

    anterior: float
    middle: float
    posterior: float


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
        grade_probabilities: of grades 0..3, or None.
        heights_mm: or None.
        height_loss: relative loss of the most reduced height, 0..1, or None.
        volume_ml: of the mask.
        mean_hu: mean inside the mask; of the vertebral body where the bundle separates it, or None for an empty mask.
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
    heights_mm: Heights | None
    height_loss: float | None
    volume_ml: float
    mean_hu: float | None
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
class Findings:
    """Everything reported about one scan; ``timings_s`` holds seconds per stage and ``"total"``."""

    scan: ScanInfo
    bundle: BundleInfo
    engine: EngineInfo
    timings_s: Mapping[str, float]
    peak_memory_mb: float
    warnings: tuple[str, ...]
    vertebrae: tuple[Vertebra, ...]
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
    names = [f.name for f in fields(kind)]
    if not isinstance(value, dict):
        raise InputError(f"{where} should be an object; met {value!r}.")
    if missing := sorted(set(names) - set(value)):
        raise InputError(f"{where} lacks {', '.join(missing)}.")
    if unknown := sorted(set(value) - set(names)):
        raise InputError(f"{where} has the unknown field {', '.join(unknown)}.")
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in names})


def _check(findings: Findings) -> None:
    """Raise InputError for values that have the right type and no meaning."""
    if "total" not in findings.timings_s:
        raise InputError("findings.timings_s lacks total.")
    for number, vertebra in enumerate(findings.vertebrae, start=1):
        where = f"findings.vertebrae[{number - 1}]"
        if vertebra.index != number:
            raise InputError(f"{where}.index should be {number}; met {vertebra.index}.")
        if vertebra.grade is not None and vertebra.grade not in range(4):
            raise InputError(f"{where}.grade should be 0 to 3 or null; met {vertebra.grade}.")
        if vertebra.grade_probabilities is not None and len(vertebra.grade_probabilities) != 4:
            raise InputError(f"{where}.grade_probabilities should have 4 entries; met {vertebra.grade_probabilities}.")
        if (vertebra.level is None) != (vertebra.level_confidence is None):
            raise InputError(f"{where} should have both level and level_confidence, or neither.")
        fractions = (
            vertebra.confidence,
            vertebra.level_confidence or 0.0,
            vertebra.height_loss or 0.0,
            *(vertebra.grade_probabilities or ()),
        )
        if not all(0.0 <= fraction <= 1.0 for fraction in fractions):
            raise InputError(f"{where} has a fraction outside 0 to 1; met {fractions}.")
