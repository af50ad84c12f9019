"""From two trained networks to a bundle that the runtime can open."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.checkpoint import Trained, load_trained
from export.onnx_export import check_differences, compare, export_onnx
from export.phantom_inputs import crop_images, window_images
from runtime.bundle import Bundle, BundleSpec, FracSegNetSpec, LocNetSpec, write_bundle
from runtime.bundle_json import to_json
from runtime.errors import InputError
from train.config import FracSegNetRun, LocNetRun

SYNTHETIC_USE = (
    "Research and engineering only. The networks were trained on synthetic phantoms alone and have not been validated "
    "on patients. Not a medical device, not for clinical use."
)

UNVALIDATED_USE = (
    "Research and engineering only. The networks have not been validated for clinical use. Not a medical device, not "
    "for clinical use."
)


@dataclass(frozen=True)
class Choices:
    """What training does not fix: how the networks are run. See LocNetSpec and FracSegNetSpec for the meanings."""

    window_zyx: tuple[int, int, int] | None = None
    overlap: float = 0.5
    heatmap_threshold: float = 0.4
    peak_threshold: float = 2.0
    peak_separation_mm: float = 10.0
    refine_radius_mm: float = 6.0
    min_confidence: float = 0.5
    skip_below_hu: float = 100.0
    mask_threshold: float = 0.5


def make_bundle(
    locnet: Path, fracsegnet: Path, folder: Path, *, name: str, version: str, choices: Choices, clinical: bool = False,
    intended_use: str | None = None,
    note: str = "", accuracy: Mapping[str, Any] | None = None,
) -> Bundle:  # fmt: skip
    """Export the best weights of two runs and write the bundle, whole or not at all.

    Raises InputError when a run is of the wrong kind, ExportError when a graph isn't what torch says.
    """
    loc, frac = load_trained(locnet), load_trained(fracsegnet)
    loc_run, frac_run = loc.run, frac.run
    if not isinstance(loc_run, LocNetRun) or not isinstance(frac_run, FracSegNetRun):
        raise InputError(f"{locnet} must hold a LocNet and {fracsegnet} a FracSegNet; met {type(loc.run).__name__} "
                         f"and {type(frac.run).__name__}.")  # fmt: skip
    loc = replace(loc, example_zyx=choices.window_zyx or loc.example_zyx)
    with tempfile.TemporaryDirectory() as scratch:
        files = {"locnet.onnx": Path(scratch) / "locnet.onnx", "fracsegnet.onnx": Path(scratch) / "fracsegnet.onnx"}
        differences = {
            "locnet": _export(loc, files["locnet.onnx"], window_images(loc_run, loc.example_zyx, 8)),
            "fracsegnet": _export(frac, files["fracsegnet.onnx"], crop_images(frac_run, 8)),
        }
        spec = BundleSpec(
            name=name,
            version=version,
            locnet=_locnet_spec(loc, choices),
            fracsegnet=_fracsegnet_spec(frac, choices),
            files={},
            licence="Apache-2.0",
            intended_use=intended_use or _default_use(loc_run, frac_run),
            clinical=clinical,
            training=_provenance(loc, frac, differences, note),
            accuracy=dict(accuracy or {}),
        )
        return write_bundle(spec, files, folder)


def _export(trained: Trained, path: Path, images: list[Any]) -> dict[str, float]:
    """Largest differences from torch, on random and on phantom inputs."""
    on_random = export_onnx(trained, path)
    on_phantoms = compare(trained, path, images)
    check_differences(on_phantoms)
    return {output: max(on_random[output], on_phantoms[output]) for output in trained.outputs}


def _locnet_spec(trained: Trained, choices: Choices) -> LocNetSpec:
    run = trained.run
    assert isinstance(run, LocNetRun)
    is_f = run.network.variant == "F"
    return LocNetSpec(
        file="locnet.onnx",
        variant=run.network.variant,
        spacing_mm=run.spacing_mm,
        window_zyx=trained.example_zyx,
        overlap=choices.overlap,
        intensity=run.intensity,
        heatmap_threshold=choices.heatmap_threshold,
        peak_threshold=choices.peak_threshold if is_f else 0.7,
        peak_separation_voxels=choices.peak_separation_mm / run.spacing_mm,
        refine_radius_voxels=choices.refine_radius_mm / run.spacing_mm,
        min_confidence=choices.min_confidence,
        skip_below_hu=choices.skip_below_hu,
    )


def _fracsegnet_spec(trained: Trained, choices: Choices) -> FracSegNetSpec:
    run = trained.run
    assert isinstance(run, FracSegNetRun)
    return FracSegNetSpec(
        file="fracsegnet.onnx",
        spacing_mm=run.spacing_mm,
        crop_zyx=trained.example_zyx,
        intensity=run.intensity,
        mask_channels=run.network.mask_channels,
        mask_threshold=choices.mask_threshold,
        grade_names=("0", "1", "2", "3"),
        has_heights=run.network.heights,
    )


def _default_use(loc: LocNetRun, frac: FracSegNetRun) -> str:
    return SYNTHETIC_USE if {*loc.data, *frac.data} == {"phantoms"} else UNVALIDATED_USE


def _provenance(loc: Trained, frac: Trained, differences: Mapping[str, Any], note: str) -> dict[str, Any]:
    import torch

    def of(trained: Trained) -> dict[str, Any]:
        return {"steps": trained.step, "validation": trained.metrics, "run": json.loads(to_json(trained.run))}

    data = sorted({*loc.run.data, *frac.run.data})
    return {
        "data": "synthetic phantoms only" if data == ["phantoms"] else ", ".join(Path(name).name for name in data),
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "locnet": of(loc),
        "fracsegnet": of(frac),
        "note": note,
        "largest_difference_from_torch_with_exact_norms": differences,
    }
