"""Compiled loops of the curved views: grey values and vertebrae's masks on the pixels of a surface in the scan."""

from __future__ import annotations

import numpy as np

from runtime.kernels.jit import njit
from runtime.kernels.sampling import columns_around, interpolate, neighbours


@njit(cache=True, nogil=True)
def view_rows(  # type: ignore[no-untyped-def]
    array, labels, inverse, origin_ras_mm, along_mm, z_mm, columns_mm, is_sagittal, offsets_mm, outside, hu, masks,
    first_row, last_row,
):  # fmt: skip
    """Fill rows of a view: the mean of samples across it in ``hu``, and in ``masks`` where a label has half the weight.

    Args:
        array: (z, y, x) of the scan; beyond its edge the outer voxels go on.
        labels: (z, y, x) uint8.
        inverse: (3, 3) float64, from RAS+ mm beyond the origin to voxel steps x, y, z.
        origin_ras_mm: (3,) of the first voxel's centre.
        along_mm: (rows,) where the surface runs: x of a sagittal view, y of a coronal one.
        z_mm: (rows,) heights.
        columns_mm: (columns,) y of a sagittal view, x of a coronal one.
        is_sagittal: which of the two.
        offsets_mm: of the samples, across the view.
        outside: for pixels outside the scan.
        hu: (rows, columns) float32, written.
        masks: (labels, rows, columns) bool, zeros; plane 0 isn't used, and labels without a plane are left out.
        first_row: the first row to fill.
        last_row: one past the last.
    """
    samples = np.float32(offsets_mm.size)
    for row in range(first_row, last_row):
        for column in range(hu.shape[1]):
            x_mm = along_mm[row] if is_sagittal else columns_mm[column]
            y_mm = columns_mm[column] if is_sagittal else along_mm[row]
            z, y, x = _index(inverse, origin_ras_mm, x_mm, y_mm, z_mm[row])
            if not (_is_inside(z, array.shape[0]) and _is_inside(y, array.shape[1]) and _is_inside(x, array.shape[2])):
                hu[row, column] = outside
                continue
            _mark(labels, z, y, x, masks, row, column)
            total = np.float32(0)
            for offset in offsets_mm:
                shift_x, shift_y = (offset, 0.0) if is_sagittal else (0.0, offset)
                z, y, x = _index(inverse, origin_ras_mm, x_mm + shift_x, y_mm + shift_y, z_mm[row])
                total += interpolate(array, z, y, x)
            hu[row, column] = total / samples


@njit(cache=True, nogil=True)
def view_rows_aligned(  # type: ignore[no-untyped-def]
    array, labels, z_at, across_at, columns_at, offsets, outside, hu, masks, first_row, last_row
):
    """As ``view_rows`` but for rounding, for a scan whose axes run along the patient's.

    Along a row of the view only the last index changes then, so the samples across it are brought together voxel by
    voxel, before the pixels between these, of which there are several to a voxel.

    Args:
        array: (z, across, columns) of the scan, its axes in the order of the view's.
        labels: (z, across, columns) uint8.
        z_at: (rows,) index of each row.
        across_at: (rows,) index of the surface.
        columns_at: (columns,) index of each column.
        offsets: of the samples, across the view, voxels.
        outside, hu, masks, first_row, last_row: as ``view_rows``.
    """
    before, after, shares = columns_around(columns_at, array.shape[2])
    low, high = before.min(), after.max() + 1
    means = np.empty(array.shape[2], np.float32)
    is_met = np.empty(array.shape[2], np.bool_)
    one = np.float32(1)
    for row in range(first_row, last_row):
        z, across = z_at[row], across_at[row]
        if not (_is_inside(z, array.shape[0]) and _is_inside(across, array.shape[1])):
            hu[row, :] = outside
            continue
        _means_across(array, z, across, offsets, low, high, means)
        _labels_met(labels, z, across, low, high, is_met)
        for column in range(columns_at.size):
            if not _is_inside(columns_at[column], array.shape[2]):
                hu[row, column] = outside
                continue
            first, second, share = before[column], after[column], shares[column]
            hu[row, column] = (one - share) * means[first] + share * means[second]
            if is_met[first] or is_met[second]:
                _mark(labels, z, across, columns_at[column], masks, row, column)


@njit(cache=True, nogil=True)
def _means_across(array, z, across, offsets, low, high, means):  # type: ignore[no-untyped-def]
    """Fills ``means[low:high]``, along the last axis of ``array``, with the means of the samples across it."""
    z0, z1, fz = neighbours(z, array.shape[0])
    means[low:high] = 0
    one, part = np.float32(1), np.float32(1) / np.float32(offsets.size)
    for offset in offsets:
        a0, a1, fa = neighbours(across + offset, array.shape[1])
        w00, w01 = part * (one - fz) * (one - fa), part * (one - fz) * fa
        w10, w11 = part * fz * (one - fa), part * fz * fa
        for i in range(low, high):
            near = w00 * np.float32(array[z0, a0, i]) + w01 * np.float32(array[z0, a1, i])
            means[i] += near + (w10 * np.float32(array[z1, a0, i]) + w11 * np.float32(array[z1, a1, i]))


@njit(cache=True, nogil=True)
def _labels_met(labels, z, across, low, high, is_met):  # type: ignore[no-untyped-def]
    """Tells in ``is_met[low:high]`` where one of the four voxels around the row bears a label."""
    z0, z1, _ = neighbours(z, labels.shape[0])
    a0, a1, _ = neighbours(across, labels.shape[1])
    for i in range(low, high):
        is_met[i] = (labels[z0, a0, i] | labels[z0, a1, i] | labels[z1, a0, i] | labels[z1, a1, i]) != 0


@njit(cache=True, nogil=True)
def _index(inverse, origin_ras_mm, x_mm, y_mm, z_mm):  # type: ignore[no-untyped-def]
    """The fractional index (z, y, x) of a point."""
    x, y, z = x_mm - origin_ras_mm[0], y_mm - origin_ras_mm[1], z_mm - origin_ras_mm[2]
    return (
        inverse[2, 0] * x + inverse[2, 1] * y + inverse[2, 2] * z,
        inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2] * z,
        inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2] * z,
    )


@njit(cache=True, nogil=True)
def _is_inside(position, count):  # type: ignore[no-untyped-def]
    return -0.5 <= position <= count - 0.5


@njit(cache=True, nogil=True)
def _mark(labels, z, y, x, masks, row, column):  # type: ignore[no-untyped-def]
    """Mark the pixel in the masks of the labels that have at least half the weight of the voxels around the place."""
    z0, z1, fz = neighbours(z, labels.shape[0])
    y0, y1, fy = neighbours(y, labels.shape[1])
    x0, x1, fx = neighbours(x, labels.shape[2])
    met = (
        labels[z0, y0, x0], labels[z0, y0, x1], labels[z0, y1, x0], labels[z0, y1, x1],
        labels[z1, y0, x0], labels[z1, y0, x1], labels[z1, y1, x0], labels[z1, y1, x1],
    )  # fmt: skip
    if not (met[0] | met[1] | met[2] | met[3] | met[4] | met[5] | met[6] | met[7]):
        return
    one = np.float32(1)
    gz, gy, gx = one - fz, one - fy, one - fx
    weights = (
        gz * gy * gx, gz * gy * fx, gz * fy * gx, gz * fy * fx,
        fz * gy * gx, fz * gy * fx, fz * fy * gx, fz * fy * fx,
    )  # fmt: skip
    for label in met:
        if 0 < label < masks.shape[0] and not masks[label, row, column]:
            share = np.float32(0)
            for corner in range(8):
                if met[corner] == label:
                    share += weights[corner]
            if share >= 0.5:
                masks[label, row, column] = True
