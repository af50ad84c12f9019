"""How a scanner shows the tissues: Hounsfield units, textures, kernel, slices, noise, shading."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.phantom.config import DEFAULT_CONFIG, PhantomConfig
from train.phantom.tables import TISSUE_HU, Tissue

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Appearance:
    """One way of showing a patient.

    Args:
        hu: (T,) mean HU per :class:`~train.phantom.tables.Tissue`; texture: (T, 3) HU amplitude, fine to coarse.
        texture_seed: seed of the texture's hash; wavelengths_mm: of the three textures.
        blur_mm: standard deviation of the kernel; sharpen: strength of its edge enhancement (0: none).
        slice_mm: slice thickness along the grid's axis nearest to the patient's z.
        noise_hu: standard deviation in the middle of the field; noise_grain_mm: its correlation length.
        starvation: share (0..1) of the noise that is streaks from side to side.
        shading_hu: amplitude of the slow bias field; streak_hu: amplitude of streaks from metal.
        gamma, wild: contrast bend (1: none) and whether intensities were drawn at random.
        field_mm: radius of a circular field of view around the grid's middle, or 0; fill_hu: HU outside it.
        ghost_mm: displacement of a motion ghost (0: none).
    """

    hu: Float64
    texture: Float64
    texture_seed: int
    wavelengths_mm: tuple[float, float, float]
    blur_mm: float
    sharpen: float
    slice_mm: float
    noise_hu: float
    noise_grain_mm: float
    shading_hu: float
    streak_hu: float
    gamma: float
    wild: bool
    field_mm: float
    fill_hu: float
    ghost_mm: float
    starvation: float = 0.0


_BONE = (Tissue.CORTEX, Tissue.ARCH_CORTEX, Tissue.SPONGY, Tissue.MARROW)
_BLOOD = (Tissue.ARTERY, Tissue.VEIN, Tissue.HEART, Tissue.LUNG_VESSEL)


def _natural(rng: np.random.Generator, config: PhantomConfig) -> tuple[Float64, Float64]:
    hu = np.array([TISSUE_HU[t][0] + TISSUE_HU[t][1] * np.clip(rng.normal(), -2.2, 2.2) for t in Tissue], float)
    texture = np.array([TISSUE_HU[t][2] for t in Tissue], float) * rng.uniform(0.5, 1.5, (len(Tissue), 1))
    if rng.random() < config.fatty_muscle_probability:
        hu[Tissue.MUSCLE] -= rng.uniform(8, 28)
        texture[Tissue.MUSCLE] *= rng.uniform(1.3, 2.6)
    if rng.random() < config.osteoporosis_probability:
        hu[Tissue.SPONGY] = rng.uniform(30, 125)
        hu[Tissue.MARROW] = hu[Tissue.SPONGY] - rng.uniform(0, 60)
    elif rng.random() < config.sclerosis_probability:
        hu[Tissue.SPONGY] = rng.uniform(230, 420)
    if rng.random() < config.contrast_probability:
        arterial, venous = rng.uniform(0, 320), rng.uniform(20, 140)
        for t, gain in (
            (Tissue.ARTERY, arterial + venous),
            (Tissue.HEART, 0.8 * arterial + venous),
            (Tissue.VEIN, venous),
            (Tissue.LIVER, 0.5 * venous),
            (Tissue.SPLEEN, 0.6 * venous),
            (Tissue.LUNG_VESSEL, arterial),
            (Tissue.KIDNEY, 0.4 * arterial + venous),
            (Tissue.PANCREAS, 0.4 * venous),
            (Tissue.MUSCLE, 8.0),
        ):
            hu[t] += gain
        if rng.random() < 0.3:
            hu[Tissue.URINE] = rng.uniform(100, 900)
    return hu, texture


def _wild(hu: Float64, texture: Float64, rng: np.random.Generator) -> tuple[Float64, Float64]:
    """Random intensities per tissue; bone mostly stays brighter than what surrounds it."""
    strength = rng.uniform(0.3, 1.0)
    spread = np.where(hu < -300, 150.0, 70.0) * strength
    out = hu + rng.normal(0, 1, len(hu)) * spread
    out[list(_BONE)] = hu[list(_BONE)] * rng.uniform(0.45, 1.5) + rng.normal(0, [150, 150, 40, 40]) * strength
    floor = max(out[Tissue.MUSCLE], out[Tissue.DISC]) + 150
    for t in (Tissue.CORTEX, Tissue.ARCH_CORTEX):
        out[t] = max(out[t], floor)
    if rng.random() < 0.9:
        out[Tissue.SPONGY] = max(out[Tissue.SPONGY], out[Tissue.FAT] + 40)
    for t in _BLOOD:
        if rng.random() < 0.25:
            out[t] = rng.uniform(100, 600)
    out = out * rng.uniform(0.8, 1.2) + rng.uniform(-60, 60)
    out[Tissue.AIR] = min(out[Tissue.AIR], -800)
    return out, texture * rng.uniform(0.3, 2.5, (len(hu), 1))


def sample_appearance(rng: np.random.Generator, config: PhantomConfig = DEFAULT_CONFIG) -> Appearance:
    """Draws an appearance."""
    hu, texture = _natural(rng, config)
    wild = bool(rng.random() < config.wild_probability)
    if wild:
        hu, texture = _wild(hu, texture, rng)
    low, high = config.slice_thickness_mm
    thick = rng.random() < config.thick_slice_probability
    quiet, loud = config.noise_hu
    noise = quiet + (loud - quiet) * rng.beta(1.0, 4.0 if not wild else 2.5)
    sharp = rng.random() < config.sharp_probability
    blur_low, blur_high = config.blur_mm
    blur = (
        rng.uniform(blur_low, min(0.6, blur_high))
        if sharp
        else rng.uniform(blur_low, blur_high * (2.0 if wild else 1.0))
    )
    return Appearance(
        hu=hu,
        texture=texture,
        texture_seed=int(rng.integers(1 << 30)),
        wavelengths_mm=(float(rng.uniform(1.6, 3.2)), float(rng.uniform(4.5, 8)), float(rng.uniform(14, 30))),
        blur_mm=float(blur),
        sharpen=float(rng.uniform(0.3, 1.6)) if sharp else 0.0,
        slice_mm=float(rng.uniform(low, high) if thick else rng.uniform(low, max(low, min(3.0, high)))),
        noise_hu=float(noise * (1.3 if sharp else 1.0)),
        noise_grain_mm=float(rng.uniform(0.3, 2.2)),
        shading_hu=float(rng.uniform(0, 60 if wild else 15)),
        streak_hu=float(rng.uniform(50, 400)),
        gamma=float(rng.uniform(0.75, 1.35)) if wild else 1.0,
        wild=wild,
        field_mm=float(rng.uniform(90, 260)) if rng.random() < config.circular_field_probability else 0.0,
        fill_hu=float(rng.choice([-1024.0, -1000.0, -2000.0, -1024.0])),
        ghost_mm=float(rng.uniform(1, 5)) if rng.random() < config.motion_probability else 0.0,
        starvation=float(rng.uniform(0.2, 0.8)) if rng.random() < config.starvation_probability else 0.0,
    )
