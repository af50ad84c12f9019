"""Network inputs made from phantoms that no training run draws: for checks and calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from train.config import FracSegNetRun, LevelNetRun, LocNetRun
from train.level_task import LevelNetTask
from train.sources import PhantomSource
from train.tasks import FracSegNetTask, LocNetTask

_STREAM = 7_777_777


def window_images(run: LocNetRun, window_zyx: tuple[int, int, int], count: int) -> list[np.ndarray]:
    """LocNet windows (1, 1, z, y, x) float32, normalised, of the size that is deployed."""
    task, source = LocNetTask(replace(run, crop_shapes=(window_zyx,))), PhantomSource()
    return [task.batch(source, (_STREAM, 0, i), 1)["image"].numpy() for i in range(count)]


def crop_images(run: FracSegNetRun, count: int) -> list[np.ndarray]:
    """FracSegNet crops (1, 1, z, y, x) float32, normalised."""
    task, source = FracSegNetTask(run), PhantomSource()
    return [task.batch(source, (_STREAM, 1, i), 1)["image"].numpy() for i in range(count)]


def level_images(run: LevelNetRun, count: int) -> list[np.ndarray]:
    """LevelNet crops (1, 1, z, y, x) float32, normalised, each of another phantom."""
    task, source = LevelNetTask(replace(run, crops_per_scan=1)), PhantomSource()
    return [task.batch(source, (_STREAM, 2, i), 1)["image"].numpy() for i in range(count)]
