"""What a training run is made of: small frozen dataclasses, saved as JSON beside the weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import IntensityWindow
from runtime.bundle_json import from_json, parse_json, to_json
from runtime.errors import BundleError, InputError
from train.losses import GRADE_LOSSES, MASK_LOSSES
from train.networks import FracSegNetConfig, LevelNetConfig, LocNetConfig

SCHEDULES = ("cosine", "step", "constant")
OPTIMISERS = ("adamw", "adam")
OFFSET_MASKS = ("predicted", "either")


def _check_choice(what: str, met: str, known: Collection[str]) -> None:
    if met not in known:
        raise ValueError(f"The {what} is one of {', '.join(known)}; met {met!r}.")


def _check_least(values: Any, least: float, *names: str) -> None:
    for name in names:
        if not getattr(values, name) >= least:
            raise ValueError(f"{name} is a number from {least:g} on; met {getattr(values, name)}.")


def _check_above_zero(values: Any, *names: str) -> None:
    for name in names:
        if not getattr(values, name) > 0:
            raise ValueError(f"{name} must be more than 0; met {getattr(values, name)}.")


def _check_share(values: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(values, name) <= 1:
            raise ValueError(f"{name} is a share from 0 to 1; met {getattr(values, name)}.")


@dataclass(frozen=True)
class LoopConfig:
    """How the loop runs.

    Args:
        steps: optimiser steps in all.
        batch: samples per step and device.
        learning_rate: at its highest.
        schedule: ``"cosine"`` (with warm-up), ``"step"`` (a tenth every ``decay_every`` steps) or ``"constant"``.
        warmup: steps of linear warm-up (cosine only).
        decay_every: for ``"step"``.
        optimiser: ``"adamw"`` or ``"adam"``.
        weight_decay: AdamW's.
        clip_norm: gradients' norm is clipped to this; 0 for no clipping.
        ema: decay of the weights' moving average, which is what is validated and exported; 0 for none.
        validate_every: steps between validations.
        validation_samples: how many samples a validation sees; always the same ones.
        patience: validations without a better score until the run stops; 0 for never.
        checkpoint_from: the best checkpoint is kept from this step on.
        precision: Lightning Fabric's name: ``"bf16-mixed"``, ``"16-mixed"`` or ``"32-true"``.
        workers: processes that prepare samples; 0 prepares them in the loop.
        seed: of weights and samples.
        start_from: a run of the same network, or a bundle, whose weights to begin with; ``""`` for new ones.
    """

    steps: int = 3000
    batch: int = 2
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 100
    decay_every: int = 80
    optimiser: str = "adamw"
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema: float = 0.995
    validate_every: int = 500
    validation_samples: int = 48
    patience: int = 0
    checkpoint_from: int = 0
    precision: str = "bf16-mixed"
    workers: int = 1
    seed: int = 0
    start_from: str = ""

    def __post_init__(self) -> None:
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("optimiser", self.optimiser, OPTIMISERS)
        _check_above_zero(self, "learning_rate")
        _check_least(self, 1, "steps", "batch", "decay_every", "validate_every", "validation_samples")
        _check_least(self, 0, "warmup", "weight_decay", "clip_norm", "patience", "checkpoint_from", "workers", "seed")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay from 0 to below 1; met {self.ema}.")
        if self.checkpoint_from > self.steps:
            raise ValueError(
                f"No checkpoint would be kept: checkpoint_from is {self.checkpoint_from} and the run has {self.steps} "
                "steps; set loop.checkpoint_from to fewer, too."
            )


@dataclass(frozen=True)
class Distillation:
    """How a LocNet with a stem learns from one without; see ``train.distillation``.

    Args:
        teacher: the other one's run or bundle; ``""`` for none.
        weights_sha256: digest of the file of its weights; ``""`` where it was not kept.
        data: what the other one was trained on.
        heat_weight: of the squared difference of the heatmaps, beside the losses of the truth.
        offset_weight: of the offsets' differences, voxels.
        feature_weight: of the differences of what enters and leaves the levels that both have.
    """

    teacher: str = ""
    weights_sha256: str = ""
    data: tuple[str, ...] = ()
    heat_weight: float = 200.0
    offset_weight: float = 0.1
    feature_weight: float = 2.0


@dataclass(frozen=True)
class LocNetRun:
    """Training of LocNet.

    Args:
        network: its shape.
        loop: how to run.
        spacing_mm: working resolution.
        crop_shapes: crop sizes, voxels; one is drawn for each batch.
        intensity: HU window.
        sigma_voxels: of the target Gaussian.
        heatmap_threshold: H_t, for masks and votes in the losses.
        vote_threshold: V_t of the Chamfer term.
        offset_mask: ``"predicted"`` masks the offset loss by predicted heat > H_t (the thesis); ``"either"`` adds
            voxels whose true heat exceeds 0.1, so that offsets learn from the first step on.
        heatmap_weight: of the heatmap loss: a mean over all voxels while the offset loss is one over the foreground;
            with the thesis's weights the offsets' gradient drowns it.
        offset_weight: of the offset loss.
        chamfer_weight: of the Chamfer loss.
        foreground_weight: extra weight of voxels in proportion to their true heat.
        negative_fraction: share of crops drawn anywhere, with or without a vertebra; the thesis wants none.
        fractured_fraction: share of the other crops of phantoms that show a body of grade 2 or 3. As often as patients
            have them, collapsed bodies are missed more often than whole ones.
        narrow_field_fraction: share of the crops of phantoms with air beyond 80 to 180 mm along y and x.
        thick_slices_fraction: share of them that were stored in slices of 3 to 6 mm.
        dense_blood_fraction: share of them with veins full of contrast agent.
        data: ``"phantoms"`` and folders in VerSe's layout.
        data_before: what else its weights come from: see ``train.data_seen.data_seen``.
        grades: csv or json of Genant grades for the folders; ``""`` for those found beside them.
        distillation: from which network it learns, if any.
    """

    network: LocNetConfig = LocNetConfig()
    loop: LoopConfig = LoopConfig(steps=3200)
    spacing_mm: float = 3.0
    crop_shapes: tuple[tuple[int, int, int], ...] = (
        (64, 64, 64),
        (64, 64, 64),
        (96, 48, 48),
        (48, 64, 64),
        (80, 64, 48),
    )
    intensity: IntensityWindow = IntensityWindow(-400.0, 1000.0)
    sigma_voxels: float = 1.5
    heatmap_threshold: float = 0.5
    vote_threshold: float = 0.6
    offset_mask: str = "either"
    heatmap_weight: float = 20.0
    offset_weight: float = 0.03
    chamfer_weight: float = 0.0001
    foreground_weight: float = 10.0
    negative_fraction: float = 0.4
    fractured_fraction: float = 0.3
    narrow_field_fraction: float = 0.12
    thick_slices_fraction: float = 0.25
    dense_blood_fraction: float = 0.08
    data: tuple[str, ...] = ("phantoms",)
    data_before: tuple[str, ...] = ()
    grades: str = ""
    distillation: Distillation = Distillation()

    def __post_init__(self) -> None:
        _check_choice("mask of the offsets' loss", self.offset_mask, OFFSET_MASKS)
        _check_above_zero(self, "spacing_mm", "sigma_voxels")
        _check_share(self, "negative_fraction", "fractured_fraction", "narrow_field_fraction")
        _check_share(self, "thick_slices_fraction", "dense_blood_fraction")


SAMPLINGS = ("as_found", "class_counts", "balanced", "equal", "severe")
GRADE_FIRST = ("balanced", "equal", "severe")
"""Those with which the grade is drawn first and then one of the real scans' vertebrae that have it."""
TASK_WEIGHTINGS = ("fixed", "uncertainty", "nash")


@dataclass(frozen=True)
class FracSegNetRun:
    """Training of FracSegNet, or of FracNet when its network has no mask channels.

    Args:
        network: its shape.
        loop: how to run.
        spacing_mm: crop resolution.
        intensity: HU window.
        crop_shift_mm: (x, y, z) RAS, from the vertebra's centre to the crop's middle. The default reaches further back
            and down, where the processes are (decision 0017).
        centre_jitter_mm: standard deviation of the crop's centre about the true one.
        grade_loss: key of ``losses.GRADE_LOSSES``.
        mask_loss: key of ``losses.MASK_LOSSES``.
        grade_weight: of the grade loss.
        mask_weight: of the mask loss.
        mask_entropy_weight: of a binary cross entropy that joins the Dice loss; 0 is the thesis's plain Dice.
        height_weight: of the height regression.
        class_counts: how often each grade occurs, for the weighted losses; thesis: VerSe 2019's training crops.
        sampling: how often crops of each grade are drawn. ``"as_found"``: as often as the data have them;
            ``"class_counts"``: as those say; ``"balanced"``: half unfractured, a sixth of each fracture grade;
            ``"equal"``: a quarter of each; ``"severe"``: 45 % unfractured, then 10, 15 and 30 %, since masks and
            heights err most on collapsed bodies. Of real scans the first two take every vertebra equally often; the
            others take one of unknown grade for a tenth of the crops, and share out the rest over the grades that
            occur, in these proportions.
        task_weighting: how the tasks' losses are joined: see ``train.balance``.
        nash_every: steps between two solutions of ``"nash"``, whose weights stay as they are between them.
        data: ``"phantoms"`` and folders in VerSe's layout.
        data_before: what else its weights come from: see ``train.data_seen.data_seen``.
        grades: csv or json of Genant grades for the folders; ``""`` for those found beside them.
    """

    network: FracSegNetConfig = FracSegNetConfig()
    loop: LoopConfig = LoopConfig(batch=4, steps=6000, ema=0.998)
    spacing_mm: float = 2.0
    intensity: IntensityWindow = IntensityWindow(-400.0, 1000.0)
    crop_shift_mm: tuple[float, float, float] = (0.0, -18.0, -4.0)
    centre_jitter_mm: float = 3.0
    grade_loss: str = "cross_entropy"
    mask_loss: str = "dice"
    grade_weight: float = 0.5
    mask_weight: float = 1.0
    mask_entropy_weight: float = 1.0
    height_weight: float = 6.0
    class_counts: tuple[int, int, int, int] = (591, 63, 50, 22)
    sampling: str = "balanced"
    task_weighting: str = "fixed"
    nash_every: int = 1
    data: tuple[str, ...] = ("phantoms",)
    data_before: tuple[str, ...] = ()
    grades: str = ""

    def __post_init__(self) -> None:
        _check_choice("sampling", self.sampling, SAMPLINGS)
        _check_choice("task weighting", self.task_weighting, TASK_WEIGHTINGS)
        _check_choice("grade loss", self.grade_loss, GRADE_LOSSES)
        _check_choice("mask loss", self.mask_loss, MASK_LOSSES)
        _check_above_zero(self, "spacing_mm")
        _check_least(self, 0, "centre_jitter_mm")
        _check_least(self, 1, "nash_every")


@dataclass(frozen=True)
class LevelNetRun:
    """Training of LevelNet.

    Args:
        network: its shape.
        loop: how to run; a batch is made of crops of ``batch / crops_per_scan`` scans.
        spacing_mm: crop resolution.
        intensity: HU window.
        centre_jitter_mm: standard deviation of the crop's centre about the true one.
        crops_per_scan: how many crops are taken from one scan.
        negative_fraction: share of crops around a place that is no vertebra, half of them below the spine.
        negative_distance_mm: how far such a place is from every vertebral centre. On real scans it is also more than
            40 mm beyond the annotated spine, where a cut vertebra may be without a centre.
        label_smoothing: of the cross entropy.
        data: ``"phantoms"`` and folders in VerSe's layout.
        data_before: what else its weights come from: see ``train.data_seen.data_seen``.
        grades: csv or json of Genant grades for the folders; ``""`` for those found beside them.
    """

    network: LevelNetConfig = LevelNetConfig()
    loop: LoopConfig = LoopConfig(batch=12, steps=2000, ema=0.998)
    spacing_mm: float = 4.0
    intensity: IntensityWindow = IntensityWindow(-400.0, 1000.0)
    centre_jitter_mm: float = 2.5
    crops_per_scan: int = 6
    negative_fraction: float = 0.25
    negative_distance_mm: float = 15.0
    label_smoothing: float = 0.02
    data: tuple[str, ...] = ("phantoms",)
    data_before: tuple[str, ...] = ()
    grades: str = ""

    def __post_init__(self) -> None:
        _check_above_zero(self, "spacing_mm")
        _check_least(self, 1, "crops_per_scan")
        _check_least(self, 0, "centre_jitter_mm", "negative_distance_mm")
        _check_share(self, "negative_fraction", "label_smoothing")


Run = LocNetRun | FracSegNetRun | LevelNetRun


def override(run: Run, settings: list[str]) -> Run:
    """A copy with ``key.subkey=value`` settings applied; values are JSON, or plain text where they aren't.

    Raises InputError when a key does not exist or the value has another type.
    """
    values = json.loads(to_json(run))
    for setting in settings:
        path, _, text = setting.partition("=")
        *parents, last = path.split(".")
        target = values
        for key in parents:
            target = target.get(key) if isinstance(target, dict) else None
        if not isinstance(target, dict) or last not in target or not text:
            raise InputError(f"{setting!r} is no setting of this run; write e.g. loop.learning_rate=0.0005.")
        try:
            target[last] = json.loads(text)
        except json.JSONDecodeError:
            target[last] = text
    return _checked(type(run), values, at="the settings")


def save(run: Run, path: Path) -> None:
    """Write the run as indented JSON."""
    path.write_text(to_json(SavedRun(type(run).__name__, dataclasses.asdict(run))), encoding="utf-8")


def load(path: Path) -> Run:
    """Read what ``save`` wrote. Raises InputError when it isn't that."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); training writes it.") from error
    values = parse_json(text, source=str(path))
    if not isinstance(values, dict) or values.get("network") not in _KINDS:
        raise InputError(f"{path} is no training configuration of this software.")
    return _checked(_KINDS[values["network"]], with_later_settings(values.get("run")), at=str(path))


_ADDED_LATER: Mapping[str, Any] = {"data_before": [], "grades": ""}
_LOOP_ADDED_LATER: Mapping[str, Any] = {"start_from": ""}
_LOCNET_ADDED_LATER: Mapping[str, Any] = {
    "fractured_fraction": 0.0,
    "narrow_field_fraction": 0.0,
    "thick_slices_fraction": 0.0,
    "dense_blood_fraction": 0.0,
}
_DISTILLATION: Mapping[str, Any] = json.loads(json.dumps(dataclasses.asdict(Distillation())))
_FRACSEGNET_ADDED_LATER: Mapping[str, Any] = {
    "task_weighting": "fixed",
    "nash_every": 1,
    "crop_shift_mm": [0.0, 0.0, 0.0],
}
"""Settings that runs of earlier versions were made without, and what they did."""


def with_later_settings(run: Any) -> Any:
    """A run as read from JSON, in the settings of this version and doing the same; anything else as it is."""
    if not isinstance(run, Mapping) or not isinstance(run.get("loop"), Mapping):
        return run
    values = {**_ADDED_LATER, **run, "loop": _as_it_ran({**_LOOP_ADDED_LATER, **run["loop"]})}
    if "data_before" not in run and values["loop"]["start_from"]:
        values["data_before"] = [seen_by_start(values["loop"]["start_from"])]
    if "balanced" in values:  # what sampling was called when there were two
        values["sampling"] = "balanced" if values.pop("balanced") else "as_found"
    if "grade_loss" in values:
        return {**_FRACSEGNET_ADDED_LATER, **values}
    if "sigma_voxels" not in values:
        return values
    if values.get("offset_mask", "either") not in OFFSET_MASKS:  # which earlier versions took for the thesis's
        values["offset_mask"] = "predicted"
    distillation = values.get("distillation", {})
    if isinstance(distillation, Mapping):
        values["distillation"] = {**_DISTILLATION, **distillation}
    return {**_LOCNET_ADDED_LATER, **values}


_UNKNOWN = "unknown (started from "


def seen_by_start(start_from: str) -> str:
    """What stands among ``data_before`` for all that the weights of a run's start have seen, until it is known."""
    return f"{_UNKNOWN}{start_from})"


def is_unknown(data: str) -> bool:
    """Whether a name of data is one of ``seen_by_start``."""
    return data.startswith(_UNKNOWN)


def _as_it_ran(loop: dict[str, Any]) -> dict[str, Any]:
    """The values of a loop; for those that earlier versions took without a word and did not follow, what they did."""
    as_it_ran = dict(loop)
    for name, known, did in (("schedule", SCHEDULES, "cosine"), ("optimiser", OPTIMISERS, "adamw")):
        if name in loop and loop[name] not in known:
            as_it_ran[name] = did
    steps, checkpoint_from = loop.get("steps"), loop.get("checkpoint_from")
    if isinstance(steps, int) and isinstance(checkpoint_from, int):
        as_it_ran["checkpoint_from"] = min(checkpoint_from, steps)
    return as_it_ran


@dataclass(frozen=True)
class SavedRun:
    """How a run stands in its folder: which dataclass it is, and its values."""

    network: str
    run: Mapping[str, Any]


_KINDS: Mapping[str, type[Run]] = {kind.__name__: kind for kind in (LocNetRun, FracSegNetRun, LevelNetRun)}


def _checked(kind: type[Run], values: Any, *, at: str) -> Run:
    try:
        return from_json(kind, values, at=at)
    except (BundleError, ValueError) as error:
        raise InputError(str(error)) from error
