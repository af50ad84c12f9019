"""Anatomical tables: levels, labels, sizes per level, and tissues with their usual Hounsfield units.

Sizes are population means in millimetres (adult), scaled per patient by :mod:`train.phantom.spine`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from runtime.label_map import VERSE_LEVELS

LABEL_OF_LEVEL: dict[str, int] = {level: label for label, level in VERSE_LEVELS.items()}
"""VerSe's label of every level; 26 (sacrum) and 27 (coccyx) are never painted into a mask."""
LEVEL_OF_LABEL: dict[int, str] = {label: level for level, label in LABEL_OF_LEVEL.items()}


@dataclass(frozen=True)
class LevelSize:
    """Mean size of one vertebra: height, width, depth of its body, the disc below it, all mm, and the sagittal
    tilt of its axis in degrees (positive: the superior axis leans anteriorly)."""

    height_mm: float
    width_mm: float
    depth_mm: float
    disc_mm: float
    tilt_deg: float


_ROWS = {
    "C1": (9.0, 23.0, 7.0, 3.0, 0.0),
    "C2": (15.0, 17.0, 15.0, 4.5, -3.0),
    "C3": (13.5, 17.5, 15.0, 5.0, -1.0),
    "C4": (13.0, 18.5, 15.5, 5.0, 3.0),
    "C5": (12.5, 19.5, 15.5, 5.2, 8.0),
    "C6": (12.5, 21.0, 16.0, 5.2, 14.0),
    "C7": (14.5, 23.5, 16.5, 4.5, 20.0),
    "T1": (16.0, 28.0, 17.0, 4.0, 24.0),
    "T2": (17.2, 27.5, 18.5, 3.8, 22.0),
    "T3": (17.6, 26.5, 20.5, 3.6, 19.0),
    "T4": (18.0, 26.5, 22.0, 3.6, 15.0),
    "T5": (18.5, 27.0, 23.5, 3.8, 10.0),
    "T6": (19.0, 28.0, 25.0, 4.2, 5.0),
    "T7": (19.5, 29.5, 26.5, 4.6, 0.0),
    "T8": (20.0, 31.0, 27.5, 5.0, -5.0),
    "T9": (20.7, 32.5, 28.5, 5.2, -9.0),
    "T10": (21.6, 34.5, 29.5, 5.6, -12.0),
    "T11": (22.8, 37.5, 30.0, 6.2, -14.0),
    "T12": (24.4, 40.0, 30.5, 7.0, -15.0),
    "T13": (25.2, 41.5, 31.0, 7.5, -15.0),
    "L1": (26.0, 42.5, 31.5, 8.2, -14.0),
    "L2": (27.0, 44.0, 33.0, 9.4, -11.0),
    "L3": (28.0, 46.0, 34.0, 10.4, -5.0),
    "L4": (28.0, 48.0, 34.5, 11.2, 4.0),
    "L5": (28.0, 50.0, 35.0, 10.5, 19.0),
    "L6": (27.5, 50.5, 34.5, 9.0, 28.0),
}
LEVEL_SIZES: dict[str, LevelSize] = {level: LevelSize(*row) for level, row in _ROWS.items()}

FRACTURE_WEIGHT: dict[str, float] = {
    "T3": 0.3,
    "T4": 0.4,
    "T5": 0.6,
    "T6": 0.9,
    "T7": 1.4,
    "T8": 1.5,
    "T9": 0.9,
    "T10": 0.8,
    "T11": 1.1,
    "T12": 1.9,
    "T13": 1.9,
    "L1": 2.0,
    "L2": 1.2,
    "L3": 1.0,
    "L4": 0.9,
    "L5": 0.5,
    "L6": 0.4,
}
"""Relative frequency of fractures per level, with the two usual peaks at the mid-thoracic spine and T12-L1."""


class Tissue(IntEnum):
    """What a voxel can be made of; indexes :attr:`train.phantom.appearance.Appearance.hu`."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    VISCERAL_FAT = 4
    LUNG = 5
    VEIN = 6
    ARTERY = 7
    HEART = 8
    LIVER = 9
    SPLEEN = 10
    KIDNEY = 11
    URINE = 12
    BOWEL_WALL = 13
    BOWEL_FLUID = 14
    FECES = 15
    GAS = 16
    ORAL_CONTRAST = 17
    DISC = 18
    CSF = 19
    CORD = 20
    CORTEX = 21
    SPONGY = 22
    MARROW = 23
    CARTILAGE = 24
    BRAIN = 25
    TABLE = 26
    FOAM = 27
    METAL = 28
    CEMENT = 29
    PLAQUE = 30
    LUNG_VESSEL = 31
    ARCH_CORTEX = 32
    PANCREAS = 33


TISSUE_HU: dict[Tissue, tuple[float, float, tuple[float, float, float]]] = {
    Tissue.AIR: (-1000, 0, (0, 0, 0)),
    Tissue.SKIN: (20, 15, (5, 5, 5)),
    Tissue.FAT: (-100, 7, (6, 8, 5)),
    Tissue.MUSCLE: (52, 9, (16, 26, 10)),
    Tissue.VISCERAL_FAT: (-96, 9, (18, 34, 14)),
    Tissue.LUNG: (-840, 40, (40, 50, 30)),
    Tissue.VEIN: (45, 8, (5, 5, 3)),
    Tissue.ARTERY: (45, 8, (5, 5, 3)),
    Tissue.HEART: (45, 8, (8, 8, 12)),
    Tissue.LIVER: (62, 14, (8, 8, 8)),
    Tissue.SPLEEN: (52, 8, (6, 6, 6)),
    Tissue.KIDNEY: (36, 8, (8, 12, 5)),
    Tissue.URINE: (6, 6, (4, 4, 4)),
    Tissue.BOWEL_WALL: (45, 10, (10, 10, 5)),
    Tissue.BOWEL_FLUID: (22, 15, (12, 15, 10)),
    Tissue.FECES: (-60, 60, (150, 200, 50)),
    Tissue.GAS: (-960, 30, (10, 10, 10)),
    Tissue.ORAL_CONTRAST: (260, 120, (20, 30, 30)),
    Tissue.DISC: (84, 14, (10, 10, 8)),
    Tissue.CSF: (14, 8, (8, 8, 4)),
    Tissue.CORD: (38, 7, (5, 5, 4)),
    Tissue.CORTEX: (880, 150, (90, 70, 40)),
    Tissue.SPONGY: (145, 45, (85, 62, 40)),
    Tissue.MARROW: (100, 55, (60, 50, 35)),
    Tissue.CARTILAGE: (110, 25, (30, 30, 15)),
    Tissue.BRAIN: (36, 5, (5, 5, 4)),
    Tissue.TABLE: (-150, 120, (5, 5, 5)),
    Tissue.FOAM: (-920, 40, (5, 5, 5)),
    Tissue.METAL: (4500, 900, (50, 50, 50)),
    Tissue.CEMENT: (1700, 500, (250, 250, 100)),
    Tissue.PLAQUE: (650, 250, (100, 60, 30)),
    Tissue.LUNG_VESSEL: (20, 30, (10, 10, 10)),
    Tissue.ARCH_CORTEX: (1120, 170, (240, 200, 90)),
    Tissue.PANCREAS: (35, 10, (20, 30, 8)),
}
"""Per tissue: mean HU, standard deviation between patients, and texture amplitudes (fine, medium, coarse), HU."""
