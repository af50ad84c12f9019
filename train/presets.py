"""Named recipes: ``thesis`` is its recipe taken literally, ``default`` and LocNet's ``half`` train the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from train.config import FracSegNetRun, LevelNetRun, LocNetRun, LoopConfig, Run
from train.networks import FracSegNetConfig, LocNetConfig, UNetConfig


def presets() -> Mapping[str, Mapping[str, Run]]:
    """Network name -> preset name -> run.

    ``thesis`` is its recipe taken literally; ``default`` trains the bundle's networks, but of LocNet the one that
    teaches the bundle's, which is ``half``.
    """
    thesis_frac = _thesis_fracsegnet()
    fracnet = replace(thesis_frac.network, mask_channels=())
    return {
        "locnet": {"default": LocNetRun(), "thesis": _thesis_locnet(), "fine": _fine_locnet(), "half": _half_locnet()},
        "fracsegnet": {
            "default": FracSegNetRun(),
            "thesis": thesis_frac,
            "thesis-ce": replace(thesis_frac, grade_loss="cross_entropy"),
        },
        "fracnet": {"thesis": replace(thesis_frac, network=fracnet, mask_weight=0.0)},
        "levelnet": {"default": LevelNetRun()},
    }


TAUGHT = ("half",)
"""Presets of LocNet that learn from another one, which ``--teacher`` names."""
_THESIS_UNET = UNetConfig(channels=(16, 32, 64, 128, 256), bottleneck=256)
"""Five encoder blocks; the thesis gives no widths."""
_TRAINING_SCANS, _TRAINING_CROPS = 80, 726
"""VerSe 2019: an epoch of LocNet is one crop of each scan, one of FracSegNet each graded vertebra."""


def _thesis_locnet() -> LocNetRun:
    """Thesis 3.2: 1000 epochs of 128^3 crops at 1 mm, Adam at 0.05, no early stopping, checkpoints from epoch 600."""
    return LocNetRun(
        network=LocNetConfig(_THESIS_UNET, heatmap_prior=0.5),
        loop=LoopConfig(
            steps=1000 * _TRAINING_SCANS,
            batch=1,
            learning_rate=0.05,
            schedule="constant",
            optimiser="adam",
            weight_decay=0.0,
            clip_norm=0.0,
            ema=0.0,
            validate_every=_TRAINING_SCANS,
            validation_samples=40,
            checkpoint_from=600 * _TRAINING_SCANS,
            precision="32-true",
        ),
        spacing_mm=1.0,
        crop_shapes=((128, 128, 128),),
        sigma_voxels=3.0,
        heatmap_threshold=0.8,
        offset_mask="predicted",
        heatmap_weight=1.0,
        offset_weight=0.01,
        chamfer_weight=0.01,
        foreground_weight=0.0,
        negative_fraction=0.0,
        fractured_fraction=0.0,
        narrow_field_fraction=0.0,
        thick_slices_fraction=0.0,
        dense_blood_fraction=0.0,
    )


def _thesis_fracsegnet() -> FracSegNetRun:
    """Thesis 3.3: 96^3 crops at 1 mm, Adam at 5e-4, a tenth every 80 epochs, patience of 50 epochs, focal and Dice."""
    return FracSegNetRun(
        network=FracSegNetConfig(_THESIS_UNET, ("vertebra",), "pooled", dropout=0.5, heights=False, crop=96),
        loop=LoopConfig(
            steps=1000 * _TRAINING_CROPS,
            batch=1,
            learning_rate=5e-4,
            schedule="step",
            decay_every=80 * _TRAINING_CROPS,
            optimiser="adam",
            weight_decay=0.0,
            clip_norm=0.0,
            ema=0.0,
            validate_every=_TRAINING_CROPS,
            validation_samples=200,
            patience=50,
            precision="32-true",
        ),
        spacing_mm=1.0,
        crop_shift_mm=(0.0, 0.0, 0.0),
        centre_jitter_mm=0.0,
        grade_loss="focal",
        grade_weight=1.0,
        mask_entropy_weight=0.0,
        height_weight=0.0,
        sampling="as_found",
    )


def _half_locnet() -> LocNetRun:
    """The default's recipe at half the resolution inside; another LocNet teaches it (``--teacher``)."""
    unet = UNetConfig().without_first()
    return LocNetRun(
        network=LocNetConfig(unet, stem=UNetConfig().channels[0]), loop=LoopConfig(steps=3000, learning_rate=1.5e-3)
    )


def _fine_locnet() -> LocNetRun:
    """The default's recipe at the thesis's 1 mm, for a GPU."""
    return LocNetRun(
        network=LocNetConfig(UNetConfig((16, 32, 64, 96, 128), 160)),
        loop=LoopConfig(steps=40_000, workers=8),
        spacing_mm=1.0,
        crop_shapes=((128, 128, 128), (160, 96, 96)),
        sigma_voxels=3.0,
    )
