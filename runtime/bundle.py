"""The model bundle: networks and every parameter that belongs to them, in one folder or zip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class IntensityWindow:
    """Hounsfield range that is mapped linearly to [-1, 1]; values outside are clipped."""

    low_hu: float
    high_hu: float


@dataclass(frozen=True)
class LocNetSpec:
    """How to run the localisation network and read its outputs.

    Input ``image`` (n, 1, z, y, x) on a grid with axes along RAS+; outputs ``heatmap`` (n, 1, z, y, x) in 0..1 and, for
    variant ``"F"``, ``offsets`` (n, 3, z, y, x): voxels, in z, y, x order, from each voxel to its nearest centre.

    Args:
        file: ONNX file name in the bundle.
        variant: ``"F"`` (votes) or ``"H"`` (peaks of the heatmap itself).
        spacing_mm: isotropic working resolution.
        window_zyx: sliding window, voxels.
        overlap: fraction of a window shared with its neighbour, 0 to below 1.
        intensity: normalisation.
        heatmap_threshold: H_t.
        peak_threshold: eta.
        peak_separation_voxels: lambda.
        refine_radius_voxels: radius of the vote-weighted mean that refines a peak; 0 for the bare peak.
        min_confidence: peaks of lower confidence are dropped.
        skip_below_hu: windows without any voxel above it are not run, since they can't hold bone.
    """

    file: str
    variant: str
    spacing_mm: float
    window_zyx: tuple[int, int, int]
    overlap: float
    intensity: IntensityWindow
    heatmap_threshold: float
    peak_threshold: float
    peak_separation_voxels: float
    refine_radius_voxels: float
    min_confidence: float
    skip_below_hu: float


@dataclass(frozen=True)
class FracSegNetSpec:
    """How to run the network that segments and grades one vertebra in a crop around its centre.

    Input ``image`` (n, 1, z, y, x) on a RAS+ grid centred on the vertebra. Outputs ``mask`` (n, k, z, y, x) probabilities,
    ``grade`` (n, len(grade_names)) probabilities, and where ``has_heights`` also ``heights`` (n, 6): anterior, middle and
    posterior height in mm, then their relative losses (0..1).

    Args:
        file: ONNX file name in the bundle.
        spacing_mm: isotropic crop resolution.
        crop_zyx: crop, voxels.
        intensity: normalisation.
        mask_channels: what each mask channel means: ``"vertebra"`` first, then ``"body"`` if the network separates it.
        mask_threshold: probability from which a voxel belongs to the mask.
        grade_names: meaning of the grade outputs.
        has_heights: whether the third output exists.
    """

    file: str
    spacing_mm: float
    crop_zyx: tuple[int, int, int]
    intensity: IntensityWindow
    mask_channels: tuple[str, ...]
    mask_threshold: float
    grade_names: tuple[str, ...]
    has_heights: bool


@dataclass(frozen=True)
class BundleSpec:
    """The content of ``bundle.json``.

    Args:
        name: such as ``"default"``.
        version: of the bundle.
        locnet: first network.
        fracsegnet: second network.
        files: SHA-256 hex digest of every other file in the bundle.
        training: provenance: data, presets, code version, steps, durations.
        accuracy: measured figures and the command that made them.
        licence: SPDX name.
        intended_use: shown to users.
        clinical: False for bundles that must not be used on patients; the table, picture and findings say so.
    """

    name: str
    version: str
    locnet: LocNetSpec
    fracsegnet: FracSegNetSpec
    files: Mapping[str, str]
    licence: str
    intended_use: str
    clinical: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
