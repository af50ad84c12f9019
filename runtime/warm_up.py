"""What makes the first scan of a long-lived process as quick as those that follow."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline


def warm_up(pipeline: Pipeline) -> None:
    """Have libraries loaded and kernels compiled before the first scan: a block of bone in water goes through.

    Needs the extra ``dicom``.
    """
    import numpy as np

    import runtime.dicom.writer
    from runtime.overview import draw_overview
    from runtime.paste import paste_masks
    from runtime.resample import resample
    from runtime.volume import Grid, Volume

    edge = 48
    hu = np.random.default_rng(0).integers(-5, 6, (edge,) * 3).astype(np.int16)
    hu[edge // 3 : -edge // 3, edge // 3 : -edge // 3, edge // 3 : -edge // 3] += 400
    volume = Volume(hu, Grid(hu.shape, np.diag([2.0, 2.0, 2.0, 1.0])), "warm-up")
    analysis = pipeline.analyse(volume)
    coarse = volume.grid.affine_ras @ np.diag([1.5, 1.5, 1.5, 1.0])
    turned = Grid((edge // 2,) * 3, coarse[:, [1, 0, 2, 3]])
    resample(volume, turned)  # scans that don't lie along the patient's axes go through loops of their own
    mask = np.ones((edge // 2,) * 3, np.float32)
    masks = [(volume.grid.sub_grid([start] * 3, mask.shape), mask) for start in (0, edge // 4)]
    paste_masks(masks, turned, threshold=0.5)
    shear = np.eye(4)
    shear[2, 1] = 0.1
    oblique = Volume(hu, Grid(hu.shape, volume.grid.affine_ras @ shear), "warm-up")
    for one in (volume, oblique):
        draw_overview(one, analysis.labels, analysis.findings)
    with suppress(ModuleNotFoundError):  # documents need a package more than the other kinds
        import runtime.dicom.pdf  # noqa: F401
