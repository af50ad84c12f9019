"""Vertebrae of boxes and wedges, with heights that are known by construction."""

from dataclasses import dataclass

import numpy as np

from runtime.volume import Grid

CENTRE_RAS_MM = np.array([20.0, -30.0, 400.0])


@dataclass(frozen=True)
class Solid:
    """A body of elliptic section with plane or dented endplates, an arch around a canal, and a spur on request; mm."""

    anterior: float = 24.0
    posterior: float = 24.0
    dent: float = 0.0
    half_width: float = 21.0
    half_depth: float = 15.0
    arch: bool = True
    spur: bool = False
    dent_side: float = 1.0

    def height_at(self, y_mm):
        """The body's height in the midline at the depth ``y_mm`` from its middle."""
        straight = 0.5 * (self.anterior + self.posterior) + (self.anterior - self.posterior) * y_mm / (
            2 * self.half_depth
        )
        return straight - 2 * self.dent * np.clip(1 - (y_mm / (0.7 * self.half_depth)) ** 2, 0, None)

    def body(self, local):
        x, y, z = np.moveaxis(local, -1, 0)
        section = (x / self.half_width) ** 4 + (y / self.half_depth) ** 4 < 1
        inside = section & (np.abs(z) < 0.5 * self.height_at(y))
        if self.spur:
            rim = 0.5 * self.height_at(self.half_depth)
            beak = (np.abs(x) < 5) & (np.abs(y - self.half_depth) < 3) & (z > rim - 6) & (z < rim + 6)
            inside |= beak
        return inside

    def whole(self, local):
        x, y, z = np.moveaxis(local, -1, 0)
        back = -self.half_depth
        if not self.arch:
            return self.body(local)
        pedicles = (np.abs(np.abs(x) - 13) < 4) & (y < back + 3) & (y > back - 12) & (np.abs(z - 3) < 5)
        laminae = (np.abs(x) < 17) & (np.abs(y - back + 19) < 3.5) & (np.abs(z + 2) < 11)
        spinous = (np.abs(x) < 3) & (y < back - 19) & (y > back - 45) & (np.abs(z + 8) < 6)
        transverse = (np.abs(x) < 35) & (np.abs(x) > 12) & (np.abs(y - back + 12) < 4) & (np.abs(z - 3) < 4)
        return self.body(local) | pedicles | laminae | spinous | transverse


def turn(x_deg=0.0, y_deg=0.0, z_deg=0.0):
    """Rotation matrix of three angles."""
    a, b, c = np.deg2rad([x_deg, y_deg, z_deg])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


def grid_of(spacing_xyz_mm=(1.0, 1.0, 1.0), *, directions=None, size_mm=130.0, shift=(0.2, 0.3, 0.1)):
    """A cube around ``CENTRE_RAS_MM``; ``directions`` are the (3, 3) columns of the index axes, RAS by default."""
    columns = np.eye(3) if directions is None else np.asarray(directions, float)
    counts = np.ceil(size_mm / np.array(spacing_xyz_mm)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = columns * np.array(spacing_xyz_mm)
    affine[:3, 3] = CENTRE_RAS_MM + np.array(shift) - affine[:3, :3] @ ((counts - 1) / 2)
    return Grid(tuple(int(n) for n in counts[::-1]), affine)


def local_mm(grid, axes=None, centre_ras_mm=CENTRE_RAS_MM):
    """(z, y, x, 3) coordinates of every voxel in a vertebra's own axes."""
    index = np.stack(np.indices(grid.shape_zyx), axis=-1)
    return (grid.to_ras_mm(index) - centre_ras_mm) @ (np.eye(3) if axes is None else axes)
