"""The torso's envelope: skin, muscle wall, cavity and rib cage as tables over height (body frame, mm)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from train.phantom.scene import TABLE_ROWS
from train.phantom.spine import VertebraShape

Float64 = npt.NDArray[np.float64]
BELOW_MM = -170.0
"""Lower end of the torso's tables, relative to the first sacral body; below it there are only legs."""

_KNOTS = ("hip", "S1", "L4", "L2", "T12", "T8", "T4", "T2", "T1", "C6", "C3")
_SKIN = (
    (172, 104),
    (168, 104),
    (158, 100),
    (148, 102),
    (152, 110),
    (163, 119),
    (160, 108),
    (150, 92),
    (120, 80),
    (66, 64),
    (60, 62),
)
_CAGE = (
    (126, 88),
    (126, 90),
    (126, 92),
    (130, 96),
    (135, 99),
    (136, 98),
    (118, 84),
    (90, 62),
    (62, 44),
    (40, 30),
    (40, 30),
)
_BACK = (64, 62, 62, 62, 60, 58, 56, 55, 54, 54, 56)


@dataclass(frozen=True, eq=False)
class Torso:
    """Tables of the torso; every one has rows (cx, cy, rx, ry, squareness) evenly spaced over ``z_mm``.

    Args:
        size: patient's size factor; fat_mm: mean thickness of the fat under the skin.
        z_mm: lower and upper end; z_of: z of every vertebra by level, and spine_y(z) by ``spine_z``, ``spine_y_mm``.
    """

    size: float
    fat_mm: float
    z_mm: tuple[float, float]
    skin: Float64
    wall: Float64
    cavity: Float64
    cage_table: Float64
    z_of: dict[str, float]
    spine_z: Float64
    spine_y_mm: Float64
    spine_x_mm: Float64

    @cached_property
    def rows_z(self) -> Float64:
        """z of the tables' rows."""
        return np.linspace(*self.z_mm, TABLE_ROWS)

    def cage(self, z: Float64) -> tuple[Float64, Float64, Float64, Float64]:
        """Centre x, centre y, half width, half depth of the ribs' centre lines at heights ``z``."""
        cx, cy, rx, ry = (np.interp(z, self.rows_z, self.cage_table[:, n]) for n in range(4))
        return cx, cy, rx, ry

    def spine_at(self, z: float) -> Float64:
        """(3,) point of the bodies' centre line at height ``z``."""
        x = np.interp(z, self.spine_z, self.spine_x_mm)
        return np.array([x, np.interp(z, self.spine_z, self.spine_y_mm), z])

    @property
    def shoulder_z(self) -> float:
        """z of the shoulders' top."""
        return self.z_of["T1"] + 5 * self.size

    @property
    def dome_z(self) -> float:
        """z of the diaphragm's dome."""
        return self.z_of["T9"] - 5

    @property
    def sternum_mm(self) -> tuple[Float64, Float64]:
        """Upper and lower end of the sternum."""
        ends = []
        for level, share in (("T3", 1.0), ("T9", 0.98)):
            z = self.z_of[level] + 4
            cx, cy, _, ry = self.cage(np.array([z]))
            ends.append(np.array([cx[0], cy[0] + share * ry[0], z]))
        return ends[0], ends[1]


def sample_torso(shapes: list[VertebraShape], size: float, rng: np.random.Generator) -> Torso:
    """The envelope around a spine: slim to obese, shallow to deep."""
    centres = np.array([v.origin_mm for v in shapes])
    order = np.argsort(centres[:, 2])
    spine_z = np.r_[BELOW_MM * size, -60.0 * size, centres[order, 2], centres[order[-1], 2] + 150]
    first, last = centres[order[0]], centres[order[-1]]
    spine_y = np.r_[first[1] - 25, first[1] - 25, centres[order, 1], last[1]]
    spine_x = np.r_[0.0, 0.0, centres[order, 0], last[0]]
    z_of = {v.level: float(v.origin_mm[2]) for v in shapes}
    for missing, near in (("T12", "T11"), ("L5", "L4")):
        z_of.setdefault(missing, z_of[near] - 10)
    z_of |= {"S1": 0.0, "hip": -90.0 * size}
    fat = float(np.exp(rng.uniform(np.log(6), np.log(48))))
    wide, deep = rng.uniform(0.92, 1.1), rng.uniform(0.92, 1.15)
    ends = (BELOW_MM * size, z_of["C1"] + 12)
    z = np.linspace(*ends, TABLE_ROWS)
    knots = [z_of[name] for name in _KNOTS]

    def table(rows: tuple[tuple[int, int], ...] | tuple[int, ...]) -> Float64:
        values = np.array(rows, float).reshape(len(rows), -1)
        out = np.stack([np.interp(z, knots, column) for column in values.T], 1)
        padded = np.pad(out, ((2, 2), (0, 0)), mode="edge")
        return np.mean([padded[n : n + TABLE_ROWS] for n in range(5)], axis=0) * size

    smooth = np.polynomial.Polynomial.fit(spine_z, spine_y, 7)
    y = 0.5 * smooth(z) + 0.5 * np.interp(z, spine_z, spine_y)
    x = 0.85 * np.interp(z, spine_z, spine_x)
    skin, cage, back = table(_SKIN), table(_CAGE), table(_BACK)[:, 0]
    skin, cage = skin * [wide, deep], cage * [wide, deep]
    belly = np.exp(-(((z - z_of["L4"]) / (110 * size)) ** 2)) * rng.uniform(0.4, 1.6) * fat
    trunk = np.clip((z_of["T1"] - z) / 80, 0.15, 1.0)
    p = np.full(len(z), 0.33)
    wall_ry = skin[:, 1] + belly * 0.35
    wall = np.stack([x, y - back + wall_ry, skin[:, 0] - 10 + belly * 0.2, wall_ry, p], 1)
    extra = fat * trunk
    skin_table = wall + np.stack([0 * z, 0.1 * extra + belly * 0.2, 4 + extra, 4 + 0.9 * extra + belly * 0.3, 0 * z], 1)
    inner_ry = 0.5 * (wall[:, 1] + wall_ry - 10 * size - (y - 24 * size))
    cavity = np.stack([x, y - 24 * size + inner_ry, wall[:, 2] - 10 * size, inner_ry, p + 0.15], 1)
    cavity[:, 2] *= np.interp(z, [-150 * size, -50 * size, 10 * size, z_of["L4"] + 10], [0.4, 0.52, 0.72, 1.0])
    cavity[:, 3] *= np.interp(z, [-160 * size, -60 * size], [0.6, 1.0])
    cage_table = np.stack(
        [x, y - 38 * size * np.clip(cage[:, 1] / (90 * size), 0.3, 1) + cage[:, 1], cage[:, 0], cage[:, 1], p], 1
    )
    return Torso(size, fat, ends, skin_table, wall, cavity, cage_table, z_of, spine_z, spine_y, spine_x)
