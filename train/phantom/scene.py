"""Scenes: ordered groups of analytic primitives, as arrays that the kernels can read.

A *primitive* is a solid with a signed distance; a *group* is the union (smooth by ``blend_mm``) of its primitives,
from which others may be cut, and one look: a shell tissue of a given thickness around a core tissue. Groups are
painted in order, later over earlier. Primitives are placed in *frames* (right, anterior, superior axes, mm).

Kinds and parameters (mm): ELLIPSOID radii; CAPSULE half length, two radii, section scales x and y; BOX half sizes,
rounding; BODY see ``kernels._body``; TUBE half length, inset, table; PLATE three vertices, half thickness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from train.phantom.tables import Tissue

ELLIPSOID, CAPSULE, BOX, BODY, TUBE, PLATE = range(6)
TABLE_ROWS = 48
Vector = Sequence[float] | npt.NDArray[np.float64]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
X_AXIS, Z_AXIS = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Scene:
    """Immutable arrays of a finished scene. ``frames`` map RAS+ mm to primitive coordinates; ``lows``/``highs`` are
    the primitives' bounds in those coordinates; ``looks`` are (G, 6): shell tissue, core tissue, shell mm, body
    shell mm, shell HU offset, core HU offset; ``groups`` as in :func:`train.phantom.kernels.paint`."""

    groups: Int64
    looks: Float64
    kinds: Int64
    ops: Int64
    frames: Float64
    params: Float64
    lows: Float64
    highs: Float64
    table_of: Int64
    tables: Float64
    metal_ras_mm: Float64


@dataclass
class SceneBuilder:
    """Collects groups and primitives; everything is turned into arrays at once by :meth:`build`."""

    frames: list[tuple[Float64, Float64]] = field(default_factory=lambda: [(np.eye(3), np.zeros(3))])
    _groups: list[list[int]] = field(default_factory=list)
    _looks: list[list[float]] = field(default_factory=list)
    _prims: list[tuple[int, int, int, Vector, Vector, Vector, list[float], int]] = field(default_factory=list)
    _tables: list[Float64] = field(default_factory=lambda: [np.ones((TABLE_ROWS, 5))])

    def frame(self, axes: Float64, origin_mm: Vector) -> int:
        """Registers a frame whose columns ``axes`` (3, 3) and origin are in body coordinates; returns its number."""
        self.frames.append((np.asarray(axes, float), np.asarray(origin_mm, float)))
        return len(self.frames) - 1

    def group(
        self,
        shell: Tissue,
        core: Tissue,
        *,
        shell_mm: float = 0.0,
        body_shell_mm: float = 0.0,
        label: int = 0,
        blend_mm: float = 0.0,
        shell_hu: float = 0.0,
        core_hu: float = 0.0,
    ) -> None:
        """Starts a group; primitives added from now on belong to it."""
        self._groups.append([len(self._prims), 0, label, int(blend_mm * 1000)])
        self._looks.append([float(shell), float(core), shell_mm, body_shell_mm, shell_hu, core_hu])

    def extend(self, other: SceneBuilder) -> None:
        """Appends the groups of a builder that shares this one's frames (and uses no tables)."""
        self._groups += [[first + len(self._prims), *rest] for first, *rest in other._groups]
        self._looks += other._looks
        self._prims += other._prims

    def solid(self, tissue: Tissue, *, blend_mm: float = 0.0, hu: float = 0.0) -> None:
        """Starts a group of one tissue without a shell."""
        self.group(tissue, tissue, blend_mm=blend_mm, shell_hu=hu, core_hu=hu)

    def _add(
        self, kind: int, cut: bool, frame: int, centre: Vector, z: Vector, x: Vector, q: list[float], table: int = 0
    ) -> None:
        self._groups[-1][1] += 1
        self._prims.append((kind, int(cut), frame, centre, z, x, q + [0.0] * (10 - len(q)), table))

    def ellipsoid(
        self,
        centre: Vector,
        radii: Vector,
        *,
        frame: int = 0,
        z: Vector = Z_AXIS,
        x: Vector = X_AXIS,
        cut: bool = False,
    ) -> None:
        """Adds an ellipsoid with its third radius along ``z`` and its first towards ``x``."""
        self._add(ELLIPSOID, cut, frame, centre, z, x, [max(float(r), 0.2) for r in radii])

    def capsule(
        self,
        start: Vector,
        end: Vector,
        radius: float,
        end_radius: float | None = None,
        *,
        frame: int = 0,
        x: Vector = X_AXIS,
        scale: tuple[float, float] = (1.0, 1.0),
        cut: bool = False,
    ) -> None:
        """Adds a round cone; its section is ``scale[0]`` times the radius towards ``x``, ``scale[1]`` across."""
        s, e = np.asarray(start, float), np.asarray(end, float)
        along = e - s
        length = float(np.sqrt(along @ along))
        if length < 1e-6:
            along, length = np.array(Z_AXIS), 1e-3
        radii = [radius, radius if end_radius is None else end_radius]
        self._add(CAPSULE, cut, frame, (s + e) / 2, along, x, [length / 2, *radii, *scale])

    def chain(
        self,
        points: Float64,
        radii: Vector | float,
        *,
        frame: int = 0,
        x: Vector = X_AXIS,
        scale: tuple[float, float] = (1.0, 1.0),
        cut: bool = False,
    ) -> None:
        """Adds capsules along a polyline (N, 3)."""
        r = np.broadcast_to(np.asarray(radii, float), (len(points),))
        for a, b, ra, rb in zip(points[:-1], points[1:], r[:-1], r[1:], strict=True):
            self.capsule(a, b, float(ra), float(rb), frame=frame, x=x, scale=scale, cut=cut)

    def box(
        self,
        centre: Vector,
        half: Vector,
        rounding: float = 0.0,
        *,
        frame: int = 0,
        z: Vector = Z_AXIS,
        x: Vector = X_AXIS,
        cut: bool = False,
    ) -> None:
        """Adds a rounded box of half sizes ``half``."""
        self._add(BOX, cut, frame, centre, z, x, [*(float(h) for h in half), rounding])

    def body(self, params: Vector, *, frame: int = 0, centre: Vector = (0.0, 0.0, 0.0), z: Vector = Z_AXIS) -> None:
        """Adds a vertebral body (parameters as in ``kernels._body``)."""
        self._add(BODY, False, frame, centre, z, X_AXIS, [float(v) for v in params])

    def tube(self, z_mm: tuple[float, float], table: Float64, *, inset_mm: float = 0.0, cut: bool = False) -> None:
        """Adds a generalised cylinder of the body frame; ``table`` (TABLE_ROWS, 5) as in ``kernels._tube``."""
        self._tables.append(np.asarray(table, float))
        low, high = z_mm
        self._add(
            TUBE, cut, 0, (0, 0, (low + high) / 2), Z_AXIS, X_AXIS, [(high - low) / 2, -inset_mm], len(self._tables) - 1
        )

    def plate(self, corners: Float64, thickness_mm: float, *, frame: int = 0) -> None:
        """Adds a triangular plate with corners (3, 3)."""
        q = [*(float(v) for v in np.asarray(corners).ravel()), thickness_mm / 2]
        self._add(PLATE, False, frame, (0, 0, 0), Z_AXIS, X_AXIS, q)

    def build(self, patient_axes: Float64, patient_origin_mm: Float64, metal_mm: Float64) -> Scene:
        """The scene in RAS+ mm, after the whole patient has been turned (columns ``patient_axes``) and moved."""
        kinds, ops, parents, centres, zs, xs, params, table_of = zip(*self._prims, strict=True)
        parent = np.asarray(parents)
        axes = np.stack([a for a, _ in self.frames])[parent]
        origins = np.stack([o for _, o in self.frames])[parent]
        z = np.asarray(zs, float)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        x = np.asarray(xs, float)
        flat = np.abs((x * z).sum(1)) > 0.98 * np.linalg.norm(x, axis=1)
        x[flat] = np.where(np.abs(z[flat, 1:2]) > 0.7, [[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]])
        x -= (x * z).sum(1, keepdims=True) * z
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        turn = patient_axes @ axes @ np.stack([x, np.cross(z, x), z], axis=2)
        centre = np.einsum("nij,nj->ni", axes, np.asarray(centres, float)) + origins
        centre = centre @ patient_axes.T + patient_origin_mm
        back = turn.transpose(0, 2, 1)
        frames = np.concatenate([back, -np.einsum("nij,nj->ni", back, centre)[:, :, None]], axis=2)
        q, kind, tables = np.asarray(params, float), np.asarray(kinds), np.stack(self._tables)
        low, high = _bounds(kind, q, tables[np.asarray(table_of)[kind == TUBE]])
        metal = np.asarray(metal_mm, float).reshape(-1, 3) @ patient_axes.T + patient_origin_mm
        return Scene(
            np.asarray(self._groups, np.int64),
            np.asarray(self._looks, float),
            kind.astype(np.int64),
            np.asarray(ops, np.int64),
            frames,
            q,
            low,
            high,
            np.asarray(table_of, np.int64),
            tables,
            metal,
        )


def _bounds(kind: Int64, q: Float64, tables: Float64) -> tuple[Float64, Float64]:
    """Lower and upper corners (P, 3) of the primitives in their own coordinates; ``tables`` are the tubes' in order."""
    high = q[:, :3].copy()
    capsule, body, tube, plate = (kind == k for k in (CAPSULE, BODY, TUBE, PLATE))
    r = np.maximum(q[:, 1], q[:, 2])
    high[capsule] = np.stack([r * q[:, 3], r * q[:, 4], q[:, 0] + r], 1)[capsule]
    high[body] = np.stack([q[:, 0] * 1.02, q[:, 1] * 1.05, q[:, 4:7].max(1) * 0.62], 1)[body]
    low = -high
    vertices = q[:, :9].reshape(-1, 3, 3)
    low[plate] = (vertices.min(1) - q[:, 9:])[plate]
    high[plate] = (vertices.max(1) + q[:, 9:])[plate]
    inset = np.maximum(q[tube, 1:2], 0.0)
    centre, radius = tables[:, :, :2], tables[:, :, 2:4]
    low[tube] = np.concatenate([(centre - radius).min(1) - inset, -q[tube, :1]], 1)
    high[tube] = np.concatenate([(centre + radius).max(1) + inset, q[tube, :1]], 1)
    return low, high
