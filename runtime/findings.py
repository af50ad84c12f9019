"""What is reported about a scan. Field names, units and nullability are a contract: see ``findings.schema.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.engines.base import EngineInfo

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
    """The scan that the findings are about: ``shape_zyx`` voxels, ``spacing_mm`` along x, y, z, orientation like ``"RAS"``."""

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
