"""Scans on other grids, on the GPU; the twin of ``runtime.resample``."""

from __future__ import annotations

import numpy as np

from runtime.device.stream import DeviceArray, Stream
from runtime.resample import ResamplePlan, plan_resampling
from runtime.volume import Grid


def resample(scan: DeviceArray, source: Grid, target: Grid, on: Stream, *, fill_hu: float = -1024.0) -> DeviceArray:
    """The scan on another grid: (z, y, x) float32 HU, the same bits as ``runtime.resample.resample`` gives.

    Args:
        scan: (z, y, x) int16 or float32 HU.
        source: the scan's grid.
        target: any grid.
        on: the GPU.
        fill_hu: outside the scan.
    """
    out = on.empty(target.shape_zyx, np.float32)
    resample_into(out, scan, source, target, on, fill_hu=fill_hu)
    return out


def resample_into(
    out: DeviceArray, scan: DeviceArray, source: Grid, target: Grid, on: Stream, *, fill_hu: float = -1024.0
) -> None:
    """As :func:`resample`, written into ``out``."""
    from runtime.device.kernels.sampling import sample
    from runtime.device.kernels.windows import fill

    plan = plan_resampling(source, target)
    if plan is None:
        on.launch(fill, out.size, out.ravel(), np.float32(fill_hu))
        return
    values = _block(scan, plan) if plan.is_identity else _average(scan, plan, on)
    places = (on.upload(plan.matrix), on.upload(plan.low), on.upload(plan.high))
    on.launch(sample, out.size, values, *places, np.float32(fill_hu), out)


def _block(scan: DeviceArray, plan: ResamplePlan) -> DeviceArray:
    """The voxels of a plan that reduces nothing: a view."""
    z, y, x = (slice(int(axis.starts[0]), int(axis.starts[-1]) + 1) for axis in plan.axes)
    return scan[z, y, x]


def _average(scan: DeviceArray, plan: ResamplePlan, on: Stream) -> DeviceArray:
    """(z, y, x) float32: one value per cell of the plan."""
    from runtime.device.kernels.sampling import average

    cells = np.concatenate([np.stack([axis.starts, axis.counts], axis=1) for axis in plan.axes]).astype(np.int64)
    weights = np.zeros((len(cells), max(axis.weights.shape[1] for axis in plan.axes)), np.float32)
    first = 0
    for axis in plan.axes:
        weights[first : first + len(axis.weights), : axis.weights.shape[1]] = axis.weights
        first += len(axis.weights)
    out = on.empty(plan.cells_zyx, np.float32)
    on.launch(average, out.size, scan, on.upload(cells), on.upload(weights), out)
    return out
