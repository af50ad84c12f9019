"""A whole patient from a seed: spine, skeleton, organs and implants, as parameters only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.phantom import organs, pelvis, sacrum, skeleton
from train.phantom.config import DEFAULT_CONFIG, PhantomConfig
from train.phantom.degeneration import add_ossified_ligament
from train.phantom.discs import add_discs, add_last_disc
from train.phantom.hardware import add_hardware
from train.phantom.scene import Scene, SceneBuilder
from train.phantom.spine import VertebraShape, rotation, sample_spine
from train.phantom.torso import sample_torso
from train.phantom.vertebra import add_canal, add_vertebra, sample_condition

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One patient.

    Args:
        seed: what it was sampled from.
        scene: every primitive, in painting order, in RAS+ mm.
        vertebrae: cranial to caudal; their poses are in the body frame.
        patient_axes, patient_origin_mm: the body frame in RAS+ mm (columns are its axes).
        landmarks_mm: body-frame points for choosing fields of view; half_sizes_mm: half width and depth of the trunk.
    """

    seed: int
    scene: Scene
    vertebrae: tuple[VertebraShape, ...]
    patient_axes: Float64
    patient_origin_mm: Float64
    half_sizes_mm: tuple[float, float]
    trunk_y_mm: float

    def to_ras_mm(self, body_mm: npt.ArrayLike) -> Float64:
        """Body-frame points (..., 3) in RAS+ mm."""
        return np.asarray(body_mm, float) @ self.patient_axes.T + self.patient_origin_mm

    def centre_ras_mm(self, vertebra: VertebraShape) -> Float64:
        """(3,) RAS+ mm of the centroid of a vertebra's body."""
        return self.to_ras_mm(vertebra.to_body_mm(vertebra.centroid_mm))


def sample_anatomy(seed: int, config: PhantomConfig = DEFAULT_CONFIG) -> Anatomy:
    """Draws a patient; the same seed and configuration give the same patient."""
    rng = np.random.default_rng([seed, 1])
    shapes, size, degeneration = sample_spine(rng, config)
    torso = sample_torso(shapes, size, rng)
    thin = rng.uniform(0.4, 1.0) if rng.random() < config.osteoporosis_probability else rng.uniform(0, 0.3)
    own = np.random.default_rng([seed, 3])
    condition = sample_condition(shapes, thin, degeneration, config, own)
    s = SceneBuilder()
    organs.add_surroundings(s, torso, rng)
    bones = SceneBuilder(frames=s.frames)
    promontory = sacrum.add_sacrum(bones, shapes[0], size, thin, config, rng)
    hips = pelvis.add_pelvis(bones, promontory, size, thin, rng)
    organs.add_envelope(s, torso, hips, config, own)
    organs.add_back(s, torso, rng)
    organs.add_fat_planes(s, torso, hips, own)
    skeleton.add_shoulders(s, torso, thin, rng, arms_up=bool(rng.random() < config.arms_up_probability))
    skeleton.add_skull(s, shapes[-1], size)
    skeleton.add_neck(s, torso, own)
    organs.add_abdomen(s, torso, rng, oral=bool(rng.random() < config.oral_contrast_probability))
    organs.add_chest(s, torso, rng)
    organs.add_vessels(s, torso, rng)
    organs.add_tube(s, torso, config, own)
    skeleton.add_ribs(s, shapes, torso, thin, rng)
    add_discs(s, shapes, degeneration=degeneration, config=config, rng=rng, own=own)
    add_last_disc(s, shapes[0], promontory, size)
    add_canal(s, shapes)
    add_ossified_ligament(s, shapes, config, own)
    s.extend(bones)
    for shape in shapes:
        add_vertebra(s, shape, condition, config, rng)
    metal = add_hardware(s, shapes, torso, hips, config, rng)
    tilt = config.tilt_deg if rng.random() < config.tilt_probability else 4.0
    axes = rotation(*rng.uniform(-tilt, tilt, 3))
    origin = rng.uniform(-40, 40, 3)
    middle = torso.z_of["L2"]
    row = int(np.argmin(np.abs(torso.rows_z - middle)))
    return Anatomy(
        seed,
        s.build(axes, origin, metal),
        tuple(shapes[::-1]),
        axes,
        origin,
        (float(torso.skin[:, 2].max()), float(torso.skin[:, 3].max())),
        float(torso.skin[row, 1]),
    )
