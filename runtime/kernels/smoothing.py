"""Compiled loop of a recursive filter along one axis."""

from __future__ import annotations

import numpy as np

from runtime.kernels.jit import njit


@njit(cache=True, nogil=True)
def filter_rows(block, ahead, back, feed, out):  # type: ignore[no-untyped-def]
    """Filter along the middle axis: the sum of a recursion that runs up and one that runs down, in double precision.

    Beyond the ends the outer values go on, for which both recursions are in their steady state.

    Args:
        block: (lines, count, inner) float32.
        ahead: (4,) float64, weights of the values i, i - 1, i - 2, i - 3 in the recursion that runs up.
        back: (4,) float64, weights of the values i + 1, ..., i + 4 in the one that runs down.
        feed: (4,) float64, what each recursion's last four results are weighed with and taken away.
        out: (lines, count, inner) float32, written.
    """
    lines, count, inner = block.shape
    steady = 1.0 + feed[0] + feed[1] + feed[2] + feed[3]
    first = (ahead[0] + ahead[1] + ahead[2] + ahead[3]) / steady
    last = (back[0] + back[1] + back[2] + back[3]) / steady
    up, down = np.empty((count + 4, inner), np.float64), np.empty((count + 4, inner), np.float64)
    for line in range(lines):
        values = block[line]
        for i in range(4):
            for k in range(inner):
                up[i, k] = values[0, k] * first
                down[count + i, k] = values[count - 1, k] * last
        for i in range(count):
            x0, x1, x2, x3 = values[i], values[max(i - 1, 0)], values[max(i - 2, 0)], values[max(i - 3, 0)]
            s0, s1, s2, s3, s4 = up[i + 4], up[i + 3], up[i + 2], up[i + 1], up[i]
            for k in range(inner):
                s0[k] = (ahead[0] * x0[k] + ahead[1] * x1[k] + ahead[2] * x2[k] + ahead[3] * x3[k]) - (
                    feed[0] * s1[k] + feed[1] * s2[k] + feed[2] * s3[k] + feed[3] * s4[k]
                )
        end = count - 1
        for i in range(end, -1, -1):
            x1, x2 = values[min(i + 1, end)], values[min(i + 2, end)]
            x3, x4 = values[min(i + 3, end)], values[min(i + 4, end)]
            s0, s1, s2, s3, s4 = down[i], down[i + 1], down[i + 2], down[i + 3], down[i + 4]
            for k in range(inner):
                s0[k] = (back[0] * x1[k] + back[1] * x2[k] + back[2] * x3[k] + back[3] * x4[k]) - (
                    feed[0] * s1[k] + feed[1] * s2[k] + feed[2] * s3[k] + feed[3] * s4[k]
                )
            row, above = out[line, i], up[i + 4]
            for k in range(inner):
                row[k] = np.float32(above[k] + s0[k])
