"""The phantom's configuration: probabilities and ranges, JSON-able."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class PhantomConfig:
    """What varies and how often. Probabilities are 0..1, ranges are (low, high) in the unit of the name.

    The default has every variation on and is meant for training: fractures are far more frequent than in patients.
    """

    spared_probability: float = 0.15
    """Patients without any fracture."""
    fracture_probability: float = 0.19
    """Mean probability that a vertebra between T3 and L5 is fractured, in patients who are not spared."""
    grade_weights: tuple[float, float, float] = (0.34, 0.36, 0.30)
    """Relative frequency of Genant grades 1, 2, 3 among fractures."""
    shape_weights: tuple[float, float, float] = (0.5, 0.3, 0.2)
    """Relative frequency of wedge, biconcave and crush fractures."""
    size: tuple[float, float] = (0.85, 1.17)
    scoliosis_probability: float = 0.35
    scoliosis_deg: tuple[float, float] = (5.0, 40.0)
    tilt_probability: float = 0.3
    """Whole patient turned; otherwise only a few degrees."""
    tilt_deg: float = 30.0
    count_variant_probability: float = 0.12
    """Eleven or thirteen thoracic, four or six lumbar vertebrae."""
    sacralised_probability: float = 0.06
    """Lowest lumbar vertebra with transverse processes that join the sacrum's wings."""
    lumbarised_probability: float = 0.08
    """First sacral segment with a disc below it."""
    sacral_disc_probability: float = 0.5
    """Remnant of a disc between S1 and S2; less often further down."""
    osteoporosis_probability: float = 0.4
    sclerosis_probability: float = 0.12
    degeneration: tuple[float, float] = (0.0, 1.0)
    """Severity of osteophytes, narrowed discs and Schmorl's nodes, drawn once per patient."""
    bridge_probability: float = 0.1
    """Osteophytes that bridge a disc, per disc, at middling degeneration."""
    dish_probability: float = 0.08
    """A run of thick bridges along the front (Forestier)."""
    bamboo_probability: float = 0.02
    """Thin bridges round most discs (Bekhterev)."""
    ossified_ligament_probability: float = 0.04
    disc_gas_probability: float = 0.15
    """Per disc, times the degeneration; three times that where the disc is narrow."""
    disc_calcified_probability: float = 0.02
    block_probability: float = 0.05
    """Two vertebrae with next to no disc between them."""
    slip_probability: float = 0.1
    """A lower lumbar vertebra that has slipped forwards."""
    endplate_sclerosis_probability: float = 0.15
    """Per endplate, at middling degeneration."""
    banded_probability: float = 0.02
    metastases_probability: float = 0.06
    irradiated_probability: float = 0.03
    ivory_probability: float = 0.004
    """Per vertebra, as are the next two."""
    haemangioma_probability: float = 0.03
    bone_island_probability: float = 0.04
    screw_probability: float = 0.08
    cement_probability: float = 0.06
    hip_prosthesis_probability: float = 0.06
    hip_nail_probability: float = 0.03
    wires_probability: float = 0.12
    arms_up_probability: float = 0.6
    contrast_probability: float = 0.45
    oral_contrast_probability: float = 0.2
    wild_probability: float = 0.5
    noise_hu: tuple[float, float] = (2.0, 80.0)
    slice_thickness_mm: tuple[float, float] = (0.7, 9.0)
    thick_slice_probability: float = 0.3
    blur_mm: tuple[float, float] = (0.2, 1.6)
    """Standard deviation of the reconstruction kernel; for wild appearances up to twice as much."""
    sharp_probability: float = 0.3
    circular_field_probability: float = 0.15
    motion_probability: float = 0.08
    starvation_probability: float = 0.2
    """Noise that runs in streaks from side to side."""
    fatty_muscle_probability: float = 0.35
    cement_leak_probability: float = 0.25
    """Per cemented vertebra: cement in a disc, in a vein before the body or in the canal."""
    cage_probability: float = 0.4
    """Cages in the discs between screws."""
    breast_probability: float = 0.5
    implant_probability: float = 0.1
    """Silicone in the breasts of those who have them."""
    tube_probability: float = 0.12
    """A dense tube down the gullet."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary that :meth:`from_json` reads back."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> PhantomConfig:
        """The configuration of :meth:`to_json`'s dictionary; unknown keys raise ``ValueError``."""
        known = {f.name for f in fields(PhantomConfig)}
        if unknown := set(values) - known:
            raise ValueError(f"Unknown phantom configuration keys {sorted(unknown)}; known are {sorted(known)}.")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return replace(PhantomConfig(), **given)


DEFAULT_CONFIG = PhantomConfig()
"""Every variation on."""
