"""Whether the values in a bundle make sense together: checked once, before anything relies on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from runtime.anatomy import LEVEL_NAMES
from runtime.errors import BundleError

if TYPE_CHECKING:
    from runtime.bundle import BundleSpec, FracSegNetSpec, IntensityWindow, LevelNetSpec, LocNetSpec, ScoutSpec

BUNDLE_JSON = "bundle.json"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")
VERIFIABLE = ("fp16", "bf16")
"""Not INT8, which is not the same on all processors: what is not quantised is computed in what each has."""


def check_spec(spec: BundleSpec, *, source: str = "The bundle's description") -> None:
    """Refuse a spec whose values can't be used.

    Raises:
        BundleError: lists every value that is wrong.
    """
    faults = [*_file_faults(spec), *_locnet_faults(spec.locnet), *_fracsegnet_faults(spec.fracsegnet)]
    if spec.levelnet is not None:
        faults += _levelnet_faults(spec.levelnet)
    faults += _precision_faults(spec)
    if spec.grading is not None:
        faults += spec.grading.faults()
    if faults:
        raise BundleError(f"{source} cannot be used: {'; '.join(faults)}.")


def _file_faults(spec: BundleSpec) -> Iterator[str]:
    for name, digest in spec.files.items():
        if not _PLAIN_NAME.fullmatch(name) or name == BUNDLE_JSON:
            yield f"{name!r} cannot be the name of a file in a bundle"
        if not _DIGEST.fullmatch(digest):
            yield f"the SHA-256 of {name} should be 64 lower-case hex digits, met {digest!r}"
    for name, digest in spec.trusted_engines.items():
        if not _DIGEST.fullmatch(digest):
            yield f"the SHA-256 of the engine {name} should be 64 lower-case hex digits, met {digest!r}"
    for network in spec.networks:
        if network.file not in spec.files:
            yield f"the network file {network.file!r} is not among its files"


def _intensity_faults(where: str, intensity: IntensityWindow) -> Iterator[str]:
    if not intensity.low_hu < intensity.high_hu:
        yield f"{where}.intensity should have low_hu < high_hu, met {intensity.low_hu:g} and {intensity.high_hu:g}"


def _locnet_faults(net: LocNetSpec) -> Iterator[str]:
    yield from _intensity_faults("locnet", net.intensity)
    if net.variant not in ("F", "H"):
        yield f"locnet.variant should be F or H, met {net.variant!r}"
    if net.spacing_mm <= 0:
        yield f"locnet.spacing_mm should be positive, met {net.spacing_mm:g}"
    if min(net.window_zyx) < 1:
        yield f"locnet.window_zyx should be positive, met {net.window_zyx}"
    if not 0 <= net.overlap < 1:
        yield f"locnet.overlap should be from 0 to below 1, met {net.overlap:g}"
    for name in ("heatmap_threshold", "min_confidence"):
        if not 0 <= getattr(net, name) <= 1:
            yield f"locnet.{name} should be from 0 to 1, met {getattr(net, name):g}"
    for name in ("peak_threshold", "peak_separation_voxels", "refine_radius_voxels"):
        if getattr(net, name) < 0:
            yield f"locnet.{name} should not be negative, met {getattr(net, name):g}"

    if net.scout is not None:
        yield from _scout_faults(net.scout, net)


def _scout_faults(scout: ScoutSpec, net: LocNetSpec) -> Iterator[str]:
    if scout.spacing_mm <= net.spacing_mm:
        yield f"locnet.scout.spacing_mm should be above locnet.spacing_mm, met {scout.spacing_mm:g}"
    if scout.margin_mm < 0:
        yield f"locnet.scout.margin_mm should not be negative, met {scout.margin_mm:g}"
    for name in ("overlap", "share"):
        if not 0 <= getattr(scout, name) < 1:
            yield f"locnet.scout.{name} should be from 0 to below 1, met {getattr(scout, name):g}"
    if not 0 <= scout.threshold <= 1:
        yield f"locnet.scout.threshold should be from 0 to 1, met {scout.threshold:g}"
    name, least = ("heatmap_threshold", net.heatmap_threshold)
    if net.variant == "H":
        name, least = ("peak_threshold", net.peak_threshold)
    if not 0 <= scout.follow_threshold < least:
        yield f"locnet.scout.follow_threshold should be from 0 to below {name}, met {scout.follow_threshold:g}"


def _fracsegnet_faults(net: FracSegNetSpec) -> Iterator[str]:
    yield from _intensity_faults("fracsegnet", net.intensity)
    if net.spacing_mm <= 0:
        yield f"fracsegnet.spacing_mm should be positive, met {net.spacing_mm:g}"
    if net.interleaved and not net.mirrored:
        yield "fracsegnet.interleaved should be true only where fracsegnet.mirrored is, met a bundle with one look"
    if min(net.crop_zyx) < 1:
        yield f"fracsegnet.crop_zyx should be positive, met {net.crop_zyx}"
    if net.mask_channels[:1] != ("vertebra",) or len(set(net.mask_channels)) != len(net.mask_channels):
        yield f"fracsegnet.mask_channels should be distinct and begin with vertebra, met {net.mask_channels}"
    if not 0 <= net.mask_threshold <= 1:
        yield f"fracsegnet.mask_threshold should be from 0 to 1, met {net.mask_threshold:g}"
    if not net.grade_names or len(set(net.grade_names)) != len(net.grade_names):
        yield f"fracsegnet.grade_names should be distinct, at least one, met {net.grade_names}"


def _levelnet_faults(net: LevelNetSpec) -> Iterator[str]:
    yield from _intensity_faults("levelnet", net.intensity)
    if net.spacing_mm <= 0:
        yield f"levelnet.spacing_mm should be positive, met {net.spacing_mm:g}"
    if min(net.crop_zyx) < 1:
        yield f"levelnet.crop_zyx should be positive, met {net.crop_zyx}"
    if net.level_names != LEVEL_NAMES:
        yield f"levelnet.level_names should be {', '.join(LEVEL_NAMES)}, met {', '.join(net.level_names)}"
    if not 0.5 <= net.min_confidence < 1:
        yield f"levelnet.min_confidence should be from 0.5 to below 1, met {net.min_confidence:g}"


def _precision_faults(spec: BundleSpec) -> Iterator[str]:
    for precision in spec.verified:
        if precision not in VERIFIABLE:
            yield f"verified should name no precisions but {' and '.join(VERIFIABLE)}, met {precision!r}"
    for name, plan in spec.precision.items():
        if name not in {network.file for network in spec.networks}:
            yield f"precision names {name!r}, which is none of its networks"
        for tensor, limit in plan.int8_ranges.items():
            if limit <= 0:
                yield f"precision.{name}.int8_ranges.{tensor} should be positive, met {limit:g}"
