"""From trained networks to a bundle that the runtime can open."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from export.calibrate import Samples, calibrate
from export.calibration_inputs import phantom_images
from export.checkpoint import Trained, load_trained
from export.onnx_export import check_differences, compare, export_onnx
from export.reload import torch_fracsegnet, torch_levelnet, torch_locnet
from runtime.anatomy import LEVEL_NAMES
from runtime.bundle import (
    Bundle,
    BundleSpec,
    FracSegNetSpec,
    LevelNetSpec,
    LocNetSpec,
    ScoutSpec,
    check_replaceable,
    open_bundle,
    sha256_of,
    write_bundle,
)
from runtime.bundle_checks import BUNDLE_JSON
from runtime.bundle_json import to_json
from runtime.errors import InputError
from runtime.grading import GradingSpec
from runtime.paths import nearest_there
from train.config import FracSegNetRun, LevelNetRun, LocNetRun, Run, is_unknown
from train.data_seen import data_seen, seen_before

SYNTHETIC_USE = (
    "Research and engineering only. The networks were trained on synthetic phantoms alone and have not been validated "
    "on patients. Not a medical device, not for clinical use."
)

UNVALIDATED_USE = (
    "Research and engineering only. The networks have not been validated for clinical use. Not a medical device, not "
    "for clinical use."
)

PEAK_VOTES, PEAK_HEAT = 2.0, 0.7
"""What a peak of the vote map, and of the heatmap itself (thesis 4.1), has to exceed unless something else is set."""
SCOUT_SPACING_MM = 6.0
"""Of a first look at twice the spacing of a network of 3 mm."""
_CHECKED_ON = 8
"""Phantom inputs on which the ONNX files are compared with torch."""
FEW_SAMPLES = Samples(ranges=_CHECKED_ON - 2, gate=2)
"""For calibration: no more phantoms than the comparison draws."""


@dataclass(frozen=True)
class Choices:
    """What training does not fix: how the networks are run. See the specs in runtime.bundle for the meanings.

    Args:
        peak_threshold: None for 2.0 votes, or of a LocNet-H for 0.7 of the heatmap.
        scout_spacing_mm: 0 to run the localisation network everywhere; so it is, too, where its own spacing is not
            below this. None for 6 mm where that is at most twice the network's spacing, and for 0 elsewhere: the other
            constants of the scout were measured with a network of 3 mm.
    """

    window_zyx: tuple[int, int, int] | None = None
    overlap: float = 0.5
    heatmap_threshold: float = 0.2
    peak_threshold: float | None = None
    peak_separation_mm: float = 10.0
    refine_radius_mm: float = 6.0
    min_confidence: float = 0.55
    skip_below_hu: float = 100.0
    scout_spacing_mm: float | None = None
    scout_overlap: float = 0.125
    scout_threshold: float = 0.1
    scout_margin_mm: float = 6.0
    scout_follow_threshold: float = 0.18
    scout_share: float = 0.03
    mask_threshold: float = 0.5
    mirrored: bool = True
    interleaved: bool = True
    min_level_confidence: float = 0.5


@dataclass(frozen=True)
class _Networks:
    """What goes into a bundle."""

    locnet: Trained
    fracsegnet: Trained
    levelnet: Trained | None

    def by_name(self) -> dict[str, Trained]:
        """The networks that there are, by the names that they bear in the bundle."""
        known = {"locnet": self.locnet, "fracsegnet": self.fracsegnet, "levelnet": self.levelnet}
        return {name: trained for name, trained in known.items() if trained is not None}


def make_bundle(
    locnet: Path, fracsegnet: Path, folder: Path, *, name: str, version: str, choices: Choices,
    levelnet: Path | None = None, clinical: bool = False, intended_use: str | None = None,
    note: str = "", accuracy: Mapping[str, Any] | None = None, samples: Samples = FEW_SAMPLES,
    grading: tuple[GradingSpec, Mapping[str, Any]] | None = None,
) -> Bundle:  # fmt: skip
    """Export the best weights of two runs, or of three, calibrate them, and write the bundle, whole or not at all.

    Where a bundle's folder is given in place of a run's, its network is taken over, with FracSegNet also the constants
    of the combined grade, which were fitted to it, where it is used as it was. ``verified`` is not: what is new has to
    be verified anew.

    ``accuracy`` is a summary of train.evaluate, ``grading`` what train.fit_grades has fitted and where that comes from.

    Raises InputError when a run is of the wrong kind, the folder can't be written, or the figures or constants are of
    other networks; ExportError when a graph isn't what torch says.
    """
    check_writable(folder)
    networks = _load(locnet, fracsegnet, levelnet, choices)
    loc, frac, level = networks.locnet, networks.fracsegnet, networks.levelnet
    with tempfile.TemporaryDirectory() as scratch:
        files = {f"{network}.onnx": Path(scratch) / f"{network}.onnx" for network in networks.by_name()}
        images = {
            network: phantom_images(trained.run, trained.example_zyx, max(_CHECKED_ON, samples.ranges + samples.gate))
            for network, trained in networks.by_name().items()
        }
        differences = {
            network: _export(trained, files[f"{network}.onnx"], images[network][:_CHECKED_ON])
            for network, trained in networks.by_name().items()
        }
        _check_of_these_networks(accuracy, grading, files)
        spec = BundleSpec(
            name=name,
            version=version,
            locnet=_locnet_spec(loc, choices),
            fracsegnet=_fracsegnet_spec(frac, choices),
            levelnet=None if level is None else _levelnet_spec(level, choices),
            files={},
            licence="Apache-2.0",
            intended_use=intended_use or _default_use(networks),
            clinical=clinical,
            training=_provenance(networks, differences, note),
            accuracy=dict(accuracy or {}),
        )
        plans = {
            network.file: calibrate(files[network.file], network, images[Path(network.file).stem], samples)
            for network in spec.networks
        }
        spec = _with_grading_of(fracsegnet, spec) if grading is None else _with_given(grading, spec)
        return write_bundle(replace(spec, precision=plans), files, folder)


def check_writable(folder: Path) -> None:
    """Raises InputError where no bundle can be written to the folder, BundleError where it holds something else.

    That is told before the networks are exported and calibrated, which takes minutes.
    """
    check_replaceable(folder)
    there = nearest_there(folder.absolute().parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=there):
            pass
    except OSError as error:
        raise InputError(
            f"The bundle's folder {folder} cannot be written ({error.strerror}: {there}); name another one with -o."
        ) from error


def _check_of_these_networks(
    accuracy: Mapping[str, Any] | None, grading: tuple[GradingSpec, Mapping[str, Any]] | None, files: Mapping[str, Path]
) -> None:
    """Raises InputError where figures were measured, or constants fitted, with other networks than these files hold.

    The constants go with FracSegNet alone. Where no digests are told, as by earlier versions, nothing can be said.
    """
    digests = {name: sha256_of(path) for name, path in files.items()}
    evaluated = ((accuracy or {}).get("provenance") or {}).get("network_sha256")
    if evaluated and (differ := sorted(n for n in evaluated | digests if evaluated.get(n) != digests.get(n))):
        raise InputError(
            f"The accuracy was measured with other networks than those that are exported ({', '.join(differ)}). "
            "Export without --accuracy, evaluate that bundle, and hand over its summary.json."
        )
    fitted = {} if grading is None else grading[1].get("network_sha256") or {}
    if fitted and fitted.get("fracsegnet.onnx") != digests["fracsegnet.onnx"]:
        raise InputError(
            "The grading's constants were fitted to another FracSegNet than the one that is exported. Export without "
            "--grading, and run python -m train.fit_grades on that bundle."
        )


def _with_given(grading: tuple[GradingSpec, Mapping[str, Any]], spec: BundleSpec) -> BundleSpec:
    constants, made = grading
    return replace(spec, grading=constants, training={**spec.training, "grading": dict(made)})


def _with_grading_of(fracsegnet: Path, spec: BundleSpec) -> BundleSpec:
    """With what was fitted to a FracSegNet that is taken over from a bundle."""
    if not (fracsegnet / BUNDLE_JSON).is_file():
        return spec
    theirs = open_bundle(fracsegnet).spec
    if replace(theirs.fracsegnet, file=spec.fracsegnet.file) != spec.fracsegnet:
        return spec  # looks, thresholds or crops are others than those that it was fitted with
    if "grading" in theirs.training:
        spec = replace(spec, training={**spec.training, "grading": theirs.training["grading"]})
    return replace(spec, grading=theirs.grading)


def _load(locnet: Path, fracsegnet: Path, levelnet: Path | None, choices: Choices) -> _Networks:
    loc = _of_kind(locnet, LocNetRun, "LocNet")
    loc = replace(loc, example_zyx=choices.window_zyx or loc.example_zyx)
    assert isinstance(loc.run, LocNetRun)
    multiple = loc.run.network.multiple
    if any(size % multiple for size in loc.example_zyx):
        raise InputError(f"Windows' sizes must be multiples of {multiple} voxels; met {list(loc.example_zyx)}.")
    level = None if levelnet is None else _of_kind(levelnet, LevelNetRun, "LevelNet")
    frac = _of_kind(fracsegnet, FracSegNetRun, "FracSegNet")
    assert isinstance(frac.run, FracSegNetRun)
    if not frac.run.network.mask_channels:
        raise InputError(
            f"{fracsegnet} holds a FracNet, which outlines nothing; a bundle needs a FracSegNet, as python -m train "
            "fracsegnet makes it."
        )
    return _Networks(loc, frac, level)


def _of_kind(folder: Path, kind: type[Run], what: str) -> Trained:
    if (folder / BUNDLE_JSON).is_file():
        return _from_bundle(open_bundle(folder), kind, what)
    trained = load_trained(folder)
    if not isinstance(trained.run, kind):
        raise InputError(f"{folder} must hold a {what}; met {type(trained.run).__name__}.")
    return trained


def _from_bundle(bundle: Bundle, kind: type[Run], what: str) -> Trained:
    """The network of a bundle that takes the place of a run: it goes into the new one unchanged."""
    reload = {LocNetRun: torch_locnet, FracSegNetRun: torch_fracsegnet, LevelNetRun: torch_levelnet}[kind]
    trained = reload(bundle)
    if trained is None:
        raise InputError(f"The bundle in {bundle.folder} has no {what} to take over.")
    return trained


def _export(trained: Trained, path: Path, images: list[Any]) -> dict[str, float]:
    """Largest differences from torch, on random and on phantom inputs."""
    on_random = export_onnx(trained, path)
    on_phantoms = compare(trained, path, images)
    check_differences(on_phantoms)
    return {output: max(on_random[output], on_phantoms[output]) for output in trained.outputs}


def _locnet_spec(trained: Trained, choices: Choices) -> LocNetSpec:
    run = trained.run
    assert isinstance(run, LocNetRun)
    peak_threshold = choices.peak_threshold
    if peak_threshold is None:
        peak_threshold = PEAK_VOTES if run.network.variant == "F" else PEAK_HEAT
    return LocNetSpec(
        file="locnet.onnx",
        variant=run.network.variant,
        spacing_mm=run.spacing_mm,
        window_zyx=trained.example_zyx,
        overlap=choices.overlap,
        intensity=run.intensity,
        heatmap_threshold=choices.heatmap_threshold,
        peak_threshold=peak_threshold,
        peak_separation_voxels=choices.peak_separation_mm / run.spacing_mm,
        refine_radius_voxels=choices.refine_radius_mm / run.spacing_mm,
        min_confidence=choices.min_confidence,
        skip_below_hu=choices.skip_below_hu,
        scout=_scout_spec(run.spacing_mm, choices),
    )


def _scout_spec(spacing_mm: float, choices: Choices) -> ScoutSpec | None:
    scout_mm = choices.scout_spacing_mm
    if scout_mm is None:
        scout_mm = SCOUT_SPACING_MM if 2 * spacing_mm + 1e-6 >= SCOUT_SPACING_MM else 0.0
    if scout_mm <= spacing_mm:
        return None
    return ScoutSpec(
        spacing_mm=scout_mm,
        overlap=choices.scout_overlap,
        threshold=choices.scout_threshold,
        margin_mm=choices.scout_margin_mm,
        follow_threshold=choices.scout_follow_threshold,
        share=choices.scout_share,
    )


def _fracsegnet_spec(trained: Trained, choices: Choices) -> FracSegNetSpec:
    run = trained.run
    assert isinstance(run, FracSegNetRun)
    return FracSegNetSpec(
        file="fracsegnet.onnx",
        spacing_mm=run.spacing_mm,
        crop_zyx=trained.example_zyx,
        crop_shift_mm=run.crop_shift_mm,
        mirrored=choices.mirrored,
        interleaved=choices.mirrored and choices.interleaved,
        intensity=run.intensity,
        mask_channels=run.network.mask_channels,
        mask_threshold=choices.mask_threshold,
        grade_names=("0", "1", "2", "3"),
        has_heights=run.network.heights,
    )


def _levelnet_spec(trained: Trained, choices: Choices) -> LevelNetSpec:
    run = trained.run
    assert isinstance(run, LevelNetRun)
    return LevelNetSpec(
        file="levelnet.onnx",
        spacing_mm=run.spacing_mm,
        crop_zyx=trained.example_zyx,
        intensity=run.intensity,
        level_names=LEVEL_NAMES,
        min_confidence=choices.min_level_confidence,
    )


def _data(networks: _Networks) -> set[str]:
    """What any of the networks, the weights that it began with or the one that taught it were trained on."""
    return {name for trained in networks.by_name().values() for name in data_seen(trained.run)}


def _told(data: str) -> str:
    """A name of data as a bundle tells it: without the folders above."""
    return data if is_unknown(data) else Path(data).name


def _default_use(networks: _Networks) -> str:
    return SYNTHETIC_USE if _data(networks) == {"phantoms"} else UNVALIDATED_USE


def _provenance(networks: _Networks, differences: Mapping[str, Any], note: str) -> dict[str, Any]:
    import torch

    def of(trained: Trained) -> dict[str, Any]:
        run = replace(trained.run, data_before=seen_before(trained.run))
        return {"steps": trained.step, "validation": trained.metrics, "run": json.loads(to_json(run))}

    data = sorted(_data(networks))
    return {
        "data": "synthetic phantoms only" if data == ["phantoms"] else ", ".join(map(_told, data)),
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        **{name: of(trained) for name, trained in networks.by_name().items()},
        "note": note,
        "largest_difference_from_torch_with_exact_norms": differences,
    }
