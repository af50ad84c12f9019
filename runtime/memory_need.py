"""How much memory a scan will need at its peak, from its header alone: a bound that is known before any of it is taken.

Each stage keeps what it works on, so the peak is that of one stage. What grows with the scan is counted here exactly as
the stages take it; what doesn't (the networks' tensors, kernels and libraries that are loaded when they are first used)
is one constant, with room. See ``docs/decisions/0024-memory-limit.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime.bundle import BundleSpec, FracSegNetSpec, LocNetSpec
from runtime.memory import MIB
from runtime.pipeline import MOST_VERTEBRAE
from runtime.readers.checks import SLAB_VOXELS
from runtime.readers.options import ScanHeader
from runtime.resample import plan_resampling, working_grid
from runtime.volume import Grid
from runtime.windows import REMEMBERED_BYTES, plan_windows

RUN_BYTES = 500 * MIB
"""What a process takes beside its scans once it has run one: tensors of the engine, kernels, libraries, the picture."""
_FLOAT, _VOTE = 4, 4 + 8
"""Bytes of a value, and of a vote with its weight."""
_CONVERTED = 32
"""Bytes of a voxel that is converted while it is read: as stored, scaled, rounded and compared."""
_LOCATED = 14
"""Bytes of a voxel of the working grid beside its image: heatmap, bricks of votes, the first look at half the size."""
_VOTERS = 1 / 8
"""Share of the working grid's voxels that vote, at most; those of a whole spine are a hundredth."""
_NEAREST_MM = 12.0
"""Neighbouring vertebrae's centres are further apart along the patient, a child's too."""
_LOOK_COPIES = 5
"""Arrays as large as one vertebra's masks that a thread holds while it reads them."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a scan takes beside what the process has before, at most.

    Args:
        to_prepare: while it is read and brought to the working grid.
        to_finish: at the highest of all stages, from reading to writing.
    """

    to_prepare: int
    to_finish: int


def memory_need(header: ScanHeader, spec: BundleSpec, *, threads: int, writes_dicom: bool) -> MemoryNeed:
    """What a scan will need on an engine that runs on the processor; on a GPU it is less.

    Args:
        header: of the scan.
        spec: of the bundle that is run on it.
        threads: that vertebrae are read on.
        writes_dicom: whether DICOM objects are written too.
    """
    voxels = math.prod(header.grid.shape_zyx)
    volume = voxels * (2 if header.stays_int16 else 4)
    # What turns out not to fit is copied from int16 to float32, at the last slab in the worst case.
    reading = volume + (0 if header.stays_int16 else 2 * voxels) + header.reader_bytes + _slab_bytes(header)
    working = working_grid(header.grid, spec.locnet.spacing_mm)
    image = math.prod(working.shape_zyx) * _FLOAT
    to_prepare = max(reading, volume + image + _bytes_between(header.grid, working))
    vertebrae = min(MOST_VERTEBRAE, math.ceil(working.shape_zyx[0] * spec.locnet.spacing_mm / _NEAREST_MM))
    masks = _mask_bytes(spec.fracsegnet)
    found = vertebrae * _vertebra_bytes(spec.fracsegnet)
    stages = (
        to_prepare,
        volume + image + _bytes_to_locate(working, spec.locnet),
        volume + found + min(threads, vertebrae) * _LOOK_COPIES * masks,
        volume + found + voxels + 2 * voxels,  # labels, and in 16 bits how sure they are where masks lie
        volume + found + voxels + (4 * voxels if writes_dicom else 0),
    )
    return MemoryNeed(to_prepare, max(stages))


def _slab_bytes(header: ScanHeader) -> int:
    z, y, x = header.grid.shape_zyx
    return min(z * y * x, max(SLAB_VOXELS, y * x)) * _CONVERTED


def _bytes_between(source: Grid, working: Grid) -> int:
    """Of the averages that lie between a scan and its image on the working grid."""
    plan = plan_resampling(source, working)
    return 0 if plan is None or plan.is_identity else math.prod(plan.cells_zyx) * _FLOAT


def _bytes_to_locate(working: Grid, spec: LocNetSpec) -> int:
    """Beside the scan and its image: a slab of windows, outputs that are remembered, heatmap and votes."""
    z, y, x = working.shape_zyx
    outputs = 4 if spec.variant == "F" else 1
    slab = (1 + outputs) * min(z, spec.window_zyx[0]) * y * x * _FLOAT
    windows = len(plan_windows(working.shape_zyx, spec.window_zyx, spec.overlap).starts_zyx)
    remembered = min(REMEMBERED_BYTES, windows * outputs * math.prod(spec.window_zyx) * _FLOAT)
    votes = math.ceil(z * y * x * _VOTERS) * 2 * _VOTE  # slab by slab, and then together
    return slab + remembered + votes + z * y * x * _LOCATED


def _mask_bytes(spec: FracSegNetSpec) -> int:
    """Of one vertebra's masks before they are trimmed."""
    return len(spec.mask_channels) * math.prod(spec.crop_zyx) * _FLOAT * (8 if spec.interleaved else 1)


def _vertebra_bytes(spec: FracSegNetSpec) -> int:
    """Of what is kept of one vertebra: what the network said in each look, and its masks, trimmed to half or less."""
    looks = len(spec.mask_channels) * math.prod(spec.crop_zyx) * _FLOAT * (2 if spec.mirrored else 1)
    return looks + _mask_bytes(spec)
